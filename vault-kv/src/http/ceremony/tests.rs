//! Share holders at work, over HTTP.

use serde_json::{Value, json};

use crate::{
    http::route::tests::{initialised, send, vault},
    vault::{Vault, ceremony::reveal},
};

/// Initialised with 3 shares of which 2 unseal, and unsealed.
async fn open() -> (Vault, Vec<String>, String) {
    let vault = vault();
    let (keys, root) = initialised(&vault).await;
    unseal(&vault, &keys[..2]).await;
    (vault, keys, root)
}

async fn unseal(vault: &Vault, keys: &[String]) -> (u16, Value) {
    let mut last = (0, Value::Null);
    for key in keys {
        last = send(vault, "PUT", "sys/unseal", "", json!({"key": key})).await;
    }
    last
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap().iter();
    items
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

async fn start(vault: &Vault, token: &str, body: Value) -> String {
    let (status, answer) = send(vault, "PUT", "sys/rekey/init", token, body).await;
    assert_eq!(
        (status, &answer["started"]),
        (200, &json!(true)),
        "{answer}"
    );
    answer["nonce"].as_str().unwrap().to_owned()
}

async fn give(vault: &Vault, path: &str, nonce: &str, key: &str) -> (u16, Value) {
    send(vault, "PUT", path, "", json!({"nonce": nonce, "key": key})).await
}

#[tokio::test]
async fn a_rekey_gives_new_shares_and_the_old_ones_open_nothing_more() {
    let (vault, old, root) = open().await;
    let idle = send(&vault, "GET", "sys/rekey/init", "", Value::Null).await;
    assert_eq!(
        idle,
        (
            200,
            json!({"nonce": "", "started": false, "t": 0, "n": 0, "progress": 0, "required": 2,
                "pgp_fingerprints": null, "backup": false, "verification_required": false})
        )
    );
    let new = json!({"secret_shares": 5, "secret_threshold": 3});
    let nonce = start(&vault, &root, new.clone()).await;
    let (status, answer) = send(&vault, "PUT", "sys/rekey/init", &root, new).await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("rekey already in progress"))
    );

    let (status, answer) = give(&vault, "sys/rekey/update", "wrong", &old[0]).await;
    let told = format!("incorrect nonce supplied; nonce for this rekey operation is \"{nonce}\"");
    assert_eq!((status, &answer["errors"][0]), (400, &json!(told)));
    let (status, answer) = give(&vault, "sys/rekey/update", &nonce, &old[0]).await;
    assert_eq!((status, &answer["progress"]), (200, &json!(1)));
    let (status, answer) = give(&vault, "sys/rekey/update", &nonce, &old[0]).await;
    assert_eq!(status, 400, "the same person twice: {answer}");
    let (status, answer) = give(&vault, "sys/rekey/update", &nonce, &old[2]).await;
    assert_eq!(
        (status, &answer["complete"]),
        (200, &json!(true)),
        "{answer}"
    );
    let new = texts(&answer["keys"]);
    assert_eq!((new.len(), texts(&answer["keys_base64"]).len()), (5, 5));

    // The store stays open, and what was written before and is written now opens after the next unseal.
    let body = json!({"data": {"k": "v"}});
    assert_eq!(
        send(&vault, "POST", "secret/data/a", &root, body).await.0,
        200
    );
    vault.seal();
    assert_eq!(unseal(&vault, &old[..2]).await.1["progress"], 2);
    let mixed = [old[2].clone(), new[0].clone(), new[1].clone()];
    let (status, answer) = unseal(&vault, &mixed[..1]).await;
    assert_eq!(status, 400, "three old shares: {answer}");
    assert_eq!(unseal(&vault, &mixed).await.0, 400, "mixed with new ones");
    let (status, answer) = unseal(&vault, &new[1..4]).await;
    assert_eq!(
        (status, &answer["sealed"]),
        (200, &json!(false)),
        "{answer}"
    );
    assert_eq!((&answer["t"], &answer["n"]), (&json!(3), &json!(5)));
    let (_, answer) = send(&vault, "GET", "secret/data/a", &root, Value::Null).await;
    assert_eq!(answer["data"]["data"], json!({"k": "v"}));
    assert!(vault.ledger().verify().is_ok());
    let history = vault.ledger().history(10, None).unwrap();
    assert_eq!(
        history
            .iter()
            .filter(|e| e.meta.operation == "rekey")
            .count(),
        1
    );
}

