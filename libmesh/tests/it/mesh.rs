//! Nodes of one mesh: joining, seeing each other, calling each other, going and coming back.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::StatusCode;
use libmesh::{
    bundle::Revocation,
    catalog::LocalError,
    connect::{ConnectError, MeshStream},
    identity::PublishRights,
    join::{JoinError, JoinToken},
    mesh::{Credentials, Listener, Mesh, MeshError},
    model::{Liveness, NodeName},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    task::JoinHandle,
    time::timeout,
};

use crate::cluster::{Cluster, SOON, instance, name, until};

const HOUR: Duration = Duration::from_secs(3600);

fn local() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn present(mesh: &Mesh, service: &str) -> usize {
    mesh.resolve(&name(service)).len()
}

/// Echoes every byte of every caller that may call.
fn echo(mut listener: Listener) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(mut call) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 256];
                while let Ok(n @ 1..) = call.read(&mut buffer).await {
                    if call.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

async fn talk(stream: &mut MeshStream) -> std::io::Result<()> {
    stream.write_all(b"ping").await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"ping");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_see_each_other_and_each_others_services() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    *cluster.authority.rights.lock() = PublishRights::new(["web", "api-*"]).unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    for mesh in [&cluster.server, &a, &b] {
        until("three nodes in every catalog", || {
            mesh.catalog()
                .nodes()
                .iter()
                .filter(|node| node.liveness == Liveness::Alive)
                .count()
                == 3
        })
        .await;
    }
    assert_eq!(
        a.catalog().node("b").unwrap().record.socket_addr(),
        b.addr()
    );
    assert_eq!(a.catalog().node("b").unwrap().record.id, b.id());

    a.register(instance("db", 5432, None)).unwrap();
    assert_eq!(present(&a, "db"), 1);
    until("db of a seen at b", || present(&b, "db") == 1).await;
    let found = &b.resolve(&name("db"))[0];
    assert_eq!(
        (found.node.record.name.as_str(), found.instance.port),
        ("a", 5432)
    );

    b.register(instance("api-v2", 80, None)).unwrap();
    let refused = b.register(instance("db", 5432, None)).unwrap_err();
    assert!(
        matches!(refused, MeshError::Local(LocalError::NotPermitted { .. })),
        "{refused}"
    );
    assert!(
        b.identity_for(&name("db"))
            .await
            .unwrap_err()
            .to_string()
            .contains("may publish")
    );
    assert_eq!(
        b.identity_for(&name("web")).await.unwrap().spiffe_id(),
        cluster.authority.ca.service_id("web")
    );

    let seen = a.catalog().watch_service(&name("api-v2"));
    until("api-v2 of b seen at a", || present(&a, "api-v2") == 1).await;
    let before = seen.revision();
    assert!(b.deregister(&instance("api-v2", 80, None).id));
    timeout(SOON, seen.changed_after(before)).await.unwrap();
    until("api-v2 gone at a", || present(&a, "api-v2") == 0).await;

    b.leave().await;
    until("b left", || {
        a.catalog()
            .node("b")
            .is_none_or(|node| node.liveness == Liveness::Left)
    })
    .await;
    a.leave().await;
    cluster.server.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_call_each_other_while_allowed_and_certificates_change_under_them() {
    let cluster = Cluster::start(Duration::from_secs(4)).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    let (shop, db) = (name("shop"), name("db"));
    let listener = a.accept(&db, local()).await.unwrap();
    a.register(instance("db", 5432, Some(listener.local_addr().port())))
        .unwrap();
    let echo = echo(listener);
    until("db of a seen at b", || present(&b, "db") == 1).await;
    let denied = b.connect(&shop, &db).await.unwrap_err();
    assert!(
        matches!(denied, MeshError::Connect(ConnectError::Denied(_))),
        "{denied}"
    );

    cluster.allow(&[("shop", "db")]).await;
    for mesh in [&a, &b] {
        until("the new intentions everywhere", || {
            mesh.bundle().index() == 2
        })
        .await;
    }
    let mut kept = b.connect(&shop, &db).await.unwrap();
    talk(&mut kept).await.unwrap();
    assert_eq!(kept.peer(), &cluster.authority.ca.service_id("db"));
    assert_eq!(
        kept.local_end().spiffe,
        cluster.authority.ca.service_id("shop")
    );

    let mut serials = BTreeSet::new();
    let ends = SystemTime::now() + 2 * SOON;
    while serials.len() < 3 {
        assert!(SystemTime::now() < ends, "certificates are not renewed");
        let mut call = b.connect(&shop, &db).await.unwrap();
        talk(&mut call).await.unwrap();
        talk(&mut kept).await.unwrap();
        serials.insert(call.peer_end().serial.clone());
    }

    cluster.allow(&[]).await;
    let closed = async { while talk(&mut kept).await.is_ok() {} };
    timeout(SOON, closed)
        .await
        .expect("the connection stays open without an intention");
    until("refused at the caller", || b.bundle().index() == 3).await;
    assert!(matches!(
        b.connect(&shop, &db).await,
        Err(MeshError::Connect(ConnectError::Denied(_)))
    ));
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_hidden_and_comes_back_without_stale_records() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    b.register(instance("old", 1, None)).unwrap();
    b.register(instance("kept", 2, None)).unwrap();
    until("both services seen at a", || {
        present(&a, "old") + present(&a, "kept") == 2
    })
    .await;
    let (id, bind) = (b.id(), b.addr());
    b.stop().await;
    let took = until("b hidden", || present(&a, "old") + present(&a, "kept") == 0).await;
    assert!(took < Duration::from_secs(10), "{took:?}");

    // No token now: what the directory keeps is enough.
    let mut config = cluster.config("b", dirs[1].path());
    config.credentials = Credentials::Kept;
    (config.bind, config.resume) = (bind, false);
    let b = Mesh::start(config).await.unwrap();
    assert_eq!(b.id(), id);
    b.register(instance("kept", 2, None)).unwrap();
    // What b said in its last life returns with it, until its new log is there a moment later.
    let took = until("b is back, without the record it no longer has", || {
        (present(&a, "kept"), present(&a, "old")) == (1, 0)
    })
    .await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    until("b knows the mesh", || b.catalog().nodes().len() == 3).await;
    assert_eq!(b.bundle().index(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_in_nobodys_catalog_until_the_revocation_goes() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    a.register(instance("db", 5432, None)).unwrap();
    let others = [&cluster.server, &b];
    let shown = |yes: bool| {
        others.iter().all(|mesh| {
            mesh.catalog().node("a").is_some() == yes && (present(mesh, "db") == 1) == yes
        })
    };
    until("db of a seen by the others", || shown(true)).await;

    let (id, serial) = (a.identity().spiffe_id(), a.identity().serial());
    for revoked in [Revocation::Identity(id), Revocation::Serial(serial)] {
        cluster.revoke([revoked]).await;
        until("a hidden by the others", || shown(false)).await;
        cluster.revoke([]).await;
        until("a shown again by the others", || shown(true)).await;
    }
    a.leave().await;
    b.leave().await;
    cluster.server.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_resumes_keeps_its_epoch_and_what_is_registered_again() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    b.register(instance("old", 1, None)).unwrap();
    b.register(instance("kept", 2, None)).unwrap();
    let both = || present(&a, "old") + present(&a, "kept") == 2;
    until("both services seen at a", both).await;
    let (bind, last) = (b.addr(), b.catalog().own_head());
    b.stop().await;
    let mode = std::fs::metadata(dirs[1].path().join("log")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);

    let mut config = cluster.config("b", dirs[1].path());
    (config.bind, config.settle) = (bind, None);
    let b = Mesh::start(config.clone()).await.unwrap();
    assert_eq!(b.catalog().own_head(), last);
    assert_eq!(b.local().services().len(), 2);
    b.register(instance("kept", 2, None)).unwrap();
    assert_eq!(b.catalog().own_head(), last, "nothing new was said");
    b.local().settle(|_| false);
    until("the others see what is left", || {
        (present(&a, "kept"), present(&a, "old")) == (1, 0)
    })
    .await;
    assert_eq!(b.catalog().own_head().epoch, last.epoch);

    // Ended without a stop: what it said last may not be on disk, so it takes a new epoch.
    drop(b);
    let free =
        || std::net::TcpListener::bind(bind).is_ok() && std::net::UdpSocket::bind(bind).is_ok();
    until("the port is free again", free).await;
    let b = Mesh::start(config).await.unwrap();
    assert!(b.catalog().own_head().epoch > last.epoch);
    for mesh in [a, b, cluster.server] {
        mesh.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_never_blinks_a_nodes_instances_out() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let mut b = cluster.agent("b", dirs[1].path()).await.unwrap();
    let (id, bind) = (b.id(), b.addr());
    b.register(instance("kept", 2, None)).unwrap();
    until("kept seen at a", || present(&a, "kept") == 1).await;
    let missing = Arc::new(AtomicBool::new(false));
    let watch = a.catalog().watch_service(&name("kept"));
    let observer = tokio::spawn({
        let missing = missing.clone();
        async move {
            loop {
                let revision = watch.revision();
                if watch.view().is_none_or(|view| view.instances.is_empty()) {
                    missing.store(true, Ordering::Relaxed);
                }
                watch.changed_after(revision).await;
            }
        }
    });
    for after in ["stop", "crash"] {
        let life = a.membership().member(id).unwrap().member.generation;
        if after == "stop" {
            b.stop().await;
        } else {
            let saved = std::fs::metadata(dirs[1].path().join("log")).unwrap();
            b.register(instance("last", 3, None)).unwrap();
            until("the log is kept", || {
                let now = std::fs::metadata(dirs[1].path().join("log")).unwrap();
                now.modified().unwrap() > saved.modified().unwrap()
            })
            .await;
            drop(b);
            let free = || {
                std::net::TcpListener::bind(bind).is_ok() && std::net::UdpSocket::bind(bind).is_ok()
            };
            until("the port is free again", free).await;
        }
        let mut config = cluster.config("b", dirs[1].path());
        config.bind = bind;
        b = Mesh::start(config).await.unwrap();
        until("a knows the new life", || {
            let state = a.membership().member(id);
            state.is_some_and(|state| {
                state.member.generation > life && state.liveness == Liveness::Alive
            })
        })
        .await;
        b.register(instance("kept", 2, None)).unwrap();
        b.register(instance(after, 4, None)).unwrap();
        until("what b says in its new life", || present(&a, after) == 1).await;
        assert!(!missing.load(Ordering::Relaxed), "missing after a {after}");
    }
    observer.abort();
    // What nobody says again goes when the node is settled.
    b.local().settle(|_| false);
    until("last gone at a", || present(&a, "last") == 0).await;
    assert!(!missing.load(Ordering::Relaxed));
    for mesh in [a, b, cluster.server] {
        mesh.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_registered_again_goes_after_the_grace() {
    let cluster = Cluster::start(HOUR).await;
    let dir = tempfile::tempdir().unwrap();
    let b = cluster.agent("b", dir.path()).await.unwrap();
    b.register(instance("old", 1, None)).unwrap();
    b.register(instance("kept", 2, None)).unwrap();
    let server = &cluster.server;
    let both = || present(server, "old") + present(server, "kept") == 2;
    until("both services seen", both).await;
    b.stop().await;
    let mut config = cluster.config("b", dir.path());
    config.settle = Some(Duration::from_secs(1));
    let b = Mesh::start(config).await.unwrap();
    assert_eq!(b.local().services().len(), 2);
    b.register(instance("kept", 2, None)).unwrap();
    until("only what was registered again is left", || {
        (present(server, "kept"), present(server, "old")) == (1, 0)
    })
    .await;
    b.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dozen_nodes_pass_changes_on() {
    let cluster = Cluster::start(HOUR).await;
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = vec![cluster.server.clone()];
    for n in 0..11 {
        let name = format!("node-{n}");
        nodes.push(cluster.agent(&name, &dir.path().join(&name)).await.unwrap());
    }
    for round in 0..5 {
        for (n, node) in nodes.iter().enumerate() {
            node.register(instance(&format!("of-{n}-{round}"), 80, None))
                .unwrap();
        }
        for node in &nodes {
            until("everything everywhere", || {
                (0..nodes.len()).all(|n| present(node, &format!("of-{n}-{round}")) == 1)
            })
            .await;
        }
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_nodes_pass_the_config_on_and_keep_calling() {
    let cluster = Cluster::start(HOUR).await;
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let a = cluster.agent("a", dirs[0].path()).await.unwrap();
    let b = cluster.agent("b", dirs[1].path()).await.unwrap();
    let (shop, db) = (name("shop"), name("db"));
    // Certificates are had while the server is there.
    let listener = a.accept(&db, local()).await.unwrap();
    a.register(instance("db", 5432, Some(listener.local_addr().port())))
        .unwrap();
    let echo = echo(listener);
    b.identity_for(&shop).await.unwrap();
    until("a and b know each other", || {
        present(&b, "db") == 1
            && a.catalog()
                .node("b")
                .is_some_and(|node| node.liveness == Liveness::Alive)
    })
    .await;
    let bind = b.addr();
    b.stop().await;
    cluster.allow(&[("shop", "db")]).await;
    until("the new intentions at a", || a.bundle().index() == 2).await;
    cluster.server.clone().stop().await;

    let mut config = cluster.config("b", dirs[1].path());
    config.credentials = Credentials::Kept;
    config.bind = bind;
    // The service certificate was in memory only, and its authority is away.
    config.certificates = Some(cluster.authority.source.clone());
    let b = Mesh::start(config).await.unwrap();
    assert_eq!(b.bundle().index(), 1);
    until("the new intentions at b, from a", || {
        b.bundle().index() == 2
    })
    .await;
    until("db of a seen at b", || present(&b, "db") == 1).await;
    talk(&mut b.connect(&shop, &db).await.unwrap())
        .await
        .unwrap();
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_fail_say_why() {
    let cluster = Cluster::start(HOUR).await;
    let dir = tempfile::tempdir().unwrap();
    let join = async |token: JoinToken, seed: SocketAddr| {
        let mut config = cluster.config("a", dir.path());
        config.credentials = Credentials::Join(token);
        config.seeds = vec![seed.into()];
        match Mesh::start(config).await.map(|mesh| mesh.addr()) {
            Err(MeshError::Join(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let (good, addr) = (cluster.authority.token.clone(), cluster.server.addr());

    let unknown = JoinToken::generate(good.ca_hash()).unwrap();
    assert!(matches!(join(unknown, addr).await, JoinError::Refused(_)));
    let pinned = join(JoinToken::generate([9; 32]).unwrap(), addr).await;
    assert!(matches!(pinned, JoinError::OtherMesh { .. }), "{pinned}");
    assert!(
        pinned.to_string().contains("belongs to another mesh"),
        "{pinned}"
    );
    *cluster.authority.refusal.lock() = Some((StatusCode::GONE, "it expired an hour ago"));
    let expired = join(good.clone(), addr).await;
    assert!(
        expired.to_string().contains("it expired an hour ago") && !expired.retry().is_worthwhile(),
        "{expired}"
    );
    *cluster.authority.refusal.lock() =
        Some((StatusCode::SERVICE_UNAVAILABLE, "the store is sealed"));
    let sealed = join(good.clone(), addr).await;
    assert!(
        sealed.to_string().contains("sealed") && sealed.retry().is_worthwhile(),
        "{sealed}"
    );
    *cluster.authority.refusal.lock() = None;

    let closed = TcpListener::bind(local())
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let nobody = join(good.clone(), closed).await;
    assert!(
        matches!(&nobody, JoinError::Unreachable(tried) if tried.contains(&closed.to_string())),
        "{nobody}"
    );
    let mut config = cluster.config("a", dir.path());
    config.credentials = Credentials::Kept;
    assert!(matches!(
        Mesh::start(config).await,
        Err(MeshError::NotJoined(_))
    ));

    // Through another agent, which relays to the server.
    let relay = cluster
        .agent("relay", &dir.path().join("relay"))
        .await
        .unwrap();
    let mut config = cluster.config("b", &dir.path().join("b"));
    config.seeds = vec![relay.addr().into()];
    let b = Mesh::start(config).await.unwrap();
    for file in ["key.p8", "certificate", "keyring", "bundle", "generation"] {
        let mode = std::fs::metadata(dir.path().join("b").join(file))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    b.stop().await;
    let mut config = cluster.config("c", &dir.path().join("b"));
    config.credentials = Credentials::Kept;
    let other = Mesh::start(config).await.unwrap_err();
    assert!(
        matches!(other, MeshError::OtherNode { ref kept, .. } if *kept == NodeName::parse("b").unwrap())
    );
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = Cluster::start(HOUR).await;
    let dir = tempfile::tempdir().unwrap();
    let mut config = cluster.config("a", dir.path());
    config.bind = cluster.server.addr();
    let error = Mesh::start(config.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("TCP port {}", cluster.server.addr().port())),
        "{error}"
    );
    // A UDP port whose TCP twin is free: thousands of client ports may be in TIME_WAIT on a busy machine.
    let udp = loop {
        let udp = UdpSocket::bind(local()).await.unwrap();
        if TcpListener::bind(udp.local_addr().unwrap()).await.is_ok() {
            break udp;
        }
    };
    config.bind = udp.local_addr().unwrap();
    let error = Mesh::start(config.clone()).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("UDP port {}", config.bind.port())),
        "{error}"
    );
}
