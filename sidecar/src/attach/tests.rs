//! Server and client of the attach API together, over a real Unix socket.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, StatusCode};
use libmesh::bundle::Action;
use libmesh::identity::{Identity, SourceError};
use libmesh::model::{CheckRecord, Health, Instance, InstanceId};
use tempfile::TempDir;
use tokio_util::sync::DropGuard;

use super::callers::{AttachToken, Callers, Declaration};
use super::client::{AgentClient, AgentError};
use super::fake::{FakeAgent, serve_attach};
use super::host::AttachHost;
use super::wire::{AttachRequest, CheckSpec, EndpointWire, LEASE, decode_bundle};
use crate::http::Remote;
use crate::testing::name;

const DB_TOKEN: &str = "the token of the database's sidecar";

struct Rig {
    agent: Arc<FakeAgent>,
    dir: TempDir,
    _stop: DropGuard,
}

impl Rig {
    /// An agent that lets this process be `web` and `api`, and whoever has the token be `db`.
    fn start() -> Self {
        Self::with_lease(LEASE)
    }

    fn with_lease(lease: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let entry = |service, uids: &[u32], token: Option<&str>| Declaration {
            service: name(service),
            uids: uids.to_vec(),
            token: token.map(|token| AttachToken::new(token).unwrap()),
        };
        let callers = Callers::new(vec![
            entry("web", &[uid], None),
            entry("api", &[uid], None),
            entry("db", &[], Some(DB_TOKEN)),
        ]);
        let agent = Arc::new(FakeAgent::new(callers));
        let stop = serve_attach(&agent, &dir.path().join("mesh.sock"), lease);
        Self {
            agent,
            dir,
            _stop: stop,
        }
    }

    fn client(&self) -> AgentClient {
        AgentClient::new(&self.dir.path().join("mesh.sock"), None)
    }

