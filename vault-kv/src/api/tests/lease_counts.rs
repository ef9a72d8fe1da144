//! Quotas of leases.

use super::*;

const PATH: &str = "sys/quotas/lease-count";

async fn limit(server: &Server, name: &str, quota: Value) {
    let path = format!("{PATH}/{name}");
    server.root("POST", &path, quota).await;
}

/// How many count for a quota, when what there is has been read.
async fn counter(server: &Server, name: &str) -> u64 {
    // Whoever may be refused waits for that.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let path = format!("{PATH}/{name}");
    let shown = server.root("GET", &path, Value::Null).await;
    shown["data"]["counter"].as_u64().unwrap()
}

async fn create(server: &Server, body: Value) -> (u16, Value) {
    let token = &server.root;
    server
        .send("POST", "auth/token/create", token, None, body)
        .await
}

async fn usual(server: &Server) -> u16 {
    let body = json!({"policies": ["default"], "ttl": "1h"});
    create(server, body).await.0
}

/// Has an answer put aside.
async fn wrapped(server: &Server) -> u16 {
    let headers = [("x-vault-token", &*server.root), ("x-vault-wrap-ttl", "60")];
    let asked = server.send_from("192.0.2.1", "GET", "sys/mounts", &headers, Value::Null);
    asked.await.0
}

fn text(answer: &Value) -> &str {
    answer["errors"][0].as_str().unwrap()
}

/// A user `ann`, and one-time passwords of the role `ops`.
async fn with_engines() -> Server {
    let server = Server::start().await;
    for (path, body) in [
        ("sys/auth/userpass", json!({"type": "userpass"})),
        ("auth/userpass/users/ann", json!({"password": "p"})),
        ("sys/mounts/ssh", json!({"type": "ssh"})),
        (
            "ssh/roles/ops",
            json!({"key_type": "otp", "default_user": "u", "cidr_list": "0.0.0.0/0"}),
        ),
    ] {
        server.root("POST", path, body).await;
    }
    server
}

async fn password(server: &Server, token: &str) -> (u16, Value) {
    let body = json!({"ip": "192.0.2.1"});
    server
        .send("POST", "ssh/creds/ops", token, None, body)
        .await
}

#[tokio::test]
async fn there_are_no_more_tokens_than_a_quota_says() {
    let server = Server::start().await;
    limit(&server, "all", json!({"max_leases": 3})).await;
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(server.token(json!({"policies": ["default"]})).await);
    }
    let (status, answer) = create(&server, json!({"policies": ["default"]})).await;
    assert_eq!(status, 429);
    assert_eq!(
        text(&answer),
        "1 error occurred:\n\t* request path \"auth/token/create\": lease count quota exceeded\n\n"
    );
    // Batch tokens are refused and do not count; one that may do everything is neither.
    let batch = json!({"policies": ["default"], "type": "batch"});
    assert_eq!(create(&server, batch.clone()).await.0, 429);
    assert_eq!(create(&server, json!({"policies": ["root"]})).await.0, 200);
    let for_a_time = json!({"policies": ["root"], "ttl": "1h"});
    assert_eq!(create(&server, for_a_time).await.0, 200);
    assert_eq!(counter(&server, "all").await, 4);
    // Nobody loses an answer: one that would be put aside is not made.
    assert_eq!(wrapped(&server).await, 429);

    for token in &tokens[..2] {
        let body = json!({"token": token});
        server.root("POST", "auth/token/revoke", body).await;
    }
    assert_eq!(counter(&server, "all").await, 2);
    assert_eq!(create(&server, batch).await.0, 200);
    assert_eq!(counter(&server, "all").await, 2);
    assert_eq!(wrapped(&server).await, 200);
    assert_eq!(counter(&server, "all").await, 3);
    // Renewing makes none.
    let body = json!({"token": tokens[2]});
    server.root("POST", "auth/token/renew", body).await;
    assert_eq!(counter(&server, "all").await, 3);
}