#[tokio::test]
async fn with_verification_nothing_changes_until_the_new_shares_were_shown() {
    let (vault, old, root) = open().await;
    let body = json!({"secret_shares": 3, "secret_threshold": 2, "require_verification": true});
    let nonce = start(&vault, &root, body).await;
    give(&vault, "sys/rekey/update", &nonce, &old[0]).await;
    let (_, answer) = give(&vault, "sys/rekey/update", &nonce, &old[1]).await;
    assert_eq!(answer["verification_required"], true, "{answer}");
    let new = texts(&answer["keys"]);
    let check = answer["verification_nonce"].as_str().unwrap().to_owned();

    give(&vault, "sys/rekey/verify", &check, &new[0]).await;
    let (status, answer) = give(&vault, "sys/rekey/verify", &check, &old[1]).await;
    assert_eq!(status, 400, "an old share among them: {answer}");
    let (_, answer) = send(&vault, "GET", "sys/rekey/verify", "", Value::Null).await;
    assert_eq!(
        (&answer["progress"], &answer["started"]),
        (&json!(0), &json!(true))
    );
    let again = answer["nonce"].as_str().unwrap().to_owned();
    assert_ne!(again, check, "a showing that failed has another nonce");

    vault.seal();
    unseal(&vault, &old[..2]).await;
    assert!(!vault.is_sealed(), "the old shares count as long as that");
    assert_eq!(
        send(&vault, "GET", "sys/rekey/verify", "", Value::Null)
            .await
            .0,
        400
    );

    let body = json!({"secret_shares": 3, "secret_threshold": 2, "require_verification": true});
    let nonce = start(&vault, &root, body).await;
    give(&vault, "sys/rekey/update", &nonce, &old[0]).await;
    let (_, answer) = give(&vault, "sys/rekey/update", &nonce, &old[1]).await;
    let new = texts(&answer["keys"]);
    let check = answer["verification_nonce"].as_str().unwrap();
    give(&vault, "sys/rekey/verify", check, &new[2]).await;
    let (status, answer) = give(&vault, "sys/rekey/verify", check, &new[0]).await;
    assert_eq!(
        (status, &answer["complete"]),
        (200, &json!(true)),
        "{answer}"
    );
    vault.seal();
    assert_eq!(unseal(&vault, &old[..2]).await.0, 400);
    assert_eq!(unseal(&vault, &new[..2]).await.1["sealed"], false);
}

