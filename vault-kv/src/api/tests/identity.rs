//! Entities, aliases and groups through the whole chain.

use super::*;

/// A server where `ann` can log in, the answer of her login, and her token.
async fn with_ann() -> (Server, Value, String) {
    let server = Server::start().await;
    server
        .root("POST", "sys/auth/userpass", json!({"type": "userpass"}))
        .await;
    let user = json!({"password": "x", "token_policies": ["base"]});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let answer = login(&server).await.1;
    let token = answer["auth"]["client_token"].as_str().unwrap().to_string();
    (server, answer, token)
}

async fn login(server: &Server) -> (u16, Value) {
    let body = json!({"password": "x"});
    server
        .send("POST", "auth/userpass/login/ann", "", None, body)
        .await
}

impl Server {
    async fn policy(&self, name: &str, text: &str) {
        let path = format!("sys/policies/acl/{name}");
        self.root("PUT", &path, json!({ "policy": text })).await;
    }

    async fn reads(&self, token: &str, key: &str) -> bool {
        let path = format!("secret/data/{key}");
        let (status, answer) = self.send("GET", &path, token, None, Value::Null).await;
        assert!(matches!(status, 403 | 404), "{answer}");
        status == 404
    }
}

fn granting(key: &str) -> String {
    format!(r#"path "secret/data/{key}" {{ capabilities = ["read"] }}"#)
}

#[tokio::test]
async fn a_login_belongs_to_one_entity_whose_policies_hold_at_once() {
    let (server, first, token) = with_ann().await;
    let id = first["auth"]["entity_id"].as_str().unwrap().to_string();
    let again = login(&server).await.1;
    assert_eq!(again["auth"]["entity_id"], id.as_str());
    let path = format!("identity/entity/id/{id}");
    let seen = server.root("GET", &path, Value::Null).await;
    let alias = &seen["data"]["aliases"][0];
    assert_eq!(
        (&alias["name"], &alias["mount_path"], &alias["mount_type"]),
        (&json!("ann"), &json!("auth/userpass/"), &json!("userpass"))
    );

    server.policy("of-entity", &granting("e")).await;
    server.policy("of-group", &granting("g")).await;
    server.policy("of-parent", &granting("p")).await;
    assert!(!server.reads(&token, "e").await);
    server
        .root("POST", &path, json!({"policies": ["of-entity"]}))
        .await;
    assert!(server.reads(&token, "e").await);

    let group = json!({"name": "team", "policies": ["of-group"], "member_entity_ids": [id]});
    let group = server.root("POST", "identity/group", group).await["data"]["id"].clone();
    let parent = json!({"name": "all", "policies": ["of-parent"], "member_group_ids": [group]});
    let parent = server.root("POST", "identity/group", parent).await["data"]["id"].clone();
    assert!(server.reads(&token, "g").await && server.reads(&token, "p").await);
    let seen = server.root("GET", &path, Value::Null).await;
    assert_eq!(seen["data"]["direct_group_ids"], json!([group]));
    assert_eq!(seen["data"]["inherited_group_ids"], json!([parent]));
    let again = login(&server).await.1;
    let auth = &again["auth"];
    assert_eq!(
        auth["identity_policies"],
        json!(["of-entity", "of-group", "of-parent"])
    );
    assert_eq!(auth["token_policies"], json!(["base", "default"]));
    assert_eq!(auth["policies"].as_array().unwrap().len(), 5);

    // A circle of groups is refused; a group that goes takes its policies along.
    let circle = json!({"member_group_ids": [parent]});
    let group_path = format!("identity/group/id/{}", group.as_str().unwrap());
    let (status, _) = server
        .send("POST", &group_path, &server.root, None, circle)
        .await;
    assert_eq!(status, 400);
    server.root("DELETE", &group_path, Value::Null).await;
    assert!(!server.reads(&token, "g").await && !server.reads(&token, "p").await);
    assert!(server.reads(&token, "e").await);
}

#[tokio::test]
async fn a_disabled_entity_is_out_and_a_deleted_one_too() {
    let (server, answer, token) = with_ann().await;
    let id = answer["auth"]["entity_id"].as_str().unwrap();
    let path = format!("identity/entity/id/{id}");
    server.root("POST", &path, json!({"disabled": true})).await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!((status, login(&server).await.0), (403, 403));
    server.root("POST", &path, json!({"disabled": false})).await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!((status, login(&server).await.0), (200, 200));
    server.root("DELETE", &path, Value::Null).await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!(status, 403);
    let (status, new) = login(&server).await;
    assert_eq!(status, 200);
    assert_ne!(new["auth"]["entity_id"], id, "it is somebody new");
}

/// CVE-2024-9180: rights over identities do not become root's.
#[tokio::test]
async fn cve_2024_9180_no_entity_or_group_has_root() {
    let server = Server::start().await;
    for name in ["root", "Root", " root ", "response-wrapping"] {
        for path in ["identity/entity", "identity/group"] {
            let body = json!({"name": "a", "policies": [name]});
            let (status, answer) = server.send("POST", path, &server.root, None, body).await;
            assert_eq!(status, 400, "{path} {name:?}: {answer}");
        }
    }
}

/// GHSA-59w7: what an entity says of itself does not widen a rule.
#[tokio::test]
async fn templates_are_filled_with_facts_and_never_widened_by_them() {
    let (server, answer, token) = with_ann().await;
    let id = answer["auth"]["entity_id"].as_str().unwrap();
    let accessor = server.root("GET", "sys/auth/userpass", Value::Null).await["accessor"].clone();
    let accessor = accessor.as_str().unwrap();
    let text = [
        granting("{{identity.entity.id}}"),
        granting("{{identity.entity.metadata.team}}/x"),
        granting(&format!("{{{{identity.entity.aliases.{accessor}.name}}}}")),
        granting("{{identity.groups.names.team.id}}"),
    ];
    server.policy("base", &text.join("\n")).await;
    assert!(server.reads(&token, id).await && server.reads(&token, "ann").await);
    assert!(!server.reads(&token, "red/x").await);
    let path = format!("identity/entity/id/{id}");
    let team = |team: &str| json!({"metadata": {"team": team}});
    server.root("POST", &path, team("red")).await;
    assert!(server.reads(&token, "red/x").await && !server.reads(&token, "blue/x").await);
    for wide in ["*", "+", "red/../blue", "a/b"] {
        server.root("POST", &path, team(wide)).await;
        assert!(!server.reads(&token, "blue/x").await, "{wide}");
    }
    let group = json!({"name": "team", "member_entity_ids": [id]});
    let group = server.root("POST", "identity/group", group).await["data"]["id"].clone();
    assert!(server.reads(&token, group.as_str().unwrap()).await);
    let unknown = json!({"policy": granting("{{identity.entity.secret}}")});
    let (status, _) = server
        .send(
            "PUT",
            "sys/policies/acl/unknown",
            &server.root,
            None,
            unknown,
        )
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn aliases_move_and_entities_are_merged() {
    let (server, answer, _) = with_ann().await;
    let ann = answer["auth"]["entity_id"].clone();
    server
        .root("POST", "sys/auth/approle", json!({"type": "approle"}))
        .await;
    let accessor = server.root("GET", "sys/auth/approle", Value::Null).await["accessor"].clone();
    let entity = json!({"name": "robot", "metadata": {"k": "v"}});
    let robot = server.root("POST", "identity/entity", entity).await["data"]["id"].clone();
    let alias = json!({"name": "role-1", "canonical_id": robot, "mount_accessor": accessor});
    let made = server
        .root("POST", "identity/entity-alias", alias.clone())
        .await;
    assert_eq!(made["data"]["canonical_id"], robot);
    // The same once more changes nothing; for another entity it moves.
    let same = server.root("POST", "identity/entity-alias", alias).await;
    assert_eq!(same["data"], made["data"]);
    let alias_path = format!(
        "identity/entity-alias/id/{}",
        made["data"]["id"].as_str().unwrap()
    );
    let seen = server.root("GET", &alias_path, Value::Null).await;
    assert_eq!(seen["data"]["mount_type"], "approle");
    let look = json!({"alias_name": "role-1", "alias_mount_accessor": accessor});
    let found = server
        .root("POST", "identity/lookup/entity", look.clone())
        .await;
    assert_eq!(found["data"]["name"], "robot");

    let merge = json!({"from_entity_ids": [robot], "to_entity_id": ann});
    server.root("POST", "identity/entity/merge", merge).await;
    let found = server.root("POST", "identity/lookup/entity", look).await;
    assert_eq!(
        (&found["data"]["id"], &found["data"]["merged_entity_ids"]),
        (&ann, &json!([robot]))
    );
    assert_eq!(found["data"]["metadata"], json!({"k": "v"}));
    let (status, _) = server
        .send(
            "POST",
            "identity/lookup/entity",
            &server.root,
            None,
            json!({"name": "robot"}),
        )
        .await;
    assert_eq!(status, 204);
    let wrong = json!({"name": "n", "canonical_id": ann, "mount_accessor": "nosuch"});
    let (status, answer) = server
        .send("POST", "identity/entity-alias", &server.root, None, wrong)
        .await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("invalid mount accessor \"nosuch\""))
    );
    server.root("DELETE", &alias_path, Value::Null).await;
    let (status, _) = server
        .send("GET", &alias_path, &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
}
