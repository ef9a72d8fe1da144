//! Calls between nodes: who gets through, what is bounded, how connections end.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use libmesh::{
    identity::{Identity, PublishRights, Revoked, ServiceKey, SigningKeyPair},
    model::NodeName,
    rpc::{Client, Limits, Reply, Router, RpcError, Server, Target},
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
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

/// A caller without a certificate that believes whoever answers, and speaks `alpn`.
async fn anonymous(
    addr: SocketAddr,
    alpn: &[u8],
    path: &str,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::IpAddress(addr.ip().into());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("https://{addr}{path}"))
        .body(Full::new(Bytes::from_static(b"hi")))?;
    let status = sender
        .send_request(request)
        .await
        .map(|response| response.status());
    drop(sender);
    connection.abort();
    Ok(status?)
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::HandshakeNotComplete)
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
        ]
    }
}

#[tokio::test]
async fn without_a_certificate_only_the_join_is_reached() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let router = echo().join(16, |_| async { Reply::ok("come in") });
    let running = Running::start(&server, router, Limits::default()).await;
    let addr = running.addr;
    assert_eq!(
        anonymous(addr, b"mesh-join/1", "/join").await.unwrap(),
        StatusCode::OK
    );
    assert_eq!(
        anonymous(addr, b"mesh-join/1", "/echo").await.unwrap(),
        StatusCode::NOT_FOUND
    );
    assert!(anonymous(addr, b"mesh/1", "/join").await.is_err());
    assert!(anonymous(addr, b"mesh/1", "/echo").await.is_err());
    assert!(anonymous(addr, b"h2", "/join").await.is_err());
    running.end().await;

    // A node that admits nobody does not speak the protocol at all.
    let running = Running::start(&server, echo(), Limits::default()).await;
    assert!(
        anonymous(running.addr, b"mesh-join/1", "/join")
            .await
            .is_err()
    );
    running.end().await;
}

#[tokio::test]
async fn who_says_nothing_is_hung_up_on_and_too_many_are_not_served() {
    let ca = TestCa::new("ours.mesh");
    let (_, server) = ca.node("n1", PublishRights::all());
    let limits = Limits {
        handshake: Duration::from_millis(200),
        connections: 2,
        ..Limits::default()
    };
    let running = Running::start(&server, echo(), limits).await;
    let mut silent = TcpStream::connect(running.addr).await.unwrap();
    let hung_up = timeout(SOON, silent.read(&mut [0; 1]))
        .await
        .expect("a silent caller keeps its connection");
    assert!(matches!(hung_up, Ok(0) | Err(_)));

    let client = |name: &str| Client::new(ca.node(name, PublishRights::all()).1);
    let target = Target::any(running.addr);
    let (first, second, third) = (client("c1"), client("c2"), client("c3"));
    first
        .call(&target, "/echo", Bytes::new(), SOON)
        .await
        .unwrap();
    second
        .call(&target, "/echo", Bytes::new(), SOON)
        .await
        .unwrap();
    assert!(
        third
            .call(&target, "/echo", Bytes::new(), SOON)
            .await
            .is_err()
    );
    drop(first);
    let freed = async {
        while third
            .call(&target, "/echo", Bytes::new(), SOON)
            .await
            .is_err()
        {}
    };
    timeout(SOON, freed)
        .await
        .expect("a closed connection makes no room");
    running.end().await;
}
