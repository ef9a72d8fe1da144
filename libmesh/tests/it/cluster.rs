//! A mesh in one process: a server whose authority is the test's, and agents that join it with a token.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use libmesh::{
    bundle::{Action, Intention, Revocation, SignedBundle},
    identity::{
        CertificateSource, Issued, NodeKey, PublishRights, SIGN_NODE_PATH, SIGN_SERVICE_PATH,
        SignRequest, SigningKeyPair, SourceError, SpiffeId,
    },
    join::{JoinReply, JoinRequest, JoinToken, NodeCredentials, SERVER_PATH},
    member::Keyring,
    mesh::{Config, Credentials, Mesh, MeshError},
    model::{Datacenter, Instance, NodeName, Roles, ServiceName},
    rpc::{Reply, Request, Router},
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::{
    ca::{TestCa, TestSource},
    connect::Signer,
};

pub const SOON: Duration = Duration::from_secs(15);

pub fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

pub fn instance(service: &str, port: u16, mesh_port: Option<u16>) -> Instance {
    Instance {
        mesh_port,
        ..Instance::new(name(service), port).unwrap()
    }
}

/// Waits until `met`, or fails after fifteen seconds.
pub async fn until(what: &str, mut met: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !met() {
        assert!(Instant::now() < began + SOON, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Instant::now() - began
}

/// What the server's routes work with.
pub struct Authority {
    pub ca: Arc<TestCa>,
    pub source: Arc<TestSource>,
    pub token: JoinToken,
    pub rights: Mutex<PublishRights>,
    /// What joiners are answered instead, if anything.
    pub refusal: Mutex<Option<(StatusCode, &'static str)>>,
    keyring: Keyring,
    signer: Mutex<Signer>,
    newest: Mutex<SignedBundle>,
    addr: OnceLock<SocketAddr>,
}

pub struct Cluster {
    pub authority: Arc<Authority>,
    pub server: Mesh,
}

impl Cluster {
    /// A server called `server`; services get certificates that live for `life`.
    pub async fn start(life: Duration) -> Self {
        let ca = TestCa::new("test.mesh");
        let ca_hash = ca.bundle().hashes().next().unwrap();
        let rights = PublishRights::all().with_server();
        let source = ca.source("server", rights.clone(), life);
        let mut signer = Signer::new(&ca);
        let newest = Mutex::new(signer.allow([]));
        let authority = Arc::new(Authority {
            token: JoinToken::generate(ca_hash).unwrap(),
            rights: Mutex::new(PublishRights::all()),
            refusal: Mutex::default(),
            keyring: Keyring::generate().unwrap(),
            signer: Mutex::new(signer),
            newest,
            addr: OnceLock::new(),
            source: source.clone(),
            ca,
        });
        let key = NodeKey::generate().unwrap();
        let id = SpiffeId::node(authority.ca.domain(), &NodeName::parse("server").unwrap());
        let hour = Duration::from_secs(3600);
        let issued = authority
            .ca
            .sign_for(&key.csr_der().unwrap(), &id, Some(rights), hour);
        let credentials = NodeCredentials {
            key,
            name: NodeName::parse("server").unwrap(),
            datacenter: Datacenter::default(),
            trust_domain: authority.ca.domain().clone(),
            chain: issued.chain,
            bundle: issued.bundle,
            keyring: authority.keyring.clone(),
            seeds: vec![],
            config: Some(authority.newest.lock().clone()),
        };
        let server = Mesh::start(Config {
            bind: "127.0.0.1:0".parse().unwrap(),
            roles: Roles { server: true },
            routes: routes(&authority),
            certificates: Some(source),
            ..Config::new(
                credentials.name.clone(),
                Credentials::Given(Box::new(credentials)),
            )
        });
        let server = server.await.unwrap();
        authority.addr.set(server.addr()).unwrap();
        Self { authority, server }
    }

    pub fn config(&self, node: &str, directory: &Path) -> Config {
        Config {
            bind: "127.0.0.1:0".parse().unwrap(),
            directory: Some(directory.to_owned()),
            seeds: vec![self.server.addr().into()],
            join_patience: Duration::ZERO,
            ..Config::new(
                NodeName::parse(node).unwrap(),
                Credentials::Join(self.authority.token.clone()),
            )
        }
    }

    /// An agent that joins with the token, or comes back with what `directory` keeps.
    pub async fn agent(&self, node: &str, directory: &Path) -> Result<Mesh, MeshError> {
        Mesh::start(self.config(node, directory)).await
    }

    /// Allows exactly these calls, as the server's next config bundle says.
    pub async fn allow(&self, pairs: &[(&str, &str)]) {
        let rule = |(source, destination): &(&str, &str)| Intention {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            action: Action::Allow,
        };
        let signed = self.authority.signer.lock().allow(pairs.iter().map(rule));
        self.publish(signed).await;
    }

    /// Revokes exactly these, as the server's next config bundle says.
    pub async fn revoke(&self, revoked: impl IntoIterator<Item = Revocation>) {
        let signed = {
            let mut signer = self.authority.signer.lock();
            signer.bundle.revoked = revoked.into_iter().collect();
            signer.next()
        };
        self.publish(signed).await;
    }

    async fn publish(&self, signed: SignedBundle) {
        *self.authority.newest.lock() = signed.clone();
        self.server.bundle().offer(signed).await.unwrap();
    }
}

fn routes(authority: &Arc<Authority>) -> Router {
    let (join, node, service) = (authority.clone(), authority.clone(), authority.clone());
    Router::new()
        .route(SERVER_PATH, 1 << 16, move |request| {
            let authority = join.clone();
            async move { authority.join(&request) }
        })
        .route(SIGN_NODE_PATH, 1 << 16, move |request| {
            let authority = node.clone();
            async move {
                let ask = SignRequest::decode(&request.body).unwrap();
                let rights = Some(request.peer.rights);
                let hour = Duration::from_secs(3600);
                reply(Ok(authority.ca.sign_for(
                    &ask.csr,
                    &request.peer.spiffe,
                    rights,
                    hour,
                )))
            }
        })
        .route(SIGN_SERVICE_PATH, 1 << 16, move |request| {
            let authority = service.clone();
            async move {
                let ask = SignRequest::decode(&request.body).unwrap();
                let service = ask.service.unwrap();
                match request.peer.rights.allows(&service) {
                    true => reply(
                        authority
                            .source
                            .sign_service(service, ask.csr, ask.ttl)
                            .await,
                    ),
                    false => {
                        Reply::error(StatusCode::FORBIDDEN, "not among what the node may publish")
                    }
                }
            }
        })
}

fn reply(issued: Result<Issued, SourceError>) -> Reply {
    match issued {
        Ok(issued) => Reply::ok(issued.encode()),
        Err(error) => Reply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

impl Authority {
    fn join(&self, request: &Request) -> Reply {
        let Some(ask) = JoinRequest::decode(&request.body) else {
            return Reply::error(StatusCode::BAD_REQUEST, "malformed");
        };
        if let Some((status, message)) = *self.refusal.lock() {
            return Reply::error(status, message);
        }
        if (&ask.token, &ask.secret) != (&self.token.id(), self.token.secret()) {
            return Reply::error(StatusCode::FORBIDDEN, "no such token");
        }
        let id = SpiffeId::node(self.ca.domain(), &ask.node);
        let rights = Some(self.rights.lock().clone());
        let issued = self
            .ca
            .sign_for(&ask.csr, &id, rights, Duration::from_secs(3600));
        let reply = JoinReply {
            chain: issued.chain,
            bundle: issued.bundle,
            datacenter: Datacenter::default(),
            keyring: self.keyring.to_bytes().to_vec(),
            seeds: vec![*self.addr.get().unwrap()],
            config: Some(self.newest.lock().clone()),
        };
        Reply::ok(Bytes::from(reply.encode()))
    }
}
