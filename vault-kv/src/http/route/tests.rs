//! A vault over HTTP, from `init` to `seal`.

use serde_json::{Value, json};

use super::*;
use crate::request::{Remote, Via};
use crate::vault::{StoreConfig, VaultConfig};

pub(in crate::http) fn vault() -> Vault {
    Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap()
}

pub(in crate::http) async fn from(
    vault: &Vault,
    remote: Remote,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
) -> (u16, Value) {
    let body = if body.is_null() {
        Bytes::new()
    } else {
        body.to_string().into()
    };
    let request = http::Request::builder()
        .method(method)
        .uri(format!("/v1/{path}"))
        .header("x-vault-token", token)
        .body(body)
        .unwrap();
    let caller = Caller::anonymous(remote, Via::Http);
    let response = vault.handle(request, caller).await;
    let body = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (response.status().as_u16(), body)
}

pub(in crate::http) async fn send(
    vault: &Vault,
    method: &str,
    path: &str,
    token: &str,
    body: Value,
) -> (u16, Value) {
    from(vault, Remote::Unix, method, path, token, body).await
}

/// Initialise with 3 shares, 2 of them needed: the shares (in hex) and the root token.
pub(in crate::http) async fn initialised(vault: &Vault) -> (Vec<String>, String) {
    let (status, answer) = send(
        vault,
        "PUT",
        "sys/init",
        "",
        json!({"secret_shares": 3, "secret_threshold": 2}),
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    let keys = answer["keys"].as_array().unwrap().iter();
    let keys = keys.map(|k| k.as_str().unwrap().to_string()).collect();
    (keys, answer["root_token"].as_str().unwrap().to_string())
}

#[tokio::test]
async fn init_unseal_write_seal_and_back() {
    let vault = vault();
    assert_eq!(
        send(&vault, "GET", "sys/health", "", Value::Null).await.0,
        501
    );
    assert_eq!(
        send(&vault, "GET", "secret/data/a", "", Value::Null)
            .await
            .0,
        503
    );
    let (keys, root) = initialised(&vault).await;
    let (status, answer) = send(
        &vault,
        "PUT",
        "sys/init",
        "",
        json!({"secret_shares": 1, "secret_threshold": 1}),
    )
    .await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("Vault is already initialized"))
    );
    assert_eq!(
        send(&vault, "GET", "sys/health", "", Value::Null).await.0,
        503
    );

    let (status, answer) = send(&vault, "PUT", "sys/unseal", "", json!({"key": keys[0]})).await;
    assert_eq!(
        (status, &answer["progress"], &answer["sealed"]),
        (200, &json!(1), &json!(true))
    );
    let (_, answer) = send(&vault, "PUT", "sys/unseal", "", json!({"reset": true})).await;
    assert_eq!(answer["progress"], 0);
    for key in &keys[1..] {
        assert_eq!(
            send(&vault, "PUT", "sys/unseal", "", json!({"key": key}))
                .await
                .0,
            200
        );
    }
    let (status, answer) = send(&vault, "GET", "sys/health", "", Value::Null).await;
    assert_eq!(
        (status, &answer["sealed"], &answer["performance_standby"]),
        (200, &json!(false), &json!(false))
    );

    assert_eq!(
        send(
            &vault,
            "POST",
            "secret/data/a",
            &root,
            json!({"data": {"k": "v"}})
        )
        .await
        .0,
        200
    );
    let (status, answer) = send(
        &vault,
        "GET",
        "sys/mesh/ledger/history?last=1",
        &root,
        Value::Null,
    )
    .await;
    assert_eq!(status, 200, "{answer}");
    let entry = &answer["data"]["entries"][0];
    assert_eq!(entry["keys"], json!(["secret/data/a"]), "{entry}");
    assert!(
        entry["actor"]
            .as_str()
            .unwrap()
            .starts_with("root (accessor ")
    );
    let (_, answer) = send(&vault, "GET", "sys/mesh/ledger/verify", &root, Value::Null).await;
    assert_eq!(answer["data"]["entries"], entry["index"]);

    assert_eq!(
        send(&vault, "PUT", "sys/seal", "hvs.wrong", Value::Null)
            .await
            .0,
        403
    );
    assert!(!vault.is_sealed());
    assert_eq!(
        send(&vault, "PUT", "sys/seal", &root, Value::Null).await.0,
        204
    );
    let (status, answer) = send(&vault, "GET", "secret/data/a", &root, Value::Null).await;
    assert_eq!(
        (status, &answer["errors"]),
        (503, &json!(["Vault is sealed"]))
    );
    assert_eq!(
        vault.authorize(Some(&root), None, Capability::Read, "x"),
        Err(AuthorizeError::Sealed)
    );

    for key in &keys[..2] {
        send(&vault, "PUT", "sys/unseal", "", json!({"key": key})).await;
    }
    let (_, answer) = send(&vault, "GET", "secret/data/a", &root, Value::Null).await;
    assert_eq!(answer["data"]["data"], json!({"k": "v"}));
    assert!(
        vault
            .authorize(Some(&root), None, Capability::Read, "x")
            .is_ok()
    );
}

#[tokio::test]
async fn only_this_machine_initialises_and_the_codes_can_be_chosen() {
    let vault = vault();
    let far = Remote::Ip([10, 0, 0, 9].into());
    let body = json!({"secret_shares": 1, "secret_threshold": 1});
    let (status, _) = from(&vault, far, "PUT", "sys/init", "", body).await;
    assert_eq!(status, 403);
    let (_, answer) = from(&vault, far, "GET", "sys/init", "", Value::Null).await;
    assert_eq!(answer, json!({"initialized": false}));
    let codes = "sys/health?uninitcode=299&sealedcode=298&haunhealhty=299";
    assert_eq!(send(&vault, "GET", codes, "", Value::Null).await.0, 299);
    initialised(&vault).await;
    assert_eq!(send(&vault, "GET", codes, "", Value::Null).await.0, 298);
    for wrong in ["sealedcode=x", "sealedcode=7", "standbyok=perhaps"] {
        let path = format!("sys/health?{wrong}");
        assert_eq!(
            send(&vault, "GET", &path, "", Value::Null).await.0,
            400,
            "{wrong}"
        );
    }
    assert_eq!(
        send(&vault, "HEAD", "sys/health", "", Value::Null).await,
        (503, Value::Null)
    );
}

#[tokio::test]
async fn wrong_shares_are_refused_without_being_repeated() {
    let vault = vault();
    initialised(&vault).await;
    let wrong = "ab".repeat(32);
    for key in [
        format!("01{wrong}"),
        format!("02{wrong}"),
        "zz".into(),
        String::new(),
    ] {
        let (status, answer) = send(&vault, "PUT", "sys/unseal", "", json!({"key": key})).await;
        assert!(!answer.to_string().contains(&wrong), "{answer}");
        assert!(status == 400 || answer["sealed"] == json!(true), "{answer}");
    }
    let (_, answer) = send(&vault, "GET", "sys/seal-status", "", Value::Null).await;
    assert_eq!(
        (&answer["sealed"], &answer["progress"]),
        (&json!(true), &json!(0))
    );
}

#[tokio::test]
async fn the_last_handle_takes_the_keys_with_it() {
    let vault = vault();
    let (keys, _) = initialised(&vault).await;
    for key in &keys[..2] {
        send(&vault, "PUT", "sys/unseal", "", json!({"key": key})).await;
    }
    let core = vault.unsealed().unwrap().core.clone();
    assert!(core.barrier().is_ok());
    drop(vault);
    assert!(core.barrier().is_err());
}
