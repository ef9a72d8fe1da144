//! KV and intentions as Consul 1.21 was recorded to answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use libmesh::{
    bundle::Action,
    catalog::Catalog,
    identity::BoxFuture,
    model::{Datacenter, NodeName},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use vault_kv::{InitOptions, StoreConfig, Vault, VaultConfig};

use super::*;
use crate::http::{ConnInfo, Remote};

/// There is no mesh to make anything known to.
struct Nobody;

impl external::Publisher for Nobody {
    fn may_be_external(&self, _: &NodeName) -> Result<(), StoreError> {
        Ok(())
    }

    fn datacenter(&self) -> Option<Datacenter> {
        None
    }

    fn catalog(&self) -> Option<Catalog> {
        None
    }

    fn publish<'a>(
        &'a self,
        _: &'a NodeName,
        _: Vec<external::kept::Part>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
}

struct Server {
    routes: Routes,
    vault: Vault,
}

/// Over a real store, in memory.
async fn server() -> Server {
    let vault = Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap();
    let one = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let share = vault.init(one).await.unwrap().keys.remove(0);
    vault.submit_share(share).await.unwrap();
    let own = vault.clone();
    let open: Opener = Arc::new(move |call| Pairs {
        kv: own.kv("test"),
        asker: Asker::of(
            &own,
            call,
            Tokenless {
                open: true,
                anonymous: false,
            },
        ),
        path: "test/",
        noun: "kv",
    });
    let nobody: Arc<dyn external::Publisher> = Arc::new(Nobody);
    Server {
        routes: routes(&open, &open, &open, &nobody),
        vault,
    }
}

struct Answer {
    status: u16,
    index: u64,
    text: String,
    headers: http::HeaderMap,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("no JSON: {}", self.text))
    }
}

impl Server {
    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap();
        let conn = ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into()));
        let reply = self.routes.dispatch(request, Arc::new(conn)).await;
        let (head, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let index = head.headers.get("x-consul-index");
        Answer {
            status: head.status.as_u16(),
            index: index.map_or(0, |index| index.to_str().unwrap().parse().unwrap()),
            text: String::from_utf8(body.to_vec()).unwrap(),
            headers: head.headers,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }

    async fn put(&self, path: &str, body: &str) {
        let answer = self.ask("PUT", path, body).await;
        assert_eq!((answer.status, &*answer.text), (200, "true"), "{path}");
    }
}

#[tokio::test]
async fn values_flags_prefixes_and_names() {
    let server = server().await;
    let none = server.get("/v1/kv/a/none").await;
    assert_eq!((none.status, &*none.text), (404, ""));
    assert!(none.index > 0);
    server.put("/v1/kv/a/one", "hello").await;
    server.put("/v1/kv/a/two?flags=42", "").await;
    server.put("/v1/kv/a/b/three%20sp%C3%A4ce", "x").await;
    let one = server.get("/v1/kv/a/one").await;
    let index = one.index;
    assert_eq!(
        one.json(),
        json!([{"LockIndex": 0, "Key": "a/one", "Flags": 0, "Value": "aGVsbG8=",
                "CreateIndex": index, "ModifyIndex": index}])
    );
    let two = server.get("/v1/kv/a/two").await.json();
    assert_eq!(
        (&two[0]["Flags"], &two[0]["Value"]),
        (&json!(42), &Value::Null)
    );
    let raw = server.get("/v1/kv/a/one?raw=false").await;
    assert_eq!(
        (&*raw.text, &raw.headers["content-type"]),
        ("hello", &"text/plain".parse().unwrap())
    );
    assert_eq!(raw.headers["content-security-policy"], "sandbox");
    let keys = async |path| server.get(path).await.text;
    assert_eq!(
        keys("/v1/kv/a/?keys").await,
        "[\"a/b/three späce\",\"a/one\",\"a/two\"]"
    );
    assert_eq!(
        keys("/v1/kv/a/?keys&separator=/").await,
        "[\"a/b/\",\"a/one\",\"a/two\"]"
    );
    assert_eq!(keys("/v1/kv/?keys&separator=/").await, "[\"a/\"]");
    assert_eq!(server.get("/v1/kv/zzz?keys").await.status, 404);
    assert_eq!(server.get("/v1/kv/zzz?recurse").await.status, 404);
    let all = server.get("/v1/kv/a/?recurse=false").await.json();
    assert_eq!(all.as_array().unwrap().len(), 3);
    // The index of a prefix is that of its last change.
    assert_eq!(
        all[0]["ModifyIndex"],
        server.get("/v1/kv/a/?recurse").await.index
    );
    let gone = server.ask("DELETE", "/v1/kv/a/b?recurse", "").await;
    assert_eq!(gone.text, "true");
    assert_eq!(
        server.get("/v1/kv/a/b/three%20sp%C3%A4ce").await.status,
        404
    );
    assert_eq!(server.ask("DELETE", "/v1/kv/none", "").await.text, "true");
}