#[tokio::test]
async fn the_longest_path_counts_for_logins_and_engines() {
    let server = with_engines().await;
    limit(
        &server,
        "logins",
        json!({"path": "auth/userpass", "max_leases": 1}),
    )
    .await;
    limit(&server, "ssh", json!({"path": "ssh/", "max_leases": 2})).await;
    limit(&server, "all", json!({"max_leases": 1})).await;
    let login = async || {
        let body = json!({"password": "p"});
        server
            .send("POST", "auth/userpass/login/ann", "", None, body)
            .await
    };
    let (status, ann) = login().await;
    assert_eq!(status, 200);
    assert_eq!(login().await.0, 429);
    let (wrong, _) = server
        .send(
            "POST",
            "auth/userpass/login/ann",
            "",
            None,
            json!({"password": "x"}),
        )
        .await;
    assert_eq!(wrong, 429, "whatever the password");
    assert_eq!(password(&server, &server.root).await.0, 200);
    let (status, second) = password(&server, &server.root).await;
    assert_eq!(status, 200);
    let (status, refused) = password(&server, &server.root).await;
    assert_eq!(status, 429);
    assert!(text(&refused).contains("\"ssh/creds/ops\": lease count quota"));
    assert_eq!(counter(&server, "all").await, 0, "each counts once");
    let lease = json!({"lease_id": second["lease_id"]});
    server.root("POST", "sys/leases/revoke", lease).await;
    assert_eq!(counter(&server, "ssh").await, 1);
    assert_eq!(password(&server, &server.root).await.0, 200);
    server
        .root("POST", "sys/leases/revoke-prefix/ssh/creds", Value::Null)
        .await;
    assert_eq!(counter(&server, "ssh").await, 0);
    // Without the one the other counts, what was there before included.
    let path = format!("{PATH}/logins");
    server.root("DELETE", &path, Value::Null).await;
    assert_eq!(counter(&server, "all").await, 1);
    assert_eq!(usual(&server).await, 429);
    let token = ann["auth"]["client_token"].as_str().unwrap();
    let by_herself = server.send("POST", "auth/token/revoke-self", token, None, Value::Null);
    assert_eq!(by_herself.await.0, 204);
    assert_eq!(usual(&server).await, 200);
    // With the mount its leases are gone.
    password(&server, &server.root).await;
    assert_eq!(counter(&server, "ssh").await, 1);
    server.root("DELETE", "sys/mounts/ssh", Value::Null).await;
    assert_eq!(counter(&server, "ssh").await, 0);
}

#[tokio::test]
async fn a_restart_counts_what_there_is() {
    let mut server = with_engines().await;
    for ttl in ["1m", "1h", "2h"] {
        server
            .token(json!({"policies": ["default"], "ttl": ttl}))
            .await;
    }
    for _ in 0..2 {
        assert_eq!(password(&server, &server.root).await.0, 200);
    }
    limit(&server, "all", json!({"max_leases": 5})).await;
    assert_eq!(counter(&server, "all").await, 5);
    server.reload();
    // The first request after it knows already.
    assert_eq!(usual(&server).await, 429);
    assert_eq!(password(&server, &server.root).await.0, 429);
    assert_eq!(counter(&server, "all").await, 5);
    // What is over is no more.
    server.clock.advance(61);
    server.reload();
    while counter(&server, "all").await > 4 {}
    assert_eq!(usual(&server).await, 200);
    assert_eq!(usual(&server).await, 429);
    server.reload();
    assert_eq!(usual(&server).await, 429);
    // All but the token that never ends, which has no lease.
    server
        .root("POST", "sys/leases/revoke-prefix/auth/token", Value::Null)
        .await;
    assert_eq!(counter(&server, "all").await, 2);
}

#[tokio::test]
async fn of_many_at_once_so_many_get_one() {
    let server = Arc::new(Server::start().await);
    limit(&server, "all", json!({"max_leases": 10})).await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let server = Arc::clone(&server);
        asking.spawn(async move { usual(&server).await });
    }
    let answers = asking.join_all().await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 10);
    assert_eq!(counter(&server, "all").await, 10);
}

#[tokio::test]
async fn quotas_of_leases_are_kept_shown_and_changed() {
    let mut server = Server::start().await;
    limit(&server, "all", json!({"max_leases": "7", "path": ""})).await;
    server.reload();
    let path = format!("{PATH}/all");
    let shown = server.root("GET", &path, Value::Null).await;
    assert_eq!(
        shown["data"],
        json!({"name": "all", "type": "lease-count", "path": "", "max_leases": 7, "counter": 0, "role": "",
            "inheritable": true})
    );
    let listed = server.root("LIST", PATH, Value::Null).await;
    assert_eq!(listed["data"]["keys"], json!(["all"]));
    limit(&server, "all", json!({"path": "auth/token"})).await;
    let shown = server.root("GET", &path, Value::Null).await;
    assert_eq!(
        (&shown["data"]["max_leases"], &shown["data"]["path"]),
        (&json!(7), &json!("auth/token"))
    );
    for wrong in [
        json!({}),
        json!({"max_leases": 0}),
        json!({"max_leases": -1}),
        json!({"max_leases": "many"}),
        json!({"max_leases": 1, "role": "x"}),
        json!({"max_leases": 1, "path": "auth/token"}),
    ] {
        let text = wrong.to_string();
        let other = format!("{PATH}/other");
        let (status, _) = server.send("POST", &other, &server.root, None, wrong).await;
        assert_eq!(status, 400, "{text}");
    }
    // A rate limit of the same name is another thing.
    let rate = server.send(
        "GET",
        "sys/quotas/rate-limit/all",
        &server.root,
        None,
        Value::Null,
    );
    assert_eq!(rate.await.0, 404);
    server.root("DELETE", &path, Value::Null).await;
    let gone = server.send("GET", &path, &server.root, None, Value::Null);
    assert_eq!(gone.await.0, 404);
}
