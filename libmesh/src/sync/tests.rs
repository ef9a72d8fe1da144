use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::sync::broadcast;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::codec::{DigestEntry, Frame, Messages, PullRequest, Want};
use super::exchange::{self, Plan, Taken, answer, compare, digest};
use super::*;
use crate::catalog::log::Head;
use crate::catalog::testing::TestNode;
use crate::catalog::{Catalog, Origin};
use crate::member::{MemberEvent, MemberState};
use crate::model::{Instance, InstanceId, Liveness, NodeId, ServiceName};

fn take_in(catalog: &Catalog, messages: Vec<Bytes>) -> Taken {
    exchange::take_in(catalog, Origin::Anybody, messages)
}

/// Planes that call each other directly; links can be cut.
#[derive(Default)]
struct Net {
    planes: Mutex<HashMap<NodeId, Plane>>,
    cut: Mutex<HashSet<(NodeId, NodeId)>>,
    calls: Mutex<Vec<Call>>,
    /// Nodes of the first version.
    thin: Mutex<HashMap<NodeId, Catalog>>,
}

struct Call {
    from: NodeId,
    to: NodeId,
    call: SyncCall,
    body: Bytes,
}

struct Link {
    net: Arc<Net>,
    own: NodeId,
}

impl SyncTransport for Link {
    fn call(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, CallFailed>> {
        Box::pin(async move {
            let failed = |reason: &str| CallFailed {
                call,
                peer,
                unsupported: false,
                reason: reason.to_owned(),
            };
            if self.net.cut.lock().contains(&(self.own, peer.id)) {
                return Err(failed("cut"));
            }
            self.net.calls.lock().push(Call {
                from: self.own,
                to: peer.id,
                call,
                body: body.clone(),
            });
            assert!(body.len() <= FRAME_MAX);
            // One millisecond each way.
            tokio::time::sleep(Duration::from_millis(1)).await;
            let thin = self.net.thin.lock().get(&peer.id).cloned();
            if let Some(catalog) = thin {
                return match call {
                    SyncCall::Delta => {
                        let messages = Messages::decode(&body).unwrap().messages;
                        Ok(take_in(&catalog, messages).reply().encode())
                    }
                    SyncCall::Digest => Ok(exchange::handle_digest(&catalog, &body).unwrap()),
                    SyncCall::Pull => Ok(exchange::handle_pull(&catalog, &body).unwrap()),
                    _ => Err(CallFailed {
                        unsupported: true,
                        ..failed("404")
                    }),
                };
            }
            let plane = self
                .net
                .planes
                .lock()
                .get(&peer.id)
                .cloned()
                .ok_or_else(|| failed("unknown"))?;
            let reply = match call {
                SyncCall::Push => plane.handle_push(self.own, body).await,
                SyncCall::Heads => plane.handle_heads(self.own, body).await,
                SyncCall::Graft => plane.handle_graft(self.own, body).await,
                SyncCall::Compare => plane.handle_compare(body).await,
                SyncCall::Pull => plane.handle_pull(body).await,
                SyncCall::Delta => plane.handle_delta(self.own, body).await,
                SyncCall::Digest => plane.handle_digest(self.own, body).await,
            };
            tokio::time::sleep(Duration::from_millis(1)).await;
            let reply = reply.map_err(|error| failed(&error.to_string()))?;
            assert!(reply.len() <= FRAME_MAX);
            Ok(reply)
        })
    }
}

struct Running {
    node: TestNode,
    events: broadcast::Sender<MemberEvent>,
    /// What membership lists, for who missed events.
    present: Arc<Mutex<Vec<MemberState>>>,
    _stop: tokio_util::sync::DropGuard,
}

fn ip(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, n))
}

fn start(net: &Arc<Net>, n: u8) -> Running {
    let node = TestNode::new(&format!("node{n}"), ip(n));
    let link = Arc::new(Link {
        net: Arc::clone(net),
        own: node.id(),
    });
    let plane = Plane::new(node.catalog.clone(), link, Config::default());
    net.planes.lock().insert(node.id(), plane.clone());
    let (events, receiver) = broadcast::channel(64);
    let stop = CancellationToken::new();
    let present = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&present);
    let members = Members {
        events: receiver,
        list: Box::new(move || list.lock().clone()),
    };
    tokio::spawn(plane.run(members, stop.clone()));
    Running {
        node,
        events,
        present,
        _stop: stop.drop_guard(),
    }
}

