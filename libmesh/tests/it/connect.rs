//! Connections between services: identities at both ends, intentions, what closes them.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use libmesh::{
    bundle::{
        Action, BundleError, BundleStore, ConfigBundle, Intention, Offered, Revocation,
        ServiceMatch, SignedBundle,
    },
    connect::{AcceptError, Acceptor, Balancer, ConnectError, Connector, Endpoint, MeshStream},
    identity::{Identity, PublishRights, ServiceKey, SigningKeyPair, SpiffeId, Trust},
    model::{Datacenter, ServiceName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

use crate::ca::TestCa;

const SOON: Duration = Duration::from_secs(5);

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

pub fn intention(source: &str, destination: &str, action: Action) -> Intention {
    Intention {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        action,
    }
}

/// Signs config bundles of one datacenter.
pub struct Signer {
    key: ServiceKey,
    chain: Vec<Vec<u8>>,
    pub bundle: ConfigBundle,
}

impl Signer {
    pub fn new(ca: &TestCa) -> Self {
        let datacenter = Datacenter::default();
        let key = ServiceKey::generate().unwrap();
        let id = SpiffeId::config_signer(ca.domain(), &datacenter);
        let chain = ca
            .sign_for(&key.csr_der().unwrap(), &id, None, Duration::from_secs(60))
            .chain;
        let bundle = ConfigBundle {
            index: 0,
            head: [0; 32],
            issued_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
            trust_domain: ca.domain().clone(),
            datacenter,
            roots: vec![],
            intentions: vec![],
            default_action: Action::Deny,
            revoked: vec![],
            entries: [].into(),
        };
        Self { key, chain, bundle }
    }

    /// The next bundle, with these intentions.
    pub fn allow(&mut self, intentions: impl IntoIterator<Item = Intention>) -> SignedBundle {
        self.bundle.intentions = intentions.into_iter().collect();
        self.next()
    }

    pub fn next(&mut self) -> SignedBundle {
        self.bundle.index += 1;
        self.bundle.head[0] = self.bundle.head[0].wrapping_add(1);
        self.sign()
    }

    pub fn sign(&self) -> SignedBundle {
        SignedBundle::sign(&self.bundle, &self.key, self.chain.clone()).unwrap()
    }
}

fn store(trust: &Trust) -> BundleStore {
    BundleStore::open(trust.clone(), Datacenter::default(), None).unwrap()
}

/// Echoes on every connection let in, and tells of every one.
async fn echo(
    acceptor: Acceptor,
) -> (
    SocketAddr,
    mpsc::UnboundedReceiver<Result<String, AcceptError>>,
    JoinHandle<()>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            match acceptor.accept(tcp).await {
                Ok(mut stream) => {
                    let _ = tell.send(Ok(stream.peer().to_string()));
                    tokio::spawn(async move {
                        let mut buffer = [0; 64];
                        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                            if stream.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                    });
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        }
    });
    (addr, told, task)
}

async fn talk(stream: &mut MeshStream) -> std::io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"hello");
    Ok(())
}

fn endpoint(service: &str, addr: SocketAddr) -> Endpoint {
    let id = addr.to_string().into();
    Endpoint {
        id,
        addr,
        service: name(service),
        version: None,
        weight: 1,
        distance: 0,
        suspect: false,
        part: 0,
    }
}

fn connector(
    identity: &Identity,
    bundles: &BundleStore,
    service: &str,
    at: &[SocketAddr],
) -> Connector {
    let balancer = Balancer::new();
    balancer.set(at.iter().map(|&addr| endpoint(service, addr)).collect());
    Connector::new(identity.clone(), bundles.clone(), name(service), balancer)
}

#[tokio::test]
async fn both_ends_know_each_other_and_lose_the_connection_with_the_intention() {
    let ca = TestCa::new("ours.mesh");
    let (here, there) = (ca.trust(), ca.trust());
    let (shop, db) = (ca.service(&here, "shop"), ca.service(&there, "db"));
    let (caller, callee) = (store(&here), store(&there));
    let mut signer = Signer::new(&ca);
    let allowed = signer.allow([intention("shop", "db", Action::Allow)]);
    let (addr, mut told, task) = echo(Acceptor::new(db.clone(), callee.clone(), name("db"))).await;
    let connector = connector(&shop, &caller, "db", &[addr]);

    // No bundle, no calls.
    assert!(matches!(
        connector.connect(SOON).await,
        Err(ConnectError::Denied(_))
    ));
    caller.offer(allowed.clone()).await.unwrap();
    callee.offer(allowed).await.unwrap();
    let mut stream = connector.connect(SOON).await.unwrap();
    talk(&mut stream).await.unwrap();
    assert_eq!(stream.peer(), &ca.service_id("db"));
    assert_eq!(stream.peer_end().serial, db.serial());
    assert_eq!(stream.local_end().serial, shop.serial());
    assert_eq!(
        told.recv().await.unwrap().unwrap(),
        ca.service_id("shop").to_string()
    );

    // The callee alone hears of the removal: that is enough to close, and to refuse the next.
    let removed = signer.allow([]);
    callee.offer(removed.clone()).await.unwrap();
    assert!(
        timeout(SOON, async { while talk(&mut stream).await.is_ok() {} })
            .await
            .is_ok()
    );
    let mut refused = connector.connect(SOON).await.unwrap();
    assert!(matches!(
        told.recv().await.unwrap(),
        Err(AcceptError::Denied { .. })
    ));
    assert!(talk(&mut refused).await.is_err());

    // The caller's own end closes too, while it waits, and says why.
    callee
        .offer(signer.allow([intention("*", "db", Action::Allow)]))
        .await
        .unwrap();
    let mut stream = connector.connect(SOON).await.unwrap();
    talk(&mut stream).await.unwrap();
    let waiting = tokio::spawn(async move { stream.read_u8().await.unwrap_err() });
    caller.offer(removed).await.unwrap();
    let error = timeout(SOON, waiting).await.unwrap().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    assert!(
        error.to_string().contains("shop may not call db"),
        "{error}"
    );
    task.abort();
}

