//! Who may register what on nodes without an agent; and many at once.

use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{ACL, Client, names};
use crate::host::{Host, Server};

const REGISTER: &str = "/v1/catalog/register";
const DEREGISTER: &str = "/v1/catalog/deregister";

fn on_ext(service: &str, id: &str, more: &Value) -> Value {
    let mut body = json!({
        "Node": "ext1", "Address": "10.9.0.1", "Service": {"Service": service, "ID": id, "Port": 80},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_a_right_to_it_and_what_is_on_it_a_right_to_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let (root, client) = (host.root.as_str(), Client::at(&host.http));
    let token = async |name: &str, rules: &str| {
        client.policy(root, name, rules).await;
        let made = client.token(root, json!({"Policies": [{"Name": name}]}));
        made.await.0
    };
    let db = token("db", "service \"db\" { policy = \"write\" }").await;
    let node = token("node", "node \"ext1\" { policy = \"write\" }").await;
    let no = async |path: &str, token: &str, body: Value, right: &str| {
        let (status, words) = client.no(Method::PUT, path, token, body).await;
        assert!(status == 403 && words.contains(right), "{words}");
    };
    let none = json!({});
    let of_node = "'node:write' on \"ext1\"";
    let (of_db, of_web) = ("'service:write' on \"db\"", "'service:write' on \"web\"");

    // The node first; what a service may does not make one.
    no(REGISTER, &db, on_ext("db", "db1", &none), of_node).await;
    let alone = json!({"Node": "ext1", "Address": "10.9.0.1"});
    client.put(REGISTER, &node, alone.clone()).await;
    no(REGISTER, &db, alone, of_node).await;
    // Services on it, as long as nothing else is said of the node.
    client.put(REGISTER, &db, on_ext("db", "db1", &none)).await;
    let moved = json!({"Address": "10.9.0.2"});
    no(REGISTER, &db, on_ext("db", "db1", &moved), of_node).await;
    no(REGISTER, &node, on_ext("db", "db1", &none), of_db).await;
    // No other service's place, and no check of another.
    client
        .put(REGISTER, root, on_ext("web", "web1", &none))
        .await;
    no(REGISTER, &db, on_ext("db", "web1", &none), of_web).await;
    let check = json!({"SkipNodeUpdate": true, "Check": {"Name": "up", "ServiceID": "web1", "Status": "critical"}});
    let mut check = on_ext("db", "db1", &check);
    no(REGISTER, &db, check.clone(), of_web).await;
    check["Check"]["ServiceID"] = json!("db1");
    client.put(REGISTER, &db, check).await;
    let seen = client.get("/v1/health/service/db", root).await;
    assert_eq!(seen[0]["Checks"][0]["Status"], "critical");

    let away = |id: &str| json!({"Node": "ext1", "ServiceID": id});
    no(DEREGISTER, &db, away("web1"), of_web).await;
    no(DEREGISTER, &db, away("none"), of_node).await;
    no(DEREGISTER, &db, json!({"Node": "ext1"}), of_node).await;
    client.put(DEREGISTER, &db, away("db1")).await;
    client.put(DEREGISTER, &node, away("web1")).await;
    for service in ["db", "web"] {
        let path = format!("/v1/health/service/{service}");
        assert_eq!(client.get(&path, root).await, json!([]));
    }
    let checks = client.get("/v1/health/node/ext1", root).await;
    assert_eq!(checks, json!([]), "a check goes with its instance");
    client.put(DEREGISTER, &node, json!({"Node": "ext1"})).await;
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_register_at_once_find_all_of_it_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, share) = Host::open(&server, dir.path()).await;
    let (root, http) = (host.root.clone(), host.http.clone());
    let many = |path: &'static str, numbers: std::ops::Range<usize>| {
        let mut all = JoinSet::new();
        for n in numbers {
            let (http, root) = (http.clone(), root.clone());
            all.spawn(async move { change(&Client::at(&http), path, &root, n).await });
        }
        all
    };
    let shown = async || {
        let client = Client::at(&http);
        let seen = client.get("/v1/health/service/many?passing", &root).await;
        let checks = seen.as_array().unwrap().iter();
        assert!(
            checks
                .clone()
                .all(|it| it["Checks"].as_array().unwrap().len() == 1)
        );
        names(&seen, |it| &it["Service"]["ID"])
    };
    let ids = |numbers: std::ops::Range<usize>| {
        let mut ids: Vec<_> = numbers.map(|n| format!("many{n}")).collect();
        ids.sort();
        ids
    };
    many(REGISTER, 0..12).join_all().await;
    assert_eq!(shown().await, ids(0..12));
    let (come, go) = (many(REGISTER, 12..20), many(DEREGISTER, 0..6));
    tokio::join!(come.join_all(), go.join_all());
    assert_eq!(shown().await, ids(6..20));

    // The same after a restart, of what is kept.
    server.stop();
    let server = Server::start_with(dir.path(), ACL);
    let (_, http) = server.node();
    let unsealed = server.operator(&["unseal", "-"], "", &share);
    assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
    let deadline = std::time::Instant::now() + crate::node::PATIENCE;
    let client = Client::at(&http);
    loop {
        let (_, seen) = client
            .ask(
                Method::GET,
                "/v1/health/service/many?passing",
                &root,
                Value::Null,
            )
            .await;
        let seen: Value = serde_json::from_str(&seen).unwrap_or(json!([]));
        if seen.as_array().is_some_and(|seen| seen.len() == 14) {
            assert_eq!(names(&seen, |it| &it["Service"]["ID"]), ids(6..20));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{seen}");
        tokio::task::yield_now().await;
    }
    server.stop();
}

async fn change(client: &Client, path: &str, root: &str, n: usize) {
    let id = format!("many{n}");
    let body = match path {
        REGISTER => {
            // Half of them say something else of the node: who comes later tries again.
            let more = json!({
                "NodeMeta": {"of": (n % 2).to_string()},
                "Check": {"CheckID": format!("c{n}"), "Name": "up", "ServiceID": id, "Status": "passing"},
            });
            on_ext("many", &id, &more)
        }
        _ => json!({"Node": "ext1", "ServiceID": id}),
    };
    client.put(path, root, body).await;
}