#[tokio::test]
async fn conditions_and_refusals() {
    let server = server().await;
    server.put("/v1/kv/cas?cas=0", "1").await;
    let ask = async |method, path: &str, body| {
        let answer = server.ask(method, path, body).await;
        (answer.status, answer.text)
    };
    let is = |status: u16, text: &str| (status, text.to_owned());
    assert_eq!(ask("PUT", "/v1/kv/cas?cas=0", "2").await, is(200, "false"));
    let index = server.get("/v1/kv/cas").await.index;
    server.put(&format!("/v1/kv/cas?cas={index}"), "3").await;
    let stale = format!("/v1/kv/cas?cas={index}");
    assert_eq!(ask("PUT", &stale, "4").await, is(200, "false"));
    assert_eq!(ask("DELETE", &stale, "").await, is(200, "false"));
    assert_eq!(
        ask("DELETE", "/v1/kv/cas?cas=0", "").await,
        is(200, "false")
    );
    for (method, path, status, text) in [
        ("GET", "/v1/kv/", 400, "Missing key name"),
        ("PUT", "/v1/kv/", 400, "Missing key name"),
        (
            "PUT",
            "/v1/kv/a?flags=x",
            500,
            "strconv.ParseUint: parsing \"x\": invalid syntax",
        ),
        (
            "PUT",
            "/v1/kv/a?cas=abc",
            500,
            "strconv.ParseUint: parsing \"abc\": invalid syntax",
        ),
        (
            "PUT",
            "/v1/kv/l?acquire=a&release=b",
            400,
            "Conflicting flags: acquire=a&release=b\n",
        ),
        (
            "PUT",
            "/v1/kv/l?acquire=a&cas=1",
            400,
            "Conflicting flags: acquire=a&cas=1\n",
        ),
        (
            "DELETE",
            "/v1/kv/a?recurse&cas=1",
            400,
            "Conflicting flags: cas=1&recurse=\n",
        ),
        ("GET", "/v1/kv/a?index=abc", 400, "Invalid index"),
    ] {
        assert_eq!(
            ask(method, path, "v").await,
            is(status, text),
            "{method} {path}"
        );
    }
    server.vault.seal();
    let (status, text) = ask("GET", "/v1/kv/cas", "").await;
    assert_eq!(status, 503);
    assert!(text.contains("mesh operator unseal"), "{text}");
}