#[tokio::test]
async fn a_revoked_service_loses_its_connections() {
    let ca = TestCa::new("ours.mesh");
    let (here, there) = (ca.trust(), ca.trust());
    let (shop, db) = (ca.service(&here, "shop"), ca.service(&there, "db"));
    let (caller, callee) = (store(&here), store(&there));
    let mut signer = Signer::new(&ca);
    signer.bundle.default_action = Action::Allow;
    let open = signer.next();
    caller.offer(open.clone()).await.unwrap();
    callee.offer(open).await.unwrap();
    let (addr, mut told, task) = echo(Acceptor::new(db, callee.clone(), name("db"))).await;
    let connector = connector(&shop, &caller, "db", &[addr]);
    let mut stream = connector.connect(SOON).await.unwrap();
    talk(&mut stream).await.unwrap();
    told.recv().await.unwrap().unwrap();

    signer.bundle.revoked = vec![Revocation::Identity(shop.spiffe_id())];
    callee.offer(signer.next()).await.unwrap();
    assert!(
        timeout(SOON, async { while talk(&mut stream).await.is_ok() {} })
            .await
            .is_ok()
    );
    if let Ok(mut stream) = connector.connect(SOON).await {
        assert!(talk(&mut stream).await.is_err());
    }
    assert!(
        matches!(told.recv().await.unwrap(), Err(AcceptError::Handshake(reason)) if reason.contains("revoked"))
    );
    task.abort();
}

#[tokio::test]
async fn the_wrong_service_is_not_talked_to_and_the_next_endpoint_is_tried() {
    let ca = TestCa::new("ours.mesh");
    let trust = ca.trust();
    let bundles = store(&trust);
    let mut signer = Signer::new(&ca);
    signer.bundle.default_action = Action::Allow;
    bundles.offer(signer.next()).await.unwrap();
    let shop = ca.service(&trust, "shop");
    let (right, _told, right_task) = echo(Acceptor::new(
        ca.service(&trust, "db"),
        bundles.clone(),
        name("db"),
    ))
    .await;
    let (wrong, _told, wrong_task) = echo(Acceptor::new(
        ca.service(&trust, "web"),
        bundles.clone(),
        name("web"),
    ))
    .await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let all = connector(&shop, &bundles, "db", &[wrong, right, closed]);
    for _ in 0..10 {
        talk(&mut all.connect(SOON).await.unwrap()).await.unwrap();
    }
    let none = connector(&shop, &bundles, "db", &[wrong, closed]);
    let error = none.connect(SOON).await.unwrap_err().to_string();
    assert!(
        error.contains("svc/web answers there, not db") && error.contains(&closed.to_string()),
        "{error}"
    );
    let nowhere = connector(&shop, &bundles, "db", &[]);
    assert!(matches!(
        nowhere.connect(SOON).await,
        Err(ConnectError::NoEndpoint(_))
    ));

    // Nodes are no services.
    let (_, node) = ca.node_in(&trust, "n1", PublishRights::all());
    let from_node = connector(&node, &bundles, "db", &[right]);
    assert!(matches!(
        from_node.connect(SOON).await,
        Err(ConnectError::Denied(_))
    ));
    right_task.abort();
    wrong_task.abort();
}

#[test]
fn precedence_is_destination_first() {
    use libmesh::bundle::Intentions;

    let rules = [
        intention("*", "*", Action::Deny),
        intention("shop", "*", Action::Allow),
        intention("*", "db", Action::Deny),
        intention("shop", "db", Action::Allow),
        intention("*", "web", Action::Allow),
    ];
    let rules = Intentions::new(&rules, Action::Allow);
    let allowed = |from: &str, to: &str| rules.evaluate(&name(from), &name(to)).is_allowed();
    assert!(allowed("shop", "db") && allowed("shop", "other") && allowed("any", "web"));
    assert!(!allowed("any", "db") && !allowed("any", "other"));
    let decision = rules.evaluate(&name("any"), &name("db"));
    assert_eq!(decision.rule, Some(intention("*", "db", Action::Deny)));
    assert_eq!(decision.rule.unwrap().source, ServiceMatch::Any);
    let nothing = Intentions::new(&[], Action::Deny).evaluate(&name("a"), &name("b"));
    assert_eq!((nothing.action, nothing.rule), (Action::Deny, None));
}