impl Running {
    fn member(&self) -> Member {
        Member {
            id: self.node.id(),
            addr: SocketAddr::new(self.node.record.address, 8301),
            generation: 1,
        }
    }

    fn meets(&self, other: &Self) {
        self.events.send(MemberEvent::Up(other.member())).unwrap();
        other.events.send(MemberEvent::Up(self.member())).unwrap();
    }

    /// Waits until `name` has `count` instances here; how long that took.
    async fn sees(&self, name: &str, count: usize) -> Duration {
        let start = Instant::now();
        let watch = self
            .node
            .catalog
            .watch_service(&ServiceName::parse(name).unwrap());
        let wait = async {
            loop {
                let revision = watch.revision();
                if watch.view().map_or(0, |view| view.instances.len()) == count {
                    return;
                }
                watch.changed_after(revision).await;
            }
        };
        timeout(Duration::from_secs(60), wait)
            .await
            .expect("it never shows up");
        Instant::now() - start
    }
}

fn instance(name: &str, n: usize) -> Instance {
    let mut instance = Instance::new(ServiceName::parse(name).unwrap(), 80).unwrap();
    instance.id = InstanceId::parse(&format!("{name}-{n}")).unwrap();
    instance
}

#[tokio::test(start_paused = true)]
async fn a_first_change_is_seen_at_once_and_urgent_ones_never_wait() {
    let net = Arc::new(Net::default());
    let (a, b) = (start(&net, 1), start(&net, 2));
    a.meets(&b);
    a.node.local().put_service(instance("hello", 0)).unwrap();
    b.sees("hello", 1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    a.node.local().put_service(instance("web", 0)).unwrap();
    assert!(b.sees("web", 1).await <= Duration::from_millis(5));
    a.node.local().put_service(instance("web", 1)).unwrap();
    let batched = b.sees("web", 2).await;
    assert!(
        (Duration::from_millis(10)..Duration::from_millis(60)).contains(&batched),
        "{batched:?}"
    );
    a.node.local().put_service(instance("web", 2)).unwrap();
    a.node.local().remove_service(&instance("web", 0).id);
    assert!(b.sees("web", 2).await <= Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn many_changes_travel_in_few_calls() {
    let net = Arc::new(Net::default());
    let (a, b) = (start(&net, 1), start(&net, 2));
    a.meets(&b);
    a.node.local().put_service(instance("web", 0)).unwrap();
    b.sees("web", 1).await;
    let before = net.calls.lock().len();
    for n in 1..=1_000 {
        a.node.local().put_service(instance("web", n)).unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    b.sees("web", 1_001).await;
    let calls = net.calls.lock()[before..]
        .iter()
        .filter(|call| call.call == SyncCall::Push)
        .count();
    assert!(
        (4..=30).contains(&calls),
        "{calls} calls for 1,000 changes in a second"
    );
}

#[tokio::test(start_paused = true)]
async fn a_joiner_gets_everything_from_the_one_peer_it_reaches() {
    let net = Arc::new(Net::default());
    let (a, b, c) = (start(&net, 1), start(&net, 2), start(&net, 3));
    for pair in [(&a, &c), (&c, &a)] {
        net.cut.lock().insert((pair.0.node.id(), pair.1.node.id()));
    }
    a.node.local().put_service(instance("web", 0)).unwrap();
    a.meets(&b);
    b.sees("web", 1).await;
    c.meets(&a);
    c.meets(&b);
    c.sees("web", 1).await;
    a.node.local().put_service(instance("web", 1)).unwrap();
    assert!(
        c.sees("web", 2).await <= Duration::from_secs(15),
        "anti-entropy goes round the cut link"
    );
}

#[tokio::test(start_paused = true)]
async fn a_healed_link_brings_both_sides_up_to_date() {
    let net = Arc::new(Net::default());
    let (a, b) = (start(&net, 1), start(&net, 2));
    a.meets(&b);
    a.node.local().put_service(instance("web", 0)).unwrap();
    b.sees("web", 1).await;
    let both = [(a.node.id(), b.node.id()), (b.node.id(), a.node.id())];
    net.cut.lock().extend(both);
    a.node.local().remove_service(&instance("web", 0).id);
    a.node.local().put_service(instance("api", 0)).unwrap();
    b.node.local().put_service(instance("db", 0)).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(b.node.catalog.service("api").is_none() && b.node.catalog.service("web").is_some());
    net.cut.lock().clear();
    b.sees("api", 1).await;
    a.sees("db", 1).await;
    assert!(b.node.catalog.service("web").is_none());
}

#[tokio::test(start_paused = true)]
async fn liveness_follows_membership() {
    let net = Arc::new(Net::default());
    let (a, b) = (start(&net, 1), start(&net, 2));
    a.meets(&b);
    a.node.local().put_service(instance("web", 0)).unwrap();
    b.sees("web", 1).await;
    b.events.send(MemberEvent::Suspect(a.node.id())).unwrap();
    b.events.send(MemberEvent::Alive(a.node.id())).unwrap();
    b.events.send(MemberEvent::Down(a.node.id())).unwrap();
    b.sees("web", 0).await;
    assert_eq!(
        b.node.catalog.node("node1").unwrap().liveness,
        Liveness::Down
    );
    b.events.send(MemberEvent::Up(a.member())).unwrap();
    b.sees("web", 1).await;
}

#[tokio::test(start_paused = true)]
async fn missed_events_are_made_up_for() {
    let net = Arc::new(Net::default());
    let (a, b, c) = (start(&net, 1), start(&net, 2), start(&net, 3));
    b.meets(&a);
    a.node.local().put_service(instance("web", 0)).unwrap();
    c.node.local().put_service(instance("db", 0)).unwrap();
    b.sees("web", 1).await;
    b.present.lock().push(MemberState {
        member: c.member(),
        liveness: Liveness::Alive,
    });
    // More than the channel holds, all at once.
    for _ in 0..100 {
        let _ = b.events.send(MemberEvent::Alive(b.node.id()));
    }
    b.sees("db", 1).await;
    b.sees("web", 0).await;
}

#[tokio::test(start_paused = true)]
async fn one_signature_serves_the_whole_mesh_and_relays_do_not_wait() {
    let net = Arc::new(Net::default());
    let nodes: Vec<_> = (1..=30).map(|n| start(&net, n)).collect();
    for (n, a) in nodes.iter().enumerate() {
        for b in &nodes[n + 1..] {
            a.meets(b);
        }
    }
    let (a, others) = nodes.split_first().unwrap();
    for n in 0..5 {
        a.node.local().put_service(instance("web", n)).unwrap();
        for other in others {
            other.sees("web", n + 1).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    net.calls.lock().clear();
    a.node.local().put_service(instance("web", 5)).unwrap();
    let start = Instant::now();
    for other in others {
        other.sees("web", 6).await;
    }
    // A way takes a millisecond, the tree has a handful of them, and the soonest timer is at 40 ms.
    assert!(Instant::now() - start < Duration::from_millis(20));
    let calls = net.calls.lock();
    let pushes: Vec<_> = calls
        .iter()
        .filter(|call| call.call == SyncCall::Push)
        .collect();
    assert!((29..=40).contains(&pushes.len()), "{} pushes", pushes.len());
    assert!(pushes.iter().all(|push| push.body == pushes[0].body));
    let own = pushes
        .iter()
        .filter(|push| push.from == a.node.id())
        .count();
    // Which links the tree has is left to chance; without it the owner would send all 29.
    assert!(own <= 15, "{own} of them by the owner");
}

#[tokio::test(start_paused = true)]
async fn what_a_comparison_tells_makes_no_link() {
    let net = Arc::new(Net::default());
    let a = start(&net, 1);
    let peers: Vec<_> = (2..=30).map(|n| start(&net, n)).collect();
    for peer in &peers {
        a.events.send(MemberEvent::Up(peer.member())).unwrap();
    }
    // Links that were chosen while the mesh was small have gone by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let plane = net.planes.lock()[&a.node.id()].clone();
    let links = || plane.inner.shared.lock().tree.links().1;
    let chosen = links();
    assert!(chosen < 29, "{chosen}");
    let heads = |owner: &Running| vec![(owner.node.id(), owner.node.catalog.own_head())];
    for link in [false, true] {
        for peer in &peers {
            let heads = heads(peer);
            let body = codec::Heads { link, heads }.encode();
            plane.handle_heads(peer.node.id(), body).await.unwrap();
        }
        // Also when what was told of has been fetched.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(links(), if link { 29 } else { chosen });
    }
}

#[tokio::test(start_paused = true)]
async fn much_is_fetched_from_several_peers() {
    let net = Arc::new(Net::default());
    let peers: Vec<_> = (1..=4).map(|n| start(&net, n)).collect();
    let owners: Vec<_> = (0..200)
        .map(|n| {
            let node = TestNode::new(&format!("owner{n}"), ip(200));
            node.local().put_service(instance("web", n)).unwrap();
            peers
                .iter()
                .for_each(|peer| node.send_to(&peer.node.catalog));
            node
        })
        .collect();
    let joiner = start(&net, 5);
    let owners_alive = |catalog: &Catalog| {
        for owner in &owners {
            catalog.set_liveness(owner.id(), Liveness::Alive);
        }
    };
    owners_alive(&joiner.node.catalog);
    peers.iter().for_each(|peer| joiner.meets(peer));
    joiner.sees("web", 200).await;
    let calls = net.calls.lock();
    let pulls = calls
        .iter()
        .filter(|call| call.from == joiner.node.id() && call.call == SyncCall::Pull);
    let asked: HashSet<_> = pulls.map(|call| call.to).collect();
    assert_eq!(asked.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_peer_of_the_first_version_is_told_directly_and_believed() {
    let net = Arc::new(Net::default());
    let (a, b) = (start(&net, 1), start(&net, 2));
    let old = TestNode::new("old", ip(9));
    net.thin.lock().insert(old.id(), old.catalog.clone());
    a.meets(&b);
    let member = Member {
        id: old.id(),
        addr: SocketAddr::new(ip(9), 8301),
        generation: 1,
    };
    for new in [&a, &b] {
        new.events.send(MemberEvent::Up(member)).unwrap();
        old.catalog.set_liveness(new.node.id(), Liveness::Alive);
    }
    let watch = old
        .catalog
        .watch_service(&ServiceName::parse("web").unwrap());
    for n in 0..3 {
        let before = watch.revision();
        a.node.local().put_service(instance("web", n)).unwrap();
        let seen = timeout(Duration::from_secs(3), watch.changed_after(before));
        seen.await.expect("the old one is told");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(watch.view().unwrap().instances.len(), 3);

    // As the first version does: it tells everybody itself.
    old.local().put_service(instance("db", 0)).unwrap();
    let messages = old.catalog.messages_since(old.id(), Head::default());
    for new in [&a, &b] {
        let plane = net.planes.lock()[&new.node.id()].clone();
        let body = Messages {
            messages: messages.clone(),
            next: vec![],
        };
        let reply = plane.handle_delta(old.id(), body.encode()).await.unwrap();
        let reply = codec::DeltaReply::decode(&reply).unwrap();
        assert!(reply.wants.is_empty() && reply.rejected == 0);
        new.sees("db", 1).await;
    }
}

#[test]
fn a_log_longer_than_a_body_is_fetched_in_turns_while_it_changes() {
    let (a, b) = (TestNode::new("node1", ip(1)), TestNode::new("node2", ip(2)));
    for n in 0..4_000 {
        // No two have a tag in common: what they share, they would share in the message.
        let tags = (0..8).map(|tag| Arc::from(format!("{n}-{tag}{}", "x".repeat(240))));
        let big = Instance {
            tags: tags.collect(),
            ..instance("web", n)
        };
        a.local().put_service(big).unwrap();
    }
    let mut wants = compare(&b.catalog, &digest(&a.catalog, false).heads).wants;
    let mut turns = 0;
    while !wants.is_empty() {
        turns += 1;
        let request = PullRequest::decode(&PullRequest { wants }.encode()).unwrap();
        let reply = answer(&a.catalog, &request.wants).encode();
        assert!(reply.len() <= FRAME_MAX);
        let reply = Messages::decode(&reply).unwrap();
        take_in(&b.catalog, reply.messages);
        wants = reply.next;
        a.local().put_service(instance("other", turns)).unwrap();
    }
    assert!(turns >= 3, "{turns}");
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    assert_eq!(b.catalog.service("web").unwrap().instances.len(), 4_000);
    assert_eq!(
        b.catalog.service("other").unwrap().instances.len(),
        turns - 1
    );
}

#[test]
fn silent_divergence_is_found_and_mended() {
    let (a, b) = (TestNode::new("node1", ip(1)), TestNode::new("node2", ip(2)));
    a.local().put_service(instance("web", 0)).unwrap();
    a.send_to(&b.catalog);
    let mut theirs = digest(&a.catalog, true).heads;
    assert_eq!(compare(&b.catalog, &theirs), Plan::default());
    theirs[0].content = theirs[0].content.map(|content| content ^ 1);
    assert_eq!(compare(&b.catalog, &theirs).damaged, [a.id()]);
    b.catalog.distrust(&a.id());
    let want = Want {
        node: a.id(),
        have: Head::default(),
        skip: 0,
    };
    assert_eq!(
        compare(&b.catalog, &digest(&a.catalog, true).heads).wants,
        [want]
    );
    assert!(
        take_in(&b.catalog, answer(&a.catalog, &[want]).messages)
            .gaps
            .is_empty()
    );
    assert_eq!(
        compare(&b.catalog, &digest(&a.catalog, true).heads),
        Plan::default()
    );
}

#[test]
fn comparing_costs_hashes_where_all_is_equal_and_names_only_what_differs() {
    let owners: Vec<_> = (0..300)
        .map(|n| TestNode::new(&format!("owner{n}"), ip(200)))
        .collect();
    let (a, b) = (TestNode::new("node1", ip(1)), TestNode::new("node2", ip(2)));
    for node in [&a, &b] {
        owners.iter().for_each(|owner| owner.send_to(&node.catalog));
    }
    a.send_to(&b.catalog);
    b.send_to(&a.catalog);
    let compare_with = |content| {
        let ours = exchange::hashed(&a.catalog.heads(), content);
        assert!(ours.encode().len() < 400);
        let reply = exchange::handle_compare(&b.catalog, &ours.encode()).unwrap();
        let reply = codec::Differences::decode(&reply).unwrap();
        let ahead = exchange::ahead(&a.catalog.heads(), ours.buckets.len(), &reply);
        (reply, ahead)
    };
    for content in [false, true] {
        let (reply, ahead) = compare_with(content);
        assert!(reply.buckets.is_empty() && reply.heads.is_empty() && ahead.is_empty());
    }
    owners[0].local().put_service(instance("web", 0)).unwrap();
    owners[0].send_to(&b.catalog);
    owners[1].local().put_service(instance("web", 0)).unwrap();
    owners[1].send_to(&a.catalog);
    let (reply, ahead) = compare_with(false);
    assert!(reply.buckets.len() <= 2 && reply.heads.len() < 100);
    assert_eq!(ahead, [(owners[1].id(), owners[1].catalog.own_head())]);
    let wants: Vec<_> = compare(&a.catalog, &reply.heads).wants;
    assert_eq!(
        wants.iter().map(|want| want.node).collect::<Vec<_>>(),
        [owners[0].id()]
    );
}

#[test]
fn a_gap_is_answered_with_what_is_there() {
    let (a, b) = (TestNode::new("node1", ip(1)), TestNode::new("node2", ip(2)));
    a.send_to(&b.catalog);
    let have = a.catalog.own_head();
    a.local().put_service(instance("web", 0)).unwrap();
    let first = a.catalog.messages_since(a.id(), have);
    let middle = a.catalog.own_head();
    a.local().put_service(instance("web", 1)).unwrap();
    let second = a.catalog.messages_since(a.id(), middle);
    let reply = take_in(&b.catalog, second.clone()).reply();
    assert_eq!(
        reply.wants,
        [Want {
            node: a.id(),
            have,
            skip: 0
        }]
    );
    let reply = take_in(
        &b.catalog,
        [second, first, a.catalog.messages_since(a.id(), middle)].concat(),
    )
    .reply();
    assert!(reply.wants.is_empty() && reply.rejected == 0);
    b.catalog.set_liveness(a.id(), Liveness::Alive);
    assert_eq!(b.catalog.service("web").unwrap().instances.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_body_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        fuzz_frames(&bytes);
        fuzz_frames(&[&[1][..], &bytes].concat());
    }

    #[test]
    fn digests_round_trip(heads in prop::collection::vec((any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<Option<u128>>()), 0..20)) {
        let heads = heads
            .into_iter()
            .map(|(node, epoch, head, content)| DigestEntry { node: NodeId(node), at: Head { epoch, head }, content })
            .collect();
        let digest = codec::Digest { heads };
        prop_assert_eq!(codec::Digest::decode(&digest.encode()), Ok(digest));
    }
}

#[test]
fn bodies_are_bounded() {
    let long = Bytes::from(vec![1; FRAME_MAX + 1]);
    assert_eq!(
        Messages::decode(&long),
        Err(CodecError::Length(FRAME_MAX + 1))
    );
    // A count that promises more than there is allocates nothing to speak of.
    let liar = Bytes::from_static(&[1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert_eq!(PullRequest::decode(&liar), Err(CodecError::Body));
    let many = Messages {
        messages: vec![Bytes::new(); 65_537],
        next: vec![],
    };
    assert_eq!(
        Messages::decode(&many.encode()),
        Err(CodecError::Bounds("messages"))
    );
}
