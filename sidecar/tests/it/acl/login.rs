//! A JSON Web Token becomes a token of the store, with what binding rules say.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use serde_json::{Value, json};

use super::{ACL, Client, names, text};
use crate::{
    host::{Host, Server},
    strangers::fixed,
};

/// A JSON Web Token.
pub fn signed(key: &KeyPair, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let text = format!("{}.{}", encode(&json!({"alg": "ES256"})), encode(claims));
    let signature = fixed(&key.sign(text.as_bytes()).unwrap());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_token_is_a_login_and_gives_what_the_binding_rules_say() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), ACL);
    let (host, _) = Host::open(&server, dir.path()).await;
    let (root, client) = (host.root.as_str(), Client::at(&host.http));
    let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
    let first = client.put("/v1/acl/bootstrap", "", Value::Null).await;
    let boss = text(&first["SecretID"]);

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let sign = |claims: Value| signed(&key, &claims);
    let of = |app: &str, groups: &[&str]| {
        sign(json!({
            "iss": "ci", "aud": "mesh", "sub": "job", "app": app, "groups": groups,
            "iat": 1_700_000_000, "exp": 4_000_000_000_u64,
        }))
    };
    let method = |more: Value| {
        let mut config = json!({
            "JWTValidationPubKeys": [key.public_key_pem()], "BoundIssuer": "ci", "BoundAudiences": ["mesh"],
            "ClaimMappings": {"app": "app"}, "ListClaimMappings": {"groups": "groups"},
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        json!({"Name": "ci", "Type": "jwt", "MaxTokenTTL": "1h", "Config": config})
    };
    let path = "/v1/acl/auth-method";
    for (bad, words) in [
        (method(json!({"OIDCClientID": "x"})), "OIDCClientID"),
        (
            method(json!({"JWTValidationPubKeys": ["x"]})),
            "jwt_validation_pubkeys",
        ),
        (json!({"Name": "ci", "Type": "aws-iam"}), "aws-iam"),
        (json!({"Name": "c i", "Type": "jwt"}), "Name"),
    ] {
        let (_, said) = client.no(put.clone(), path, &boss, bad).await;
        assert!(said.contains(words), "{said}");
    }
    let made = client.put(path, &boss, method(json!({}))).await;
    assert_eq!(made["MaxTokenTTL"], json!("1h0m0s"));
    client.no(put.clone(), path, &boss, method(json!({}))).await;
    let listed = client.get("/v1/acl/auth-methods", &boss).await;
    assert_eq!(names(&listed, |it| &it["Name"]), ["ci"]);

    client
        .policy(&boss, "ops", "key_prefix \"\" { policy = \"read\" }")
        .await;
    client
        .put(
            "/v1/acl/role",
            &boss,
            json!({"Name": "ops", "Policies": [{"Name": "ops"}]}),
        )
        .await;
    let rule = |selector: &str, kind: &str, name: &str| json!({"AuthMethod": "ci", "Selector": selector, "BindType": kind, "BindName": name});
    let path = "/v1/acl/binding-rule";
    for (bad, words) in [
        (rule("value.app ==", "service", "x"), "Selector"),
        (rule("", "templated-policy", "x"), "templated-policy"),
        (rule("", "service", "${value.none}"), "value.none"),
        (
            json!({"AuthMethod": "none", "BindType": "service", "BindName": "x"}),
            "none",
        ),
    ] {
        let (_, said) = client.no(put.clone(), path, &boss, bad).await;
        assert!(said.contains(words), "{said}");
    }
    let login = async |credential: String| {
        let body = json!({"AuthMethod": "ci", "BearerToken": credential, "Meta": {"pod": "p1"}});
        client.ask(Method::POST, "/v1/acl/login", "", body).await
    };
    // Without a rule there is nothing to have.
    assert_eq!(login(of("web", &[])).await.0, 403);
    client
        .put(
            path,
            &boss,
            rule("value.app != \"\"", "service", "app-${value.app}"),
        )
        .await;
    client
        .put(path, &boss, rule("ops in list.groups", "role", "ops"))
        .await;
    let (status, given) = login(of("web", &["ops"])).await;
    assert_eq!(status, 200, "{given}");
    let given: Value = serde_json::from_str(&given).unwrap();
    assert_eq!(
        given["ServiceIdentities"],
        json!([{"ServiceName": "app-web"}])
    );
    assert_eq!(given["Roles"][0]["Name"], json!("ops"));
    assert_eq!(given["AuthMethod"], json!("ci"));
    assert!(given["ExpirationTime"].is_string() && given["Local"] == json!(true));
    let mine = text(&given["SecretID"]);
    client.put("/v1/kv/x", root, json!(1)).await;
    client.get("/v1/kv/x", &mine).await;
    let service = json!({"Name": "app-web", "Port": 80});
    client
        .put("/v1/agent/service/register", &mine, service)
        .await;
    let service = json!({"Name": "app-db", "Port": 80});
    client
        .no(put.clone(), "/v1/agent/service/register", &mine, service)
        .await;

    // What is no good, and what would be more than a name.
    let mut forged = of("web", &[]);
    forged.truncate(forged.len() - 4);
    forged.push_str("AAAA");
    for bad in [
        forged.clone(),
        "x.y.z".into(),
        of("web\" }", &[]),
        of("*", &[]),
        of("a/b", &[]),
    ] {
        let (status, said) = login(bad).await;
        assert!(
            status == 403 && said.starts_with("Permission denied: "),
            "{said}"
        );
        assert!(!said.contains(&forged), "{said}");
    }
    let old = sign(
        json!({"iss": "ci", "aud": "mesh", "sub": "j", "app": "web", "iat": 1_600_000_000, "exp": 1_600_000_100}),
    );
    assert_eq!(login(old).await.0, 403);
    let elsewhere = sign(
        json!({"iss": "ci", "aud": "other", "sub": "j", "app": "web", "exp": 4_000_000_000_u64}),
    );
    assert_eq!(login(elsewhere).await.0, 403);

    // A rule cannot give more than whoever wrote it may give.
    let all = json!({"Name": "all", "Rules": "path \"*\" { capabilities = [\"read\"] }"});
    client.put("/v1/acl/policy", root, all).await;
    client
        .put(
            "/v1/acl/role",
            root,
            json!({"Name": "all", "Policies": [{"Name": "all"}]}),
        )
        .await;
    let made = client
        .put(path, &boss, rule("value.app == \"web\"", "role", "all"))
        .await;
    let (status, said) = login(of("web", &[])).await;
    assert!(
        status == 403 && said.contains("auth/token/create"),
        "{said}"
    );
    let by_id = format!("{path}/{}", text(&made["ID"]));
    client
        .put(&by_id, root, rule("value.app == \"web\"", "role", "all"))
        .await;
    assert_eq!(login(of("web", &[])).await.0, 200);

    // Over.
    client
        .no(post.clone(), "/v1/acl/logout", &boss, Value::Null)
        .await;
    client.ok(post, "/v1/acl/logout", &mine, Value::Null).await;
    let gone = client.no(get.clone(), "/v1/kv/x", &mine, Value::Null).await;
    assert_eq!(gone, (403, "ACL not found".into()));
    let (_, given) = login(of("web", &["ops"])).await;
    let given: Value = serde_json::from_str(&given).unwrap();
    client
        .ok(Method::DELETE, "/v1/acl/auth-method/ci", &boss, Value::Null)
        .await;
    client
        .no(get, "/v1/kv/x", &text(&given["SecretID"]), Value::Null)
        .await;
    assert_eq!(client.get("/v1/acl/binding-rules", &boss).await, json!([]));
    assert_eq!(login(of("web", &[])).await.0, 403);
    server.stop();
}
