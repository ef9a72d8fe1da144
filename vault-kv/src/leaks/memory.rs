//! Uses a vault, and looks for its secrets in this process's own memory.

use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::answer;
use crate::{
    ca, clear_freed_memory,
    scan::Needles,
    seal::{self, shares},
    store::FoldKey,
    sys::ClearingAllocator,
    vault::{InitOptions, StoreConfig, Vault, VaultConfig},
};

#[global_allocator]
static ALLOCATOR: ClearingAllocator = ClearingAllocator;

/// A request whose body and answer are wiped by whoever sent it.
async fn send(vault: &Vault, method: &str, path: &str, token: &str, body: &str) -> Value {
    let (status, text) = answer(vault, method, path, token, body).await;
    assert!(status < 300, "{path}: {status} {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap()
}

fn wipe(mut value: Value) {
    crate::request::body::wipe(&mut value);
}

const SHARES: InitOptions = InitOptions {
    shares: 3,
    threshold: 2,
};

/// Uses a vault as people do; what must not be in memory afterwards, and what only in locked pages.
async fn use_it(vault: &Vault, nowhere: &mut Needles, locked: &mut Needles) {
    let made = vault.init(SHARES).await.unwrap();
    let hex = |key: &[u8]| {
        let hex = key.iter().flat_map(|byte| {
            let digit = |n: u8| char::from_digit(n.into(), 16).unwrap();
            [digit(byte >> 4), digit(byte & 15)]
        });
        Zeroizing::new(String::from_iter(hex))
    };
    for share in &made.keys {
        nowhere.key("a share", share);
        nowhere.key("a share in hex", hex(share).as_bytes());
    }
    let unseal = shares::combine(&made.keys[..2]).unwrap();
    nowhere.key("the unseal key", unseal.bytes());
    drop(unseal);
    nowhere.add("the root token", made.root_token.as_bytes());
    for share in &made.keys[..2] {
        let body = Zeroizing::new(format!("{{\"key\": \"{}\"}}", *hex(share)));
        send(vault, "PUT", "sys/unseal", "", &body).await;
    }
    let root = made.root_token.as_str();

    let secret = Zeroizing::new(crate::token::base62(32));
    nowhere.add("a secret", secret.as_bytes());
    let body = Zeroizing::new(format!("{{\"data\": {{\"k\": \"{}\"}}}}", *secret));
    wipe(send(vault, "POST", "secret/data/a", root, &body).await);
    wipe(send(vault, "GET", "secret/data/a", root, "").await);
    let answer = send(vault, "POST", "auth/token/create", root, "{}").await;
    let token = text(&answer["auth"], "client_token");
    nowhere.add("a token", token.as_bytes());
    wipe(send(vault, "GET", "auth/token/lookup-self", token, "").await);
    wipe(answer);

    vault.ca().bootstrap(Default::default(), "t").await.unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::new([]).unwrap();
    let request = request.serialize_request(&key).unwrap();
    let profile = crate::Profile {
        uri: "spiffe://t/x".to_owned(),
        dns: Vec::new(),
        ips: Vec::new(),
        ttl: std::time::Duration::from_secs(60),
        extensions: Vec::new(),
    };
    vault.ca().sign(request.der(), &profile).unwrap();

    send(vault, "PUT", "sys/rotate", root, "").await;
    let start = json!({"secret_shares": 3, "secret_threshold": 2}).to_string();
    let answer = send(vault, "PUT", "sys/rekey/init", root, &start).await;
    let nonce = text(&answer, "nonce");
    let mut last = Value::Null;
    for share in &made.keys[1..] {
        let body = format!("{{\"key\": \"{}\", \"nonce\": \"{nonce}\"}}", *hex(share));
        last = send(vault, "PUT", "sys/rekey/update", "", &Zeroizing::new(body)).await;
    }
    for share in last["keys"].as_array().unwrap() {
        nowhere.key("a new share in hex", share.as_str().unwrap().as_bytes());
    }
    for share in last["keys_base64"].as_array().unwrap() {
        nowhere.key("a new share in base64", share.as_str().unwrap().as_bytes());
    }
    wipe(last);

    let open = vault.unsealed().unwrap();
    let keyring = vault.store().control(&FoldKey::control(seal::KEYRING));
    let keyring = keyring.unwrap().unwrap().value;
    let barrier = open.core.barrier().unwrap();
    barrier.each_key(&keyring, |name, key| locked.key(name, key));
    let record = open.core.get(ca::RECORD).unwrap().unwrap();
    for (n, at) in private_keys(&record).into_iter().enumerate() {
        let mut key = Zeroizing::new(record[at..at + 32].to_vec());
        locked.key(&format!("certificate authority key {n}"), &key);
        // As *ring* keeps numbers on this machine.
        key.reverse();
        locked.key(&format!("certificate authority key {n}, reversed"), &key);
    }
}

/// Where the two 32-byte numbers stand: octet strings behind the version of an `ECPrivateKey`.
fn private_keys(record: &[u8]) -> Vec<usize> {
    const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    let windows = record.windows(BEFORE.len()).enumerate();
    let found = windows.filter(|(_, window)| *window == BEFORE);
    let found: Vec<_> = found.map(|(at, _)| at + BEFORE.len()).collect();
    assert_eq!(found.len(), 2, "root and intermediate");
    found
}

#[tokio::test]
async fn keys_shares_and_tokens_are_nowhere_in_memory_after_use_and_after_seal() {
    clear_freed_memory();
    let dir = tempfile::tempdir().unwrap();
    let config = VaultConfig::new(StoreConfig::Dir(dir.path().join("store")));
    let vault = Vault::open(config).unwrap();
    let (mut nowhere, mut locked) = (Needles::default(), Needles::default());
    use_it(&vault, &mut nowhere, &mut locked).await;
    assert!(nowhere.count() > 20 && locked.count() >= 12);

    // The search finds what is there.
    let canary = Zeroizing::new(crate::token::base62(32));
    let mut present = Needles::default();
    present.add("the canary", canary.as_bytes());
    assert!(!present.find().is_empty());

    let found = nowhere.find();
    assert!(found.is_empty(), "in use: {found:#?}");
    let found = locked.find();
    let loose: Vec<_> = found.iter().filter(|found| !found.protected).collect();
    assert!(
        loose.is_empty(),
        "in use, outside of locked pages: {loose:#?}"
    );
    assert!(!found.is_empty(), "the data keys are in use");

    vault.close().await;
    let found: Vec<_> = [nowhere, locked].iter().flat_map(Needles::find).collect();
    assert!(found.is_empty(), "sealed: {found:#?}");
}
