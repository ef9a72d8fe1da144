//! Wrapped answers.

use super::*;

impl Server {
    async fn wrapped(&self, method: &str, path: &str, body: Value) -> Value {
        let headers = [
            ("x-vault-token", self.root.as_str()),
            ("x-vault-wrap-ttl", "60"),
        ];
        let (status, answer) = self
            .send_from("127.0.0.1", method, path, &headers, body)
            .await;
        assert_eq!(status, 200, "{answer}");
        answer
    }
}

fn wrapping_token(answer: &Value) -> String {
    answer["wrap_info"]["token"].as_str().unwrap().to_string()
}

const GONE: &str = "wrapping token is not valid or does not exist";

#[tokio::test]
async fn a_wrapped_answer_is_seen_once_and_by_nobody_else() {
    let server = Server::start().await;
    server
        .root("POST", "secret/data/a", json!({"data": {"k": "s3cret"}}))
        .await;
    let answer = server.wrapped("GET", "secret/data/a", Value::Null).await;
    assert!(
        answer["data"].is_null() && answer["request_id"] == "",
        "{answer}"
    );
    assert_eq!(answer["wrap_info"]["creation_path"], "secret/data/a");
    let token = wrapping_token(&answer);

    let look = json!({ "token": token });
    let (status, seen) = server
        .send("POST", "sys/wrapping/lookup", "", None, look.clone())
        .await;
    assert_eq!(
        (status, &seen["data"]["creation_ttl"]),
        (200, &json!(60)),
        "{seen}"
    );
    let (status, _) = server
        .send("GET", "secret/data/a", &token, None, Value::Null)
        .await;
    assert_eq!(status, 403, "it is good for unwrapping only");
    // That try was its one use.
    let (status, answer) = server
        .send("POST", "sys/wrapping/unwrap", &token, None, Value::Null)
        .await;
    assert_eq!((status, &answer["errors"][0]), (400, &json!(GONE)));

    let answer = server.wrapped("GET", "secret/data/a", Value::Null).await;
    let token = wrapping_token(&answer);
    let (status, answer) = server
        .send("POST", "sys/wrapping/unwrap", &token, None, Value::Null)
        .await;
    assert_eq!(
        (status, &answer["data"]["data"]["k"]),
        (200, &json!("s3cret")),
        "{answer}"
    );
    for (caller, body) in [
        (token.as_str(), Value::Null),
        (server.root.as_str(), json!({ "token": token })),
    ] {
        let (status, answer) = server
            .send("POST", "sys/wrapping/unwrap", caller, None, body)
            .await;
        assert_eq!((status, &answer["errors"][0]), (400, &json!(GONE)));
    }
    let log = server.log();
    assert!(!log.contains("s3cret") && !log.contains(&token));
}

#[tokio::test]
async fn of_two_who_unwrap_at_once_one_gets_it() {
    let server = Server::start().await;
    let answer = server
        .wrapped("POST", "sys/wrapping/wrap", json!({"zip": "zap"}))
        .await;
    let body = json!({"token": wrapping_token(&answer)});
    let unwrap = || {
        server.send(
            "POST",
            "sys/wrapping/unwrap",
            &server.root,
            None,
            body.clone(),
        )
    };
    let (one, other) = tokio::join!(unwrap(), unwrap());
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 400]);
}

#[tokio::test]
async fn wrapped_again_it_keeps_its_origin_and_the_old_token_is_gone() {
    let server = Server::start().await;
    let answer = server
        .wrapped(
            "POST",
            "auth/token/create",
            json!({"policies": ["default"]}),
        )
        .await;
    let old = wrapping_token(&answer);
    let accessor = answer["wrap_info"]["wrapped_accessor"].clone();
    let again = server
        .root("POST", "sys/wrapping/rewrap", json!({ "token": old }))
        .await;
    let info = &again["wrap_info"];
    assert_eq!(info["creation_path"], "auth/token/create");
    assert_eq!(
        (&info["ttl"], &info["wrapped_accessor"]),
        (&json!(60), &accessor)
    );
    let (status, _) = server
        .send("POST", "sys/wrapping/unwrap", &old, None, Value::Null)
        .await;
    assert_eq!(status, 400);
    let new = wrapping_token(&again);
    let (status, answer) = server
        .send("POST", "sys/wrapping/unwrap", &new, None, Value::Null)
        .await;
    assert_eq!((status, &answer["auth"]["accessor"]), (200, &accessor));
}

#[tokio::test]
async fn it_goes_with_its_time_and_cannot_be_given_by_hand() {
    let server = Server::start().await;
    let answer = server
        .wrapped("POST", "sys/wrapping/wrap", json!({"zip": "zap"}))
        .await;
    server.clock.advance(61);
    let (status, _) = server
        .send(
            "POST",
            "sys/wrapping/unwrap",
            &wrapping_token(&answer),
            None,
            Value::Null,
        )
        .await;
    assert_eq!(status, 400);
    for (path, body) in [
        (
            "auth/token/create",
            json!({"policies": ["response-wrapping"]}),
        ),
        (
            "sys/policies/acl/response-wrapping",
            json!({"policy": "path \"*\" { capabilities = [\"read\"] }"}),
        ),
        ("sys/wrapping/wrap", json!({"a": "b"})),
    ] {
        let (status, answer) = server.send("POST", path, &server.root, None, body).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    // An error is told, not wrapped.
    let headers = [
        ("x-vault-token", server.root.as_str()),
        ("x-vault-wrap-ttl", "60"),
    ];
    let (status, _) = server
        .send_from(
            "127.0.0.1",
            "GET",
            "secret/data/none",
            &headers,
            Value::Null,
        )
        .await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_policy_may_ask_for_wrapping() {
    let server = Server::start().await;
    server
        .root("POST", "secret/data/a", json!({"data": {"k": "v"}}))
        .await;
    let policy = r#"path "secret/data/*" {
        capabilities = ["read"]
        min_wrapping_ttl = "30s"
        max_wrapping_ttl = 90
    }"#;
    let policy = json!({ "policy": policy });
    server.root("PUT", "sys/policies/acl/wrapped", policy).await;
    let token = server.token(json!({"policies": ["wrapped"]})).await;
    for (ttl, expected) in [
        ("", 403),
        ("29", 403),
        ("30", 200),
        ("90s", 200),
        ("91", 403),
    ] {
        let headers = [("x-vault-token", token.as_str()), ("x-vault-wrap-ttl", ttl)];
        let (status, answer) = server
            .send_from("127.0.0.1", "GET", "secret/data/a", &headers, Value::Null)
            .await;
        assert_eq!(status, expected, "{ttl}: {answer}");
    }
    let upside_down = r#"path "a" { min_wrapping_ttl = "2m" max_wrapping_ttl = "1m" }"#;
    let (status, _) = server
        .send(
            "PUT",
            "sys/policies/acl/wrong",
            &server.root,
            None,
            json!({ "policy": upside_down }),
        )
        .await;
    assert_eq!(status, 400);
}