#[tokio::test]
async fn bundles_are_believed_for_their_signer_and_never_go_back() {
    let ca = TestCa::new("ours.mesh");
    let trust = ca.trust();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle");
    let open =
        || BundleStore::open(trust.clone(), Datacenter::default(), Some(path.clone())).unwrap();
    let bundles = open();
    let mut signer = Signer::new(&ca);
    let first = signer.next();
    let second = signer.next();
    assert_eq!(
        bundles.offer(second.clone()).await.unwrap(),
        Offered::Applied
    );
    assert_eq!(bundles.offer(second.clone()).await.unwrap(), Offered::Known);
    assert!(matches!(
        bundles.offer(first.clone()).await,
        Err(BundleError::Older {
            offered: 1,
            seen: 2
        })
    ));

    // The same index with another history, and the same again signed later.
    signer.bundle.head = [9; 32];
    assert!(matches!(
        bundles.offer(signer.sign()).await,
        Err(BundleError::Forked(2))
    ));
    signer.bundle.head = bundles.current().unwrap().head;
    signer.bundle.issued_at += 10;
    assert_eq!(
        bundles.offer(signer.sign()).await.unwrap(),
        Offered::Applied
    );

    // After a restart the cached one holds.
    let restarted = open();
    assert_eq!(restarted.current(), bundles.current());
    assert!(matches!(
        restarted.offer(first).await,
        Err(BundleError::Older { .. })
    ));

    // A bit changed, another mesh's signer, a service as signer, another datacenter.
    let third = signer.next();
    let mut altered = third.clone();
    *altered.bytes.last_mut().unwrap() ^= 1;
    assert!(bundles.offer(altered).await.is_err());
    let mut foreign = Signer::new(&TestCa::new("ours.mesh"));
    foreign.bundle.index = 7;
    assert!(matches!(
        bundles.offer(foreign.next()).await,
        Err(BundleError::Signer(_))
    ));
    let key = ServiceKey::generate().unwrap();
    let chain = ca
        .sign_for(
            &key.csr_der().unwrap(),
            &ca.service_id("web"),
            None,
            Duration::from_secs(60),
        )
        .chain;
    let by_service = SignedBundle::sign(&signer.bundle, &key, chain).unwrap();
    assert!(matches!(
        bundles.offer(by_service).await,
        Err(BundleError::NotASigner(_))
    ));
    // Signed at a time when the signer's certificate was not valid.
    signer.bundle.issued_at += 3600;
    assert!(matches!(
        bundles.offer(signer.next()).await,
        Err(BundleError::Signer(_))
    ));
    assert_eq!(bundles.index(), 2);
    bundles.offer(third).await.unwrap();
    assert_eq!(bundles.index(), 3);
    assert!(bundles.age(SystemTime::now()).unwrap() < Duration::from_secs(60));
}

#[tokio::test]
async fn renewal_does_not_disturb_calls() {
    let ca = TestCa::new("ours.mesh");
    let trust = ca.trust();
    let bundles = store(&trust);
    let mut signer = Signer::new(&ca);
    signer.bundle.default_action = Action::Allow;
    bundles.offer(signer.next()).await.unwrap();
    let source = ca.source("n1", PublishRights::all(), Duration::from_secs(3));
    let obtain = |service: &'static str| {
        let (source, trust) = (source.clone(), trust.clone());
        async move {
            Identity::obtain(trust, &*source, &name(service), None)
                .await
                .unwrap()
        }
    };
    let (shop, db) = (obtain("shop").await, obtain("db").await);
    let stop = tokio_util::sync::CancellationToken::new();
    for identity in [&shop, &db] {
        let subject = libmesh::identity::Subject::Service {
            name: identity.spiffe_id().as_service().unwrap().clone(),
            ttl: None,
        };
        tokio::spawn(identity.clone().keep_renewed(
            Arc::clone(&source) as _,
            subject,
            stop.clone(),
        ));
    }
    let (addr, _told, task) = echo(Acceptor::new(db.clone(), bundles.clone(), name("db"))).await;
    let connector = connector(&shop, &bundles, "db", &[addr]);
    let mut kept = connector.connect(SOON).await.unwrap();
    let (mut serials, mut calls) = (std::collections::BTreeSet::new(), 0);
    let ended = SystemTime::now() + Duration::from_secs(20);
    while serials.len() < 4 {
        assert!(SystemTime::now() < ended, "not renewed");
        let mut stream = connector.connect(SOON).await.unwrap();
        talk(&mut stream).await.unwrap();
        talk(&mut kept).await.unwrap();
        serials.insert(stream.peer_end().serial.clone());
        calls += 1;
    }
    assert!(calls > 10);
    stop.cancel();
    task.abort();
}
