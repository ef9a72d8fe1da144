//! Membership in real clusters: rotating the gossip keyring, copies of a machine, announced restarts, revoked nodes,
//! a disk that is full.

use std::{fs, path::Path, time::Duration};

use libmesh::{
    bundle::Revocation,
    identity::SpiffeId,
    member::{Keyring, MemberEvent},
    mesh::{KeyringChange, Mesh, MeshError, RotationError},
    model::{Liveness, NodeName},
};
use tokio::{
    sync::broadcast::{Receiver, error::TryRecvError},
    time::timeout,
};

use crate::cluster::{Cluster, SOON, instance, name, until};

const HOUR: Duration = Duration::from_secs(3600);

fn present(mesh: &Mesh) -> usize {
    let members = mesh.membership().members();
    members
        .iter()
        .filter(|state| state.liveness == Liveness::Alive)
        .count()
}

fn nodes(mesh: &Mesh) -> usize {
    mesh.catalog().nodes().len()
}

async fn agree(all: &[&Mesh]) {
    for mesh in all {
        until("all know all", || {
            present(mesh) == all.len() - 1 && nodes(mesh) == all.len()
        })
        .await;
    }
}

/// Nothing bad was seen.
fn calm(events: &mut Receiver<MemberEvent>) {
    loop {
        match events.try_recv() {
            Ok(MemberEvent::Up(_)) => {}
            Ok(event) => panic!("seen: {event:?}"),
            Err(TryRecvError::Empty) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn received(mesh: &Mesh) -> u64 {
    let snapshot = mesh.membership().counters().snapshot();
    let opened = |name: &str| snapshot.iter().find(|(known, _)| *known == name).unwrap().1;
    opened("datagrams_received") - opened("dropped_unknown_key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyring_is_rotated_under_traffic_and_nobody_becomes_suspect() {
    let cluster = Cluster::start(HOUR).await;
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = cluster.agent("one", first.path()).await.unwrap();
    let two = cluster.agent("two", second.path()).await.unwrap();
    let all = [&cluster.server, &one, &two];
    agree(&all).await;
    let mut events: Vec<_> = all.iter().map(|mesh| mesh.membership().events()).collect();

    let old = cluster.server.keyring().ids()[0];
    let key = Keyring::new_key().unwrap();
    let install = KeyringChange::Install(key.clone());
    let refused = one.change_keyring(&install, false).await;
    assert!(matches!(refused, Err(RotationError::NotServer(name)) if name == *one.name()));
    for mesh in all {
        assert_eq!(mesh.keyring().ids(), [old]);
    }

    let done = cluster
        .server
        .change_keyring(&install, false)
        .await
        .unwrap();
    assert!(
        done.iter()
            .all(|node| node.keys.as_ref().is_ok_and(|keys| keys.len() == 2))
    );
    let new = cluster.server.keyring().ids()[1];
    let early = cluster
        .server
        .change_keyring(&KeyringChange::Remove(old), false)
        .await;
    assert!(matches!(early, Err(RotationError::NotReady(nodes)) if nodes.len() == 3));
    for step in [KeyringChange::Use(new), KeyringChange::Remove(old)] {
        let done = cluster.server.change_keyring(&step, false).await.unwrap();
        assert!(done.iter().all(|node| node.keys.is_ok()), "{done:?}");
        // Everybody hears everybody with the keys of this step.
        let before: Vec<_> = all.iter().map(|mesh| received(mesh)).collect();
        for (mesh, before) in all.iter().zip(before) {
            until("datagrams go on", || received(mesh) > before + 8).await;
        }
    }
    for (mesh, events) in all.iter().zip(&mut events) {
        assert_eq!(mesh.keyring().ids(), [new]);
        calm(events);
        assert_eq!(present(mesh), 2);
    }

    // Kept: a node that comes back has the new key.
    one.stop().await;
    let one = cluster.agent("one", first.path()).await.unwrap();
    assert_eq!(one.keyring().ids(), [new]);
    for mesh in [one, two, cluster.server] {
        mesh.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_a_rotation_fetches_the_keyring() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let agent = cluster.agent("agent", directory.path()).await.unwrap();
    agree(&[&cluster.server, &agent]).await;
    agent.leave().await;
    let old = cluster.server.keyring().ids()[0];
    let key = Keyring::new_key().unwrap();
    let keyring = cluster.server.keyring();
    let new = keyring.install(&key).unwrap();
    keyring.use_key(new).unwrap();
    keyring.remove(old).unwrap();

    let agent = cluster.agent("agent", directory.path()).await.unwrap();
    until("it has the new key", || agent.keyring().ids() == [new]).await;
    agree(&[&cluster.server, &agent]).await;
    agent.leave().await;
    cluster.server.leave().await;
}

fn copy_directory(from: &Path, to: &Path) {
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_machine_ends_and_names_both_addresses() {
    let cluster = Cluster::start(HOUR).await;
    let (original, cloned) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let agent = cluster.agent("agent", original.path()).await.unwrap();
    agree(&[&cluster.server, &agent]).await;
    let mut events = cluster.server.membership().events();
    copy_directory(original.path(), cloned.path());
    let copy = cluster.agent("agent", cloned.path()).await.unwrap();
    let failure = timeout(SOON, copy.failed())
        .await
        .expect("the copy goes on");
    assert!(matches!(failure, MeshError::Copy(_)), "{failure}");
    let text = failure.to_string();
    assert!(
        text.contains(&agent.addr().to_string()) && text.contains(&copy.addr().to_string()),
        "{text}"
    );
    let seen = cluster.server.membership().member(agent.id()).unwrap();
    assert_eq!(seen.member.addr, agent.addr());
    calm(&mut events);
    copy.stop().await;

    // A node that moved is another thing: its old life is over.
    agent.stop().await;
    let moved = cluster.agent("agent", cloned.path()).await.unwrap();
    until("the move is seen", || {
        let seen = cluster.server.membership().member(moved.id());
        seen.is_some_and(|seen| {
            seen.member.addr == moved.addr() && seen.liveness == Liveness::Alive
        })
    })
    .await;
    moved.leave().await;
    cluster.server.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_restart_is_seen_by_nobody() {
    let cluster = Cluster::start(HOUR).await;
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = cluster.agent("one", first.path()).await.unwrap();
    let two = cluster.agent("two", second.path()).await.unwrap();
    agree(&[&cluster.server, &one, &two]).await;
    let id = one.id();
    let mut events = [&cluster.server, &two].map(|mesh| mesh.membership().events());
    one.restart(Duration::from_secs(15)).await;
    // Longer than a killed process is waited for. Nothing can be waited for: nothing shall happen.
    tokio::time::sleep(Duration::from_secs(4)).await;
    events.iter_mut().for_each(calm);
    let one = cluster.agent("one", first.path()).await.unwrap();
    for mesh in [&cluster.server, &two] {
        until("it is back", || {
            let member = mesh.membership().member(id);
            member.is_some_and(|state| state.member == one.membership().local())
        })
        .await;
    }
    events.iter_mut().for_each(calm);
    for mesh in [one, two, cluster.server] {
        mesh.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_node_is_evicted_from_the_pool() {
    let cluster = Cluster::start(HOUR).await;
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let good = cluster.agent("good", first.path()).await.unwrap();
    let bad = cluster.agent("bad", second.path()).await.unwrap();
    agree(&[&cluster.server, &good, &bad]).await;
    let identity = SpiffeId::node(good.trust().domain(), &NodeName::parse("bad").unwrap());
    cluster.revoke([Revocation::Identity(identity)]).await;
    for mesh in [&cluster.server, &good] {
        until("it is gone", || {
            mesh.membership().member(bad.id()).unwrap().liveness == Liveness::Down
        })
        .await;
        let dropped = || {
            let snapshot = mesh.membership().counters().snapshot();
            snapshot
                .iter()
                .find(|(name, _)| *name == "dropped_evicted")
                .unwrap()
                .1
        };
        // It still has the key and goes on sending.
        until("it is not heard", || dropped() > 3).await;
        assert_eq!(
            mesh.membership().member(bad.id()).unwrap().liveness,
            Liveness::Down
        );
    }
    for mesh in [bad, good, cluster.server] {
        mesh.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_of_itself_is_known_before_its_catalog() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let mut config = cluster.config("agent", directory.path());
    config.meta.insert("zone".into(), "rack-7".into());
    let agent = Mesh::start(config).await.unwrap();
    agree(&[&cluster.server, &agent]).await;
    let known = |mesh: &Mesh, of: &Mesh| mesh.membership().meta(of.id()).is_some();
    until("both have said it", || {
        known(&cluster.server, &agent) && known(&agent, &cluster.server)
    })
    .await;
    let meta = |mesh: &Mesh, of: &Mesh| mesh.membership().meta(of.id()).unwrap();
    assert_eq!(&*meta(&cluster.server, &agent).zone, "rack-7");
    assert!(meta(&agent, &cluster.server).roles.server);
    agent.leave().await;
    cluster.server.leave().await;
}

/// A full disk, as far as a test can have one: the file cannot be written.
fn block(path: &Path) {
    drop(fs::remove_file(path));
    fs::create_dir(path).unwrap();
    fs::write(path.join("in the way"), b"").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_written_is_told_at_the_start_and_survived_later() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let agent = cluster.agent("agent", directory.path()).await.unwrap();
    agree(&[&cluster.server, &agent]).await;
    let log = directory.path().join("log");
    block(&log);
    let service = name("web");
    agent.register(instance("web", 80, None)).unwrap();
    until("the node goes on", || {
        cluster.server.resolve(&service).len() == 1
    })
    .await;
    fs::remove_dir_all(&log).unwrap();
    until("it is written when there is room", || log.is_file()).await;
    agent.stop().await;

    let generation = directory.path().join("generation");
    block(&generation);
    let error = cluster.agent("agent", directory.path()).await.unwrap_err();
    assert!(
        error.to_string().contains(generation.to_str().unwrap()),
        "{error}"
    );
    cluster.server.leave().await;
}
