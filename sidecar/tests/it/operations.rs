//! What operators do to a mesh that runs: rotate the gossip key, restart agents in place.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::TryRecvError,
    time::Instant,
};

use http::Method;
use libmesh::member::Keyring;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    host::{Host, Ran, Server, run},
    node::{Agent, Mesh, PATIENCE},
};

fn rows(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

/// The keys of all nodes, which must be the same.
fn keys(nodes: &Value) -> Vec<String> {
    let nodes = nodes.as_array().unwrap();
    let names: BTreeSet<_> = nodes
        .iter()
        .map(|node| node["node"].as_str().unwrap())
        .collect();
    assert_eq!(names, BTreeSet::from(["n1", "s1"]));
    assert_eq!(nodes[0]["keys"], nodes[1]["keys"], "{nodes:?}");
    serde_json::from_value(nodes[0]["keys"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gossip_key_is_rotated_at_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, share) = Host::open(&server, dir.path()).await;
    let root = &host.root;
    let token = host.new_token("token", "1h");
    let agent = host.admitted("n1", &token);
    let keyring = |args: &[&str]| {
        let args: Vec<&str> = ["keyring"].iter().chain(args).copied().collect();
        server.operator(&[&args[..], &["--output", "json"]].concat(), root, "")
    };

    let refused = server.operator(&["keyring", "install"], "hvs.wrong", "");
    assert_eq!(refused.code, Some(77), "{}", refused.err);
    // The agent runs a moment before the server knows it as a member.
    let deadline = Instant::now() + PATIENCE;
    let all = loop {
        let all = rows(&keyring(&["list"]));
        if all.as_array().unwrap().len() == 2 {
            break all;
        }
        assert!(Instant::now() < deadline, "the server still knows {all}");
    };
    let old = keys(&all);
    assert_eq!(old.len(), 1);
    let both = keys(&rows(&keyring(&["install"])));
    assert_eq!(
        (both.len(), &both[0]),
        (2, &old[0]),
        "the old one is in use"
    );
    let new = both[1].clone();
    let early = keyring(&["remove", &old[0]]);
    assert_ne!(early.code, Some(0));
    assert!(
        early.err.contains("n1") && early.err.contains("s1"),
        "{}",
        early.err
    );
    let unknown = keyring(&["use", "00000000"]);
    assert_ne!(unknown.code, Some(0));
    let malformed = keyring(&["use", "nonsense"]);
    assert!(malformed.err.contains("key:"), "{}", malformed.err);
    assert_eq!(
        keys(&rows(&keyring(&["list"]))),
        both,
        "nothing was changed"
    );

    assert_eq!(keys(&rows(&keyring(&["use", &new])))[0], new);
    assert_eq!(
        keys(&rows(&keyring(&["remove", &old[0]]))),
        std::slice::from_ref(&new)
    );

    // Only a server is asked; and what was done is in its ledger, for a server that starts again.
    let history = server.operator(&["history", "--last", "3", "--output", "json"], root, "");
    let history: Vec<Value> = serde_json::from_str(&history.out).unwrap();
    let done: Vec<_> = history.iter().map(|item| &item["operation"]).collect();
    for step in ["install", "use", "remove"] {
        let step = json!(format!("gossip key {step}"));
        assert!(done.contains(&&step), "{history:?}");
    }
    drop(agent);
    server.stop();
    let server = Server::start(dir.path());
    server.operator(&["unseal", "-"], "", &share);
    server.node();
    let listed = server.operator(&["keyring", "list", "--output", "json"], root, "");
    let listed = rows(&listed);
    let own = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["node"] == "s1");
    assert_eq!(own.unwrap()["keys"], json!([new]));
    server.stop();
}

/// `mesh agent restart` against the agent's socket.
fn restart(socket: &Path) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command
        .args(["agent", "restart"])
        .env_clear()
        .env("MESH_SOCKET", socket);
    run(&mut command, "")
}

const INSTANCES: &str = "/v1/health/service/web?passing";

fn count(found: &Value) -> usize {
    found.as_array().unwrap().len()
}

/// An agent that watches, and the configuration of one with a service, which on TERM does as `on_term` says.
async fn two(mesh: &Mesh, on_term: &str) -> (Agent, PathBuf) {
    let watcher = mesh.agent("n1", &[], "");
    mesh.credentials("n2", &["*"]);
    let more = format!(
        "join = {{ seeds = [\"{}\"] }}\n[[service]]\nname = \"web\"\nport = 80\n",
        watcher.gossip
    );
    let config = mesh.configure("n2", &more);
    let text = fs::read_to_string(&config).unwrap();
    let set = format!("on_term = {on_term:?}, bind");
    fs::write(&config, text.replacen("bind", &set, 1)).unwrap();
    (watcher, config)
}

/// Starts the agent with the service, and waits until the other shows it.
async fn seen(watcher: &Agent, config: &Path) -> Agent {
    let agent = Agent::start(config);
    watcher.until(INSTANCES, |found| count(found) == 1).await;
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_restarts_in_place_and_its_services_stay_in_all_answers() {
    let mesh = Mesh::new();
    let (watcher, config) = two(&mesh, "leave").await;
    let agent = seen(&watcher, &config).await;
    let (status, _) = agent.ask(Method::POST, "/v1/mesh/restart", "").await;
    assert_ne!(status, 202, "over HTTP nobody restarts an agent");

    let asked = restart(&mesh.path("n2").join("mesh.sock"));
    assert_eq!(asked.code, Some(0), "{}", asked.err);
    // The same process is an agent again; all the while its service is there.
    loop {
        let found = watcher.get(INSTANCES).await;
        assert_eq!(count(&found), 1, "{found}");
        match agent.log.try_recv() {
            Ok(line) if line["message"] == "agent started" => break,
            Ok(_) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => panic!("the agent has ended"),
        }
    }
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    watcher.until(INSTANCES, |found| count(found) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_restarts_on_term_is_awaited() {
    let mesh = Mesh::new();
    let (watcher, config) = two(&mesh, "restart").await;
    let agent = seen(&watcher, &config).await;
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
    let found = watcher.get(INSTANCES).await;
    assert_eq!(count(&found), 1, "it is said to be back soon: {found}");
    let agent = Agent::start(&config);
    assert_eq!(count(&watcher.get(INSTANCES).await), 1);
    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_agent_is_said_with_its_members() {
    let mesh = Mesh::new();
    let (watcher, config) = two(&mesh, "leave").await;
    let keyring = mesh.path("n2").join("node").join("keyring");
    fs::write(&keyring, &*Keyring::generate().unwrap().to_bytes()).unwrap();
    assert_eq!(watcher.get("/v1/mesh/problems").await, json!([]));
    let agent = Agent::start(&config);
    agent
        .until("/v1/mesh/problems", |found| count(found) == 1)
        .await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
    command.arg("members").env_clear();
    command.env("MESH_HTTP_ADDR", agent.http.to_string());
    let listed = run(&mut command, "");
    assert_eq!(listed.code, Some(0));
    assert!(listed.err.contains("another mesh"), "{}", listed.err);
    drop(watcher);
}
