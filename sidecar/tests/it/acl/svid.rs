//! Workloads with a SPIFFE ID: a JWT-SVID is a login, and so is what the agent beside them knows.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{Method, Request};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use super::{ACL, Client, login::signed, text};
use crate::{
    host::{Host, Server},
    node::PATIENCE,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_logs_in_by_its_spiffe_id() {
    let dir = tempfile::tempdir().unwrap();
    let attach = dir.path().join("web.token");
    fs::write(&attach, "the attach token of web\n").unwrap();
    let service = format!("[[service]]\nname = \"web\"\nattach = {{ token_file = {attach:?} }}\n");
    let server = Server::start_with(dir.path(), &format!("{ACL}{service}"));
    let (host, _) = Host::open(&server, dir.path()).await;
    let (root, client) = (host.root.as_str(), Client::at(&host.http));
    let first = client.put("/v1/acl/bootstrap", "", Value::Null).await;
    let boss = text(&first["SecretID"]);
    let rules =
        "key_prefix \"web/\" { policy = \"write\" } service_prefix \"\" { policy = \"read\" }";
    client.policy(&boss, "web", rules).await;
    let roots = client.get("/v1/connect/ca/roots", root).await;
    let domain = text(&roots["TrustDomain"]);
    let web = format!("spiffe://{domain}/ns/default/dc/dc1/svc/web");

    // A JWT-SVID of whoever signs them for this trust domain.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let method = json!({"Name": "svid", "Type": "spiffe", "MaxTokenTTL": "1h", "Config": {
        "TrustDomain": domain, "BoundAudiences": ["mesh"], "JWTValidationPubKeys": [key.public_key_pem()],
    }});
    client.put("/v1/acl/auth-method", &boss, method).await;
    let rule = |method: &str, selector: String, kind: &str, name: &str| json!({"AuthMethod": method, "Selector": selector, "BindType": kind, "BindName": name});
    for rule in [
        rule(
            "svid",
            format!("value.spiffe_id == \"{web}\""),
            "policy",
            "web",
        ),
        rule(
            "svid",
            "value.service != \"\"".to_owned(),
            "service",
            "${value.service}",
        ),
    ] {
        client.put("/v1/acl/binding-rule", &boss, rule).await;
    }
    let login = async |method: &str, credential: &str| {
        let body = json!({"AuthMethod": method, "BearerToken": credential});
        let (status, given) = client.ask(Method::POST, "/v1/acl/login", "", body).await;
        (
            status,
            serde_json::from_str(&given).unwrap_or(Value::String(given)),
        )
    };
    let svid = |subject: &str, audience: &str, ends: u64| {
        let claims = json!({"sub": subject, "aud": [audience], "exp": ends});
        signed(&key, &claims)
    };
    const LATER: u64 = 4_000_000_000;
    let (status, given) = login("svid", &svid(&web, "mesh", LATER)).await;
    assert_eq!(status, 200, "{given}");
    assert_eq!(given["ServiceIdentities"], json!([{"ServiceName": "web"}]));
    assert_eq!(given["Policies"][0]["Name"], json!("web"));
    let mine = text(&given["SecretID"]);
    client.put("/v1/kv/web/x", &mine, json!(1)).await;
    let other = client
        .no(Method::PUT, "/v1/kv/other", &mine, json!(1))
        .await;
    assert_eq!(other.0, 403);
    let registered = json!({"Name": "web", "ID": "web-2", "Port": 80});
    client
        .put("/v1/agent/service/register", &mine, registered)
        .await;

    // Another workload has what its own name gives.
    let db = format!("spiffe://{domain}/ns/default/dc/dc1/svc/db");
    let (_, given) = login("svid", &svid(&db, "mesh", LATER)).await;
    assert_eq!(
        (
            &given["Policies"],
            &given["ServiceIdentities"][0]["ServiceName"]
        ),
        (&Value::Null, &json!("db"))
    );
    // One that is not of the trust domain, not for us, over, or unsigned, has nothing.
    let stranger = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let forged = signed(
        &stranger,
        &json!({"sub": web, "aud": ["mesh"], "exp": LATER}),
    );
    for bad in [
        svid(
            &format!("spiffe://{domain}.example/ns/default/dc/dc1/svc/web"),
            "mesh",
            LATER,
        ),
        svid(
            "spiffe://example.org/ns/default/dc/dc1/svc/web",
            "mesh",
            LATER,
        ),
        svid(&web, "other", LATER),
        svid(&web, "mesh", 1_700_000_000),
        svid(
            &format!("spiffe://{domain}/ns/default/dc/dc1/node/web"),
            "mesh",
            LATER,
        ),
        signed(
            &key,
            &json!({"sub": web, "aud": ["mesh"], "iat": now.as_secs()}),
        ),
        forged,
    ] {
        let (status, said) = login("svid", &bad).await;
        assert_eq!(status, 403, "{said}");
    }

    // The agent beside it knows who it is: no bearer is needed for a token, and it holds on the Consul interface.
    let grant = "path \"identity/oidc/token/*\" { capabilities = [\"read\"] }";
    let made = json!({"policy": grant});
    server
        .vault(Method::PUT, "/v1/sys/policies/acl/oidc", root, made)
        .await;
    let patterns =
        json!({"workload_id_patterns": "/ns/default/dc/*/svc/web", "token_policies": "web,oidc"});
    server
        .vault(Method::POST, "/v1/auth/spiffe/role/web", root, patterns)
        .await;
    let socket = Client::at(&format!(
        "unix://{}",
        dir.path().join("s1/mesh.sock").display()
    ));
    let ask = |header: &str| {
        let request =
            Request::post("/v1/mesh/vault/auth/spiffe/login").header("x-mesh-attach", header);
        request
            .body(json!({"role": "web"}).to_string().into())
            .unwrap()
    };
    let answer = socket
        .http
        .send(ask("the attach token of web"), PATIENCE)
        .await
        .unwrap();
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    let known = text(&answer["auth"]["client_token"]);
    client.put("/v1/kv/web/y", &known, json!(1)).await;
    let other = client
        .no(Method::PUT, "/v1/kv/other", &known, json!(1))
        .await;
    assert_eq!(other.0, 403);
    let answer = socket.http.send(ask("another"), PATIENCE).await.unwrap();
    assert_eq!(answer.status(), 403);

    // What the mesh itself signs is an identity token; with the ID as a claim it is a login like any other.
    let (_, mounts) = server
        .vault(Method::GET, "/v1/sys/auth", root, Value::Null)
        .await;
    let accessor = text(&mounts["data"]["spiffe/"]["accessor"]);
    let signing = json!({"allowed_client_ids": "*"});
    server
        .vault(Method::POST, "/v1/identity/oidc/key/k", root, signing)
        .await;
    let template = format!("{{\"spiffe_id\": {{{{identity.entity.aliases.{accessor}.name}}}}}}");
    let role = json!({"key": "k", "client_id": "mesh", "template": template});
    server
        .vault(Method::POST, "/v1/identity/oidc/role/id", root, role)
        .await;
    let (status, answer) = server
        .vault(
            Method::GET,
            "/v1/identity/oidc/token/id",
            &known,
            Value::Null,
        )
        .await;
    assert_eq!(status, 200, "{answer}");
    let method = json!({"Name": "mesh", "Type": "jwt", "Config": {
        "JWKSURL": format!("{}/v1/identity/oidc/.well-known/keys", server.vault),
        "BoundAudiences": ["mesh"], "ClaimMappings": {"spiffe_id": "spiffe_id"},
    }});
    client.put("/v1/acl/auth-method", &boss, method).await;
    let bound = rule(
        "mesh",
        format!("value.spiffe_id == \"{web}\""),
        "policy",
        "web",
    );
    client.put("/v1/acl/binding-rule", &boss, bound).await;
    let (status, given) = login("mesh", answer["data"]["token"].as_str().unwrap()).await;
    assert_eq!(status, 200, "{given}");
    client
        .put("/v1/kv/web/z", &text(&given["SecretID"]), json!(1))
        .await;
    server.stop();
}