/// CVE-2026-5807: anybody could cancel what the share holders were doing.
#[tokio::test]
async fn cve_2026_5807_starting_and_cancelling_take_a_token_with_sudo_or_a_threshold_of_shares() {
    let (vault, keys, root) = open().await;
    let rules = r#"path "sys/*" { capabilities = ["create", "read", "update", "delete", "list"] }"#;
    send(
        &vault,
        "PUT",
        "sys/policies/acl/weak",
        &root,
        json!({"policy": rules}),
    )
    .await;
    let body = json!({"policies": ["weak"]});
    let (_, answer) = send(&vault, "POST", "auth/token/create", &root, body).await;
    let weak = answer["auth"]["client_token"].as_str().unwrap().to_owned();

    let numbers = json!({"secret_shares": 3, "secret_threshold": 2});
    let with = |keys: &[String], body: &Value| {
        let mut body = body.clone();
        body["keys"] = json!(keys);
        body
    };
    let other = vault_with_other_shares().await;
    for (path, body) in [
        ("sys/rekey/init", &numbers),
        ("sys/generate-root/attempt", &json!({})),
    ] {
        for (token, body) in [
            ("", body.clone()),
            (weak.as_str(), body.clone()),
            ("hvs.wrong", with(&keys[..2], body)),
            ("", with(&keys[..1], body)),
            ("", with(&[keys[0].clone(), keys[0].clone()], body)),
            ("", with(&other, body)),
            ("", with(&["zz".to_owned()], body)),
            ("", with(&[String::new(), "AAAA".to_owned()], body)),
        ] {
            let (status, answer) = send(&vault, "PUT", path, token, body).await;
            assert_eq!(status, 403, "{path}: {answer}");
        }
        for (starter, token) in [(&root, &root), (&root, &String::new())] {
            assert_eq!(
                send(&vault, "PUT", path, starter, body.clone()).await.0,
                200
            );
            for (token, body) in [
                ("", Value::Null),
                (&*weak, Value::Null),
                ("", json!({"keys": other})),
            ] {
                assert_eq!(send(&vault, "DELETE", path, token, body).await.0, 403);
            }
            let (_, answer) = send(&vault, "GET", path, "", Value::Null).await;
            assert_eq!(answer["started"], true, "{answer}");
            let body = match token.is_empty() {
                true => json!({"keys": keys[1..]}),
                false => Value::Null,
            };
            assert_eq!(send(&vault, "DELETE", path, token, body).await.0, 204);
            let (_, answer) = send(&vault, "GET", path, "", Value::Null).await;
            assert_eq!(answer["started"], false, "{answer}");
        }
        let (status, answer) = send(&vault, "PUT", path, "", with(&keys[..2], body)).await;
        assert_eq!(status, 200, "{answer}");
    }
}

async fn vault_with_other_shares() -> Vec<String> {
    initialised(&vault()).await.0
}

#[tokio::test]
async fn a_threshold_of_shares_makes_a_root_token_that_only_the_starter_can_read() {
    let (vault, keys, root) = open().await;
    let (status, answer) = send(&vault, "PUT", "sys/generate-root/attempt", &root, json!({})).await;
    assert_eq!(
        (status, &answer["otp_length"]),
        (200, &json!(28)),
        "{answer}"
    );
    let (nonce, otp) = (
        answer["nonce"].as_str().unwrap(),
        answer["otp"].as_str().unwrap(),
    );
    assert_eq!(otp.len(), 28);
    let (_, seen) = send(&vault, "GET", "sys/generate-root/attempt", "", Value::Null).await;
    assert_eq!((&seen["otp"], &seen["nonce"]), (&json!(""), &json!(nonce)));

    let (_, answer) = give(&vault, "sys/generate-root/update", nonce, &keys[0]).await;
    assert_eq!(
        answer,
        json!({"complete": false, "encoded_root_token": "", "encoded_token": "", "nonce": nonce, "otp": "",
            "otp_length": 0, "pgp_fingerprint": "", "progress": 1, "required": 2, "started": true})
    );
    let (_, answer) = give(&vault, "sys/generate-root/update", nonce, &keys[2]).await;
    assert_eq!(answer["complete"], true, "{answer}");
    let encoded = answer["encoded_token"].as_str().unwrap();
    let token = reveal(encoded, otp).unwrap();
    let (status, answer) = send(&vault, "GET", "auth/token/lookup-self", &token, Value::Null).await;
    assert_eq!(
        (status, &answer["data"]["policies"]),
        (200, &json!(["root"]))
    );
    let decode = json!({"encoded_token": encoded, "otp": otp});
    let (_, answer) = send(&vault, "PUT", "sys/decode-token", "", decode).await;
    assert_eq!(answer["data"]["token"], json!(*token));

    let (status, answer) = give(&vault, "sys/generate-root/update", nonce, &keys[0]).await;
    assert_eq!(
        (status, &answer["errors"][0]),
        (400, &json!("no root generation in progress"))
    );
}

