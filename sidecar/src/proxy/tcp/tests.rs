//! Two proxies, real sockets, real TLS, an authority in memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libmesh::bundle::{Action, BundleStore};
use libmesh::connect::{Acceptor, Balancer, Connector, Endpoint};
use libmesh::identity::{Identity, Subject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

use super::super::connections::Report;
use super::super::listen::bind;
use super::*;
use crate::testing::{TestCa, name};

const LONG: Duration = Duration::from_secs(20);

/// `web` behind one proxy calls `db` behind another.
struct Pair {
    ca: TestCa,
    bundles: BundleStore,
    index: u64,
    web: Identity,
    db: Identity,
    caller: Proxy,
    callee: Proxy,
    balancer: Balancer,
    /// Where web's application dials.
    upstream: SocketAddr,
    /// Where db's application listens.
    application: TcpListener,
    mesh_port: SocketAddr,
}

impl Pair {
    async fn start(limits: Limits) -> Self {
        let ca = TestCa::new("pair.mesh");
        let (web, db) = (ca.identity("web").await, ca.identity("db").await);
        Self::start_as(limits, ca, web, db).await
    }

    /// With `db` being whatever identity is given for it.
    async fn start_as(limits: Limits, ca: TestCa, web: Identity, db: Identity) -> Self {
        // Each end has its own trust, so one store for both is enforced on the caller's; the callee asks it too.
        let bundles = ca.bundles(web.trust());
        bundles
            .offer(ca.sign_bundle(1, &[("web", "db", Action::Allow)], Action::Deny))
            .await
            .unwrap();
        let workers = Arc::new(Workers::start(2).unwrap());
        let (caller, callee) = (
            Proxy::new(workers.clone(), limits.clone()),
            Proxy::new(workers, limits),
        );
        let application = TcpListener::bind("127.0.0.1:0").await.unwrap();

        let inbound = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let mesh_port = inbound.local_addr().unwrap();
        let acceptor = Acceptor::new(db.clone(), bundles.clone(), name("db"));
        callee.inbound(
            inbound,
            acceptor,
            db.spiffe_id(),
            application.local_addr().unwrap(),
        );

        let balancer = Balancer::new();
        balancer.set(vec![endpoint(mesh_port)]);
        let outbound = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let upstream = outbound.local_addr().unwrap();
        let connector = Connector::new(web.clone(), bundles.clone(), name("db"), balancer.clone());
        caller.outbound(outbound, connector, web.spiffe_id(), name("db"));
        Self {
            ca,
            bundles,
            index: 1,
            web,
            db,
            caller,
            callee,
            balancer,
            upstream,
            application,
            mesh_port,
        }
    }

    /// A connection from web's application to db's, once both proxies carry it: both ends.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let open = || {
            self.caller
                .connections()
                .open_count()
                .min(self.callee.connections().open_count())
        };
        let before = open();
        let (client, server) =
            tokio::join!(TcpStream::connect(self.upstream), self.application.accept());
        until(|| open() > before).await;
        (client.unwrap(), server.unwrap().0)
    }

    async fn intentions(&mut self, rules: &[(&str, &str, Action)]) {
        self.index += 1;
        self.bundles
            .offer(self.ca.sign_bundle(self.index, rules, Action::Deny))
            .await
            .unwrap();
    }

    /// The last refused or ended connection of a proxy, once there is one.
    async fn last(proxy: &Proxy) -> Report {
        let recent = || proxy.connections().snapshot().recent;
        until(|| !recent().is_empty()).await;
        recent().swap_remove(0)
    }
}

/// Calls, and is turned away with a reset.
async fn turned_away(upstream: SocketAddr) {
    // The reset may be there before the connect has been looked at.
    if let Ok(mut client) = TcpStream::connect(upstream).await {
        drained(&mut client).await.unwrap_err();
    }
}

/// Waits for what other threads bring about.
async fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        tokio::task::yield_now().await;
    }
}

