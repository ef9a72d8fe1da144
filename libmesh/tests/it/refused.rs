//! Starts that cannot be right: each is refused with what is wrong, on what, and what to do.

use std::{
    fs::{self, Permissions},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use libmesh::{
    error::Blame,
    join::{DirectoryError, JoinError, JoinToken},
    member::Keyring,
    mesh::{Config, Credentials, Mesh, MeshError, Problem},
    model::Datacenter,
};
use tempfile::TempDir;

use crate::cluster::{Cluster, SOON, until};

const HOUR: Duration = Duration::from_secs(3600);

/// The error of a start, which must blame `blame`, be final, and name all of `words`.
async fn refused(config: Config, blame: Blame, words: &[&str]) -> MeshError {
    let error = match Mesh::start(config).await {
        Err(error) => error,
        Ok(mesh) => panic!("{mesh:?} started"),
    };
    let text = error.to_string();
    assert_eq!(error.blame(), blame, "{text}");
    assert!(!error.retry().is_worthwhile(), "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not name {word:?}");
    }
    error
}

/// A directory in which node `name` has joined and ended.
async fn joined(cluster: &Cluster, name: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let node = cluster.agent(name, directory.path()).await.unwrap();
    node.stop().await;
    directory
}

fn kept(cluster: &Cluster, name: &str, directory: &Path) -> Config {
    Config {
        credentials: Credentials::Kept,
        ..cluster.config(name, directory)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_another_node() {
    let cluster = Cluster::start(HOUR).await;
    let (a, b) = (joined(&cluster, "a").await, joined(&cluster, "b").await);
    fs::copy(a.path().join("key.p8"), b.path().join("key.p8")).unwrap();
    let words = ["key.p8", "node b", "mesh join-token create"];
    let error = refused(kept(&cluster, "b", b.path()), Blame::Configuration, &words).await;
    assert!(matches!(error, MeshError::OtherKey { .. }));
    fs::copy(a.path().join("certificate"), b.path().join("certificate")).unwrap();
    let words = ["belongs to node a", "not to b"];
    refused(kept(&cluster, "b", b.path()), Blame::Configuration, &words).await;
}

/// The start cannot know it; the node finds out as soon as others send it something, and says it until a server gives
/// it the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gossip_keyring_of_another_mesh() {
    let cluster = Cluster::start(HOUR).await;
    let (directory, other) = (joined(&cluster, "a").await, tempfile::tempdir().unwrap());
    let keyring = directory.path().join("keyring");
    fs::write(&keyring, &*Keyring::generate().unwrap().to_bytes()).unwrap();
    let other = cluster.agent("b", other.path()).await.unwrap();
    cluster.server.clone().stop().await;

    let mut config = kept(&cluster, "a", directory.path());
    config.seeds = vec![other.addr().into()];
    let node = Mesh::start(config).await.unwrap();
    let found = async {
        while node.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let found = tokio::time::timeout(4 * SOON, found).await;
    found.expect("the node does not notice that its keyring does not fit");
    let problem = node.problems().remove(0);
    assert_eq!(
        problem,
        Problem::GossipKey {
            path: Some(keyring.clone())
        }
    );
    let text = problem.to_string();
    for word in [
        keyring.to_str().unwrap(),
        "another mesh",
        "mesh join-token create",
    ] {
        assert!(text.contains(word), "{text}");
    }
    node.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_mesh() {
    let (cluster, other) = (Cluster::start(HOUR).await, Cluster::start(HOUR).await);
    let directory = joined(&cluster, "a").await;
    let mut config = cluster.config("a", directory.path());
    config.credentials = Credentials::Join(other.authority.token.clone());
    let domain = cluster.authority.ca.domain().to_string();
    let words = [
        &*domain,
        directory.path().to_str().unwrap(),
        "another directory",
    ];
    let error = refused(config, Blame::Configuration, &words).await;
    assert!(matches!(error, MeshError::OtherMesh { .. }));

    // The token it joined with may stay in the configuration, and is not looked at any more.
    let node = cluster.agent("a", directory.path()).await.unwrap();
    node.stop().await;

    // Without a directory that has joined, whoever answers must be of the token's mesh.
    let fresh = tempfile::tempdir().unwrap();
    let mut config = cluster.config("a", fresh.path());
    config.credentials = Credentials::Join(JoinToken::generate([9; 32]).unwrap());
    let words = ["belongs to another mesh", "mesh join-token create"];
    let error = refused(config, Blame::Configuration, &words).await;
    assert!(matches!(
        error,
        MeshError::Join(JoinError::OtherMesh { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_of_another_datacenter() {
    let cluster = Cluster::start(HOUR).await;
    let directory = joined(&cluster, "a").await;
    let mut config = kept(&cluster, "a", directory.path());
    config.datacenter = Some(Datacenter::parse("dc9").unwrap());
    refused(config, Blame::Configuration, &["dc1", "dc9"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_another_key_has() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let message = "it is bound to another key since yesterday";
    *cluster.authority.refusal.lock() = Some((http::StatusCode::CONFLICT, message));
    let config = cluster.config("taken", directory.path());
    let words = ["taken", message, "choose another name", "mesh members"];
    let error = refused(config, Blame::Configuration, &words).await;
    assert!(matches!(error, MeshError::Join(JoinError::Name { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_others_cannot_reach() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let config = |bind: &str, advertise: Option<&str>, seeds: &[&str]| Config {
        bind: bind.parse().unwrap(),
        advertise: advertise.map(|addr| addr.parse().unwrap()),
        seeds: seeds.iter().map(|seed| seed.parse().unwrap()).collect(),
        ..cluster.config("a", directory.path())
    };
    for (bind, advertise, seeds, words) in [
        ("0.0.0.0:0", None, &[][..], &["0.0.0.0", "advertise"][..]),
        (
            "127.0.0.1:0",
            Some("0.0.0.0:0"),
            &[],
            &["0.0.0.0", "advertise"],
        ),
        (
            "127.0.0.1:0",
            Some("224.0.0.1:0"),
            &[],
            &["multicast", "advertise"],
        ),
        (
            "127.0.0.1:0",
            Some("255.255.255.255:0"),
            &[],
            &["broadcast", "advertise"],
        ),
        (
            "127.0.0.1:0",
            Some("[fe80::1]:0"),
            &[],
            &["link-local", "advertise"],
        ),
        (
            "127.0.0.1:0",
            None,
            &["192.0.2.7:8301"],
            &["192.0.2.7:8301", "only this machine", "advertise"],
        ),
    ] {
        let config = config(bind, advertise, seeds);
        let error = refused(config, Blame::Configuration, words).await;
        assert!(matches!(error, MeshError::Advertise { .. }));
    }

    // Listening everywhere is fine where a seed shows the way.
    let seed = cluster.server.addr().to_string();
    let node = Mesh::start(config("0.0.0.0:0", None, &[&seed]))
        .await
        .unwrap();
    assert!(node.addr().ip().is_loopback() && node.addr().port() != 0);
    node.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_others_may_enter_or_read_from() {
    let cluster = Cluster::start(HOUR).await;
    let directory = joined(&cluster, "a").await;
    let path = directory.path();
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "closed before the key was written");
    fs::set_permissions(path, Permissions::from_mode(0o750)).unwrap();
    let words = ["0750", "chmod 700", path.to_str().unwrap()];
    refused(kept(&cluster, "a", path), Blame::Environment, &words).await;
    fs::set_permissions(path, Permissions::from_mode(0o700)).unwrap();
    for file in ["key.p8", "keyring", "certificate"] {
        fs::set_permissions(path.join(file), Permissions::from_mode(0o640)).unwrap();
        let error = refused(kept(&cluster, "a", path), Blame::Environment, &[file]).await;
        let causes = chain(&error);
        assert!(causes.contains("chmod 600"), "{causes}");
        fs::set_permissions(path.join(file), Permissions::from_mode(0o600)).unwrap();
    }
    let node = Mesh::start(kept(&cluster, "a", path)).await.unwrap();
    let mode = fs::metadata(path.join("lock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_cannot_be_made_or_written() {
    let cluster = Cluster::start(HOUR).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("node");
    let words = [below.to_str().unwrap(), "own the directory"];
    refused(cluster.config("a", &below), Blame::Environment, &words).await;
    // /proc takes no files, not even root's.
    if cfg!(target_os = "linux") {
        refused(
            cluster.config("a", Path::new("/proc/mesh")),
            Blame::Environment,
            &["/proc/mesh"],
        )
        .await;
    }
    let damaged = joined(&cluster, "a").await;
    fs::write(damaged.path().join("keyring"), "nonsense").unwrap();
    let words = ["keyring is damaged", "join again"];
    let error = refused(
        kept(&cluster, "a", damaged.path()),
        Blame::Environment,
        &words,
    )
    .await;
    assert!(matches!(
        error,
        MeshError::Directory(DirectoryError::Damaged { .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_another_process_has() {
    if let Ok(path) = std::env::var(HOLD) {
        return hold(Path::new(&path)).await;
    }
    let cluster = Cluster::start(HOUR).await;
    let directory = joined(&cluster, "a").await;
    let mut holder = Holder::start(directory.path());
    let pid = holder.child.id().to_string();
    let words = [directory.path().to_str().unwrap(), &*pid, "stop that one"];
    let config = kept(&cluster, "a", directory.path());
    let error = refused(config.clone(), Blame::Environment, &words).await;
    assert!(
        matches!(&error, MeshError::Directory(DirectoryError::InUse { pid: Some(id), .. }) if *id == holder.child.id())
    );
    // Killed, it holds nothing any more.
    holder.child.kill().unwrap();
    holder.child.wait().unwrap();
    let node = Mesh::start(config.clone()).await.unwrap();
    // Another node of this process is refused as well, until the first has ended.
    let own = std::process::id().to_string();
    refused(config.clone(), Blame::Environment, &[&own]).await;
    node.stop().await;
    Mesh::start(config).await.unwrap().stop().await;
}

/// Tells this test, started again as a process of its own, which directory to hold.
const HOLD: &str = "MESH_TEST_HOLD_DIRECTORY";

/// Starts a node there, says so, and stays until killed.
async fn hold(directory: &Path) {
    let cluster = Cluster::start(HOUR).await;
    // Whether it comes to join does not matter: the directory is taken before.
    fs::remove_file(directory.join("certificate")).unwrap();
    let _node = Mesh::start(cluster.config("a", directory)).await.unwrap();
    println!("\nholding");
    std::future::pending().await
}

struct Holder {
    child: Child,
}

impl Holder {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "refused::a_directory_that_another_process_has",
                "--exact",
                "--nocapture",
            ])
            .env(HOLD, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let holding = lines.map_while(Result::ok).any(|line| line == "holding");
        assert!(holding, "the other process ended");
        Self { child }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Already killed and waited for where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A start, and a running node, on a disk without space. Needs a file system of its own; where this process may not
/// make one, only the message is checked (see `error::tests`).
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk() {
    let cluster = Cluster::start(HOUR).await;
    let mount = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(mount.path()) else {
        return eprintln!("no file system may be mounted here: not tested");
    };
    let directory = mount.path().join("node");
    let node = cluster.agent("a", &directory).await.unwrap();
    let full = disk.fill();
    // What runs goes on: new instances are seen by others, only not kept.
    node.register(crate::cluster::instance("web", 80, None))
        .unwrap();
    until("web seen by the server", || {
        !cluster
            .server
            .resolve(&crate::cluster::name("web"))
            .is_empty()
    })
    .await;
    node.stop().await;
    let words = [
        "disk is full",
        "free some space",
        directory.to_str().unwrap(),
    ];
    let error = refused(kept(&cluster, "a", &directory), Blame::Environment, &words).await;
    assert!(matches!(
        error,
        MeshError::Directory(DirectoryError::File { .. })
    ));
    fs::remove_file(full).unwrap();
    let node = Mesh::start(kept(&cluster, "a", &directory)).await.unwrap();
    node.stop().await;
}

/// A small file system in memory; unmounted at the end.
#[cfg(target_os = "linux")]
struct Disk<'a>(&'a Path);

#[cfg(target_os = "linux")]
impl<'a> Disk<'a> {
    fn mount(path: &'a Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"])
            .arg(path)
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(path))
    }

    /// Writes until nothing fits any more; the file that took the space.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;

        let path = self.0.join("full");
        let mut file = fs::File::create(&path).unwrap();
        while file.write(&[0; 512]).is_ok() {}
        path
    }
}

#[cfg(target_os = "linux")]
impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
