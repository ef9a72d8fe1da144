//! What the server knows for everybody: nodes without an agent, and virtual IPs. Seen by an agent, over a restart of the
//! server.

use std::{fs, net::SocketAddr, time::Instant};

use dns::client;
use http::Method;
use serde_json::{Value, json};

use crate::{
    host::{Host, Server, run},
    node::{Agent, PATIENCE},
};

const DB: &str = "/v1/health/service/db?passing";

fn node(name: &str, address: &str, more: &Value) -> String {
    let mut body = json!({"Node": name, "Address": address, "NodeMeta": {"rack": "r1"}});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body.to_string()
}

fn check(status: &str) -> Value {
    json!({"CheckID": "db-up", "Name": "up", "ServiceID": "db1", "Status": status})
}

fn names(nodes: &Value) -> Vec<&str> {
    let nodes = nodes.as_array().into_iter().flatten();
    let names = nodes.filter_map(|one| one["Node"].as_str().or_else(|| one["Name"].as_str()));
    names.collect()
}

async fn resolve(dns: SocketAddr, name: &str, kind: &str) -> Vec<String> {
    let answer = client::query(dns, name, kind, PATIENCE).await.unwrap();
    answer.data.iter().map(ToString::to_string).collect()
}

async fn register(agent: &Agent, root: &str, body: &str) -> (u16, String) {
    let path = format!("/v1/catalog/register?token={root}");
    agent.ask(Method::PUT, &path, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_an_agent_and_virtual_ips_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (keys, root) = server.init(1, 1).await;
    let (gossip, http) = server.unseal(&keys[0]);
    let host = Host {
        dir: dir.path(),
        gossip,
        http,
        root: root.clone(),
    };
    let token = host.new_token("token", "1h");
    let command = host.agent("a1", &token);
    let file = dir.path().join("a1.toml");
    let service = "[[service]]\nname = \"web\"\nport = 80\nmesh_port = 21000\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + service).unwrap();
    let agent = Agent::spawn(command);

    // By way of the agent, which has no store.
    let db = json!({
        "Service": {"ID": "db1", "Service": "db", "Port": 5432, "Tags": ["rw"]},
        "Check": check("passing"),
    });
    let path = "/v1/catalog/register";
    agent
        .until_put(path, &root, &node("ext1", "10.9.0.1", &db))
        .await;
    agent.until(DB, |found| names_of(found) == ["ext1"]).await;
    let shown = agent.get(DB).await;
    assert_eq!(shown[0]["Node"]["Meta"], json!({"rack": "r1"}));
    let ids: Vec<_> = shown[0]["Checks"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert!(
        ids.len() == 1 && ids[0]["CheckID"] == "db-up",
        "no serfHealth: {ids:?}"
    );
    assert_eq!(
        names(&agent.get("/v1/catalog/nodes").await),
        ["a1", "ext1", "s1"]
    );
    assert_eq!(names(&agent.get("/v1/agent/members").await), ["a1", "s1"]);
    assert_eq!(
        resolve(agent.dns, "db.service.mesh", "A").await,
        ["10.9.0.1"]
    );
    assert_eq!(
        resolve(agent.dns, "ext1.node.mesh", "A").await,
        ["10.9.0.1"]
    );
    let reverse = resolve(agent.dns, "1.0.9.10.in-addr.arpa", "PTR").await;
    assert_eq!(reverse, ["ext1.node.dc1.mesh."]);

    // Without a right, with a member's name, with what cannot be.
    let (status, _) = agent
        .ask(Method::PUT, path, &node("ext2", "10.9.0.2", &json!({})))
        .await;
    assert_eq!(status, 403);
    let (status, reason) = register(&agent, &root, &node("a1", "10.9.0.2", &json!({}))).await;
    assert!(
        status == 500 && reason.contains("is a member"),
        "{status} {reason}"
    );
    let bad = json!({"Check": {"Name": "x", "ServiceID": "none"}});
    let (status, reason) = register(&agent, &root, &node("ext1", "10.9.0.1", &bad)).await;
    assert!(
        status == 500 && reason.contains("Unknown service ID 'none'"),
        "{status} {reason}"
    );

    // A virtual IP, and what explains answers.
    let deadline = Instant::now() + PATIENCE;
    let virtual_ip = loop {
        let found = resolve(agent.dns, "web.virtual.mesh", "A").await;
        if let [ip] = &found[..] {
            break ip.clone();
        }
        assert!(Instant::now() < deadline, "no virtual IP");
    };
    assert!(
        virtual_ip.starts_with("24") || virtual_ip.starts_with("25"),
        "{virtual_ip}"
    );
    let mut explain = std::process::Command::new(env!("CARGO_BIN_EXE_mesh"));
    explain
        .args(["dns", "query", "rw.db.service.mesh", "SRV"])
        .env_clear()
        .env("MESH_HTTP_ADDR", agent.http.to_string());
    let explained = run(&mut explain, "");
    assert_eq!(explained.code, Some(0), "{}", explained.err);
    for part in [
        "NOERROR",
        "tag or version rw: 1 of 1",
        "10.9.0.1:5432",
        "passing",
    ] {
        assert!(
            explained.out.contains(part),
            "{part:?} is not in\n{}",
            explained.out
        );
    }

    // The server goes and comes back: nobody notices before it is unsealed, nor after.
    server.stop();
    assert_eq!(names_of(&agent.get(DB).await), ["ext1"]);
    assert_eq!(
        resolve(agent.dns, "web.virtual.mesh", "A").await,
        [&*virtual_ip]
    );
    let server = Server::start(dir.path());
    server.node();
    let unsealed = server.operator(&["unseal", "-"], "", &keys[0]);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    let sick = json!({"Check": check("critical")});
    agent
        .until_put(path, &root, &node("ext1", "10.9.0.1", &sick))
        .await;
    agent.until(DB, |found| found == &json!([])).await;
    let all = agent.get("/v1/health/service/db").await;
    assert_eq!(names_of(&all), ["ext1"], "once, with the key it had");
    assert_eq!(
        resolve(agent.dns, "web.virtual.mesh", "A").await,
        [&*virtual_ip]
    );

    let path = format!("/v1/catalog/deregister?token={root}");
    let service = json!({"Node": "ext1", "ServiceID": "db1"}).to_string();
    agent.put(&path, &service).await;
    agent
        .until("/v1/health/service/db", |found| found == &json!([]))
        .await;
    assert_eq!(
        names(&agent.get("/v1/catalog/nodes").await),
        ["a1", "ext1", "s1"]
    );
    agent.put(&path, &json!({"Node": "ext1"}).to_string()).await;
    agent
        .until("/v1/catalog/nodes", |nodes| names(nodes) == ["a1", "s1"])
        .await;
    drop(agent);
    server.stop();
}

fn names_of(entries: &Value) -> Vec<&str> {
    let entries = entries.as_array().into_iter().flatten();
    entries
        .filter_map(|one| one["Node"]["Node"].as_str())
        .collect()
}