fn endpoint(addr: SocketAddr) -> Endpoint {
    Endpoint {
        id: "node1/db".into(),
        addr,
        service: name("db"),
        version: None,
        weight: 1,
        distance: 0,
        suspect: false,
        part: 0,
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(step).collect()
}

/// What reading to the end brings: the bytes, or the error that came instead.
async fn drained(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    timeout(LONG, stream.read_to_end(&mut all))
        .await
        .expect("the connection hangs")
        .map(|_| all)
}

#[tokio::test]
async fn big_transfers_arrive_intact_both_ways_at_once_and_are_counted() {
    let pair = Pair::start(Limits::default()).await;
    let (client, server) = pair.connect().await;
    let (up, down) = (pattern(9_000_001, 1), pattern(7_000_003, 2));
    let exchange = |stream: TcpStream, data: Vec<u8>| async move {
        let (mut read, mut write) = stream.into_split();
        let sending = tokio::spawn(async move {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        timeout(LONG, read.read_to_end(&mut got))
            .await
            .unwrap()
            .unwrap();
        sending.await.unwrap();
        got
    };
    let (at_client, at_server) =
        tokio::join!(exchange(client, down.clone()), exchange(server, up.clone()));
    assert!(at_client == up && at_server == down, "bytes differ");
    let report = Pair::last(&pair.callee).await;
    assert_eq!(report.outcome.as_deref(), Some("closed"));
    assert_eq!(
        (report.bytes_sent, report.bytes_received),
        (down.len() as u64, up.len() as u64)
    );
    assert_eq!(*report.local, *pair.ca.spiffe("db").to_string());
    assert_eq!(
        report.peer.as_deref(),
        Some(&*pair.ca.spiffe("web").to_string())
    );
    assert_eq!(report.peer_serial.as_deref(), Some(&*pair.web.serial()));
    assert!(report.peer_not_after.is_some());
}

#[tokio::test]
async fn half_close_is_kept_through_both_proxies() {
    let pair = Pair::start(Limits::default()).await;
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(drained(&mut server).await.unwrap(), b"question");
    server
        .write_all(b"answer, after the question ended")
        .await
        .unwrap();
    drop(server);
    assert_eq!(
        drained(&mut client).await.unwrap(),
        b"answer, after the question ended"
    );
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_the_sender() {
    let pair = Pair::start(Limits::default()).await;
    let (client, mut server) = pair.connect().await;
    // What the sockets on the way take is the system's; it must come to a stop by itself.
    let piece = pattern(1 << 20, 3);
    let mut sent = 0_u64;
    let most = 256_u64 << 20;
    while let Ok(writable) = timeout(Duration::from_millis(500), client.writable()).await {
        writable.unwrap();
        match client.try_write(&piece) {
            Ok(n) => sent += n as u64,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(sent < most, "nothing stops the sender");
    }
    drop(client);
    let mut received = 0_u64;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match timeout(LONG, server.read(&mut buffer))
            .await
            .unwrap()
            .unwrap()
        {
            0 => break,
            n => received += n as u64,
        }
    }
    assert_eq!(received, sent);
}

#[tokio::test]
async fn a_cut_transfer_is_a_reset_and_not_an_end() {
    let pair = Pair::start(Limits::default()).await;
    let (mut client, server) = pair.connect().await;
    server.set_zero_linger().unwrap();
    drop(server);
    let error = drained(&mut client).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn taking_the_intention_away_closes_what_is_open_and_refuses_what_is_new() {
    let mut pair = Pair::start(Limits::default()).await;
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"x").await.unwrap();
    server.read_u8().await.unwrap();
    pair.intentions(&[]).await;
    drained(&mut client).await.unwrap_err();
    assert!(!matches!(drained(&mut server).await, Ok(bytes) if !bytes.is_empty()));
    let ended = Pair::last(&pair.caller).await;
    let outcome = ended.outcome.unwrap();
    assert!(
        outcome.contains("no longer allowed") || outcome.contains("the other sidecar"),
        "{outcome}"
    );

    turned_away(pair.upstream).await;
    let report = Pair::last(&pair.caller).await;
    assert_eq!(report.refused, Some(Refusal::Intention));
    assert!(report.outcome.unwrap().contains("web may not call db"));
    assert_eq!(
        pair.caller
            .connections()
            .snapshot()
            .totals
            .outbound
            .refused
            .get("intention"),
        Some(&1)
    );

    pair.intentions(&[("*", "db", Action::Allow)]).await;
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"y").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'y');
}

/// A caller whose own side does not ask is still refused by the callee, who learns its identity.
#[tokio::test]
async fn the_callee_refuses_on_its_own() {
    let pair = Pair::start(Limits::default()).await;
    let shop = pair.ca.identity("shop").await;
    let lenient = pair.ca.bundles(shop.trust());
    lenient
        .offer(pair.ca.sign_bundle(1, &[], Action::Allow))
        .await
        .unwrap();
    let connector = Connector::new(shop.clone(), lenient, name("db"), pair.balancer.clone());
    let outbound = bind(([127, 0, 0, 1], 0).into()).unwrap();
    let upstream = outbound.local_addr().unwrap();
    let proxy = Proxy::new(Arc::new(Workers::start(1).unwrap()), Limits::default());
    proxy.outbound(outbound, connector, shop.spiffe_id(), name("db"));
    turned_away(upstream).await;
    let report = Pair::last(&pair.callee).await;
    assert_eq!(report.refused, Some(Refusal::Intention));
    assert_eq!(
        report.peer.as_deref(),
        Some(&*pair.ca.spiffe("shop").to_string())
    );
}

#[tokio::test]
async fn renewal_does_not_touch_open_connections_and_new_ones_show_it() {
    let pair = Pair::start(Limits::default()).await;
    let (mut client, mut server) = pair.connect().await;
    let old = pair.db.serial();
    let subject = Subject::Service {
        name: name("db"),
        ttl: None,
    };
    pair.db.renew(&pair.ca, &subject).await.unwrap();
    client.write_all(b"still here").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(drained(&mut server).await.unwrap(), b"still here");
    let (_client, _server) = pair.connect().await;
    let serials: Vec<_> = pair
        .caller
        .connections()
        .snapshot()
        .open
        .into_iter()
        .collect();
    let serials: Vec<_> = serials
        .iter()
        .map(|r| r.peer_serial.as_deref().unwrap().to_owned())
        .collect();
    assert_eq!(serials, [old, pair.db.serial()]);
}

#[tokio::test]
async fn another_service_behind_the_endpoint_is_refused() {
    let ca = TestCa::new("pair.mesh");
    let (web, impostor) = (ca.identity("web").await, ca.identity("cache").await);
    let pair = Pair::start_as(Limits::default(), ca, web, impostor).await;
    turned_away(pair.upstream).await;
    let report = Pair::last(&pair.caller).await;
    assert_eq!(report.refused, Some(Refusal::Unreachable));
    let outcome = report.outcome.unwrap();
    assert!(
        outcome.contains("/svc/cache answers there, not db"),
        "{outcome}"
    );
}

#[tokio::test]
async fn another_mesh_and_plain_tcp_are_refused() {
    let pair = Pair::start(Limits::default()).await;
    let mut plain = TcpStream::connect(pair.mesh_port).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // An alert or a reset; in no case an answer of the application.
    if let Ok(bytes) = drained(&mut plain).await {
        assert!(!bytes.starts_with(b"HTTP"));
    }
    assert_eq!(
        Pair::last(&pair.callee).await.refused,
        Some(Refusal::Handshake)
    );
}

#[tokio::test]
async fn no_endpoint_and_no_application_are_told_apart() {
    let pair = Pair::start(Limits::default()).await;
    pair.balancer.set(Vec::new());
    turned_away(pair.upstream).await;
    assert_eq!(
        Pair::last(&pair.caller).await.refused,
        Some(Refusal::NoInstance)
    );

    pair.balancer.set(vec![endpoint(pair.mesh_port)]);
    drop(pair.application);
    turned_away(pair.upstream).await;
    let report = Pair::last(&pair.callee).await;
    assert_eq!(report.refused, Some(Refusal::Application));
    assert_eq!(
        report.peer.as_deref(),
        Some(&*pair.ca.spiffe("web").to_string())
    );
}

#[tokio::test]
async fn more_connections_than_allowed_are_refused_and_room_comes_back() {
    let pair = Pair::start(Limits {
        connections: 1,
        ..Limits::default()
    })
    .await;
    let (first, first_server) = pair.connect().await;
    turned_away(pair.upstream).await;
    assert_eq!(Pair::last(&pair.caller).await.refused, Some(Refusal::Limit));
    drop((first, first_server));
    let open = |proxy: &Proxy| proxy.connections().open_count();
    until(|| open(&pair.caller) + open(&pair.callee) == 0).await;
    let (mut client, mut server) = pair.connect().await;
    client.write_all(b"z").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'z');
}

#[tokio::test]
async fn quiet_connections_are_closed_and_busy_ones_are_not() {
    let idle = Duration::from_millis(400);
    let pair = Pair::start(Limits {
        idle: Some(idle),
        ..Limits::default()
    })
    .await;
    let (mut busy, mut busy_server) = pair.connect().await;
    let (mut quiet, _quiet_server) = pair.connect().await;
    let mut closed = tokio::spawn(async move { drained(&mut quiet).await.is_err() });
    let was_closed = loop {
        busy.write_all(b".").await.unwrap();
        busy_server.read_u8().await.unwrap();
        match timeout(idle / 8, &mut closed).await {
            Ok(closed) => break closed.unwrap(),
            Err(_) => continue,
        }
    };
    assert!(was_closed);
    let report = Pair::last(&pair.caller).await;
    assert!(
        report.outcome.as_deref() == Some("idle for 400ms")
            || report.outcome.unwrap().contains("sidecar")
    );
}

#[tokio::test]
async fn draining_lets_the_open_finish_takes_no_new_and_cuts_what_stays() {
    let pair = Pair::start(Limits::default()).await;
    let (mut client, mut server) = pair.connect().await;
    let (mut stuck, _stuck_server) = pair.connect().await;
    let caller = pair.caller.clone();
    let draining = tokio::spawn(async move { caller.drain(Duration::from_millis(600)).await });
    // Nobody listens there any more when somebody else can.
    until(|| bind(pair.upstream).is_ok()).await;
    client.write_all(b"finished").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(drained(&mut server).await.unwrap(), b"finished");
    drop(server);
    assert_eq!(drained(&mut client).await.unwrap(), b"");
    drained(&mut stuck).await.unwrap_err();
    assert_eq!(draining.await.unwrap(), 1);
    let snapshot = pair.caller.connections().snapshot();
    assert_eq!(
        (snapshot.totals.outbound.cut, snapshot.totals.outbound.open),
        (1, 0)
    );
}
