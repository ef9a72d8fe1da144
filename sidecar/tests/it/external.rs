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

/// The answers, once DNS answers: an agent that has just started says SERVFAIL until it has heard what others know.
async fn resolve(dns: SocketAddr, name: &str, kind: &str) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = client::query(dns, name, kind, PATIENCE).await.unwrap();
        if answer.code_name() != "SERVFAIL" {
            return answer.data.iter().map(ToString::to_string).collect();
        }
        assert!(Instant::now() < deadline, "{name}: still not ready");
        tokio::task::yield_now().await;
    }
}

async fn register(agent: &Agent, root: &str, body: &str) -> (u16, String) {
    let path = format!("/v1/catalog/register?token={root}");
    agent.ask(Method::PUT, &path, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_an_agent_and_virtual_ips_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, share) = Host::open(&server, dir.path()).await;
    let root = &host.root;
    let token = host.new_token("token", "1h");
    let command = host.agent("a1", &token);
    let file = dir.path().join("a1.toml");
    let service = "[[service]]\nname = \"web\"\nport = 80\nmesh_port = 21000\n";
    fs::write(&file, fs::read_to_string(&file).unwrap() + service).unwrap();
    let agent = Agent::spawn(command);

    // By way of the agent, which has no store.
    let db = json!({
        // Weights as Go's client sends them when it is given none.
        "Service": {
            "ID": "db1", "Service": "db", "Port": 5432, "Tags": ["rw"], "Weights": {"Passing": 0, "Warning": 0},
        },
        "Check": check("passing"),
    });
    let path = "/v1/catalog/register";
    agent
        .until_put(path, root, &node("ext1", "10.9.0.1", &db))
        .await;
    agent.until(DB, |found| names_of(found) == ["ext1"]).await;
    let shown = agent.get(DB).await;
    assert_eq!(shown[0]["Node"]["Meta"], json!({"rack": "r1"}));
    let weights = json!({"Passing": 1, "Warning": 1});
    assert_eq!(shown[0]["Service"]["Weights"], weights);
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

    // No member takes its name.
    let (code, reason) = host.refused("ext1", &host.new_token("token2", "1h"));
    assert!(
        code == Some(1) && reason.contains("without an agent"),
        "{code:?} {reason}"
    );

    // Without a right, with a member's name, with what cannot be.
    let (status, _) = agent
        .ask(Method::PUT, path, &node("ext2", "10.9.0.2", &json!({})))
        .await;
    assert_eq!(status, 403);
    let (status, reason) = register(&agent, root, &node("a1", "10.9.0.2", &json!({}))).await;
    assert!(
        status == 500 && reason.contains("is a member"),
        "{status} {reason}"
    );
    let bad = json!({"Check": {"Name": "x", "ServiceID": "none"}});
    let (status, reason) = register(&agent, root, &node("ext1", "10.9.0.1", &bad)).await;
    assert!(
        status == 500 && reason.contains("Unknown service ID 'none'"),
        "{status} {reason}"
    );
    let large = json!({"NodeMeta": {"key": "x".repeat(513)}});
    let (status, reason) = register(&agent, root, &node("ext3", "10.9.0.3", &large)).await;
    assert!(
        status == 400 && reason.contains("meta"),
        "{status} {reason}"
    );
    let none = format!("/v1/catalog/node/ext3?token={root}");
    assert_eq!(agent.get(&none).await, Value::Null);

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
    let unsealed = server.operator(&["unseal", "-"], "", &share);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    let sick = json!({"Check": check("critical")});
    agent
        .until_put(path, root, &node("ext1", "10.9.0.1", &sick))
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

#[tokio::test(flavor = "multi_thread")]
async fn prepared_queries_are_kept_by_the_server_and_executed_by_agents() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, share) = Host::open(&server, dir.path()).await;
    let root = &host.root;
    let token = host.new_token("token", "1h");
    let agent = Agent::spawn(host.agent("a1", &token));
    for (id, port, tag) in [("web1", 8001, "v1"), ("web2", 8002, "v2")] {
        let body = json!({"ID": id, "Name": "web", "Port": port, "Tags": [tag]});
        agent
            .put("/v1/agent/service/register", &body.to_string())
            .await;
    }
    let path = format!("/v1/query?token={root}");
    let query =
        json!({"Name": "pq", "Service": {"Service": "web", "Tags": ["v2"]}, "DNS": {"TTL": "30s"}});
    let deadline = Instant::now() + PATIENCE;
    let id = loop {
        // The agent may not have found the server yet.
        let (status, made) = agent.ask(Method::POST, &path, &query.to_string()).await;
        if status == 200 {
            let made: Value = serde_json::from_str(&made).unwrap();
            break made["ID"].as_str().unwrap().to_owned();
        }
        assert!(Instant::now() < deadline, "{status} {made}");
    };
    let (status, reason) = agent.ask(Method::POST, &path, &query.to_string()).await;
    assert!(
        status == 500 && reason.contains("aliases an existing"),
        "{reason}"
    );
    let template = json!({"Name": "t-", "Template": {"Type": "name_prefix_match"}, "Service": {"Service": "${name.suffix}"}});
    let (status, made) = agent.ask(Method::POST, &path, &template.to_string()).await;
    assert_eq!(status, 200, "{made}");

    // At once, at the agent that made it.
    let found = agent.get("/v1/query/pq/execute").await;
    assert_eq!(found["Nodes"][0]["Service"]["ID"], "web2");
    assert_eq!(
        (
            &found["DNS"]["TTL"],
            found["Nodes"].as_array().unwrap().len()
        ),
        (&json!("30s"), 1)
    );
    assert_eq!(
        resolve(agent.dns, "pq.query.mesh", "SRV").await,
        ["1 1 8002 a1.node.dc1.mesh."]
    );
    // It was made after the other, and may come with a later bundle.
    let explain = "/v1/query/t-web/explain";
    while agent.ask(Method::GET, explain, "").await.0 == 404 {
        assert!(Instant::now() < deadline, "the template does not come");
        tokio::task::yield_now().await;
    }
    let explained = agent.get(explain).await;
    assert_eq!(explained["Query"]["Service"]["Service"], "web");

    // They are answered while the server is away, and are there when it is back.
    server.stop();
    let found = agent
        .get(&format!("/v1/query/{id}/execute?limit=5&near=_agent"))
        .await;
    assert_eq!(found["Nodes"].as_array().unwrap().len(), 1);
    let server = Server::start(dir.path());
    server.node();
    let unsealed = server.operator(&["unseal", "-"], "", &share);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    let one = format!("/v1/query/{id}?token={root}");
    let changed = json!({"Name": "pq", "Service": {"Service": "web", "Tags": ["!v2"]}}).to_string();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (status, answer) = agent.ask(Method::PUT, &one, &changed).await;
        if status == 200 {
            break;
        }
        assert!(Instant::now() < deadline, "{status} {answer}");
        tokio::task::yield_now().await;
    }
    let found = agent.get("/v1/query/pq/execute").await;
    assert_eq!(found["Nodes"][0]["Service"]["ID"], "web1");
    let (status, _) = agent.ask(Method::DELETE, &one, "").await;
    assert_eq!(status, 200);
    let (status, _) = agent.ask(Method::GET, "/v1/query/pq/execute", "").await;
    assert_eq!(status, 404, "it is still executed");

    // So are intentions: they hold as soon as they are answered.
    let pair = "source=web&destination=db";
    for action in ["allow", "deny", "allow"] {
        let exact = format!("/v1/connect/intentions/exact?{pair}&token={root}");
        let body = json!({"Action": action}).to_string();
        let (status, answer) = agent.ask(Method::PUT, &exact, &body).await;
        assert_eq!(status, 200, "{answer}");
        let check = format!("/v1/connect/intentions/check?{pair}");
        assert_eq!(agent.get(&check).await["Allowed"], action == "allow");
    }
    server.stop();
}
