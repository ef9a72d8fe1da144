//! What this crate says about secrets, in `Debug` and in errors, and leaves of them in memory: nothing.

#[cfg(target_os = "linux")]
mod memory;

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::{
    api::Api,
    barrier::{Barrier, SecretKey},
    ca::{Ca, Signer},
    core::{Change, Core, Op},
    http::reply::{Answer, AuthInfo},
    kv::{Applied, Kv, KvOp, KvPair},
    request::{Caller, ClientToken, Data, Remote, Request, Via},
    seal::{progress::Progress, static_key},
    token::Tokens,
    vault::{InitOutcome, Open, StoreConfig, Vault, VaultConfig},
};

/// Does not compile for a type that has `Debug`: there are two ways to choose `A` then.
macro_rules! without_debug {
    ($($holder:ty),* $(,)?) => {$(
        const _: fn() = || {
            trait Has<A> { fn it() {} }
            impl<T> Has<()> for T {}
            impl<T: std::fmt::Debug> Has<u8> for T {}
            let _ = <$holder as Has<_>>::it;
        };
    )*};
}

without_debug!(
    Answer,
    Applied,
    Api,
    AuthInfo,
    Barrier,
    Ca,
    Change,
    ClientToken,
    Core,
    Data,
    InitOutcome,
    Kv,
    KvOp,
    KvPair,
    Op,
    Open,
    Progress,
    Request,
    SecretKey,
    Signer,
    Tokens,
    Vault,
);

const SECRET: &str = "canary-4f81d0c2";

async fn answer(vault: &Vault, method: &str, path: &str, token: &str, body: &str) -> (u16, String) {
    let request = http::Request::builder()
        .method(method)
        .uri(format!("/v1/{path}"))
        .header("x-vault-token", token)
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap();
    let caller = Caller::anonymous(Remote::Unix, Via::Http);
    let response = vault.handle(request, caller).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    (response.status().as_u16(), text)
}

#[tokio::test]
async fn refused_requests_are_not_answered_with_what_was_in_them() {
    let vault = Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap();
    let one = r#"{"secret_shares": 1, "secret_threshold": 1}"#;
    let (_, init) = answer(&vault, "PUT", "sys/init", "", one).await;
    let init: Value = serde_json::from_str(&init).unwrap();
    let root = init["root_token"].as_str().unwrap();
    let share = init["keys"][0].as_str().unwrap();

    let quoted = json!(SECRET).to_string();
    let wrong_share = json!({"key": SECRET}).to_string();
    let cut_off = format!("{{\"key\": \"{share}\"");
    for body in [&wrong_share, &cut_off, &quoted] {
        let (status, text) = answer(&vault, "PUT", "sys/unseal", "", body).await;
        assert_eq!(status, 400, "{text}");
        assert!(!text.contains(SECRET) && !text.contains(share), "{text}");
    }
    let right = json!({"key": share}).to_string();
    assert_eq!(answer(&vault, "PUT", "sys/unseal", "", &right).await.0, 200);

    let unfinished = format!("{{\"data\": {{\"a\": \"{SECRET}\"");
    let trailing = format!("{{\"data\": {{\"a\": 1}}}} {SECRET}");
    let no_object = json!({"data": SECRET}).to_string();
    let bad_cas = json!({"data": {"a": 1}, "options": {"cas": SECRET}}).to_string();
    let stale_cas = json!({"data": {"a": SECRET}, "options": {"cas": 7}}).to_string();
    let bad_token = json!({"token": SECRET}).to_string();
    for (method, path, token, body) in [
        ("PUT", "secret/data/a", root, &unfinished),
        ("PUT", "secret/data/a", root, &trailing),
        ("PUT", "secret/data/a", root, &quoted),
        ("PUT", "secret/data/a", root, &no_object),
        ("PUT", "secret/data/a", root, &bad_cas),
        ("PUT", "secret/data/a", root, &stale_cas),
        ("PUT", "auth/token/lookup", root, &bad_token),
        ("PUT", "auth/token/renew", root, &bad_token),
        ("PUT", "secret/data/a", SECRET, &stale_cas),
        ("GET", "auth/token/lookup-self", SECRET, &String::new()),
    ] {
        let (status, text) = answer(&vault, method, path, token, body).await;
        assert!(
            (400..500).contains(&status),
            "{path} {body}: {status} {text}"
        );
        assert!(!text.contains(SECRET), "{path} {body}: {text}");
    }
}

#[test]
fn a_key_file_that_holds_no_key_is_not_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, SECRET).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = static_key::read(&path).err().unwrap();
    assert!(!format!("{error} {error:?}").contains(SECRET));
}
