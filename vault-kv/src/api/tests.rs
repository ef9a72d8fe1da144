//! Requests through the whole chain, over a store in memory.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::audit::AuditSink;
use crate::barrier::{Barrier, SecretKey};
use crate::http::reply::render as rendered;
use crate::request::{Caller, Refusal, Remote, Via};
use crate::store::memory::MemoryStore;

mod classes;
mod identity;
mod lease_counts;
mod leases;
mod logins;
mod mounts;
mod oidc;
mod quotas;
mod routes;
mod secrets;
mod strangers;
mod tokens;
mod wrapping;

const ADDR: &str = "http://mesh.test:8200";
const WEB: &str = "spiffe://mesh.test/ns/default/dc/dc1/svc/web";

struct Server {
    api: Api,
    core: Core,
    root: String,
    clock: Clock,
    audit: tempfile::TempDir,
}

/// No test here asks for it.
struct NoLedger;

impl LedgerRead for NoLedger {
    fn history(&self, _last: usize) -> Result<Value, ApiError> {
        Err(ApiError::UnsupportedPath)
    }

    fn verify(&self) -> Result<Value, ApiError> {
        Err(ApiError::UnsupportedPath)
    }
}

impl Server {
    async fn start() -> Self {
        let (barrier, keyring) = Barrier::create(SecretKey::random());
        let core = Core::start(Arc::new(MemoryStore::new()), barrier, 1).unwrap();
        let mut batch = Batch::new(&By::system("init"), "init");
        batch.control(crate::seal::KEYRING, keyring);
        let root = Api::initialise(&mut batch).unwrap().to_string();
        Db::new(core.clone()).commit(batch).await.unwrap();
        let audit = tempfile::tempdir().unwrap();
        let sink = AuditSink {
            name: "file".into(),
            path: audit.path().join("audit.log"),
        };
        let clock = Clock::default();
        let log = Arc::new(Audit::open(&[sink]).unwrap());
        let (api, _) = Api::load_at(
            core.clone(),
            log,
            Arc::new(NoLedger),
            None,
            ADDR.into(),
            clock.clone(),
        )
        .unwrap();
        Self {
            api,
            core,
            root,
            clock,
            audit,
        }
    }

    /// Everything in memory is gone and read again, as after a seal.
    fn reload(&mut self) {
        let sink = AuditSink {
            name: "file".into(),
            path: self.audit.path().join("audit.log"),
        };
        let log = Arc::new(Audit::open(&[sink]).unwrap());
        let (core, clock) = (self.core.clone(), self.clock.clone());
        self.api = Api::load_at(core, log, Arc::new(NoLedger), None, ADDR.into(), clock)
            .unwrap()
            .0;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.audit.path().join("audit.log")).unwrap()
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        token: &str,
        spiffe: Option<&str>,
        body: Value,
    ) -> (u16, Value) {
        let caller = Caller {
            spiffe: spiffe.map(Into::into),
            ..Caller::anonymous(Remote::Unix, Via::Http)
        };
        self.send_as(caller, method, path, &[("x-vault-token", token)], body)
            .await
    }

    /// From an address, with headers of one's own.
    async fn send_from(
        &self,
        address: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, Value) {
        let caller = Caller::anonymous(Remote::Ip(address.parse().unwrap()), Via::Http);
        self.send_as(caller, method, path, headers, body).await
    }

    async fn send_as(
        &self,
        caller: Caller,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, Value) {
        let body = if body.is_null() {
            Bytes::new()
        } else {
            body.to_string().into()
        };
        let mut builder = http::Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"));
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            builder = builder.header(*name, *value);
        }
        if method == "PATCH" {
            builder = builder.header("content-type", "application/merge-patch+json");
        }
        let response = match Request::parse(&builder.body(body).unwrap(), caller) {
            Ok(request) => self.api.handle(request).await,
            Err(Refusal::Error(error)) => rendered(&Err(error), "", false),
            Err(Refusal::Redirect(_)) => panic!("{path} is not in its normal form"),
        };
        let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status().as_u16(), body)
    }

    /// As root; the answer must be a success.
    async fn root(&self, method: &str, path: &str, body: Value) -> Value {
        let (status, answer) = self.send(method, path, &self.root, None, body).await;
        assert!(
            (200..300).contains(&status),
            "{method} {path}: {status} {answer}"
        );
        answer
    }

    async fn token(&self, body: Value) -> String {
        let answer = self.root("POST", "auth/token/create", body).await;
        answer["auth"]["client_token"].as_str().unwrap().to_string()
    }
}

const DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";

#[tokio::test]
async fn a_token_is_made_looked_up_renewed_and_revoked_with_its_children() {
    let server = Server::start().await;
    let token = server.token(json!({"policies": ["default"], "ttl": "1h", "display_name": "a b", "meta": {"k": "v"}})).await;
    let (status, answer) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!(status, 200, "{answer}");
    let data = &answer["data"];
    assert_eq!(
        (&data["id"], &data["display_name"], &data["ttl"]),
        (&json!(token), &json!("token-a-b"), &json!(3600))
    );
    assert_eq!(
        (&data["policies"], &data["meta"]),
        (&json!(["default"]), &json!({"k": "v"}))
    );

    server.clock.advance(1800);
    let (status, answer) = server
        .send(
            "POST",
            "auth/token/renew-self",
            &token,
            None,
            json!({"increment": "2h"}),
        )
        .await;
    assert_eq!(
        (status, &answer["auth"]["lease_duration"]),
        (200, &json!(7200)),
        "{answer}"
    );

    let accessor = data["accessor"].as_str().unwrap();
    let seen = server
        .root(
            "POST",
            "auth/token/lookup-accessor",
            json!({"accessor": accessor}),
        )
        .await;
    assert_eq!(seen["data"]["id"], "");

    server
        .root(
            "PUT",
            "sys/policies/acl/maker",
            json!({"policy": r#"path "auth/token/create" { capabilities = ["update"] }"#}),
        )
        .await;
    let parent = server.token(json!({"policies": ["maker"]})).await;
    let (status, answer) = server
        .send(
            "POST",
            "auth/token/create",
            &parent,
            None,
            json!({"policies": ["root"]}),
        )
        .await;
    assert_eq!(status, 400, "{answer}");
    let (status, answer) = server
        .send(
            "POST",
            "auth/token/create",
            &parent,
            None,
            json!({"policies": ["other"]}),
        )
        .await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("child policies must be subset of parent"))
    );
    let (_, answer) = server
        .send("POST", "auth/token/create", &parent, None, Value::Null)
        .await;
    let child = answer["auth"]["client_token"].as_str().unwrap().to_string();
    server
        .root("POST", "auth/token/revoke", json!({"token": parent}))
        .await;
    for gone in [&parent, &child] {
        let (status, answer) = server
            .send("GET", "auth/token/lookup-self", gone, None, Value::Null)
            .await;
        assert_eq!(
            (status, &answer["errors"]),
            (403, &json!(["permission denied"]))
        );
    }
    server.clock.advance(7201);
    assert_eq!(
        server
            .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn a_use_limited_token_works_as_often_as_it_says() {
    let server = Server::start().await;
    let token = server
        .token(json!({"policies": ["default"], "num_uses": 2}))
        .await;
    for wanted in [200, 200, 403] {
        let (status, answer) = server
            .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
            .await;
        assert_eq!(status, wanted, "{answer}");
    }
}

#[tokio::test]
async fn only_a_policy_opens_a_path_and_sudo_paths_want_sudo() {
    let server = Server::start().await;
    let (status, answer) = server
        .send("GET", "sys/mounts", "", None, Value::Null)
        .await;
    assert_eq!(
        (status, &answer["errors"]),
        (403, &json!(["permission denied"]))
    );
    let rules = r#"path "sys/mounts" { capabilities = ["read"] }
        path "auth/token/accessors" { capabilities = ["list"] }"#;
    server
        .root("PUT", "sys/policies/acl/Viewer", json!({"policy": rules}))
        .await;
    let token = server.token(json!({"policies": ["viewer"]})).await;
    let (status, answer) = server
        .send("GET", "sys/mounts", &token, None, Value::Null)
        .await;
    assert_eq!(status, 200);
    assert_eq!(answer["secret/"]["options"]["version"], "2");
    assert_eq!(answer["data"]["secret/"], answer["secret/"]);
    for (method, path) in [
        ("DELETE", "sys/mounts/secret"),
        ("LIST", "auth/token/accessors"),
        ("GET", "sys/policies/acl/viewer"),
    ] {
        let (status, answer) = server.send(method, path, &token, None, Value::Null).await;
        assert_eq!(
            (status, &answer["errors"][0]),
            (403, &json!(DENIED)),
            "{path}"
        );
    }
    let (_, answer) = server
        .send(
            "POST",
            "sys/capabilities-self",
            &token,
            None,
            json!({"paths": ["sys/mounts", "x"]}),
        )
        .await;
    assert_eq!(
        (&answer["sys/mounts"], &answer["data"]["x"]),
        (&json!(["read"]), &json!(["deny"]))
    );
    assert_eq!(
        server
            .api
            .authorize(Some(&token), None, Capability::Read, "sys/mounts")
            .unwrap()
            .split(' ')
            .next(),
        Some("token")
    );
    assert!(
        server
            .api
            .authorize(Some(&token), None, Capability::Update, "sys/mounts")
            .is_err()
    );
    assert!(
        server
            .api
            .authorize(None, None, Capability::Read, "sys/mounts")
            .is_err()
    );
}

#[tokio::test]
async fn a_spiffe_id_has_the_policies_of_its_roles_and_no_others() {
    let server = Server::start().await;
    let ask =
        |id: &'static str| server.send("GET", "auth/token/lookup-self", "", Some(id), Value::Null);
    assert_eq!(ask(WEB).await.0, 403);
    let rules = r#"path "mesh/of/{{identity.service}}" { capabilities = ["read"] }"#;
    server
        .root("PUT", "sys/policies/acl/own", json!({"policy": rules}))
        .await;
    let role =
        json!({"workload_id_patterns": "/ns/default/dc/*/svc/we*", "token_policies": ["own"]});
    server.root("PUT", "auth/spiffe/role/web", role).await;
    let (status, answer) = ask(WEB).await;
    assert_eq!(
        (status, &answer["data"]["policies"]),
        (200, &json!(["default", "own"])),
        "{answer}"
    );
    for other in [
        "spiffe://mesh.test/ns/default/dc/dc1/svc/db",
        "spiffe://mesh.test/ns/default/dc/dc1/x/svc/web",
        "spiffe://mesh.test/ns/default/dc/dc1/svc/web/x",
        "spiffe://mesh.test/node/web",
    ] {
        assert_eq!(ask(other).await.0, 403, "{other}");
    }
    let may = |path| {
        server
            .api
            .authorize(None, Some(WEB), Capability::Read, path)
    };
    assert_eq!(may("mesh/of/web").unwrap(), WEB);
    assert!(may("mesh/of/db").is_err());
    // A bad token is not made up for by a certificate.
    assert_eq!(
        server
            .send(
                "GET",
                "auth/token/lookup-self",
                "hvs.wrong",
                Some(WEB),
                Value::Null
            )
            .await
            .0,
        403
    );
    let (status, _) = server
        .send(
            "PUT",
            "auth/spiffe/role/all",
            &server.root,
            None,
            json!({"workload_id_patterns": ["/*"], "token_policies": ["root"]}),
        )
        .await;
    assert_eq!(status, 400);

    // The same after a restart.
    let (again, _) = Api::load(
        server.core.clone(),
        Arc::new(Audit::open(&[]).unwrap()),
        Arc::new(NoLedger),
        None,
        String::new(),
    )
    .unwrap();
    assert!(
        again
            .authorize(None, Some(WEB), Capability::Read, "mesh/of/web")
            .is_ok()
    );
    server
        .root("DELETE", "auth/spiffe/role/web", Value::Null)
        .await;
    assert_eq!(ask(WEB).await.0, 403);
}

#[tokio::test]
async fn secrets_pass_through_the_mount_and_leave_no_trace_in_the_log_or_an_error() {
    let server = Server::start().await;
    let secret = "hunter2-plain";
    server
        .root(
            "POST",
            "secret/data/app/db",
            json!({"data": {"password": secret}, "options": {"cas": 0}}),
        )
        .await;
    let answer = server.root("GET", "secret/data/app/db", Value::Null).await;
    assert_eq!(
        (
            &answer["data"]["data"]["password"],
            &answer["data"]["metadata"]["version"]
        ),
        (&json!(secret), &json!(1))
    );
    let (status, answer) = server
        .send(
            "POST",
            "secret/data/app/db",
            &server.root,
            None,
            json!({"data": {"password": secret}, "options": {"cas": 0}}),
        )
        .await;
    assert_eq!(status, 400);
    assert!(!answer.to_string().contains(secret));
    // Create and update are different rights.
    let rules = r#"path "secret/data/*" { capabilities = ["create", "read"] }"#;
    server
        .root("PUT", "sys/policies/acl/once", json!({"policy": rules}))
        .await;
    let token = server.token(json!({"policies": "once"})).await;
    let body = json!({"data": {"password": secret}});
    assert_eq!(
        server
            .send("POST", "secret/data/app/db", &token, None, body.clone())
            .await
            .0,
        403
    );
    assert_eq!(
        server
            .send("POST", "secret/data/app/new", &token, None, body.clone())
            .await
            .0,
        200
    );
    assert_eq!(
        server
            .send("POST", "secret/data/app/new", &token, None, body)
            .await
            .0,
        403
    );
    server
        .root("POST", "cubbyhole/mine", json!({"k": secret}))
        .await;
    assert_eq!(
        server
            .send("GET", "cubbyhole/mine", &token, None, Value::Null)
            .await
            .0,
        404
    );

    for (path, field) in [
        ("auth/token/create", "num_uses"),
        ("auth/token/create", "ttl"),
        ("sys/policies/acl/x", "policy"),
        ("sys/mounts/x", "type"),
        ("auth/spiffe/role/x", "workload_id_patterns"),
    ] {
        let (status, answer) = server
            .send("POST", path, &server.root, None, json!({field: secret}))
            .await;
        assert_eq!(status, 400, "{path} {field} {answer}");
        assert!(!answer.to_string().contains(secret), "{answer}");
    }
    let log = server.log();
    assert!(log.lines().count() > 20 && log.contains(r#""mount_point":"secret/""#));
    for plain in [secret, &server.root, &token] {
        assert!(!log.contains(plain), "{plain}");
    }
}

#[tokio::test]
async fn a_mount_deleted_and_made_again_is_empty() {
    let server = Server::start().await;
    server
        .root("POST", "sys/mounts/team", json!({"type": "kv-v2"}))
        .await;
    server
        .root("POST", "team/data/x", json!({"data": {"a": 1}}))
        .await;
    let (status, answer) = server
        .send(
            "POST",
            "sys/mounts/team/sub",
            &server.root,
            None,
            json!({"type": "kv"}),
        )
        .await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("path is already in use at team/"))
    );
    assert_eq!(
        server
            .send(
                "POST",
                "sys/mounts/sys/x",
                &server.root,
                None,
                json!({"type": "kv"})
            )
            .await
            .0,
        400
    );
    let info = server
        .root("GET", "sys/internal/ui/mounts/team/data/x", Value::Null)
        .await;
    assert_eq!(
        (&info["data"]["path"], &info["data"]["options"]["version"]),
        (&json!("team/"), &json!("2"))
    );
    server.root("DELETE", "sys/mounts/team", Value::Null).await;
    let (status, answer) = server
        .send("GET", "team/data/x", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
    assert!(
        answer["errors"][0]
            .as_str()
            .unwrap()
            .contains("no handler for route")
    );
    server
        .root(
            "POST",
            "sys/mounts/team",
            json!({"type": "kv", "options": {"version": "1"}}),
        )
        .await;
    assert_eq!(
        server
            .send("GET", "team/data/x", &server.root, None, Value::Null)
            .await
            .0,
        404
    );
    server.root("POST", "team/y", json!({"a": "b"})).await;
    assert_eq!(
        server.root("GET", "team/y", Value::Null).await["data"],
        json!({"a": "b"})
    );
}
