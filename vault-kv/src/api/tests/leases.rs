//! What is handed out for a time, and ends.

use super::*;
use crate::lease::{Lease, Offer, Owner};

impl Server {
    /// With one-time passwords for 127.0.0.0/8 at `ssh/`.
    async fn with_ssh() -> Self {
        let server = Self::start().await;
        server
            .root("POST", "sys/mounts/ssh", json!({"type": "ssh"}))
            .await;
        let role = json!({"key_type": "otp", "default_user": "u", "cidr_list": "127.0.0.0/8", "allowed_users": "v"});
        server.root("POST", "ssh/roles/otp", role).await;
        server
    }

    /// A password and its lease.
    async fn otp(&self, token: &str) -> (String, String) {
        let ask = json!({"ip": "127.0.0.1"});
        let (status, made) = self.send("POST", "ssh/creds/otp", token, None, ask).await;
        assert_eq!(status, 200, "{made}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&made["data"]["key"]), text(&made["lease_id"]))
    }

    async fn lease(&self, what: &str, id: &str) -> (u16, Value) {
        let ask = json!({"lease_id": id, "sync": true});
        let path = format!("sys/leases/{what}");
        self.send("POST", &path, &self.root, None, ask).await
    }

    async fn verify(&self, otp: &str) -> (u16, Value) {
        self.send("POST", "ssh/verify", "", None, json!({"otp": otp}))
            .await
    }

    /// A lease that renews, on a mount that takes nothing back.
    async fn own_lease(&self, owner: Owner, ttl: u64) -> Result<(String, Lease), ApiError> {
        let by = By::system("test");
        let offer = Offer {
            batch: Batch::new(&by, "test"),
            ttl,
            max_ttl: 1000,
            renewable: true,
            data: json!({}),
        };
        self.api
            .leases
            .grant(&by, "secret/data/x", owner, offer)
            .await
    }

    /// Until everything that is over has ended.
    async fn until_gone(&self, id: &str) {
        while self.lease("lookup", id).await.0 == 200 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_password_works_once_and_not_after_its_lease() {
    let server = Server::with_ssh().await;
    let (otp, id) = server.otp(&server.root).await;
    assert!(id.starts_with("ssh/creds/otp/"), "{id}");
    let (_, seen) = server.lease("lookup", &id).await;
    assert_eq!(
        (&seen["data"]["renewable"], &seen["data"]["ttl"]),
        (&json!(false), &json!(2_764_800))
    );
    assert_eq!(server.lease("renew", &id).await.0, 400);
    let path = "sys/leases/lookup/ssh/creds/otp";
    let listed = server.root("LIST", path, Value::Null).await;
    assert_eq!(
        listed["data"]["keys"],
        json!([id.trim_start_matches("ssh/creds/otp/")])
    );
    let (status, behind) = server.verify(&otp).await;
    assert_eq!((status, &behind["data"]["username"]), (200, &json!("u")));
    assert_eq!(server.verify(&otp).await.0, 400, "a second time");

    let (otp, id) = server.otp(&server.root).await;
    assert_eq!(server.lease("revoke", &id).await.0, 204);
    assert_eq!(server.verify(&otp).await.0, 400, "revoked");
    assert_eq!(server.lease("lookup", &id).await.0, 400);
    assert_eq!(server.lease("revoke", &id).await.0, 204, "a second time");
    let log = server.log();
    assert!(
        !log.contains(&otp) && log.contains(&id),
        "the log names leases, not passwords"
    );
}

#[tokio::test]
async fn what_a_token_was_given_ends_with_it() {
    let server = Server::with_ssh().await;
    let policy =
        json!({"policy": "path \"ssh/creds/otp\" { capabilities = [\"create\", \"update\"] }"});
    server.root("PUT", "sys/policies/acl/ssh", policy).await;
    let made = server
        .root("POST", "auth/token/create", json!({"policies": ["ssh"]}))
        .await;
    let token = made["auth"]["client_token"].as_str().unwrap();
    let mut had = Vec::new();
    for _ in 0..3 {
        had.push(server.otp(token).await);
    }
    let (_, others) = server.otp(&server.root).await;
    server
        .root("POST", "auth/token/revoke", json!({"token": token}))
        .await;
    for (otp, id) in &had {
        server.until_gone(id).await;
        assert_eq!(server.verify(otp).await.0, 400);
    }
    assert_eq!(server.lease("lookup", &others).await.0, 200);
}

#[tokio::test]
async fn what_was_given_ends_with_its_token_also_across_a_seal() {
    let mut server = Server::with_ssh().await;
    let made = server
        .root(
            "POST",
            "auth/token/create",
            json!({"policies": ["root"], "ttl": "1h"}),
        )
        .await;
    let token = made["auth"]["client_token"].as_str().unwrap();
    let (_, id) = server.otp(token).await;
    let (kept, stays) = server.otp(&server.root).await;
    // The process ends between the token and its leases.
    let name = server.api.tokens.id_of(&ClientToken::new(token));
    let db = Db::new(server.core.clone());
    let mut batch = Batch::new(&By::system("test"), "test");
    for path in db.names("token/id/").unwrap() {
        if path.ends_with(serde_json::to_value(&name).unwrap().as_str().unwrap()) {
            batch.delete(&path);
        }
    }
    db.commit(batch).await.unwrap();
    server.reload();
    server.until_gone(&id).await;
    assert_eq!(server.lease("lookup", &stays).await.0, 200);
    assert_eq!(server.verify(&kept).await.0, 200);
}

#[tokio::test]
async fn leases_end_when_their_time_is_over() {
    let mut server = Server::with_ssh().await;
    let tune = json!({"default_lease_ttl": "60s"});
    server.root("POST", "sys/mounts/ssh/tune", tune).await;
    let (otp, id) = server.otp(&server.root).await;
    // One that is no good keeps no other from ending.
    let mut batch = Batch::new(&By::system("test"), "test");
    batch.put_bytes("lease/a/bad", Zeroizing::new(b"no lease".to_vec()));
    Db::new(server.core.clone()).commit(batch).await.unwrap();
    server.clock.advance(61);
    server.reload();
    server.until_gone(&id).await;
    assert_eq!(server.verify(&otp).await.0, 400);
}

#[tokio::test]
async fn below_a_path_everything_ends_and_with_a_mount_too() {
    let server = Server::with_ssh().await;
    let (first, _) = server.otp(&server.root).await;
    let sync = json!({"sync": true});
    server
        .root("POST", "sys/leases/revoke-prefix/ssh/creds", sync)
        .await;
    assert_eq!(server.verify(&first).await.0, 400);
    let (_, id) = server.otp(&server.root).await;
    server.root("DELETE", "sys/mounts/ssh", Value::Null).await;
    assert_eq!(server.lease("lookup", &id).await.0, 400);
    // It takes more than the right to write there.
    let policy = json!({"policy": "path \"sys/leases/*\" { capabilities = [\"update\", \"list\", \"read\"] }"});
    server.root("PUT", "sys/policies/acl/leases", policy).await;
    let made = server
        .root("POST", "auth/token/create", json!({"policies": ["leases"]}))
        .await;
    let token = made["auth"]["client_token"].as_str().unwrap();
    for (method, path) in [
        ("POST", "sys/leases/revoke-prefix/ssh"),
        ("POST", "sys/leases/revoke-force/ssh"),
        ("LIST", "sys/leases/lookup/ssh"),
        ("GET", "sys/leases?type=irrevocable"),
    ] {
        let (status, _) = server.send(method, path, token, None, Value::Null).await;
        assert_eq!(status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_lease_is_renewed_up_to_its_longest_life() {
    let server = Server::start().await;
    let (id, lease) = server.own_lease(Owner::Nobody, 600).await.unwrap();
    assert_eq!(lease.left(server.clock.unix()), 600);
    let renew = |increment: u64| {
        let ask = json!({"lease_id": id, "increment": increment});
        server.send("POST", "sys/leases/renew", &server.root, None, ask)
    };
    let (status, answer) = renew(300).await;
    assert_eq!((status, &answer["lease_duration"]), (200, &json!(300)));
    assert_eq!(answer["lease_id"], json!(id));
    server.clock.advance(200);
    let (_, answer) = renew(5000).await;
    assert_eq!(
        answer["lease_duration"], 800,
        "until 1000 s after it was issued"
    );
    assert!(answer["warnings"][0].as_str().unwrap().contains("max_ttl"));
    server.clock.advance(801);
    let (status, answer) = renew(1).await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("lease expired"))
    );
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_tried_again_then_listed_then_forced() {
    let mut server = Server::start().await;
    let (id, _) = server.own_lease(Owner::Nobody, 10).await.unwrap();
    for _ in 0..6 {
        server.clock.advance(10_000);
        server.api.leases.run_due().await.unwrap();
    }
    let path = "sys/leases/count?type=irrevocable";
    let counted = server.root("GET", path, Value::Null).await;
    assert_eq!(counted["data"]["lease_count"], 1);
    server.reload();
    let path = "sys/leases?type=irrevocable";
    loop {
        let listed = server.root("GET", path, Value::Null).await;
        if listed["data"]["leases"][0]["lease_id"] == json!(id) {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(server.lease("revoke", &id).await.0, 400);
    server
        .root("POST", "sys/leases/revoke-force/secret", Value::Null)
        .await;
    let listed = server.root("GET", path, Value::Null).await;
    assert_eq!(listed["data"]["lease_count"], 0);
}

#[tokio::test]
async fn all_that_an_identity_was_given_ends_at_once() {
    let server = Server::with_ssh().await;
    let policy =
        json!({"policy": "path \"ssh/creds/otp\" { capabilities = [\"create\", \"update\"] }"});
    server.root("PUT", "sys/policies/acl/ssh", policy).await;
    let role =
        json!({"workload_id_patterns": ["/ns/default/dc/*/svc/web"], "token_policies": ["ssh"]});
    server.root("POST", "auth/spiffe/role/web", role).await;
    let ask = json!({"ip": "127.0.0.1"});
    let (status, made) = server
        .send("POST", "ssh/creds/otp", "", Some(WEB), ask)
        .await;
    assert_eq!(status, 200, "{made}");
    let otp = made["data"]["key"].as_str().unwrap();
    let ask = json!({"spiffe_id": WEB});
    server.root("POST", "sys/leases/revoke-identity", ask).await;
    assert_eq!(server.verify(otp).await.0, 400);
}

/// CVE-2026-46405: a credential must not outlive the failure of the request that made it.
#[tokio::test]
async fn cve_2026_46405_nothing_is_handed_out_to_a_token_that_ended_meanwhile() {
    let server = Server::start().await;
    let made = server
        .root(
            "POST",
            "auth/token/create",
            json!({"policies": ["default"]}),
        )
        .await;
    let secret = ClientToken::new(made["auth"]["client_token"].as_str().unwrap());
    let id = server.api.tokens.id_of(&secret);
    server
        .api
        .tokens
        .revoke(&By::system("test"), &id)
        .await
        .unwrap();
    assert!(server.own_lease(Owner::Token(id), 60).await.is_err());
    let left = server.api.leases.list("secret/data/x/").unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_lease_of_a_token_is_the_token() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/userpass", json!({"type": "userpass"}))
        .await;
    let user =
        json!({"password": "correct horse battery", "token_ttl": "1h", "token_max_ttl": "3h"});
    server.root("POST", "auth/userpass/users/bob", user).await;
    let login = json!({"password": "correct horse battery"});
    let path = "auth/userpass/login/bob";
    let (_, made) = server.send("POST", path, "", None, login).await;
    let token = made["auth"]["client_token"].as_str().unwrap();
    let listed = server
        .root(
            "LIST",
            "sys/leases/lookup/auth/userpass/login/bob",
            Value::Null,
        )
        .await;
    let id = format!("{path}/{}", listed["data"]["keys"][0].as_str().unwrap());
    let ask = json!({"lease_id": id, "increment": "2h"});
    let renewed = server.root("POST", "sys/leases/renew", ask).await;
    assert_eq!(renewed["auth"]["lease_duration"], 7200);
    assert_eq!(
        renewed["auth"]["client_token"], "",
        "whoever renews does not get to see it"
    );
    let (_, seen) = server.lease("lookup", &id).await;
    assert_eq!(seen["data"]["renewable"], true);
    let elsewhere = id.replace("/bob/", "/alice/");
    assert_eq!(server.lease("lookup", &elsewhere).await.0, 400);
    // A path that only begins alike is another one.
    server
        .root(
            "POST",
            "sys/leases/revoke-prefix/auth/user",
            json!({"sync": true}),
        )
        .await;
    assert_eq!(server.lease("lookup", &id).await.0, 200);
    server
        .root(
            "POST",
            "sys/leases/revoke-prefix/auth/userpass",
            json!({"sync": true}),
        )
        .await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", token, None, Value::Null)
        .await;
    assert_eq!(status, 403);
}
