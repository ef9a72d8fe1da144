//! The table of routes says what there is.

use super::*;
use crate::api::routes::{Route, of};
use crate::mount::Kind;

/// `{…}` filled in.
fn filled(route: &Route) -> String {
    let parts: Vec<_> = route
        .path
        .split('/')
        .map(|part| if part.starts_with('{') { "x1" } else { part })
        .collect();
    parts.join("/")
}

#[tokio::test]
async fn each_route_is_there_and_takes_what_it_says() {
    let server = Server::start().await;
    for (path, kind) in [
        ("mounts/kv1", json!({"type": "kv"})),
        ("mounts/ssh", json!({"type": "ssh"})),
        ("auth/userpass", json!({"type": "userpass"})),
        ("auth/approle", json!({"type": "approle"})),
        ("auth/jwt", json!({"type": "jwt"})),
        ("auth/cert", json!({"type": "cert"})),
        ("auth/kubernetes", json!({"type": "kubernetes"})),
    ] {
        server.root("POST", &format!("sys/{path}"), kind).await;
    }
    let mut asked = 0;
    for (mount, kind) in [
        ("sys/", Kind::System),
        ("identity/", Kind::Identity),
        ("auth/token/", Kind::Token),
        ("auth/spiffe/", Kind::Spiffe),
        ("auth/userpass/", Kind::Userpass),
        ("auth/approle/", Kind::Approle),
        ("auth/jwt/", Kind::Jwt),
        ("auth/cert/", Kind::Cert),
        ("auth/kubernetes/", Kind::Kubernetes),
        ("secret/", Kind::Kv),
        ("kv1/", Kind::Kv1),
        ("cubbyhole/", Kind::Cubbyhole),
        ("ssh/", Kind::Ssh),
    ] {
        for route in of(kind) {
            let below = filled(route);
            // These are answered before there is a caller, or end the caller.
            let before = [
                "health",
                "seal-status",
                "leader",
                "init",
                "unseal",
                "revoke-self",
            ];
            // There is no ledger here, and nobody who holds shares.
            let elsewhere = [
                "mesh/ledger",
                "rekey/",
                "generate-root",
                "decode-",
                "rotate/root/",
            ];
            if before.contains(&&*below) || elsewhere.iter().any(|at| below.starts_with(at)) {
                continue;
            }
            for (letter, method) in [
                ('r', "GET"),
                ('w', "POST"),
                ('p', "PATCH"),
                ('d', "DELETE"),
                ('l', "LIST"),
            ] {
                if !route.operations.contains(letter) {
                    continue;
                }
                let path = format!("{mount}{below}");
                let (status, answer) = server
                    .send(method, &path, &server.root, None, json!({}))
                    .await;
                let text = answer["errors"][0].as_str().unwrap_or_default();
                let refused = ["unsupported path", "unsupported operation", "no handler"]
                    .iter()
                    .any(|refusal| text.contains(refusal));
                assert!(
                    !refused && status != 405,
                    "{method} {path}: {status} {text}"
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 150, "{asked}");
}

#[tokio::test]
async fn the_interface_describes_itself() {
    let server = Server::start().await;
    let spec = server
        .root("GET", "sys/internal/specs/openapi", Value::Null)
        .await;
    assert_eq!(spec["openapi"], "3.0.2");
    let create = &spec["paths"]["/auth/token/create"]["post"];
    let properties = &create["requestBody"]["content"]["application/json"]["schema"]["properties"];
    assert_eq!(properties["policies"]["type"], "array");
    assert!(spec["paths"]["/secret/data/{path}"]["patch"].is_object());
    // Who may do little sees little of it.
    let token = server.token(json!({"policies": ["default"]})).await;
    let path = "auth/token/create?help=1";
    let (status, help) = server.send("GET", path, &token, None, Value::Null).await;
    assert_eq!(status, 200, "{help}");
    assert!(help["help"].as_str().unwrap().contains("explicit_max_ttl"));
    let (status, _) = server.send("GET", path, "", None, Value::Null).await;
    assert_eq!(status, 403);
    let path = "secret/data/x?help=1";
    let (status, _) = server.send("GET", path, &token, None, Value::Null).await;
    assert_eq!(status, 403, "not even that there is such a mount");
    let help = server.root("GET", "secret?help=1", Value::Null).await;
    assert!(help["help"].as_str().unwrap().contains("^data/{path}$"));
    let figures = server.root("GET", "sys/metrics", Value::Null).await;
    assert_eq!(figures["Gauges"][0]["Value"], 1);
    let running = server.root("GET", "sys/in-flight-req", Value::Null).await;
    let running = running.as_object().unwrap();
    assert_eq!(running.len(), 1, "itself: {running:?}");
}
