//! Classes of vulnerabilities that others had, as far as no other test is named after them.

use super::*;

/// CVE-2025-6000: whoever may administer must not get to write files or run programs on the host.
#[tokio::test]
async fn cve_2025_6000_nobody_adds_an_audit_file_or_a_plugin() {
    let server = Server::start().await;
    let file = server.audit.path().join("other.log");
    let sink = json!({"type": "file", "options": {"file_path": file, "prefix": "#!/bin/sh\n", "mode": "0755"}});
    let plugin = json!({"sha256": "00", "command": "sh"});
    for (method, path, body) in [
        ("PUT", "sys/audit/other", &sink),
        ("DELETE", "sys/audit/file", &json!({})),
        ("PUT", "sys/plugins/catalog/secret/sh", &plugin),
        ("PUT", "sys/raw/x", &json!({"value": "x"})),
    ] {
        let (status, answer) = server
            .send(method, path, &server.root, None, body.clone())
            .await;
        assert!(matches!(status, 404 | 405), "{path}: {status} {answer}");
    }
    assert!(!file.exists());
    assert!(
        !server.log().is_empty(),
        "the sink of the configuration goes on"
    );
}

/// CVE-2026-3605: a path that is one thing for the policy and another for the engine.
#[tokio::test]
async fn cve_2026_3605_relative_segments_are_no_path() {
    let server = Server::start().await;
    let policy = json!({"policy": "path \"secret/data/mine/*\" { capabilities = [\"read\"] }"});
    server.root("PUT", "sys/policies/acl/mine", policy).await;
    let token = server.token(json!({"policies": ["mine"]})).await;
    let theirs = json!({"data": {"k": "theirs"}});
    server.root("POST", "secret/data/theirs", theirs).await;
    for path in [
        "secret/data/mine/../theirs",
        "secret/data/mine/%2e%2e/theirs",
        "secret/data/mine/./../theirs",
        "secret/data/mine/%2e%2e%2ftheirs",
        "secret/data/mine/..",
    ] {
        let (status, answer) = server.send("GET", path, &token, None, Value::Null).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
}

/// CVE-2025-6203: what nobody has authenticated must cost next to nothing.
#[tokio::test]
async fn cve_2025_6203_deep_and_wide_bodies_are_refused_unread() {
    let server = Server::start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let wide = format!("[{}1]", "1,".repeat(2_000_000));
    for body in [deep, wide] {
        let request = http::Request::builder()
            .method("POST")
            .uri("/v1/auth/userpass/login/x")
            .body(body.into())
            .unwrap();
        let caller = Caller::anonymous(Remote::Unix, Via::Http);
        let Err(Refusal::Error(error)) = Request::parse(&request, caller) else {
            panic!("it was parsed");
        };
        let status = error.status().as_u16();
        assert!(matches!(status, 400 | 413), "{status}");
    }
    assert_eq!(server.log(), "", "nothing of it got as far as a caller");
}

/// GHSA-rh46: what the server does for itself cannot be asked for from outside.
#[tokio::test]
async fn ghsa_rh46_what_the_server_keeps_is_behind_no_path() {
    let server = Server::start().await;
    let names = Db::new(server.core.clone()).names("").unwrap();
    assert!(names.len() > 10);
    // Policies are kept under the name they are asked for by.
    let hidden = names.iter().filter(|name| !name.starts_with("sys/policy/"));
    for name in hidden {
        for method in ["GET", "LIST", "DELETE"] {
            let (status, answer) = server
                .send(method, name, &server.root, None, Value::Null)
                .await;
            assert!(
                matches!(status, 400..=405),
                "{method} {name}: {status} {answer}"
            );
        }
    }
}

/// A parameter that is denied stays so however it is written (Vault 2.0.4).
#[tokio::test]
async fn vault_2_0_4_a_denied_parameter_is_denied_in_every_spelling() {
    let server = Server::start().await;
    let policy = json!({"policy": "path \"auth/token/create\" {\n capabilities = [\"update\"]\n denied_parameters = { \"ttl\" = [] }\n}"});
    server.root("PUT", "sys/policies/acl/short", policy).await;
    let token = server.token(json!({"policies": ["short"]})).await;
    for name in ["ttl", "TTL", "Ttl"] {
        let body = json!({ name: "1h" });
        let (status, answer) = server
            .send("POST", "auth/token/create", &token, None, body)
            .await;
        let ignored = status == 200 && answer["auth"]["lease_duration"] != 3600;
        assert!(status == 403 || ignored, "{name}: {status} {answer}");
    }
}

/// CVE-2024-2660: a status that was never asked for must not be taken for a good one.
#[tokio::test]
async fn cve_2024_2660_no_promise_to_ask_a_responder_is_made() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/cert", json!({"type": "cert"}))
        .await;
    let role = json!({"certificate": "x", "ocsp_enabled": true});
    let (status, answer) = server
        .send("POST", "auth/cert/certs/x", &server.root, None, role)
        .await;
    let text = answer["errors"][0].as_str().unwrap();
    assert!(status == 400 && text.contains("ocsp_enabled"), "{text}");
}
