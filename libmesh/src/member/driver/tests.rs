use std::net::SocketAddr;

use parking_lot::Mutex;

use super::super::stream::StreamFuture;
use super::*;
use crate::model::NodeId;

const LABEL: &[u8] = b"dc1.test";
const DEADLINE: Duration = Duration::from_secs(20);

/// Stream questions between the drivers of one test. An address that nobody serves refuses.
#[derive(Default)]
struct Exchange {
    members: Mutex<HashMap<SocketAddr, Membership>>,
}

struct Wire(Arc<Exchange>);

impl Wire {
    fn ask(&self, route: Route, to: Peer, body: Bytes) -> StreamFuture {
        let member = self.0.members.lock().get(&to.addr).cloned();
        Box::pin(async move {
            let Some(member) = member else {
                return StreamReply::Refused;
            };
            let answer = match route {
                Route::Ping => member.answer_ping(body).await,
                Route::Sync => member.answer_sync(body).await,
            };
            match answer {
                Ok(body) => StreamReply::Acked(body),
                Err(AnswerError::Gone(_)) => StreamReply::Refused,
                Err(_) => StreamReply::Timeout,
            }
        })
    }
}

impl StreamTransport for Wire {
    fn ping(&self, to: Peer, body: Bytes, _: Duration) -> StreamFuture {
        self.ask(Route::Ping, to, body)
    }

    fn sync(&self, to: Peer, body: Bytes, _: Duration) -> StreamFuture {
        self.ask(Route::Sync, to, body)
    }
}

struct Cluster {
    exchange: Arc<Exchange>,
    keyring: Keyring,
}

impl Cluster {
    fn new() -> Self {
        Self {
            exchange: Arc::default(),
            keyring: Keyring::generate().unwrap(),
        }
    }

    async fn start(&self, number: u8, generation: u64, seeds: &[SocketAddr]) -> Membership {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let mut config = Config::lan(NodeId([number; 16]), addr, generation);
        config.seeds = seeds.to_vec();
        let wire = Arc::new(Wire(Arc::clone(&self.exchange)));
        let member = Driver::spawn(&config, self.keyring.clone(), LABEL, socket, wire).unwrap();
        self.exchange.members.lock().insert(addr, member.clone());
        member
    }

    /// `count` members that know each other.
    async fn of(count: u8) -> (Self, Vec<Membership>) {
        let cluster = Self::new();
        let mut members: Vec<Membership> = Vec::new();
        for number in 1..=count {
            let seeds: Vec<_> = members
                .first()
                .map(|seed| seed.local().addr)
                .into_iter()
                .collect();
            members.push(cluster.start(number, 1, &seeds).await);
        }
        for member in &members {
            wait(member, |states| alive(states) == usize::from(count) - 1).await;
        }
        (cluster, members)
    }
}

fn alive(states: &[MemberState]) -> usize {
    states
        .iter()
        .filter(|state| state.liveness == Liveness::Alive)
        .count()
}

async fn wait(member: &Membership, done: impl Fn(&[MemberState]) -> bool) {
    let mut events = member.events();
    let reached = tokio::time::timeout(DEADLINE, async {
        while !done(&member.members()) {
            events.recv().await.expect("the driver ended");
        }
    });
    assert!(reached.await.is_ok(), "not reached: {:?}", member.members());
}

