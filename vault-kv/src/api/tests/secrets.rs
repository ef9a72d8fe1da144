//! What there is around secrets: reads of many, waiting for one, a key that moves, time that runs out.

use super::*;

const READER: &str = r#"path "secret/data/a" { capabilities = ["read"] }"#;

impl Server {
    async fn put(&self, key: &str, value: &str) {
        let body = json!({"data": {"k": value}});
        self.root("POST", &format!("secret/data/{key}"), body).await;
    }

    async fn reader(&self) -> String {
        let policy = json!({ "policy": READER });
        self.root("PUT", "sys/policies/acl/reader", policy).await;
        self.token(json!({"policies": ["reader"]})).await
    }

    /// Status, data and index of a read.
    async fn watch(&self, token: &str, path: &str) -> (u16, Value, u64) {
        let request = http::Request::builder()
            .uri(format!("/v1/{path}"))
            .header("x-vault-token", token)
            .body(Bytes::new())
            .unwrap();
        let caller = Caller::anonymous(Remote::Unix, Via::Http);
        let Ok(request) = Request::parse(&request, caller) else {
            panic!("{path} is no request");
        };
        let response = self.api.handle(request).await;
        let index = response.headers().get("x-mesh-index");
        let index = index.map_or(0, |index| index.to_str().unwrap().parse().unwrap());
        let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status().as_u16(), body, index)
    }
}

#[tokio::test]
async fn many_secrets_are_read_at_once_each_with_its_own_right() {
    let server = Server::start().await;
    server.put("a", "one").await;
    server.put("b", "two").await;
    let token = server.reader().await;
    let paths = json!({"paths": ["secret/data/a", "secret/data/b", "secret/data/../b", "sys/mounts", "none/x"]});
    let path = "sys/mesh/secrets/read";
    let (status, answer) = server.send("POST", path, &token, None, paths).await;
    assert_eq!(status, 200, "{answer}");
    let (secrets, errors) = (&answer["data"]["secrets"], &answer["data"]["errors"]);
    assert_eq!(secrets["secret/data/a"]["data"]["k"], "one");
    assert_eq!(secrets.as_object().unwrap().len(), 1);
    assert_eq!(errors["secret/data/b"], json!([DENIED]));
    assert_eq!(errors.as_object().unwrap().len(), 4);
    // Each is on record as what it is.
    let log = server.log();
    assert!(
        log.contains("\"path\":\"secret/data/a\"") && log.contains("\"path\":\"secret/data/b\"")
    );
    let (_, answer) = server
        .send("POST", path, "", None, json!({"paths": "secret/data/a"}))
        .await;
    assert_eq!(
        answer["data"]["errors"]["secret/data/a"],
        json!(["permission denied"])
    );
    for wrong in [json!({}), json!({"paths": vec!["x"; 257]})] {
        let (status, _) = server.send("POST", path, &token, None, wrong).await;
        assert_eq!(status, 400);
    }
}

#[tokio::test]
async fn a_read_waits_for_the_next_change() {
    let server = Server::start().await;
    server.put("a", "one").await;
    let token = server.reader().await;
    let (status, answer, first) = server.watch(&token, "secret/data/a?index=0").await;
    assert_eq!((status, &answer["data"]["data"]["k"]), (200, &json!("one")));
    assert!(first > 0);
    // Nothing changes: the same comes after the wait.
    let path = format!("secret/data/a?index={first}&wait=10ms");
    let (_, _, again) = server.watch(&token, &path).await;
    assert_eq!(again, first);
    let path = format!("secret/data/a?index={first}&wait=60s");
    let (waited, ()) = tokio::join!(server.watch(&token, &path), async {
        server.put("b", "not this one").await;
        server.put("a", "two").await;
    });
    assert_eq!(waited.1["data"]["data"]["k"], "two");
    assert!(waited.2 > first);
    // A folder, and a secret that is not there yet.
    let (_, _, index) = server
        .watch(&server.root, "secret/metadata/?list=true&index=0")
        .await;
    let path = format!("secret/metadata/?list=true&index={index}");
    let (waited, ()) = tokio::join!(server.watch(&server.root, &path), server.put("c", "new"));
    assert_eq!(waited.1["data"]["keys"], json!(["a", "b", "c"]));
    let (status, _, index) = server.watch(&server.root, "secret/data/d?index=0").await;
    assert_eq!(status, 404);
    let path = format!("secret/data/d?index={index}");
    let (waited, ()) = tokio::join!(server.watch(&server.root, &path), server.put("d", "there"));
    assert_eq!(waited.1["data"]["data"]["k"], "there");
}

