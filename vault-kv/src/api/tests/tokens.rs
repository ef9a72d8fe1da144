//! Kinds of tokens and roles that make them.

use super::*;

#[tokio::test]
async fn a_batch_token_works_until_it_expires_or_its_parent_goes() {
    let server = Server::start().await;
    let maker = json!({"policy": r#"path "auth/token/create" { capabilities = ["update"] }"#});
    server.root("PUT", "sys/policies/acl/maker", maker).await;
    let parent = server.token(json!({"policies": ["maker"]})).await;
    let make = json!({"type": "batch", "ttl": "1h"});
    let (status, answer) = server
        .send("POST", "auth/token/create", &parent, None, make)
        .await;
    assert_eq!(status, 200, "{answer}");
    let auth = &answer["auth"];
    assert_eq!(
        (&auth["token_type"], &auth["accessor"], &auth["renewable"]),
        (&json!("batch"), &json!(""), &json!(false))
    );
    let token = auth["client_token"].as_str().unwrap().to_string();
    assert!(token.starts_with("hvb."));
    let look = |token: String| {
        let server = &server;
        async move {
            server
                .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
                .await
        }
    };
    let (status, seen) = look(token.clone()).await;
    assert_eq!((status, &seen["data"]["type"]), (200, &json!("batch")));
    for (path, body) in [
        ("auth/token/renew-self", json!({})),
        ("auth/token/revoke-self", json!({})),
        ("cubbyhole/a", json!({"b": "c"})),
        ("auth/token/create", json!({})),
    ] {
        let (status, answer) = server.send("POST", path, &token, None, body).await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    // One changed letter, and it is nobody's.
    for at in [5, token.len() / 2, token.len() - 1] {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let (status, _) = look(String::from_utf8(changed).unwrap()).await;
        assert_eq!(status, 403, "letter {at}");
    }
    let root = server.root.clone();
    let make = json!({"type": "batch", "ttl": "1h", "policies": ["maker"]});
    let (_, answer) = server
        .send("POST", "auth/token/create-orphan", &root, None, make)
        .await;
    let orphan = answer["auth"]["client_token"].as_str().unwrap().to_string();
    let revoke = json!({ "token": parent });
    server.root("POST", "auth/token/revoke", revoke).await;
    assert_eq!(look(token).await.0, 403, "its parent is gone");
    assert_eq!(look(orphan.clone()).await.0, 200);
    server.clock.advance(3600);
    assert_eq!(look(orphan).await.0, 403, "it has expired");
    for refused in [
        json!({"type": "batch"}),
        json!({"type": "batch", "policies": ["maker"], "num_uses": 1}),
        json!({"type": "batch", "policies": ["maker"], "period": "1h"}),
        json!({"type": "batch", "policies": ["maker"], "id": "mine"}),
        json!({"type": "weird"}),
    ] {
        let text = refused.to_string();
        let (status, _) = server
            .send("POST", "auth/token/create", &root, None, refused)
            .await;
        assert_eq!(status, 400, "{text}");
    }
}

#[tokio::test]
async fn a_role_says_what_its_tokens_may_have() {
    let server = Server::start().await;
    let role = json!({
        "allowed_policies": ["app"], "allowed_policies_glob": ["team-*"], "disallowed_policies": ["team-x"],
        "orphan": true, "token_period": "30m", "path_suffix": "sfx",
    });
    server.root("POST", "auth/token/roles/app", role).await;
    let maker = json!({"policy": r#"path "auth/token/create/app" { capabilities = ["update"] }"#});
    server.root("PUT", "sys/policies/acl/maker", maker).await;
    let maker = server.token(json!({"policies": ["maker"]})).await;
    for (policies, expected) in [
        (json!(["app"]), 200),
        (json!(["team-a", "app"]), 200),
        (json!([]), 200),
        (json!(["team-x"]), 400),
        (json!(["maker"]), 400),
        (json!(["root"]), 400),
    ] {
        let body = json!({ "policies": policies });
        let (status, answer) = server
            .send("POST", "auth/token/create/app", &maker, None, body)
            .await;
        assert_eq!(status, expected, "{policies}: {answer}");
        if status == 200 {
            assert_eq!(answer["auth"]["orphan"], true);
            assert_eq!(answer["auth"]["lease_duration"], 1800);
            let token = answer["auth"]["client_token"].as_str().unwrap();
            let look = json!({ "token": token });
            let seen = server.root("POST", "auth/token/lookup", look).await;
            assert_eq!(seen["data"]["path"], "auth/token/create/app/sfx");
            assert_eq!(seen["data"]["role"], "app");
        }
    }
    let (status, _) = server
        .send(
            "POST",
            "auth/token/create/app",
            &maker,
            None,
            json!({"period": "9h"}),
        )
        .await;
    assert_eq!(
        status, 200,
        "the role's period holds, whatever is asked for"
    );
    let (status, answer) = server
        .send(
            "POST",
            "auth/token/create/none",
            &server.root,
            None,
            json!({}),
        )
        .await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("unknown role none"))
    );
}

#[tokio::test]
async fn an_id_of_ones_own_takes_sudo_and_is_had_once() {
    let server = Server::start().await;
    let body = json!({"id": "mine", "policies": ["default"], "ttl": "1h"});
    let made = server.root("POST", "auth/token/create", body.clone()).await;
    assert_eq!(made["auth"]["client_token"], "mine");
    let (status, _) = server
        .send("POST", "auth/token/create", &server.root, None, body)
        .await;
    assert_eq!(status, 400);
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", "mine", None, Value::Null)
        .await;
    assert_eq!(status, 200);
}