#[tokio::test]
async fn watches_wake_for_their_own_keys_only() {
    let server = Arc::new(server().await);
    server.put("/v1/kv/a/one", "1").await;
    let index = server.get("/v1/kv/a/one").await.index;
    let watch = |path: String| {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.get(&path).await })
    };
    let key = watch(format!("/v1/kv/a/one?index={index}&wait=60s"));
    // The same value again, another key: neither wakes.
    server.put("/v1/kv/a/one", "1").await;
    server.put("/v1/kv/b/other", "1").await;
    let began = Instant::now();
    let same = server
        .get(&format!("/v1/kv/a/one?index={index}&wait=200ms"))
        .await;
    assert_eq!(same.index, index);
    assert!(Instant::now() - began >= Duration::from_millis(200));
    assert!(!key.is_finished());
    server.put("/v1/kv/a/one", "2").await;
    let woken = timeout(Duration::from_secs(10), key)
        .await
        .unwrap()
        .unwrap();
    assert!(woken.index > index);

    let prefix = server.get("/v1/kv/a/?recurse").await.index;
    let deleted = watch(format!("/v1/kv/a/?recurse&index={prefix}&wait=60s"));
    server.ask("DELETE", "/v1/kv/a/one", "").await;
    let woken = timeout(Duration::from_secs(10), deleted)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(woken.status, 404);
    assert!(woken.index > prefix);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_shows_all_that_its_index_says() {
    let server = Arc::new(server().await);
    server.put("/v1/kv/a/one", "").await;
    let reader = tokio::spawn({
        let server = Arc::clone(&server);
        async move {
            let mut looks = 0;
            loop {
                for path in ["/v1/kv/a/?recurse", "/v1/kv/a/one"] {
                    let answer = server.get(path).await;
                    let shown = &answer.json()[0];
                    let modified = shown["ModifyIndex"].as_u64().unwrap();
                    assert!(modified >= answer.index, "{modified} at {}", answer.index);
                    looks += 1;
                    if shown["Flags"] == 1 {
                        return looks;
                    }
                }
            }
        }
    });
    for n in 0..2000 {
        server.put("/v1/kv/a/one", &n.to_string()).await;
    }
    server.put("/v1/kv/a/one?flags=1", "").await;
    assert!(reader.await.unwrap() > 100);
}

/// In the manner of before Consul 1.9, which `consul intention create` still has; answers as Consul 1.16 gives them.
#[tokio::test]
async fn intentions_with_an_id_are_made_changed_and_removed_by_it() {
    let server = server().await;
    let all = "/v1/connect/intentions";
    let web = r#"{"SourceName": "web", "DestinationName": "db", "Action": "allow"}"#;
    let made = server.ask("POST", all, web).await.json();
    let id = made["ID"].as_str().unwrap();
    let one = format!("{all}/{id}");
    let got = server.get(&one).await.json();
    assert_eq!(
        (&got["ID"], &got["SourceName"]),
        (&json!(id), &json!("web"))
    );
    assert_eq!(server.get(all).await.json()[0]["ID"], json!(id));
    let nobody = format!("{all}/11111111-2222-3333-4444-555555555555");
    for (method, path, body, status, text) in [
        (
            "POST",
            all,
            web,
            500,
            "Sources[1] defines \"web\" more than once",
        ),
        (
            "POST",
            all,
            r#"{"ID": "x", "SourceName": "a", "DestinationName": "db", "Action": "allow"}"#,
            500,
            "ID must be empty when creating a new intention",
        ),
        (
            "POST",
            all,
            r#"{"DestinationName": "db", "Action": "allow"}"#,
            500,
            "SourceName must be set",
        ),
        ("GET", &nobody, "", 404, "Intention not found"),
        (
            "GET",
            "/v1/connect/intentions/nope",
            "",
            400,
            "failed config entry lookup: index error: UUID must be 36 characters",
        ),
        (
            "PUT",
            &nobody,
            web,
            500,
            "Cannot modify non-existent intention: '11111111-2222-3333-4444-555555555555'",
        ),
        (
            "PUT",
            &one,
            r#"{"SourceName": "web", "DestinationName": "other", "Action": "deny"}"#,
            500,
            "Cannot modify Destination partition/namespace/name for an intention once it exists.",
        ),
        (
            "DELETE",
            &nobody,
            "",
            500,
            "Cannot delete non-existent intention: '11111111-2222-3333-4444-555555555555'",
        ),
    ] {
        let answer = server.ask(method, path, body).await;
        assert_eq!(
            (answer.status, &*answer.text),
            (status, text),
            "{method} {path}"
        );
    }
    let api =
        r#"{"SourceName": "api", "DestinationName": "db", "Action": "deny", "Description": "d"}"#;
    assert_eq!(server.ask("PUT", &one, api).await.json(), made);
    let list = server.get(all).await.json();
    let shown = (&list[0]["SourceName"], &list[0]["Action"], &list[1]);
    assert_eq!(shown, (&json!("api"), &json!("deny"), &Value::Null));
    assert_eq!(server.ask("DELETE", &one, "").await.text, "true");
    assert_eq!(server.get(all).await.json(), json!([]));
}

