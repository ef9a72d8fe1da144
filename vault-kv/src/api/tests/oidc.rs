//! Statements of who an entity is.

use super::*;

#[tokio::test]
async fn an_identity_token_says_who_and_others_can_check_it() {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/userpass", json!({"type": "userpass"}))
        .await;
    let user = json!({"password": "correct horse battery", "token_policies": "oidc"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let policy = json!({"policy": "path \"identity/oidc/token/*\" { capabilities = [\"read\"] }"});
    server.root("PUT", "sys/policies/acl/oidc", policy).await;
    let key = json!({"allowed_client_ids": "*", "algorithm": "ES256"});
    server.root("POST", "identity/oidc/key/k", key).await;
    let template = r#"{"name": {{identity.entity.name}}, "teams": {{identity.entity.groups.names}}, "meta": {"all": {{identity.entity.metadata}}}}"#;
    let role = json!({"key": "k", "client_id": "web", "template": template, "ttl": "10m"});
    server.root("POST", "identity/oidc/role/r", role).await;
    let login = json!({"password": "correct horse battery"});
    let (_, made) = server
        .send("POST", "auth/userpass/login/ann", "", None, login)
        .await;
    let token = made["auth"]["client_token"].as_str().unwrap();
    let entity = made["auth"]["entity_id"].as_str().unwrap();
    let path = format!("identity/entity/id/{entity}");
    let named = json!({"name": "ann\" , \"x", "metadata": {"floor": "3"}});
    server.root("POST", &path, named).await;
    let group = json!({"name": "ops", "member_entity_ids": [entity]});
    server.root("POST", "identity/group", group).await;

    let ask = || server.send("GET", "identity/oidc/token/r", token, None, Value::Null);
    let (status, answer) = ask().await;
    assert_eq!(status, 200, "{answer}");
    let signed = answer["data"]["token"].as_str().unwrap();
    let claims = {
        use base64::Engine as _;
        let part = signed.split('.').nth(1).unwrap();
        let part = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part);
        serde_json::from_slice::<Value>(&part.unwrap()).unwrap()
    };
    assert_eq!(
        (&claims["sub"], &claims["aud"], &claims["name"]),
        (&json!(entity), &json!("web"), &json!("ann\" , \"x"))
    );
    assert_eq!(
        (&claims["teams"], &claims["meta"]["all"]["floor"]),
        (&json!(["ops"]), &json!("3"))
    );
    // Whoever is asked by nobody in particular shows the keys.
    let well_known = "identity/oidc/.well-known";
    let (status, keys) = server
        .send("GET", &format!("{well_known}/keys"), "", None, Value::Null)
        .await;
    assert_eq!((status, &keys["keys"][0]["crv"]), (200, &json!("P-256")));
    let (status, about) = server
        .send(
            "GET",
            &format!("{well_known}/openid-configuration"),
            "",
            None,
            Value::Null,
        )
        .await;
    assert_eq!((status, &about["issuer"]), (200, &claims["iss"]));

    // It logs in where these keys are trusted: here, for once.
    server
        .root("POST", "sys/auth/jwt", json!({"type": "jwt"}))
        .await;
    let config = json!({"jwks": keys.to_string(), "bound_issuer": claims["iss"]});
    server.root("POST", "auth/jwt/config", config).await;
    let role = json!({"role_type": "jwt", "user_claim": "sub", "bound_audiences": "web", "bound_claims": {"teams": "ops"}});
    server.root("POST", "auth/jwt/role/r", role).await;
    let body = json!({"role": "r", "jwt": signed});
    let (status, answer) = server.send("POST", "auth/jwt/login", "", None, body).await;
    assert_eq!(status, 200, "{answer}");

    let active = async |token: &str, client: &str| {
        let body = json!({"token": token, "client_id": client});
        let answer = server.root("POST", "identity/oidc/introspect", body).await;
        answer["active"].as_bool().unwrap()
    };
    assert!(active(signed, "").await && active(signed, "web").await);
    assert!(!active(signed, "db").await && !active("a.b.c", "").await);
    // Replaced, the old key checks a while longer; what it signed ends by itself.
    server.clock.advance(25 * 3600);
    assert!(!active(signed, "").await, "it is over");
    let (_, answer) = server
        .send(
            "POST",
            "auth/userpass/login/ann",
            "",
            None,
            json!({"password": "correct horse battery"}),
        )
        .await;
    let token = answer["auth"]["client_token"].as_str().unwrap();
    let (_, answer) = server
        .send("GET", "identity/oidc/token/r", token, None, Value::Null)
        .await;
    assert!(active(answer["data"]["token"].as_str().unwrap(), "web").await);
    let (_, keys) = server
        .send("GET", &format!("{well_known}/keys"), "", None, Value::Null)
        .await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    let secrets = Db::new(server.core.clone())
        .names("identity/oidc/secret/")
        .unwrap();
    assert_eq!(secrets.len(), 1, "a private key goes with its time");
}

#[tokio::test]
async fn identity_tokens_are_for_entities_and_their_settings_are_checked() {
    let server = Server::start().await;
    server.root("POST", "identity/oidc/key/k", json!({})).await;
    server
        .root("POST", "identity/oidc/role/r", json!({"key": "k"}))
        .await;
    let (status, answer) = server
        .send(
            "GET",
            "identity/oidc/token/r",
            &server.root,
            None,
            Value::Null,
        )
        .await;
    assert_eq!(status, 400, "root is no entity: {answer}");
    for (path, wrong) in [
        ("key/x", json!({"algorithm": "none"})),
        ("key/x", json!({"algorithm": "RS256"})),
        ("key/x", json!({"rotation_period": "1s"})),
        (
            "key/x",
            json!({"rotation_period": "1m", "verification_ttl": "1h"}),
        ),
        ("key/k", json!({"algorithm": "EdDSA"})),
        ("role/x", json!({"key": "none"})),
        ("role/x", json!({"key": "k", "ttl": "48h"})),
        (
            "role/x",
            json!({"key": "k", "template": "{\"sub\": \"root\"}"}),
        ),
        (
            "role/x",
            json!({"key": "k", "template": "{\"a\": {{identity.entity.id}"}),
        ),
        ("role/x", json!({"key": "k", "template": "[]"})),
    ] {
        let text = wrong.to_string();
        let path = format!("identity/oidc/{path}");
        let (status, _) = server.send("POST", &path, &server.root, None, wrong).await;
        assert_eq!(status, 400, "{text}");
    }
    let (status, _) = server
        .send(
            "DELETE",
            "identity/oidc/key/k",
            &server.root,
            None,
            Value::Null,
        )
        .await;
    assert_eq!(status, 400, "a role uses it");
    for algorithm in ["ES384", "EdDSA"] {
        let path = format!("identity/oidc/key/{algorithm}");
        server
            .root("POST", &path, json!({ "algorithm": algorithm }))
            .await;
        server
            .root("POST", &format!("{path}/rotate"), json!({}))
            .await;
        server.root("DELETE", &path, Value::Null).await;
    }
}
