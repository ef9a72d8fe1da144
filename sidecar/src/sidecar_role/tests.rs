//! Whole sidecars beside an agent that lives in the test.

use std::path::PathBuf;
use std::time::SystemTime;

use libmesh::bundle::Action;
use libmesh::catalog::Catalog;
use libmesh::model::{InstanceId, ServiceName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::DropGuard;

use super::*;
use crate::attach::callers::{Callers, Declaration};
use crate::attach::fake::{FakeAgent, serve_attach};
use crate::attach::wire::LEASE;
use crate::testing::name;

const LONG: Duration = Duration::from_secs(20);

struct Host {
    dir: TempDir,
    agent: Arc<FakeAgent>,
    serving: Option<DropGuard>,
}

struct Running {
    addresses: Addresses,
    stop: CancellationToken,
    ended: JoinHandle<Result<(), SidecarError>>,
}

impl Host {
    /// An agent on which this process may be `web` and `db`, and `web` may call `db`.
    async fn start() -> Self {
        let uid = nix::unistd::getuid().as_raw();
        let entry = |service| Declaration {
            service: name(service),
            uids: vec![uid],
            token: None,
        };
        let agent = Arc::new(FakeAgent::new(Callers::new(vec![
            entry("web"),
            entry("db"),
        ])));
        let signed = agent
            .ca
            .sign_bundle(1, &[("web", "db", Action::Allow)], Action::Deny);
        agent.bundles.offer(signed).await.unwrap();
        let mut host = Self {
            dir: tempfile::tempdir().unwrap(),
            agent,
            serving: None,
        };
        host.serve();
        host
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("mesh.sock")
    }

    fn serve(&mut self) {
        self.serving = Some(serve_attach(&self.agent, &self.socket(), LEASE));
    }

    /// The agent ends, as far as sidecars can see.
    async fn go_away(&mut self) {
        self.serving = None;
        let socket = self.socket();
        until(|| !socket.exists()).await;
    }

    fn settings(&self, service: &str) -> Settings {
        Settings {
            workers: Some(1),
            ..Settings::new(name(service), self.socket())
        }
    }

    fn db(&self, application: &TcpListener) -> Settings {
        let listen = ([127, 0, 0, 1], 0).into();
        let inbound = Inbound {
            listen,
            application: application.local_addr().unwrap(),
        };
        Settings {
            inbound: Some(inbound),
            drain: Duration::from_secs(1),
            ..self.settings("db")
        }
    }

    fn web(&self) -> Settings {
        let admin = Some(([127, 0, 0, 1], 0).into());
        Settings {
            upstreams: vec!["db=127.0.0.1:0".parse().unwrap()],
            admin,
            ..self.settings("web")
        }
    }

    async fn run(&self, settings: Settings) -> Running {
        let stop = CancellationToken::new();
        let (told, addresses) = tokio::sync::oneshot::channel();
        let ended = tokio::spawn(run(
            settings,
            stop.clone(),
            CancellationToken::new(),
            |addresses| {
                told.send(addresses.clone()).unwrap();
            },
        ));
        let addresses = timeout(LONG, addresses)
            .await
            .expect("it does not start")
            .expect("it ended");
        Running {
            addresses,
            stop,
            ended,
        }
    }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        timeout(LONG, self.ended)
            .await
            .expect("it does not end")
            .unwrap()
            .unwrap();
    }
}