#[tokio::test]
async fn intentions_are_set_listed_and_removed() {
    let server = server().await;
    let exact = |source: &str, destination: &str| {
        format!("/v1/connect/intentions/exact?source={source}&destination={destination}")
    };
    server.put(&exact("*", "db"), r#"{"Action": "deny"}"#).await;
    server
        .put(
            &exact("web", "db"),
            r#"{"Action": "allow", "Description": "d"}"#,
        )
        .await;
    let got = server.get(&exact("web", "db")).await.json();
    let index = got["ModifyIndex"].clone();
    assert_eq!(
        got,
        json!({"Description": "d", "SourceNS": "default", "SourceName": "web",
               "DestinationNS": "default", "DestinationName": "db", "SourceType": "consul",
               "Action": "allow", "Precedence": 9, "CreateIndex": index, "ModifyIndex": index})
    );
    let list = server.get("/v1/connect/intentions").await;
    assert!(list.index > 0);
    let order: Vec<_> = list
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["Precedence"].as_u64().unwrap())
        .collect();
    assert_eq!(order, [9, 8]);
    let matched = server
        .get("/v1/connect/intentions/match?by=destination&name=db")
        .await;
    assert_eq!(matched.json()["db"].as_array().unwrap().len(), 2);
    let other = server
        .get("/v1/connect/intentions/match?by=destination&name=x")
        .await;
    assert_eq!(other.json(), json!({"x": []}));

    for (method, path, body, status, text) in [
        ("GET", exact("no", "no"), "", 404, "Intention not found"),
        (
            "GET",
            "/v1/connect/intentions/exact?source=web".to_owned(),
            "",
            500,
            "required query parameter 'destination' not set",
        ),
        (
            "GET",
            "/v1/connect/intentions/match?name=db".to_owned(),
            "",
            500,
            "required query parameter 'by' not set",
        ),
        (
            "PUT",
            exact("web", "db"),
            r#"{"Action": "maybe"}"#,
            500,
            "Sources[0].Action must be set to 'allow' or 'deny'",
        ),
        ("DELETE", exact("web", "db"), "", 200, "true"),
        ("DELETE", exact("web", "db"), "", 200, "true"),
        ("GET", exact("web", "db"), "", 404, "Intention not found"),
    ] {
        let answer = server.ask(method, &path, body).await;
        assert_eq!(
            (answer.status, &*answer.text),
            (status, text),
            "{method} {path}"
        );
    }
    let pairs = server.vault.kv("test").list(intentions::PREFIX).unwrap();
    let pairs: Vec<_> = pairs.into_iter().map(Pair::from).collect();
    let rules: Vec<_> = pairs.iter().filter_map(intentions::from_pair).collect();
    assert_eq!(rules.len(), 1);
    assert_eq!(
        (rules[0].action, rules[0].source.to_string()),
        (Action::Deny, "*".to_owned())
    );
}

