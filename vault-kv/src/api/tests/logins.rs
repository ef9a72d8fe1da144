//! Login methods through the whole chain.

use super::*;

const LOCAL: &str = "127.0.0.1";

impl Server {
    /// With the method enabled at its usual path.
    async fn with_auth(kind: &str) -> Self {
        let server = Self::start().await;
        let path = format!("sys/auth/{kind}");
        server.root("POST", &path, json!({ "type": kind })).await;
        server
    }

    async fn login(&self, path: &str, body: Value) -> (u16, Value) {
        self.send_from(LOCAL, "POST", path, &[], body).await
    }
}

fn token_in(answer: &Value) -> String {
    answer["auth"]["client_token"].as_str().unwrap().to_string()
}

#[tokio::test]
async fn a_password_gives_the_policies_of_its_user() {
    let server = Server::with_auth("userpass").await;
    let user = json!({
        "password": "correct horse", "token_policies": ["reader"], "token_ttl": "10m", "token_max_ttl": "1h",
    });
    server.root("POST", "auth/userpass/users/Ann", user).await;
    let (status, answer) = server
        .login(
            "auth/userpass/login/ANN",
            json!({"password": "correct horse"}),
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    let auth = &answer["auth"];
    assert_eq!(auth["policies"], json!(["default", "reader"]));
    assert_eq!(auth["metadata"], json!({"username": "ann"}));
    assert_eq!(
        (&auth["lease_duration"], &auth["orphan"]),
        (&json!(600), &json!(true))
    );
    let token = token_in(&answer);
    let (_, seen) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!(seen["data"]["display_name"], "userpass-ann");
    assert_eq!(seen["data"]["path"], "auth/userpass/login/ANN");

    // Renewing never goes beyond what the user may have.
    server.clock.advance(590);
    let (_, renewed) = server
        .send(
            "POST",
            "auth/token/renew-self",
            &token,
            None,
            json!({"increment": "5h"}),
        )
        .await;
    assert_eq!(renewed["auth"]["lease_duration"], 3600 - 590);

    // Nothing of the password is in the log or comes back.
    let log = server.log();
    assert!(!log.contains("correct horse") && !log.contains(&token));
    let read = server
        .root("GET", "auth/userpass/users/ann", Value::Null)
        .await;
    assert!(!read.to_string().contains("hash"), "{read}");
}

/// CVE-2025-6011: whether a user exists cannot be told from the answer.
#[tokio::test]
async fn cve_2025_6011_a_wrong_password_and_an_unknown_user_look_the_same() {
    let server = Server::with_auth("userpass").await;
    let user = json!({"password": "right"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let mut answers = Vec::new();
    for (name, password) in [("ann", "wrong"), ("nobody", "wrong"), (" ann", "right")] {
        let path = format!("auth/userpass/login/{}", name.replace(' ', "%20"));
        answers.push(server.login(&path, json!({ "password": password })).await);
    }
    answers.dedup();
    let only = json!({"errors": ["invalid username or password"]});
    assert_eq!(answers, [(400, only)]);
    let (status, _) = server.login("auth/userpass/login/ann", json!({})).await;
    assert_eq!(status, 500);
    // A changed password holds at once, and the old one no longer.
    let new = json!({"password": "newer"});
    server
        .root("POST", "auth/userpass/users/ann/password", new)
        .await;
    for (password, expected) in [("right", 400), ("newer", 200)] {
        let (status, _) = server
            .login("auth/userpass/login/ann", json!({ "password": password }))
            .await;
        assert_eq!(status, expected, "{password}");
    }
}

/// CVE-2025-5999 and its like: no login gives root, whatever way it is written.
#[tokio::test]
async fn cve_2025_5999_no_login_method_gives_root() {
    let server = Server::with_auth("userpass").await;
    server
        .root("POST", "sys/auth/approle", json!({"type": "approle"}))
        .await;
    for name in ["root", "Root", " root", "ROOT "] {
        for path in ["auth/userpass/users/ann", "auth/approle/role/web"] {
            let body = json!({"password": "x", "token_policies": [name]});
            let (status, answer) = server.send("POST", path, &server.root, None, body).await;
            assert_eq!(status, 400, "{name:?} at {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_secret_id_works_as_often_and_as_long_as_it_says() {
    let server = Server::with_auth("approle").await;
    let role = json!({"secret_id_num_uses": 2, "secret_id_ttl": "2h", "token_policies": ["reader"], "token_ttl": "20m"});
    server.root("POST", "auth/approle/role/web", role).await;
    let id = server
        .root("GET", "auth/approle/role/web/role-id", Value::Null)
        .await["data"]["role_id"]
        .clone();
    let secret_path = "auth/approle/role/web/secret-id";
    let made = server
        .root("POST", secret_path, json!({"metadata": "{\"a\":\"b\"}"}))
        .await;
    let secret = made["data"]["secret_id"].clone();
    let login = json!({"role_id": id, "secret_id": secret});
    let (status, answer) = server.login("auth/approle/login", login.clone()).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        answer["auth"]["metadata"],
        json!({"a": "b", "role_name": "web"})
    );
    let lookup = json!({ "secret_id": secret });
    let seen = server
        .root("POST", &format!("{secret_path}/lookup"), lookup.clone())
        .await;
    assert_eq!(seen["data"]["secret_id_num_uses"], 1);
    // The last use takes it away, and nobody gets two.
    let both = tokio::join!(
        server.login("auth/approle/login", login.clone()),
        server.login("auth/approle/login", login.clone()),
    );
    let mut statuses = [both.0.0, both.1.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 400]);
    let (status, _) = server
        .send(
            "POST",
            &format!("{secret_path}/lookup"),
            &server.root,
            None,
            lookup,
        )
        .await;
    assert_eq!(status, 204);
    let (status, _) = server
        .send("LIST", secret_path, &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404, "its accessor is gone, too");

    let made = server.root("POST", secret_path, json!({})).await;
    let login = json!({"role_id": id, "secret_id": made["data"]["secret_id"]});
    server.clock.advance(7201);
    let (status, _) = server.login("auth/approle/login", login).await;
    assert_eq!(status, 400, "it has expired");

    let other = json!({"role_id": id, "secret_id": "guess"});
    let (status, answer) = server.login("auth/approle/login", other).await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("invalid role or secret ID"))
    );
}

#[tokio::test]
async fn a_role_that_is_gone_takes_its_secret_ids_with_it() {
    let server = Server::with_auth("approle").await;
    let role = "auth/approle/role/web";
    server.root("POST", role, json!({})).await;
    let fixed = json!({"role_id": "fixed"});
    server.root("POST", &format!("{role}/role-id"), fixed).await;
    let custom = json!({"secret_id": "chosen"});
    server
        .root("POST", &format!("{role}/custom-secret-id"), custom)
        .await;
    let login = json!({"role_id": "fixed", "secret_id": "chosen"});
    let (status, _) = server.login("auth/approle/login", login.clone()).await;
    assert_eq!(status, 200);
    server.root("DELETE", role, Value::Null).await;
    server.root("POST", role, json!({"role_id": "fixed"})).await;
    let (status, _) = server.login("auth/approle/login", login).await;
    assert_eq!(status, 400, "a new role of that name does not know it");
    // Nobody else can take a role id that is in use.
    let body = json!({"role_id": "fixed"});
    let (status, _) = server
        .send("POST", "auth/approle/role/db", &server.root, None, body)
        .await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn networks_bind_logins_and_their_tokens() {
    let server = Server::with_auth("userpass").await;
    let user = json!({"password": "x", "token_bound_cidrs": ["10.0.0.0/8", "192.0.2.7"]});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let password = json!({"password": "x"});
    let path = "auth/userpass/login/ann";
    for (address, expected) in [
        ("10.1.2.3", 200),
        ("192.0.2.7", 200),
        ("192.0.2.8", 403),
        ("::ffff:10.1.2.3", 200),
    ] {
        let (status, _) = server
            .send_from(address, "POST", path, &[], password.clone())
            .await;
        assert_eq!(status, expected, "{address}");
    }
    let (_, answer) = server
        .send_from("10.1.2.3", "POST", path, &[], password)
        .await;
    let token = token_in(&answer);
    let header = [("x-vault-token", token.as_str())];
    for (address, expected) in [("10.9.9.9", 200), ("127.0.0.1", 403)] {
        let (status, _) = server
            .send_from(
                address,
                "GET",
                "auth/token/lookup-self",
                &header,
                Value::Null,
            )
            .await;
        assert_eq!(status, expected, "{address}");
    }
    let denied = server
        .api
        .authorize(Some(&token), None, Capability::Read, "consul/kv/a");
    assert!(denied.is_err(), "nobody knows where that caller is");
    let wrong = json!({"password": "x", "token_bound_cidrs": ["10.0.0.0/40"]});
    let (status, answer) = server
        .send("POST", "auth/userpass/users/bob", &server.root, None, wrong)
        .await;
    assert_eq!(status, 400);
    assert!(answer.to_string().contains("token_bound_cidrs"), "{answer}");
}

#[tokio::test]
async fn a_method_that_moves_or_is_disabled_takes_its_tokens_along() {
    let server = Server::with_auth("userpass").await;
    let user = json!({"password": "x"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let (_, answer) = server
        .login("auth/userpass/login/ann", json!({"password": "x"}))
        .await;
    let before = token_in(&answer);
    let moved = json!({"from": "auth/userpass", "to": "auth/people"});
    server.root("POST", "sys/remount", moved).await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", &before, None, Value::Null)
        .await;
    assert_eq!(status, 403, "it was given at the old path");
    let (_, answer) = server
        .login("auth/people/login/ann", json!({"password": "x"}))
        .await;
    let token = token_in(&answer);
    server.root("DELETE", "sys/auth/people", Value::Null).await;
    let (status, _) = server
        .send("GET", "auth/token/lookup-self", &token, None, Value::Null)
        .await;
    assert_eq!(status, 403);
    let (status, _) = server
        .send("DELETE", "sys/auth/token", &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 400);
    // Enabled again it knows nobody.
    server
        .root("POST", "sys/auth/userpass", json!({"type": "userpass"}))
        .await;
    let (status, _) = server
        .login("auth/userpass/login/ann", json!({"password": "x"}))
        .await;
    assert_eq!(status, 400);
}

/// CVE-2025-6004: no spelling of a name gets tries of its own.
#[tokio::test]
async fn cve_2025_6004_who_guesses_is_shut_out_for_a_while() {
    let server = Server::with_auth("userpass").await;
    let user = json!({"password": "right"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let right = || json!({"password": "right"});
    for name in ["ann", "Ann", "ANN", "aNN"] {
        let path = format!("auth/userpass/login/{name}");
        let (status, _) = server.login(&path, json!({"password": "guess"})).await;
        assert_eq!(status, 400);
    }
    // One that is right starts anew.
    let path = "auth/userpass/login/ann";
    assert_eq!(server.login(path, right()).await.0, 200);
    for _ in 0..5 {
        let (status, _) = server.login(path, json!({"password": "guess"})).await;
        assert_eq!(status, 400);
    }
    let (status, answer) = server.login("auth/userpass/login/Ann", right()).await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (403, &json!("permission denied"))
    );
    let locked = server.root("GET", "sys/locked-users", Value::Null).await;
    let mount = &locked["data"]["by_namespace"][0]["mount_accessors"][0];
    assert_eq!(mount["alias_identifiers"], json!(["ann"]));
    let accessor = mount["mount_accessor"].as_str().unwrap();
    let unlock = format!("sys/locked-users/{accessor}/unlock/ann");
    server.root("POST", &unlock, Value::Null).await;
    assert_eq!(server.login(path, right()).await.0, 200);

    let tune = json!({"user_lockout_config": {"lockout_threshold": 1, "lockout_duration": "1m"}});
    server.root("POST", "sys/auth/userpass/tune", tune).await;
    let (status, _) = server.login(path, json!({"password": "guess"})).await;
    assert_eq!((status, server.login(path, right()).await.0), (400, 403));
    server.clock.advance(60);
    assert_eq!(server.login(path, right()).await.0, 200, "its time is over");
    let tune = json!({"user_lockout_config": {"lockout_disable": "true"}});
    server.root("POST", "sys/auth/userpass/tune", tune).await;
    for _ in 0..3 {
        let (status, _) = server.login(path, json!({"password": "guess"})).await;
        assert_eq!(status, 400);
    }
    assert_eq!(server.login(path, right()).await.0, 200);
}

async fn seen(server: &Server, paths: &[(&str, String)]) -> Vec<Value> {
    let mut all = Vec::new();
    for (path, token) in paths {
        let (status, mut answer) = server.send("GET", path, token, None, Value::Null).await;
        assert_eq!(status, 200, "{path}: {answer}");
        // It runs down.
        answer["data"]["ttl"].take();
        all.push(answer["data"].take());
    }
    all
}

/// What was there before a seal is there after it: mounts and their settings, users, roles, tokens of all kinds,
/// wrapped answers, entities and groups.
#[tokio::test]
async fn unsealed_again_everything_is_as_it_was() {
    let mut server = Server::with_auth("userpass").await;
    let tune = json!({"max_lease_ttl": "2h", "user_lockout_config": {"lockout_threshold": 9}});
    server.root("POST", "sys/auth/userpass/tune", tune).await;
    let user = json!({"password": "x"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let (_, answer) = server
        .login("auth/userpass/login/ann", json!({"password": "x"}))
        .await;
    let (entity, ann) = (answer["auth"]["entity_id"].clone(), token_in(&answer));
    let group = json!({"name": "team", "policies": ["of-team"], "member_entity_ids": [entity]});
    server.root("POST", "identity/group", group).await;
    server
        .root("POST", "auth/token/roles/job", json!({"orphan": true}))
        .await;
    let batch = server
        .token(json!({"type": "batch", "policies": ["default"], "ttl": "1h"}))
        .await;
    let headers = [
        ("x-vault-token", server.root.as_str()),
        ("x-vault-wrap-ttl", "60"),
    ];
    let (_, wrapped) = server
        .send_from(
            LOCAL,
            "POST",
            "sys/wrapping/wrap",
            &headers,
            json!({"zip": "zap"}),
        )
        .await;
    let paths = [
        ("sys/auth", server.root.clone()),
        ("sys/auth/userpass/tune", server.root.clone()),
        ("auth/token/roles/job", server.root.clone()),
        ("identity/group/name/team", server.root.clone()),
        ("auth/token/lookup-self", ann),
        ("auth/token/lookup-self", batch),
    ];
    let before = seen(&server, &paths).await;
    server.reload();
    assert_eq!(seen(&server, &paths).await, before);
    let unwrap = json!({"token": wrapped["wrap_info"]["token"]});
    let answer = server.root("POST", "sys/wrapping/unwrap", unwrap).await;
    assert_eq!(answer["data"], json!({"zip": "zap"}));
    let (status, answer) = server
        .login("auth/userpass/login/ann", json!({"password": "x"}))
        .await;
    assert_eq!((status, &answer["auth"]["entity_id"]), (200, &entity));
    assert_eq!(answer["auth"]["identity_policies"], json!(["of-team"]));
}

/// A login counts a use under one lock and makes an entity under another; two names may share one of the store's.
#[tokio::test]
async fn first_logins_never_wait_for_themselves() {
    let server = Server::with_auth("approle").await;
    let logins = async {
        for number in 0..200 {
            let role = format!("auth/approle/role/r{number}");
            server
                .root(
                    "POST",
                    &role,
                    json!({"secret_id_num_uses": 2, "role_id": number.to_string()}),
                )
                .await;
            let made = server
                .root("POST", &format!("{role}/secret-id"), json!({}))
                .await;
            let login =
                json!({"role_id": number.to_string(), "secret_id": made["data"]["secret_id"]});
            let (status, answer) = server.login("auth/approle/login", login).await;
            assert_eq!(status, 200, "{answer}");
        }
    };
    let patience = std::time::Duration::from_secs(60);
    let ended = tokio::time::timeout(patience, logins).await;
    assert!(ended.is_ok(), "a login waits for ever");
}

#[tokio::test]
async fn a_login_may_come_with_the_request_it_is_for() {
    use base64::Engine as _;
    let server = Server::start().await;
    let parameter = |key: &str, value: &str| {
        let json = json!({"key": key, "value": value}).to_string();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(json)
    };
    server
        .root("POST", "sys/auth/userpass", json!({"type": "userpass"}))
        .await;
    let rule = json!({"policy": "path \"secret/data/web\" { capabilities = [\"read\"] }\npath \"ssh/creds/*\" { capabilities = [\"update\"] }"});
    server.root("PUT", "sys/policies/acl/web", rule).await;
    let user = json!({"password": "correct horse", "token_policies": "web"});
    server.root("POST", "auth/userpass/users/ann", user).await;
    let secret = json!({"data": {"n": 1}});
    server.root("POST", "secret/data/web", secret).await;
    let inline = async |method: &str, path: &str, at: &str, password: &str| {
        let password = parameter("password", password);
        let headers = [
            ("x-vault-inline-auth-path", at),
            ("x-vault-inline-auth-parameter-password", &*password),
        ];
        let caller = Caller::anonymous(Remote::Unix, Via::Embedded);
        server
            .send_as(caller, method, path, &headers, Value::Null)
            .await
    };
    let login = "auth/userpass/login/ann";
    let tokens = async || {
        let listed = server
            .root("LIST", "auth/token/accessors", Value::Null)
            .await;
        listed["data"]["keys"].as_array().unwrap().len()
    };
    let before = tokens().await;
    let (status, answer) = inline("GET", "secret/data/web", login, "correct horse").await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["data"]["data"]["n"], 1);
    assert_eq!(tokens().await, before, "nothing is kept");
    for (path, at, password, expected) in [
        ("secret/data/other", login, "correct horse", 403),
        ("secret/data/web", login, "wrong", 400),
        (
            "secret/data/web",
            "auth/userpass/users/ann",
            "correct horse",
            400,
        ),
        ("secret/data/web", "secret/data/web", "correct horse", 400),
        ("secret/data/web", "../x", "correct horse", 400),
    ] {
        let (status, answer) = inline("GET", path, at, password).await;
        assert_eq!(status, expected, "{path} {at}: {answer}");
    }

    // What is handed out under a lease needs somebody whom it can end with.
    server
        .root("POST", "sys/mounts/ssh", json!({"type": "ssh"}))
        .await;
    let role = json!({"key_type": "otp", "default_user": "u", "cidr_list": "127.0.0.0/8"});
    server.root("POST", "ssh/roles/ops", role).await;
    let password = parameter("password", "correct horse");
    let ip = json!({"ip": "127.0.0.1"});
    let mut headers = vec![
        ("x-vault-inline-auth-path", login),
        ("x-vault-inline-auth-parameter-password", &*password),
    ];
    let ask = async |headers: &[(&str, &str)], path: &str, body: Value| {
        let caller = Caller::anonymous(Remote::Unix, Via::Embedded);
        server.send_as(caller, "POST", path, headers, body).await
    };
    let (status, answer) = ask(&headers, "ssh/creds/ops", ip).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.to_string().contains("makes no lease"), "{answer}");
    assert_eq!(ask(&headers, "auth/token/create", json!({})).await.0, 403);
    headers.push(("x-vault-token", &server.root));
    assert_eq!(ask(&headers, "auth/token/create", json!({})).await.0, 400);
    let bad = [
        ("x-vault-inline-auth-path", login),
        ("x-vault-inline-auth-parameter-password", "correct horse"),
    ];
    let (status, answer) = ask(&bad, "secret/data/web", json!({})).await;
    assert!(
        status == 400 && !answer.to_string().contains("horse"),
        "{answer}"
    );
    assert!(!server.log().contains("correct horse"));
}

#[tokio::test]
async fn a_role_says_whom_its_tokens_may_be_for() {
    let server = Server::start().await;
    let role = json!({"allowed_entity_aliases": ["Web", "team-*"], "orphan": true});
    server.root("POST", "auth/token/roles/app", role).await;
    let create = async |path: &str, alias: &str| {
        let body = json!({"entity_alias": alias, "policies": ["default"]});
        let path = format!("auth/token/{path}");
        server.send("POST", &path, &server.root, None, body).await
    };
    let (status, web) = create("create/app", "WEB").await;
    assert_eq!(status, 200, "{web}");
    let (_, again) = create("create/app", "web").await;
    let (_, other) = create("create/app", "team-a").await;
    let entity = |answer: &Value| answer["auth"]["entity_id"].as_str().unwrap().to_owned();
    assert!(!entity(&web).is_empty() && entity(&web) == entity(&again));
    assert_ne!(entity(&web), entity(&other));
    for (path, alias) in [("create/app", "other"), ("create", "web")] {
        assert_eq!(create(path, alias).await.0, 400, "{path} {alias}");
    }
}