    fn client_with_token(&self, token: &str) -> AgentClient {
        let file = self.dir.path().join("token");
        std::fs::write(&file, format!("{token}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        AgentClient::new(&self.dir.path().join("mesh.sock"), Some(file))
    }

    fn instance(&self, id: &str) -> Option<Arc<Instance>> {
        self.agent
            .catalog
            .local()
            .service(&InstanceId::parse(id).unwrap())
    }
}

fn request(service: &str) -> AttachRequest {
    AttachRequest {
        service: service.into(),
        instance: None,
        holder: "one".into(),
        port: 8080,
        mesh_port: Some(21000),
        address: None,
        tags: vec!["v1".into()],
        meta: Default::default(),
        version: Some("1".into()),
        checks: vec![CheckSpec::Tcp {
            address: ([127, 0, 0, 1], 8080).into(),
            interval: 1,
        }],
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, AgentError>) -> (u16, String) {
    match answer {
        Err(AgentError::Refused { status, detail }) => (status, detail),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn an_attached_sidecar_is_published_and_found() {
    let rig = Rig::start();
    let client = rig.client();
    let before = client
        .endpoints(&name("web"), None, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(before.endpoints, []);
    let waiting = {
        let client = client.clone();
        let index = before.index;
        tokio::spawn(async move {
            client
                .endpoints(&name("web"), Some(index), Duration::from_secs(60))
                .await
        })
    };
    let reply = client.attach(&request("web")).await.unwrap();
    assert_eq!(&*reply.instance, "web");
    let about = client.about().await.unwrap();
    assert_eq!(
        (&*about.node, &*about.trust_domain),
        ("node1", "attach.mesh")
    );
    assert_eq!(rig.agent.checks.lock().len(), 1);
    let found = waiting.await.unwrap().unwrap();
    let expected = EndpointWire {
        id: "node1/web".into(),
        address: ([127, 0, 0, 1], 21000).into(),
        weight: 1,
        version: Some("1".into()),
        distance: 0,
        suspect: false,
        service: None,
        part: 0,
    };
    assert_eq!(found.endpoints, [expected]);

    let critical = CheckRecord {
        id: "c".into(),
        name: "c".into(),
        service: Some(InstanceId::parse("web").unwrap()),
        status: Health::Critical,
        kind: "tcp".into(),
        notes: "".into(),
        create_stamp: 0,
        modify_stamp: 0,
    };
    rig.agent.catalog.local().put_check(critical).unwrap();
    let none = client
        .endpoints(&name("web"), Some(found.index), Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(
        none.endpoints,
        [],
        "an instance whose check fails gets no traffic"
    );

    client.detach("web", "one").await.unwrap();
    assert!(rig.instance("web").is_none());
}

#[tokio::test]
async fn a_sidecar_that_died_is_withdrawn_and_an_instance_of_others_stays() {
    let rig = Rig::with_lease(Duration::from_secs(1));
    let client = rig.client();
    let mut own = Instance::new(name("api"), 9090).unwrap();
    own.id = InstanceId::parse("api").unwrap();
    rig.agent.catalog.local().put_service(own).unwrap();
    client.attach(&request("web")).await.unwrap();
    client.attach(&request("api")).await.unwrap();
    assert_eq!(rig.instance("api").unwrap().mesh_port, Some(21000));
    assert_eq!(
        rig.instance("api").unwrap().port,
        9090,
        "what was registered is not the sidecar's to change"
    );
    client.detach("api", "somebody else").await.unwrap();
    assert_eq!(rig.instance("api").unwrap().mesh_port, Some(21000));
    client.detach("api", "one").await.unwrap();
    assert_eq!(rig.instance("api").unwrap().mesh_port, None);
    assert!(rig.instance("web").is_some());

    client.attach(&request("api")).await.unwrap();
    let mut changes = rig.agent.catalog.watch_all();
    let withdrawn = |id| {
        rig.instance(id)
            .is_none_or(|instance| instance.mesh_port.is_none())
    };
    while !(withdrawn("web") && withdrawn("api")) {
        let change = tokio::time::timeout(Duration::from_secs(30), changes.changed());
        change.await.expect("still published").unwrap();
    }
    assert!(rig.instance("web").is_none());
    assert!(rig.instance("api").is_some());
}

#[tokio::test]
async fn a_heartbeat_repairs_what_was_changed() {
    let rig = Rig::start();
    let client = rig.client();
    client.attach(&request("web")).await.unwrap();
    rig.agent
        .catalog
        .local()
        .remove_service(&InstanceId::parse("web").unwrap());
    client.attach(&request("web")).await.unwrap();
    assert_eq!(rig.instance("web").unwrap().mesh_port, Some(21000));
}

#[tokio::test]
async fn a_second_sidecar_for_the_same_instance_is_told_so() {
    let rig = Rig::start();
    let client = rig.client();
    client.attach(&request("web")).await.unwrap();
    let other = AttachRequest {
        holder: "two".into(),
        mesh_port: Some(21001),
        ..request("web")
    };
    let (status, detail) = refused(client.attach(&other).await);
    assert_eq!(status, 409);
    assert!(detail.contains("--instance"), "{detail}");
    assert_eq!(rig.instance("web").unwrap().mesh_port, Some(21000));
}

#[tokio::test]
async fn nobody_acts_as_a_service_that_is_not_its_own() {
    let rig = Rig::start();
    let as_db = |client: AgentClient| async move {
        let attached = refused(client.attach(&request("db")).await).0;
        let key = libmesh::identity::ServiceKey::generate().unwrap();
        let csr = libmesh::identity::SigningKeyPair::csr_der(&key).unwrap();
        let signed =
            libmesh::identity::CertificateSource::sign_service(&client, name("db"), csr, None)
                .await;
        assert!(matches!(signed, Err(SourceError::Refused(_))), "{signed:?}");
        attached
    };
    assert_eq!(as_db(rig.client()).await, 403);
    assert_eq!(
        as_db(rig.client_with_token("a token that is no service's")).await,
        403
    );
    let (_, detail) = refused(rig.client().attach(&request("db")).await);
    assert!(detail.contains("[[service]]"), "{detail}");
    rig.client_with_token(DB_TOKEN)
        .attach(&request("db"))
        .await
        .unwrap();
    assert!(
        refused(
            rig.client_with_token(DB_TOKEN)
                .attach(&request("web"))
                .await
        )
        .1
        .contains("not as web")
    );
    *rig.agent.callers.lock() = Arc::new(Callers::default());
    let (status, _) = refused(
        rig.client()
            .endpoints(&name("web"), None, Duration::ZERO)
            .await,
    );
    assert_eq!(
        status, 403,
        "a reload that takes the declaration away counts at once"
    );
}

#[tokio::test]
async fn an_open_token_file_is_not_used() {
    let rig = Rig::start();
    let client = rig.client_with_token(DB_TOKEN);
    let mode = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(rig.dir.path().join("token"), mode).unwrap();
    let error = client.attach(&request("db")).await.unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_obtained_through_the_socket() {
    let rig = Rig::start();
    let client = rig.client();
    let ttl = Some(Duration::from_secs(20));
    let identity = Identity::obtain(rig.agent.ca.trust(), &client, &name("web"), ttl)
        .await
        .unwrap();
    assert_eq!(identity.spiffe_id(), rig.agent.ca.spiffe("web"));
    let left = identity
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left <= Duration::from_secs(20), "{left:?}");
    rig.agent.sealed.send_replace(true);
    let subject = libmesh::identity::Subject::Service {
        name: name("web"),
        ttl,
    };
    let error = identity
        .renew(&client, &subject)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot answer now") && error.contains("sealed"),
        "{error}"
    );
}

#[tokio::test]
async fn the_bundle_is_followed() {
    let rig = Rig::start();
    let client = rig.client();
    assert_eq!(
        client.bundle(None, Duration::ZERO).await.unwrap().bundle,
        None
    );
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move {
            client
                .bundle(Some(0), Duration::from_secs(60))
                .await
                .unwrap()
        })
    };
    let signed = rig
        .agent
        .ca
        .sign_bundle(7, &[("web", "db", Action::Allow)], Action::Deny);
    rig.agent.bundles.offer(signed.clone()).await.unwrap();
    let bundle = waiting.await.unwrap();
    assert_eq!(bundle.index, 7);
    assert_eq!(decode_bundle(&bundle.bundle.unwrap()), Some(signed));
    let same = client
        .bundle(Some(7), Duration::from_millis(20))
        .await
        .unwrap();
    assert_eq!(same.index, 7);
}

#[tokio::test]
async fn vault_calls_go_on_with_the_callers_identity_and_without_its_attach_token() {
    let rig = Rig::start();
    let ask = || {
        Request::get("/v1/secret/data/a%2Fb?version=2")
            .header("x-vault-token", "t")
            .body(Bytes::new())
            .unwrap()
    };
    let answer = rig.client_with_token(DB_TOKEN).vault(ask()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    let expected = format!(
        "GET /v1/secret/data/a%2Fb?version=2 {} x-vault-token",
        rig.agent.ca.spiffe("db")
    );
    assert_eq!(answer.body(), &expected);

    let several = rig.client().vault(ask()).await.unwrap();
    assert_eq!(several.status(), StatusCode::FORBIDDEN, "web or api?");
    let chosen = rig
        .client()
        .speaking_as(name("api"))
        .vault(ask())
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(chosen.body()).contains("/svc/api"),
        "{chosen:?}"
    );
    let foreign = rig
        .client()
        .speaking_as(name("db"))
        .vault(ask())
        .await
        .unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn loopback_tcp_is_nobody_and_checks_stay_on_the_host() {
    let rig = Rig::start();
    let callers = rig.agent.callers();
    assert!(
        callers
            .identify(&Remote::Tcp(([127, 0, 0, 1], 1).into()), None)
            .is_err()
    );
    let elsewhere = CheckSpec::Http {
        address: ([10, 0, 0, 9], 80).into(),
        path: "/".into(),
        interval: 1,
    };
    let (status, detail) = refused(
        rig.client()
            .attach(&AttachRequest {
                checks: vec![elsewhere],
                ..request("web")
            })
            .await,
    );
    assert_eq!(status, 400);
    assert!(detail.contains("loopback"), "{detail}");
}
