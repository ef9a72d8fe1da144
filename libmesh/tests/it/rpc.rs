//! Calls between nodes: who gets through, what is bounded, how connections end.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use libmesh::{
    identity::{Identity, PublishRights, Revoked, ServiceKey, SigningKeyPair},
    model::NodeName,
    rpc::{Client, Limits, Reply, Router, RpcError, Server, Target},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::ca::TestCa;

const SOON: Duration = Duration::from_secs(5);

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    async fn start(identity: &Identity, router: Router, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let task =
            tokio::spawn(Server::new(identity.clone(), router, limits).run(listener, stop.clone()));
        Self { addr, stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn echo() -> Router {
    Router::new().route("/echo", 1024, |request| async move {
        let head = format!("{} {} ", request.peer.node, request.query);
        Reply::ok([head.as_bytes(), &request.body].concat())
    })
}

#[tokio::test]
async fn a_call_carries_the_callers_identity_and_errors_carry_the_reason() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all().with_server());
    let (_, caller) = ca.node("n2", PublishRights::all());
    let running = Running::start(&server, echo(), Limits::default()).await;
    let client = Client::new(caller);
    let n1 = Target::node(running.addr, NodeName::parse("n1").unwrap());

    let answer = client
        .call(&n1, "/echo?a=b", Bytes::from_static(b"hello"), SOON)
        .await
        .unwrap();
    assert_eq!(&answer[..], b"n2 a=b hello");
    let answer = client
        .call(&Target::server(running.addr), "/echo", Bytes::new(), SOON)
        .await
        .unwrap();
    assert_eq!(&answer[..], b"n2  ");

    let error = client
        .call(&n1, "/other", Bytes::new(), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND));
    let error = client
        .call(&n1, "/join", Bytes::new(), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::NOT_FOUND));
    let error = client
        .call(&n1, "/echo", vec![0; 1025].into(), SOON)
        .await
        .unwrap_err();
    assert_eq!(
        error.status(),
        Some(StatusCode::PAYLOAD_TOO_LARGE),
        "{error}"
    );

    let wrong = Target::node(running.addr, NodeName::parse("n3").unwrap());
    assert!(matches!(
        client.call(&wrong, "/echo", Bytes::new(), SOON).await,
        Err(RpcError::WrongPeer { .. })
    ));
    let addr = running.addr;
    running.end().await;
    assert!(
        matches!(client.call(&n1, "/echo", Bytes::new(), SOON).await, Err(RpcError::Refused { addr: a }) if a == addr)
    );
}

#[tokio::test]
async fn only_servers_answer_where_a_server_is_wanted() {
    let ca = TestCa::new("ours.mesh");
    let (_, pretender) = ca.node("n1", PublishRights::all());
    let running = Running::start(&pretender, echo(), Limits::default()).await;
    let client = Client::new(ca.node("n2", PublishRights::all()).1);
    let error = client
        .call(&Target::server(running.addr), "/echo", Bytes::new(), SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::WrongPeer { .. }), "{error}");
    running.end().await;
}

#[tokio::test]
async fn strangers_and_services_are_no_callers() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let running = Running::start(&server, echo(), Limits::default()).await;
    let target = Target::any(running.addr);

    // Another authority, same trust domain: neither end accepts the other.
    let stranger = Client::new(TestCa::new("ours.mesh").node("n2", PublishRights::all()).1);
    let error = stranger
        .call(&target, "/echo", Bytes::new(), SOON)
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::Handshake { .. }), "{error}");
    assert!(error.to_string().contains("not trusted"), "{error}");

    // A stranger who believes us is refused by the server.
    let theirs = TestCa::new("ours.mesh");
    let (key, id) = (ServiceKey::generate().unwrap(), theirs.service_id("web"));
    let issued = theirs.sign_for(&key.csr_der().unwrap(), &id, None, SOON);
    let trust = theirs.trust();
    let believer = Identity::new(trust.clone(), issued.chain, &key).unwrap();
    trust.set_bundle(ca.bundle()).unwrap();
    assert!(
        Client::new(believer)
            .call(&target, "/echo", Bytes::new(), SOON)
            .await
            .is_err()
    );

    // A service of the mesh has an identity, but no business here.
    let service = Client::new(ca.service(&ca.trust(), "web"));
    assert!(
        service
            .call(&target, "/echo", Bytes::new(), SOON)
            .await
            .is_err()
    );
    running.end().await;
}

#[tokio::test]
async fn deadlines_hold_and_running_calls_are_finished_at_the_end() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let (entered, mut calls) = mpsc::unbounded_channel();
    let router = Router::new().route("/slow", 16, move |_| {
        let entered = entered.clone();
        async move {
            entered.send(()).unwrap();
            tokio::time::sleep(Duration::from_millis(600)).await;
            Reply::ok("done")
        }
    });
    let running = Running::start(&server, router, Limits::default()).await;
    let client = Client::new(ca.node("n2", PublishRights::all()).1);
    let target = Target::any(running.addr);
    let error = client
        .call(&target, "/slow", Bytes::new(), Duration::from_millis(100))
        .await
        .unwrap_err();
    assert!(matches!(error, RpcError::TimedOut { .. }), "{error}");
    calls.recv().await.unwrap();

    let call = tokio::spawn({
        let client = client.clone();
        async move { client.call(&target, "/slow", Bytes::new(), SOON).await }
    });
    calls.recv().await.unwrap();
    running.end().await;
    assert_eq!(&call.await.unwrap().unwrap()[..], b"done");
}

#[tokio::test]
async fn a_revoked_peer_loses_its_open_connection_and_gets_no_new_one() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let (entered, mut calls) = mpsc::unbounded_channel();
    let router = echo().route("/wait", 16, move |_| {
        entered.send(()).unwrap();
        std::future::pending()
    });
    let running = Running::start(&server, router, Limits::default()).await;
    let (_, caller) = ca.node("n2", PublishRights::all());
    let client = Client::new(caller.clone());
    let target = Target::any(running.addr);
    let call = tokio::spawn({
        let (client, target) = (client.clone(), target.clone());
        async move {
            client
                .call(&target, "/wait", Bytes::new(), Duration::from_secs(20))
                .await
        }
    });
    calls.recv().await.unwrap();
    let began = SystemTime::now();
    server.trust().set_revoked(Revoked {
        serials: [caller.serial()].into(),
        ..Revoked::default()
    });
    assert!(matches!(call.await.unwrap(), Err(RpcError::Closed { .. })));
    assert!(began.elapsed().unwrap() < SOON);
    assert!(
        client
            .call(&target, "/echo", Bytes::new(), SOON)
            .await
            .is_err()
    );
    running.end().await;
}

#[tokio::test]
async fn a_kept_connection_is_replaced_after_the_server_came_back() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let running = Running::start(&server, echo(), Limits::default()).await;
    let client = Client::new(ca.node("n2", PublishRights::all()).1);
    let target = Target::any(running.addr);
    client
        .call(&target, "/echo", Bytes::new(), SOON)
        .await
        .unwrap();
    running.end().await;
    let listener = TcpListener::bind(target.addr).await.unwrap();
    let stop = CancellationToken::new();
    let task =
        tokio::spawn(Server::new(server, echo(), Limits::default()).run(listener, stop.clone()));
    client
        .call(&target, "/echo", Bytes::new(), SOON)
        .await
        .unwrap();
    stop.cancel();
    task.await.unwrap();
}