#[tokio::test]
async fn sessions_and_locks_as_recorded() {
    let server = server().await;
    let ask = async |method, path: &str, body| {
        let answer = server.ask(method, path, body).await;
        (answer.status, answer.text)
    };
    let is = |status: u16, text: &str| (status, text.to_owned());
    let create = "/v1/session/create";
    for (body, status, text) in [
        (
            r#"{"Behavior": "sulk"}"#,
            500,
            "Invalid Behavior setting 'sulk'",
        ),
        (
            r#"{"TTL": "5s"}"#,
            500,
            "Invalid Session TTL '5000000000', must be between [10s=24h0m0s]",
        ),
        (
            r#"{"TTL": "long"}"#,
            500,
            "Session TTL 'long' invalid: time: invalid duration \"long\"",
        ),
        ("{", 400, "Request decode failed: unexpected EOF"),
    ] {
        assert_eq!(ask("PUT", create, body).await, is(status, text), "{body}");
    }
    let session = async |body| {
        let made = server.ask("PUT", create, body).await.json();
        made["ID"].as_str().unwrap().to_owned()
    };
    let [a, b] = [
        session(r#"{"Name": "a", "Node": "n", "TTL": "90s", "LockDelay": 2, "Checks": []}"#).await,
        session("").await,
    ];
    let info = server.get(&format!("/v1/session/info/{a}")).await;
    let shown = info.json();
    assert_eq!(
        shown,
        json!([{"ID": a, "Name": "a", "Node": "n", "LockDelay": 2_000_000_000, "Behavior": "release",
                "TTL": "90s", "NodeChecks": null, "ServiceChecks": null,
                "CreateIndex": info.index, "ModifyIndex": info.index}])
    );
    let defaults = server.get(&format!("/v1/session/info/{b}")).await.json();
    assert_eq!(
        (&defaults[0]["LockDelay"], &defaults[0]["NodeChecks"]),
        (&json!(15_000_000_000u64), &json!(["serfHealth"]))
    );
    let of_node = server.get("/v1/session/node/n").await.json();
    assert_eq!(of_node.as_array().unwrap().len(), 1);
    assert_eq!(
        ask("GET", "/v1/session/info/", "").await,
        is(400, "Missing session")
    );
    assert_eq!(
        ask("PUT", "/v1/session/renew/x", "").await,
        is(404, "Session id 'x' not found")
    );
    let path = format!("/v1/session/renew/{a}");
    assert_eq!(server.ask("PUT", &path, "").await.json(), shown);

    let lock = |session: &str| format!("/v1/kv/l?acquire={session}");
    assert_eq!(ask("PUT", &lock(&a), "v").await, is(200, "true"));
    assert_eq!(ask("PUT", &lock(&b), "v").await, is(200, "false"));
    assert_eq!(
        ask("PUT", &lock("x"), "v").await,
        is(500, "invalid session \"x\"")
    );
    let held = server.get("/v1/kv/l").await.json();
    assert_eq!(
        (&held[0]["Session"], &held[0]["LockIndex"]),
        (&json!(a), &json!(1))
    );
    let waits = format!("/v1/session/list?index={}&wait=60s", {
        server.get("/v1/session/list").await.index
    });
    let destroy = format!("/v1/session/destroy/{a}");
    let (ended, seen) = tokio::join!(
        server.ask("PUT", &destroy, ""),
        timeout(Duration::from_secs(10), server.get(&waits)),
    );
    assert_eq!(ended.text, "true");
    assert_eq!(seen.unwrap().json().as_array().unwrap().len(), 1);
    let free = server.get("/v1/kv/l").await.json();
    assert_eq!(free[0].get("Session"), None);
    assert_eq!(
        ask("PUT", &lock(&b), "v").await,
        is(200, "false"),
        "delayed"
    );
    let path = format!("/v1/kv/l?release={b}");
    assert_eq!(ask("PUT", &path, "v").await, is(200, "false"));
}

#[tokio::test]
async fn transactions_as_recorded() {
    let server = server().await;
    let txn = async |ops: Value| {
        let answer = server.ask("PUT", "/v1/txn", &ops.to_string()).await;
        (answer.status, answer)
    };
    let (status, answer) = txn(json!([
        {"KV": {"Verb": "set", "Key": "t/a", "Value": "MQ=="}},
        {"KV": {"Verb": "get", "Key": "t/a"}},
        {"KV": {"Verb": "get-or-empty", "Key": "t/none"}},
    ]))
    .await;
    let index = server.get("/v1/kv/t/a").await.index;
    let pair = |key: &str, value: Value, index: u64| {
        json!({"KV": {"LockIndex": 0, "Key": key, "Flags": 0, "Value": value,
                      "CreateIndex": index, "ModifyIndex": index}})
    };
    assert_eq!(
        (status, answer.json()),
        (
            200,
            json!({"Results": [pair("t/a", Value::Null, index), pair("t/a", json!("MQ=="), index),
                               pair("t/none", Value::Null, 0)], "Errors": null})
        )
    );
    let (status, answer) = txn(json!([{"KV": {"Verb": "get-tree", "Key": "t/"}}])).await;
    let read = answer.json();
    assert_eq!((status, &read["KnownLeader"]), (200, &json!(true)));
    assert_eq!(answer.headers["x-consul-knownleader"], "true");

    let (status, answer) = txn(json!([
        {"KV": {"Verb": "set", "Key": "t/c", "Value": "MQ=="}},
        {"KV": {"Verb": "cas", "Key": "t/a", "Value": "OQ==", "Index": 1}},
        {"KV": {"Verb": "delete-cas", "Key": "t/a", "Index": 1}},
        {"KV": {"Verb": "lock", "Key": "t/a", "Session": "x"}},
        {"KV": {"Verb": "unlock", "Key": "t/a", "Session": "x"}},
        {"KV": {"Verb": "check-index", "Key": "t/a", "Index": 1}},
        {"KV": {"Verb": "check-session", "Key": "t/a", "Session": "x"}},
        {"KV": {"Verb": "check-not-exists", "Key": "t/a"}},
        {"KV": {"Verb": "get", "Key": "t/none"}},
    ]))
    .await;
    let what: Vec<_> = answer.json()["Errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["What"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(status, 409);
    assert_eq!(
        what,
        [
            "failed to set key \"t/a\", index is stale".to_owned(),
            "failed to delete key \"t/a\", index is stale".to_owned(),
            "invalid session \"x\"".to_owned(),
            "failed to unlock key \"t/a\", lock isn't held, or is held by another session"
                .to_owned(),
            format!("failed index check for key \"t/a\", current modify index {index} != 1"),
            "failed session check for key \"t/a\", current session \"\" != \"x\"".to_owned(),
            "key \"t/a\" exists".to_owned(),
            "key \"t/none\" doesn't exist".to_owned(),
        ]
    );
    assert_eq!(server.get("/v1/kv/t/c").await.status, 404);

    let many = vec![json!({"KV": {"Verb": "get-or-empty", "Key": "k"}}); 129];
    for (body, status, text) in [
        ("{".to_owned(), 400, "Failed to parse body: unexpected EOF"),
        (
            json!([{"KV": {"Verb": "set", "Key": "a", "Value": "***"}}]).to_string(),
            400,
            "Failed to parse body: illegal base64 data at input byte 0",
        ),
        (
            json!([{"KV": {"Verb": "set", "Key": "a", "Flags": "1"}}]).to_string(),
            400,
            "Failed to parse body: KV.Flags must be a whole number",
        ),
        (
            json!([{"Intention": {"Verb": "set"}}]).to_string(),
            400,
            "Intention operations are not supported by this version of mesh",
        ),
        (
            json!([{"Node": {"Verb": "set"}}]).to_string(),
            400,
            "Failed to parse body: Node.Node must be an object",
        ),
        (
            json!([{"Node": {"Verb": "set", "Node": {"Node": "n"}}}, {"KV": {"Verb": "get", "Key": "a"}}])
                .to_string(),
            400,
            "KV operations and those on nodes, services and checks do not go into one transaction: they are kept apart, \
             and would not change together",
        ),
        (
            json!(many).to_string(),
            413,
            "Transaction contains too many operations (129 > 128)",
        ),
    ] {
        let answer = server.ask("PUT", "/v1/txn", &body).await;
        assert_eq!((answer.status, &*answer.text), (status, text));
    }
    let (status, answer) = txn(json!([{"KV": {"Verb": "set", "Key": "", "Value": "MQ=="}}])).await;
    assert_eq!(
        (status, &answer.json()["Errors"]),
        (409, &json!([{"OpIndex": 0, "What": "Must provide key"}]))
    );
    let (status, answer) = txn(json!([{"KV": {"Verb": "frob", "Key": "a"}}])).await;
    assert_eq!(
        (status, &answer.json()["Errors"][0]["What"]),
        (409, &json!("unknown KV operation: frob"))
    );
    let (status, answer) = txn(json!([])).await;
    assert_eq!((status, &answer.json()["Results"]), (200, &json!([])));
}