async fn wait_for(counter: impl Fn() -> u64, at_least: u64) {
    let reached = tokio::time::timeout(DEADLINE, async {
        while counter() < at_least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(reached.await.is_ok(), "the counter stays at {}", counter());
}

#[tokio::test]
async fn members_join_leave_and_are_told_from_the_failed() {
    let (cluster, members) = Cluster::of(4).await;
    let [first, second, third, fourth] = &members[..] else {
        unreachable!()
    };

    let mut events = first.events();
    fourth.leave().await;
    fourth.leave().await;
    let left = tokio::time::timeout(DEADLINE, events.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(left, MemberEvent::Left(fourth.local().id));
    assert_eq!(
        first.member(fourth.local().id).unwrap().liveness,
        Liveness::Left
    );
    assert!(fourth.push_pull_state().await.is_err(), "it has left");

    // Nothing listens at its address any more, and two members see it.
    let killed = third.local();
    cluster.exchange.members.lock().remove(&killed.addr);
    let start = Instant::now();
    third.stop().await;
    wait(second, |states| {
        states
            .iter()
            .any(|state| state.member == killed && state.liveness == Liveness::Down)
    })
    .await;
    let took = Instant::now() - start;
    assert!(
        took < Duration::from_secs(4),
        "a killed process was seen after {took:?}"
    );

    // The same node again, elsewhere.
    let again = cluster.start(3, 2, &[first.local().addr]).await;
    wait(second, |states| {
        states.iter().any(|state| state.member == again.local())
    })
    .await;
}

#[tokio::test]
async fn a_stopped_process_takes_a_higher_generation_and_its_candidates_with_it() {
    let (cluster, members) = Cluster::of(3).await;
    let candidates = super::super::decode_candidates(&members[0].candidates().await.unwrap());
    assert_eq!(candidates.len(), 2);
    let stopped = members[0].local();
    cluster.exchange.members.lock().remove(&stopped.addr);
    members[0].stop().await;

    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::lan(stopped.id, socket.local_addr().unwrap(), 2);
    config.candidates = candidates;
    let wire = Arc::new(Wire(Arc::clone(&cluster.exchange)));
    let again = Driver::spawn(&config, cluster.keyring.clone(), LABEL, socket, wire).unwrap();
    assert_eq!(again.members(), [], "candidates are not believed");
    wait(&again, |states| alive(states) == 2).await;
    wait(&members[1], |states| {
        states.iter().any(|state| state.member == again.local())
    })
    .await;
}

#[tokio::test]
async fn datagrams_that_do_not_belong_are_counted_and_dropped() {
    let cluster = Cluster::new();
    let member = cluster.start(1, 1, &[]).await;
    let to = member.local().addr;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();

    let mut foreign = Vec::new();
    Sealer::new(Keyring::generate().unwrap(), LABEL)
        .unwrap()
        .seal(b"x", &mut foreign)
        .unwrap();
    let mut elsewhere = Vec::new();
    Sealer::new(cluster.keyring.clone(), b"dc2")
        .unwrap()
        .seal(b"x", &mut elsewhere)
        .unwrap();
    let mut nonsense = Vec::new();
    Sealer::new(cluster.keyring.clone(), LABEL)
        .unwrap()
        .seal(b"nonsense", &mut nonsense)
        .unwrap();
    for datagram in [
        &foreign[..],
        &elsewhere,
        &nonsense,
        &nonsense,
        &vec![1; MAX_DATAGRAM + 100],
        b"",
        b"short",
    ] {
        stranger.send_to(datagram, to).await.unwrap();
    }
    let counters = member.counters();
    wait_for(|| counters.datagrams_received.load(Ordering::Relaxed), 7).await;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&counters.dropped_unknown_key), 1);
    assert_eq!(count(&counters.dropped_not_authentic), 1);
    assert_eq!(count(&counters.dropped_replayed), 1);
    assert_eq!(count(&counters.dropped_oversized), 1);
    assert_eq!(
        count(&counters.dropped_malformed),
        3,
        "nonsense inside, nothing, and too short"
    );
    assert_eq!(member.members(), []);
}

#[tokio::test]
async fn members_with_another_key_do_not_meet_and_a_rotation_is_not_noticed() {
    let (cluster, members) = Cluster::of(2).await;
    let old = cluster.keyring.ids()[0];
    let new = cluster
        .keyring
        .install(&Keyring::new_key().unwrap())
        .unwrap();
    cluster.keyring.use_key(new).unwrap();
    cluster.keyring.remove(old).unwrap();
    let before = members[0]
        .counters()
        .datagrams_received
        .load(Ordering::Relaxed);
    wait_for(
        || {
            members[0]
                .counters()
                .datagrams_received
                .load(Ordering::Relaxed)
        },
        before + 6,
    )
    .await;
    assert_eq!(members[0].counters().suspicions.load(Ordering::Relaxed), 0);

    let foreign = Cluster::new();
    let stranger = foreign.start(9, 1, &[members[0].local().addr]).await;
    wait_for(
        || {
            members[0]
                .counters()
                .dropped_unknown_key
                .load(Ordering::Relaxed)
        },
        2,
    )
    .await;
    assert_eq!(stranger.members(), []);
    assert_eq!(members[0].members().len(), 1);
}

#[tokio::test]
async fn the_handle_answers_streams_and_ends_with_its_last_clone() {
    let (cluster, members) = Cluster::of(2).await;
    assert!(matches!(
        members[0]
            .answer_ping(Bytes::from_static(b"nonsense"))
            .await,
        Err(AnswerError::Malformed(_))
    ));
    assert!(matches!(
        members[0].apply_push_pull(&[]).await,
        Err(AnswerError::Malformed(_))
    ));
    let state = members[0].push_pull_state().await.unwrap();
    members[1].apply_push_pull(&state).await.unwrap();
    assert!(
        members[0]
            .counters()
            .snapshot()
            .iter()
            .any(|(name, value)| *name == "datagrams_sent" && *value > 0)
    );

    let mut events = members[0].events();
    cluster.exchange.members.lock().clear();
    drop(members);
    let ended = tokio::time::timeout(DEADLINE, async { while events.recv().await.is_ok() {} });
    assert!(ended.await.is_ok(), "the task goes on without a handle");
}