async fn until(done: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn mesh_port(catalog: &Catalog, instance: &str) -> Option<u16> {
    catalog
        .local()
        .service(&InstanceId::parse(instance).unwrap())?
        .mesh_port
}

/// One question and answer through the sidecars, on a connection of its own.
async fn ask(upstream: SocketAddr, application: &TcpListener) -> std::io::Result<()> {
    let mut client = TcpStream::connect(upstream).await?;
    client.write_all(b"?").await?;
    let answering = async {
        let (mut server, _) = application.accept().await?;
        assert_eq!(server.read_u8().await?, b'?');
        server.write_all(b"!").await
    };
    tokio::select! {
        // Refused before it reaches the application.
        refused = client.read_u8() => return refused.map(|_| ()),
        answered = answering => answered?,
    }
    assert_eq!(client.read_u8().await?, b'!');
    Ok(())
}

async fn ask_until_answered(upstream: SocketAddr, application: &TcpListener) {
    let deadline = Instant::now() + LONG;
    while let Err(error) = ask(upstream, application).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn get(addr: SocketAddr, path: &str) -> (u16, serde_json::Value) {
    let target = http::client::Target::parse(&addr.to_string(), 80, None).unwrap();
    let request = ::http::Request::get(path)
        .body(bytes::Bytes::new())
        .unwrap();
    let answer = target.send(request, LONG).await.unwrap();
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap_or_default(),
    )
}

#[tokio::test]
async fn two_sidecars_carry_a_call_and_leave_in_order() {
    let host = Host::start().await;
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let db = host.run(host.db(&application)).await;
    let web = host.run(host.web()).await;
    let upstream = web.addresses.upstreams[0];
    ask_until_answered(upstream, &application).await;
    assert_eq!(
        mesh_port(&host.agent.catalog, "db"),
        Some(db.addresses.inbound.unwrap().port())
    );

    let admin = web.addresses.admin.unwrap();
    // The call has been answered; its connection may still be about to end.
    let deadline = Instant::now() + LONG;
    let line = loop {
        let connections = get(admin, "/connections").await.1;
        let ended = connections["recent"]
            .as_array()
            .unwrap()
            .iter()
            .find(|line| line["outcome"] == "closed");
        match ended {
            Some(line) => break line.clone(),
            None => assert!(Instant::now() < deadline, "{connections}"),
        }
    };
    assert_eq!(line["local"], host.agent.ca.spiffe("web").to_string());
    assert_eq!(line["peer"], host.agent.ca.spiffe("db").to_string());
    let deadline = Instant::now() + LONG;
    while get(admin, "/health/ready").await.0 != 200 {
        assert!(Instant::now() < deadline, "not ready");
    }
    assert_eq!(get(admin, "/identity").await.1["spiffe_id"], line["local"]);

    let mut held = TcpStream::connect(upstream).await.unwrap();
    let (mut server, _) = application.accept().await.unwrap();
    db.stop.cancel();
    until(|| mesh_port(&host.agent.catalog, "db").is_none()).await;
    held.write_all(b"still").await.unwrap();
    let mut word = [0; 5];
    server.read_exact(&mut word).await.unwrap();
    drop((held, server));
    db.end().await;
    web.end().await;
}

#[tokio::test]
async fn an_agent_that_restarts_is_not_noticed_by_traffic() {
    let mut host = Host::start().await;
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let db = host.run(host.db(&application)).await;
    let web = host.run(host.web()).await;
    let upstream = web.addresses.upstreams[0];
    ask_until_answered(upstream, &application).await;
    let port = mesh_port(&host.agent.catalog, "db");

    host.go_away().await;
    ask(upstream, &application).await.unwrap();
    // It comes back knowing nothing: what sidecars published has to be told again, and until then
    // "there is no instance" is not believed.
    host.agent
        .catalog
        .local()
        .remove_service(&InstanceId::parse("db").unwrap());
    host.serve();
    let deadline = Instant::now() + LONG;
    while mesh_port(&host.agent.catalog, "db") != port {
        ask(upstream, &application).await.unwrap();
        assert!(Instant::now() < deadline, "not attached again");
    }
    ask(upstream, &application).await.unwrap();
    let signed = host.agent.ca.sign_bundle(2, &[], Action::Deny);
    host.agent.bundles.offer(signed).await.unwrap();
    let deadline = Instant::now() + LONG;
    while ask(upstream, &application).await.is_ok() {
        assert!(
            Instant::now() < deadline,
            "the new configuration does not arrive"
        );
    }
    web.end().await;
    db.end().await;
}

#[tokio::test]
async fn short_certificates_are_renewed_while_it_runs() {
    let host = Host::start().await;
    let application = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ttl = Some(Duration::from_secs(2));
    let db = host
        .run(Settings {
            leaf_ttl: ttl,
            ..host.db(&application)
        })
        .await;
    let web = host
        .run(Settings {
            leaf_ttl: ttl,
            ..host.web()
        })
        .await;
    let admin = web.addresses.admin.unwrap();
    let upstream = web.addresses.upstreams[0];
    ask_until_answered(upstream, &application).await;
    let mut seen = std::collections::BTreeSet::new();
    let first_expiry = SystemTime::now() + Duration::from_secs(2);
    let deadline = Instant::now() + LONG;
    while seen.len() < 3 || SystemTime::now() < first_expiry {
        seen.insert(
            get(admin, "/identity").await.1["serial"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
        ask(upstream, &application).await.unwrap();
        assert!(Instant::now() < deadline, "certificates seen: {seen:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    web.end().await;
    db.end().await;
}

#[tokio::test]
async fn a_caller_that_is_not_declared_is_told_and_ends() {
    let host = Host::start().await;
    let settings = Settings {
        service: ServiceName::parse("bank").unwrap(),
        ..host.web()
    };
    let ended = run(
        settings,
        CancellationToken::new(),
        CancellationToken::new(),
        |_| (),
    )
    .await;
    let error = ended.unwrap_err();
    assert!(error.is_denied(), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let host = Host::start().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let upstreams = vec![Upstream {
        service: name("db"),
        listen: addr,
    }];
    let settings = Settings {
        upstreams,
        ..host.web()
    };
    let ended = run(
        settings,
        CancellationToken::new(),
        CancellationToken::new(),
        |_| (),
    )
    .await;
    let error = ended.unwrap_err().to_string();
    assert!(error.contains(&addr.to_string()), "{error}");
}