#[tokio::test]
async fn wrong_shares_make_no_token_and_the_progress_starts_again() {
    let (vault, keys, root) = open().await;
    let (_, answer) = send(&vault, "PUT", "sys/generate-root/attempt", &root, json!({})).await;
    let nonce = answer["nonce"].as_str().unwrap();
    let other = vault_with_other_shares().await;
    give(&vault, "sys/generate-root/update", nonce, &keys[0]).await;
    let (status, answer) = give(&vault, "sys/generate-root/update", nonce, &other[1]).await;
    assert_eq!(status, 400, "{answer}");
    assert!(!answer.to_string().contains(&other[1]), "{answer}");
    let (_, answer) = send(&vault, "GET", "sys/generate-root/attempt", "", Value::Null).await;
    assert_eq!(
        (&answer["progress"], &answer["started"]),
        (&json!(0), &json!(true))
    );
    let (status, _) = give(&vault, "sys/generate-root/update", nonce, "aabb").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn openbaos_names_need_a_token_and_answer_in_the_envelope() {
    let (vault, _, root) = open().await;
    let numbers = json!({"secret_shares": 3, "secret_threshold": 2});
    let path = "sys/rotate/root/init";
    assert_eq!(send(&vault, "GET", path, "", Value::Null).await.0, 403);
    let (status, answer) = send(&vault, "POST", path, &root, numbers).await;
    assert_eq!(
        (status, &answer["data"]["started"]),
        (200, &json!(true)),
        "{answer}"
    );
    assert_eq!(
        send(&vault, "DELETE", path, &root, Value::Null).await.0,
        204
    );
    let path = "sys/generate-root-token/attempt";
    let (status, answer) = send(&vault, "GET", path, &root, Value::Null).await;
    assert_eq!(
        (status, &answer["data"]["required"]),
        (200, &json!(2)),
        "{answer}"
    );
}

#[tokio::test]
async fn keys_rotate_with_sudo_and_pgp_is_refused_by_name() {
    let (vault, _, root) = open().await;
    let (_, answer) = send(&vault, "GET", "sys/key-status", &root, Value::Null).await;
    assert_eq!(
        (&answer["term"], &answer["data"]["term"]),
        (&json!(1), &json!(1))
    );
    assert!(answer["encryptions"].as_u64().unwrap() > 0 || answer["encryptions"] == 0);
    assert_eq!(
        send(&vault, "PUT", "sys/rotate", "", Value::Null).await.0,
        403
    );
    assert_eq!(
        send(&vault, "PUT", "sys/rotate", &root, Value::Null)
            .await
            .0,
        204
    );
    let (_, answer) = send(&vault, "GET", "sys/key-status", &root, Value::Null).await;
    assert_eq!(answer["term"], 2);

    let path = "sys/rotate/config";
    let (_, answer) = send(&vault, "GET", path, &root, Value::Null).await;
    let usual = json!({"enabled": true, "interval": 0, "max_operations": 3_865_470_566_u64});
    assert_eq!(answer["data"], usual);
    let body = json!({"interval": "48h", "max_operations": 2_000_000});
    assert_eq!(send(&vault, "PUT", path, &root, body).await.0, 204);
    let (_, answer) = send(&vault, "GET", path, &root, Value::Null).await;
    assert_eq!(
        answer["data"],
        json!({"enabled": true, "interval": 172_800, "max_operations": 2_000_000})
    );
    assert_eq!(
        send(&vault, "PUT", path, &root, json!({"interval": "1h"}))
            .await
            .0,
        400
    );

    for (path, body) in [
        (
            "sys/rekey/init",
            json!({"secret_shares": 1, "secret_threshold": 1, "pgp_keys": ["x"]}),
        ),
        ("sys/generate-root/attempt", json!({"pgp_key": "x"})),
    ] {
        let (status, answer) = send(&vault, "PUT", path, &root, body).await;
        assert_eq!(status, 400);
        assert!(answer.to_string().contains("PGP"), "{answer}");
    }
    vault.seal();
    for path in [
        "sys/rekey/init",
        "sys/generate-root/attempt",
        "sys/key-status",
    ] {
        assert_eq!(send(&vault, "GET", path, &root, Value::Null).await.0, 503);
    }
}