#[tokio::test]
async fn the_last_use_of_a_token_may_wait() {
    let server = Server::start().await;
    server.put("a", "one").await;
    server.reader().await;
    let once = json!({"policies": ["reader"], "num_uses": 1});
    let token = server.token(once).await;
    let (status, answer, _) = server
        .watch(&token, "secret/data/a?index=1&wait=10ms")
        .await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn who_waits_gets_nothing_once_the_right_is_gone() {
    let server = Server::start().await;
    server.put("a", "one").await;
    let token = server.reader().await;
    let (_, _, index) = server.watch(&token, "secret/data/a?index=0").await;
    let path = format!("secret/data/a?index={index}");
    let (waited, _) = tokio::join!(server.watch(&token, &path), async {
        let own = json!({ "token": token });
        server.root("POST", "auth/token/revoke", own).await;
        server.put("a", "two").await;
    });
    assert_eq!(waited.0, 403, "{}", waited.1);
}

#[tokio::test]
async fn a_key_moves_with_its_versions_for_who_may_both() {
    let server = Server::start().await;
    server.put("a", "one").await;
    server.put("a", "two").await;
    server.put("taken", "x").await;
    let meta = json!({"custom_metadata": {"owner": "ann"}});
    server.root("POST", "secret/metadata/a", meta).await;
    let destroy = json!({"versions": [1]});
    server.root("POST", "secret/destroy/a", destroy).await;
    let to = |to: &str| json!({ "to": to });
    let mover = json!({"policy": "path \"secret/move/*\" { capabilities = [\"update\"] }"});
    server.root("PUT", "sys/policies/acl/mover", mover).await;
    let token = server.token(json!({"policies": ["mover", "reader"]})).await;
    let (status, _) = server
        .send("POST", "secret/move/a", &token, None, to("b"))
        .await;
    assert_eq!(
        status, 403,
        "reading and removing it are rights of their own"
    );
    for (from, wrong) in [
        ("a", to("taken")),
        ("a", to("a")),
        ("a", to("x/../b")),
        ("a", json!({})),
    ] {
        let path = format!("secret/move/{from}");
        let (status, _) = server.send("POST", &path, &server.root, None, wrong).await;
        assert_eq!(status, 400);
    }
    server.root("POST", "secret/move/a", to("deep/b")).await;
    let read = server.root("GET", "secret/data/deep/b", Value::Null).await;
    assert_eq!(read["data"]["data"]["k"], "two");
    assert_eq!(read["data"]["metadata"]["version"], 2);
    assert_eq!(read["data"]["metadata"]["custom_metadata"]["owner"], "ann");
    let (status, _) = server
        .send("GET", "secret/data/a", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
    let (status, _) = server
        .send("POST", "secret/move/a", &server.root, None, to("c"))
        .await;
    assert_eq!(status, 404);
    let left = Db::new(server.core.clone()).names("logical/").unwrap();
    assert!(!left.iter().any(|name| name.ends_with("/a")), "{left:?}");
}

#[tokio::test]
async fn what_is_to_be_deleted_after_a_time_is_gone_then() {
    let server = Server::start().await;
    let after = |time: &str| json!({ "delete_version_after": time });
    server.root("POST", "secret/metadata/a", after("60s")).await;
    server.put("a", "one").await;
    server.put("a", "two").await;
    server.put("stays", "x").await;
    // Hidden by hand and back again: its time starts anew.
    server.root("POST", "secret/metadata/b", after("60s")).await;
    server.put("b", "later").await;
    server.clock.advance(40);
    let undelete = json!({"versions": [1]});
    server.root("POST", "secret/undelete/b", undelete).await;
    server.clock.advance(30);
    let served = server.api.mounts.find("secret/").unwrap();
    let Engine::Kv(kv) = &served.engine else {
        panic!("another engine");
    };
    let next = kv.expire().await.unwrap();
    assert!(
        next.is_some_and(|next| (25..=30).contains(&next)),
        "{next:?}"
    );
    let values: Vec<_> = Db::new(server.core.clone())
        .names("logical/")
        .unwrap()
        .into_iter()
        .filter(|name| name.contains("/value/"))
        .collect();
    assert_eq!(values.len(), 2, "{values:?}");
    let meta = server.root("GET", "secret/metadata/a", Value::Null).await;
    assert_eq!(meta["data"]["versions"]["2"]["destroyed"], true);
    let (status, _) = server
        .send("GET", "secret/data/a", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
    let read = server.root("GET", "secret/data/b", Value::Null).await;
    assert_eq!(read["data"]["data"]["k"], "later");
    // Taken away by hand it leaves nothing to come back to.
    server
        .root("DELETE", "secret/metadata/b", Value::Null)
        .await;
    assert_eq!(kv.expire().await.unwrap(), None);
}
