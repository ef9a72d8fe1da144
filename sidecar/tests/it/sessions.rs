//! Sessions over HTTP: what they are bound to, what they hold, and what is left of both after a restart.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::{
    host::{Host, Server, ask},
    node::PATIENCE,
};

struct Client {
    http: String,
    root: String,
}

impl Client {
    async fn ask(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        ask(&self.http, method, path, &self.root, body.to_owned()).await
    }

    async fn put(&self, path: &str, body: &str) -> String {
        let (status, answer) = self.ask(Method::PUT, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Method::GET, path, "").await;
        assert_eq!(status, 200, "{path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    async fn session(&self, body: Value) -> String {
        let made = self.put("/v1/session/create", &body.to_string()).await;
        let made: Value = serde_json::from_str(&made).unwrap();
        made["ID"].as_str().unwrap().to_owned()
    }

    async fn lock(&self, key: &str, session: &str) -> bool {
        let path = format!("/v1/kv/{key}?acquire={session}");
        self.put(&path, "held").await == "true"
    }

    /// Waits, by blocking queries, until nobody holds a key.
    async fn until_free(&self, key: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut index = 0;
        while Instant::now() < deadline {
            let path = format!("/v1/kv/{key}?index={index}&wait=5s");
            let pair = self.get(&path).await;
            if pair[0].get("Session").is_none() {
                return;
            }
            index = pair[0]["ModifyIndex"].as_u64().unwrap();
        }
        panic!("{key} is still held");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_free_when_its_check_or_its_node_is_not_well() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (host, _) = Host::open(&server, dir.path()).await;
    let client = Client {
        http: host.http.clone(),
        root: host.root.clone(),
    };

    let service = r#"{"Name": "web", "Port": 1, "Check": {"TTL": "1h"}}"#;
    client.put("/v1/agent/service/register", service).await;
    let bound = json!({"ServiceChecks": [{"ID": "service:web"}], "LockDelay": "0s"});
    let create = "/v1/session/create";
    let refused = client.ask(Method::PUT, create, &bound.to_string()).await;
    let critical = "apply failed: Check 'service:web' is in critical state";
    assert_eq!(refused, (500, critical.to_owned()));
    client.put("/v1/agent/check/pass/service:web", "").await;
    let session = client.session(bound).await;
    let shown = client.get(&format!("/v1/session/info/{session}")).await;
    assert_eq!(
        shown[0]["ServiceChecks"],
        json!([{"ID": "service:web", "Namespace": ""}])
    );
    assert!(client.lock("leader", &session).await);
    client.put("/v1/agent/check/fail/service:web", "").await;
    client.until_free("leader").await;
    let gone = client.get(&format!("/v1/session/info/{session}")).await;
    assert_eq!(gone, json!([]));

    let agent = host.admitted("n1", &host.new_token("token", "1h"));
    let deadline = Instant::now() + PATIENCE;
    let of_n1 = json!({"Node": "n1", "LockDelay": "1s"}).to_string();
    let session = loop {
        match client.ask(Method::PUT, create, &of_n1).await {
            (200, made) => break made,
            (_, refused) => assert!(Instant::now() < deadline, "{refused}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let session: Value = serde_json::from_str(&session).unwrap();
    assert!(client.lock("leader", session["ID"].as_str().unwrap()).await);
    drop(agent);
    client.until_free("leader").await;
    // Its holder may not know yet.
    let next = client.session(json!({})).await;
    assert!(!client.lock("leader", &next).await);
    while !client.lock("leader", &next).await {
        assert!(
            Instant::now() < deadline + PATIENCE,
            "the delay is not over"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_transactions_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let (shares, root) = server.init(1, 1).await;
    let (_, http) = server.unseal(&shares[0]);
    let client = Client {
        http,
        root: root.clone(),
    };
    let session = client.session(json!({"Name": "kept", "TTL": "1h"})).await;
    let txn = json!([
        {"KV": {"Verb": "lock", "Key": "leader", "Value": "bWU=", "Session": session}},
        {"KV": {"Verb": "set", "Key": "term", "Value": "MQ=="}},
    ]);
    client.put("/v1/txn", &txn.to_string()).await;
    let held = client.get("/v1/kv/leader").await;
    server.stop();

    let server = Server::start(dir.path());
    let (_, http) = server.unseal(&shares[0]);
    let client = Client { http, root };
    assert_eq!(client.get("/v1/kv/leader").await, held);
    assert_eq!(held[0]["Session"], json!(session));
    let sessions = client.get("/v1/session/list").await;
    assert_eq!(sessions[0]["ID"], json!(session));
    let renewed = client
        .put(&format!("/v1/session/renew/{session}"), "")
        .await;
    assert!(renewed.contains("kept"), "{renewed}");
    let other = client.session(json!({})).await;
    assert!(!client.lock("leader", &other).await);

    // All or nothing.
    let txn = json!([
        {"KV": {"Verb": "set", "Key": "other", "Value": "MQ=="}},
        {"KV": {"Verb": "unlock", "Key": "leader", "Value": "", "Session": other}},
    ]);
    let (status, failed) = client.ask(Method::PUT, "/v1/txn", &txn.to_string()).await;
    assert_eq!(status, 409, "{failed}");
    let (status, _) = client.ask(Method::GET, "/v1/kv/other", "").await;
    assert_eq!(status, 404);
    let released = format!("/v1/session/destroy/{session}");
    client.put(&released, "").await;
    client.until_free("leader").await;

    // Without a right there is no session, and the paths say which right it takes.
    let nobody = Client {
        http: client.http.clone(),
        root: String::new(),
    };
    let refused = nobody.ask(Method::PUT, "/v1/session/create", "{}").await;
    assert_eq!(refused.0, 403, "{}", refused.1);
    assert!(refused.1.contains("consul/session/s1"), "{}", refused.1);
    server.stop();
}
