//! Lists that wait for a change, as Consul's.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use super::{ACL, Answer, Client, text};
use crate::host::{Host, Server};

impl Answer {
    fn index(&self) -> u64 {
        let index = self.headers.get("x-consul-index").unwrap();
        index.to_str().unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_wait_for_their_own_changes() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let client = Client::at(&host.http);
    let first = client.put("/v1/acl/bootstrap", "", Value::Null).await;
    let boss = text(&first["SecretID"]);
    let method = json!({"Name": "ci", "Type": "spiffe", "Config": {
        "TrustDomain": "example.org", "BoundAudiences": ["mesh"],
        "JWTValidationPubKeys": [rcgen::KeyPair::generate().unwrap().public_key_pem()],
    }});
    let rule = json!({"AuthMethod": "ci", "BindType": "service", "BindName": "web"});
    // The list, where one is made, what of, and what names it.
    let role = json!({"Name": "r", "ServiceIdentities": [{"ServiceName": "web"}]});
    let kinds = [
        ("auth-methods", "auth-method", method, "Name"),
        ("binding-rules", "binding-rule", rule, "ID"),
        ("policies", "policy", json!({"Name": "p"}), "ID"),
        ("roles", "role", role, "ID"),
        ("tokens", "token", json!({"Description": "t"}), "AccessorID"),
    ];
    let list = async |list: &str, query: &str| {
        let path = format!("/v1/acl/{list}?{query}");
        let answer = client.full(Method::GET, &path, &boss, Value::Null).await;
        assert_eq!(answer.status, 200, "{list}: {}", answer.body);
        answer
    };
    let soon = async || tokio::time::sleep(Duration::from_millis(50)).await;
    let mut made = Vec::new();
    let mut before = Vec::new();
    for (all, one, what, id) in &kinds {
        let index = list(all, "").await.index();
        // Longer than the client has patience: only a change ends it.
        let query = format!("index={index}&wait=10m");
        let make = async {
            soon().await;
            let path = format!("/v1/acl/{one}");
            text(&client.put(&path, &boss, what.clone()).await[id])
        };
        let (woken, name) = tokio::join!(list(all, &query), make);
        assert!(woken.index() > index, "{all}");
        assert!(woken.body.contains(&name), "{all}: {}", woken.body);
        before.push(list(all, "").await.index());
        made.push(name);
    }
    // A change of one list is none of another, and who waits beyond the last one waits to the end.
    for (at, (all, ..)) in kinds.iter().enumerate() {
        let began = Instant::now();
        let answer = list(all, &format!("index={}&wait=200ms", before[at])).await;
        assert_eq!(answer.index(), before[at], "{all}");
        let waited = Instant::now().duration_since(began);
        assert!(waited >= Duration::from_millis(200), "{all}: {waited:?}");
    }
    // A token that is given something else, under the index at which it was made.
    let query = format!("index={}&wait=10m", before[4]);
    let relink = async {
        soon().await;
        let given = json!({"Description": "other"});
        client
            .put(&format!("/v1/acl/token/{}", made[4]), &boss, given)
            .await
    };
    let (woken, changed) = tokio::join!(list("tokens", &query), relink);
    assert!(woken.body.contains("\"other\""), "{}", woken.body);
    assert_eq!(changed["CreateIndex"], json!(before[4]));
    assert_eq!(changed["ModifyIndex"], json!(woken.index()));
    // What goes is a change, too. The method takes its rules along, so it comes last.
    for (at, (all, one, ..)) in kinds.iter().enumerate().rev() {
        let index = list(all, "").await.index();
        let query = format!("index={index}&wait=10m");
        let path = format!("/v1/acl/{one}/{}", made[at]);
        let unmake = async {
            soon().await;
            client.ok(Method::DELETE, &path, &boss, Value::Null).await
        };
        let (woken, _) = tokio::join!(list(all, &query), unmake);
        assert!(woken.index() > index, "{all}");
        assert!(!woken.body.contains(&format!("\"{}\"", made[at])), "{all}");
    }
    // Whoever may not look may not wait.
    let path = "/v1/acl/tokens?index=1000000000&wait=10m";
    let (status, _) = client.no(Method::GET, path, "", Value::Null).await;
    assert_eq!(status, 403);
    server.stop();
}
