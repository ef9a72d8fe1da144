//! Settings of mounts, and mounts that move.

use super::*;

#[tokio::test]
async fn a_mount_is_tuned_and_what_is_set_holds() {
    let server = Server::start().await;
    let mount = json!({"type": "kv", "config": {"default_lease_ttl": "1h", "max_lease_ttl": "2h"}});
    server.root("POST", "sys/mounts/kv1", mount).await;
    server
        .root("POST", "kv1/a", json!({"k": "plain", "o": "hidden"}))
        .await;
    let read = server.root("GET", "kv1/a", Value::Null).await;
    assert_eq!(read["lease_duration"], 3600);
    let tune = json!({
        "default_lease_ttl": "30m", "description": "tuned", "audit_non_hmac_response_keys": ["k"],
        "audit_non_hmac_request_keys": "k", "listing_visibility": "unauth",
    });
    server.root("POST", "sys/mounts/kv1/tune", tune).await;
    let tuned = server.root("GET", "sys/mounts/kv1/tune", Value::Null).await;
    assert_eq!(
        (
            &tuned["default_lease_ttl"],
            &tuned["max_lease_ttl"],
            &tuned["description"]
        ),
        (&json!(1800), &json!(7200), &json!("tuned"))
    );
    let read = server.root("GET", "kv1/a", Value::Null).await;
    assert_eq!(
        (&read["lease_duration"], &read["data"]["k"]),
        (&json!(1800), &json!("plain"))
    );
    let log = server.log();
    assert!(log.contains("\"plain\"") && !log.contains("\"hidden\""));
    // Shown to those who have no token yet; the others are not.
    let (status, seen) = server
        .send("GET", "sys/internal/ui/mounts", "", None, Value::Null)
        .await;
    assert_eq!(status, 200);
    let shown: Vec<_> = seen["data"]["secret"].as_object().unwrap().keys().collect();
    assert_eq!(shown, ["kv1/"]);
    for wrong in [
        json!({"default_lease_ttl": "10h"}),
        json!({"listing_visibility": "loud"}),
        json!({"token_type": "batch"}),
        json!({"max_lease_ttl": "soon"}),
    ] {
        let text = wrong.to_string();
        let (status, _) = server
            .send("POST", "sys/mounts/kv1/tune", &server.root, None, wrong)
            .await;
        assert_eq!(status, 400, "{text}");
    }
}

#[tokio::test]
async fn a_mount_that_moves_keeps_what_is_in_it() {
    let server = Server::start().await;
    server
        .root("POST", "secret/data/a", json!({"data": {"k": "v"}}))
        .await;
    let moved = server
        .root(
            "POST",
            "sys/remount",
            json!({"from": "secret", "to": "team/kv/"}),
        )
        .await;
    let id = moved["migration_id"].as_str().unwrap();
    let status = server
        .root("GET", &format!("sys/remount/status/{id}"), Value::Null)
        .await;
    let info = &status["data"]["migration_info"];
    assert_eq!(
        (
            &info["source_mount"],
            &info["target_mount"],
            &info["status"]
        ),
        (&json!("secret/"), &json!("team/kv/"), &json!("success"))
    );
    let read = server.root("GET", "team/kv/data/a", Value::Null).await;
    assert_eq!(read["data"]["data"]["k"], "v");
    let (status, _) = server
        .send("GET", "secret/data/a", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
    for (from, to) in [
        ("nosuch", "else"),
        ("team/kv", "sys/kv"),
        ("sys", "kv"),
        ("team/kv", "auth/kv"),
        ("team/kv", "team"),
    ] {
        let body = json!({"from": from, "to": to});
        let (status, _) = server
            .send("POST", "sys/remount", &server.root, None, body)
            .await;
        assert_eq!(status, 400, "{from} to {to}");
    }
}

/// A deny deeper down cannot be walked around by listing from above (GHSA-xp3c).
#[tokio::test]
async fn a_scan_shows_what_may_be_listed_and_no_more() {
    let server = Server::start().await;
    for key in ["a", "b/c", "b/d/e", "private/f", "private/g/h"] {
        let path = format!("secret/data/{key}");
        server
            .root("POST", &path, json!({"data": {"k": "v"}}))
            .await;
    }
    let all = server.root("SCAN", "secret/metadata", Value::Null).await;
    let every = json!(["a", "b/c", "b/d/e", "private/f", "private/g/h"]);
    assert_eq!(all["data"]["keys"], every);
    let policy = r#"path "secret/metadata/*" { capabilities = ["list"] }
        path "secret/metadata/private/*" { capabilities = ["deny"] }"#;
    let policy = json!({ "policy": policy });
    server.root("PUT", "sys/policies/acl/some", policy).await;
    let token = server.token(json!({"policies": ["some"]})).await;
    for (path, expected) in [
        ("secret/metadata?scan=true", json!(["a", "b/c", "b/d/e"])),
        ("secret/metadata/b/?scan=true", json!(["c", "d/e"])),
        ("secret/metadata?scan=true&after=a&limit=1", json!(["b/c"])),
    ] {
        let (status, answer) = server.send("GET", path, &token, None, Value::Null).await;
        assert_eq!(
            (status, &answer["data"]["keys"]),
            (200, &expected),
            "{path}"
        );
    }
    let (status, _) = server
        .send("SCAN", "secret/metadata/private", &token, None, Value::Null)
        .await;
    assert_eq!(status, 403);
    let (status, _) = server
        .send("SCAN", "sys/mounts", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 405);
}
