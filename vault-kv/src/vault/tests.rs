use super::*;
use crate::{Verified, core::Meta};

fn vault() -> Vault {
    Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap()
}

const OPTIONS: InitOptions = InitOptions {
    shares: 5,
    threshold: 3,
};

async fn unsealed() -> (Vault, Vec<Zeroizing<Vec<u8>>>) {
    let vault = vault();
    let keys = vault.init(OPTIONS).await.unwrap().keys;
    for key in &keys[..3] {
        vault.submit_share(key.clone()).await.unwrap();
    }
    assert!(!vault.is_sealed());
    (vault, keys)
}

#[tokio::test]
async fn shares_unseal_and_seal_takes_everything_away() {
    let vault = vault();
    assert!(!vault.seal_status().unwrap().initialized);
    let keys = vault.init(OPTIONS).await.unwrap().keys;
    assert!(matches!(
        vault.init(OPTIONS).await,
        Err(VaultError::AlreadyInitialized)
    ));
    assert!(vault.is_sealed(), "shares leave a new store sealed");

    vault.submit_share(keys[4].clone()).await.unwrap();
    let again = vault.submit_share(keys[4].clone()).await.unwrap();
    assert_eq!((again.progress, again.sealed), (1, true));
    vault.submit_share(keys[0].clone()).await.unwrap();
    let status = vault.submit_share(keys[2].clone()).await.unwrap();
    assert_eq!((status.progress, status.sealed), (0, false));

    let kv = vault.kv("test");
    let value = Zeroizing::new(b"v".to_vec());
    kv.put(Meta::default(), "k", value, 0, None).await.unwrap();
    vault.seal();
    assert!(matches!(kv.get("k"), Err(Error::Sealed)));
    for key in &keys[..3] {
        vault.submit_share(key.clone()).await.unwrap();
    }
    assert_eq!(&kv.get("k").unwrap().unwrap().value[..], b"v");
}

#[tokio::test]
async fn wrong_shares_start_again_from_nothing() {
    let vault = vault();
    let keys = vault.init(OPTIONS).await.unwrap().keys;
    vault.submit_share(keys[0].clone()).await.unwrap();
    vault.submit_share(keys[1].clone()).await.unwrap();
    let mut wrong = keys[2].clone();
    wrong[5] ^= 1;
    assert!(matches!(
        vault.submit_share(wrong).await,
        Err(VaultError::WrongKey)
    ));
    let status = vault.seal_status().unwrap();
    assert_eq!((status.progress, status.sealed), (0, true));
    let short = Zeroizing::new(vec![1; 20]);
    assert!(matches!(
        vault.submit_share(short).await,
        Err(VaultError::ShareLength(20))
    ));
}

#[tokio::test]
async fn impossible_numbers_of_shares_are_refused() {
    for (shares, threshold) in [(0, 0), (1, 0), (2, 3), (3, 1)] {
        let options = InitOptions { shares, threshold };
        assert!(matches!(
            vault().init(options).await,
            Err(VaultError::Shares(_))
        ));
    }
}

#[tokio::test]
async fn plain_keys_have_consuls_semantics() {
    let (vault, _) = unsealed().await;
    let kv = vault.kv("test");
    let put = |key: &'static str, value: &'static str, cas| {
        let value = Zeroizing::new(value.as_bytes().to_vec());
        kv.put(Meta::default(), key, value, 7, cas)
    };
    assert!(put("a/x", "1", Some(0)).await.unwrap());
    assert!(
        !put("a/x", "2", Some(0)).await.unwrap(),
        "it is there already"
    );
    let first = kv.get("a/x").unwrap().unwrap();
    assert_eq!((first.flags, first.created), (7, first.modified));

    let index = kv.changed_under("").unwrap();
    assert!(put("a/x", "1", None).await.unwrap());
    assert_eq!(kv.changed_under("").unwrap(), index, "the same value again");

    assert!(put("a/x", "2", Some(first.modified)).await.unwrap());
    assert!(!put("a/x", "3", Some(first.modified)).await.unwrap());
    put("a/b/c", "1", None).await.unwrap();
    assert_eq!(kv.keys("a/", "/").unwrap(), ["a/b/", "a/x"]);
    assert_eq!(kv.list("a/").unwrap().len(), 2);

    assert!(!kv.delete(Meta::default(), "a/x", Some(1)).await.unwrap());
    assert!(kv.delete(Meta::default(), "none", None).await.unwrap());
    let before = kv.changed("a/x").unwrap();
    kv.delete_under(Meta::default(), "a/").await.unwrap();
    assert!(kv.list("").unwrap().is_empty());
    assert!(
        kv.changed("a/x").unwrap() > before,
        "a deletion is a change"
    );
}

#[tokio::test]
async fn history_tells_who_did_what_and_the_chain_verifies() {
    let (vault, _) = unsealed().await;
    let kv = vault.kv("test");
    for n in 0..5u8 {
        let meta = Meta {
            actor: "alice".to_owned(),
            operation: "kv put".to_owned(),
            keys: vec![format!("k{n}")],
            ..Meta::default()
        };
        let value = Zeroizing::new(vec![n]);
        kv.put(meta, "k", value, 0, None).await.unwrap();
    }
    let ledger = vault.ledger();
    let last = ledger.history(2, None).unwrap();
    assert_eq!(last[0].meta.keys, ["k4"]);
    assert_eq!(last[1].meta.keys, ["k3"]);
    assert_eq!(
        (last[0].meta.actor.as_str(), last[0].index),
        ("alice", ledger.head().index)
    );
    assert!(last[0].meta.time > 0);
    let older = ledger.history(1, Some(last[1].index)).unwrap();
    assert_eq!(older[0].meta.keys, ["k2"]);

    let verified = ledger.verify().unwrap();
    assert_eq!(verified.head, ledger.head());
    vault.seal();
    let without_keys = Verified {
        opened: 0,
        ..verified
    };
    assert!(verified.opened >= 5, "the five keys at least");
    assert_eq!(ledger.verify().unwrap(), without_keys);
    assert!(matches!(ledger.history(1, None), Err(Error::Sealed)));
}

fn dir_vault(dir: &std::path::Path) -> Vault {
    let store = StoreConfig::Dir(dir.join("store"));
    Vault::open(VaultConfig::new(store)).unwrap()
}

/// Once a crash in the middle left a store with keys and without a root token.
#[tokio::test]
async fn a_power_cut_at_any_byte_of_init_leaves_all_of_it_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let vault = dir_vault(dir.path());
    let made = vault.init(OPTIONS).await.unwrap();
    assert_eq!(vault.ledger().head().index, 1, "init is one entry");
    drop(vault);
    let log = std::fs::read_dir(dir.path().join("store/log")).unwrap();
    let log = log.map(|item| item.unwrap().path());
    let log = log.filter(|path| path.extension().is_some_and(|e| e == "log"));
    let segment = log.last().unwrap();
    let whole = std::fs::read(&segment).unwrap();
    let (mut none, mut all) = (0, 0);
    let lengths = (0..whole.len())
        .step_by(61)
        .chain([whole.len() - 1, whole.len()]);
    for length in lengths {
        let cut = tempfile::tempdir().unwrap();
        let folder = cut.path().join("store/log");
        std::fs::create_dir_all(&folder).unwrap();
        let name = segment.file_name().unwrap();
        std::fs::write(folder.join(name), &whole[..length]).unwrap();
        let vault = dir_vault(cut.path());
        if vault.seal_status().unwrap().initialized {
            for key in &made.keys[..3] {
                vault.submit_share(key.clone()).await.unwrap();
            }
            let may = vault.authorize(
                Some(&made.root_token),
                None,
                crate::Capability::Sudo,
                "sys/rotate",
            );
            assert!(may.is_ok(), "cut at {length}: {may:?}");
            all += 1;
        } else {
            assert!(vault.init(OPTIONS).await.is_ok(), "cut at {length}");
            none += 1;
        }
    }
    assert!(none > 5 && all == 1, "{none} without, {all} with");
}

#[tokio::test]
async fn closing_saves_what_sealing_alone_would_forget() {
    let (vault, keys) = unsealed().await;
    let kv = vault.kv("test");
    for n in 0..10u8 {
        let value = Zeroizing::new(vec![n]);
        kv.put(Meta::default(), "k", value, 0, None).await.unwrap();
    }
    let used = async || {
        let open = vault.unsealed().unwrap();
        open.rotation.status().await.unwrap().encryptions
    };
    let before = used().await;
    assert!(before >= 30, "{before}");
    vault.close().await;
    assert!(vault.is_sealed());
    for key in &keys[..3] {
        vault.submit_share(key.clone()).await.unwrap();
    }
    assert!(used().await >= before);
}

#[tokio::test]
async fn a_key_file_makes_root_tokens_and_cannot_be_split_anew() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    std::fs::write(&path, [5; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut config = VaultConfig::new(StoreConfig::Memory);
    config.static_key = Some(path);
    let vault = Vault::open(config).unwrap();
    vault.init(OPTIONS).await.unwrap();
    let open = vault.unsealed().unwrap();
    assert!(vault.rekey_start(&open, OPTIONS, false).is_err());
    vault.root_start(&open, None).unwrap();
    let nonce = open.attempts.lock().root.as_ref().unwrap().nonce.clone();
    let key = Zeroizing::new(vec![5; 32]);
    let token = vault.root_share(&open, &nonce, key).await.unwrap();
    assert!(token.is_some());
}

#[tokio::test]
async fn a_clock_set_back_is_named_and_nothing_is_lost() {
    let (vault, keys) = unsealed().await;
    assert_eq!(vault.clock_behind(), None);
    let kv = vault.kv("test");
    let meta = Meta {
        time: now_micros() + 7_200_000_000,
        ..Meta::default()
    };
    let value = Zeroizing::new(b"v".to_vec());
    kv.put(meta, "k", value, 0, None).await.unwrap();
    vault.seal();
    for key in &keys[..3] {
        vault.submit_share(key.clone()).await.unwrap();
    }
    let behind = vault.clock_behind().unwrap().as_secs();
    assert!((7_100..=7_200).contains(&behind), "{behind}");
    assert_eq!(&kv.get("k").unwrap().unwrap().value[..], b"v");
}

/// Writes a control record over the one that is there, as a damaged disk would.
fn overwrite(vault: &Vault, name: &'static str, damage: impl Fn(&mut Vec<u8>)) {
    let store = vault.store();
    let mut value = store
        .control(&crate::store::FoldKey::control(name))
        .unwrap()
        .unwrap()
        .value;
    damage(&mut value);
    let (barrier, _) = Barrier::create(SecretKey::random());
    let mut batch = Batch::new(&By::system("test"), "damage");
    batch.control(name, value);
    let head = store.head();
    let entry = crate::core::entry_after(&**store, &barrier, head, batch.into_change());
    store.commit(&head, vec![entry.unwrap()]).unwrap();
}

#[tokio::test]
async fn a_damaged_keyring_is_told_from_a_wrong_share() {
    let (vault, keys) = unsealed().await;
    vault.seal();
    overwrite(&vault, seal::KEYRING, |keyring| keyring[40] ^= 1);
    vault.submit_share(keys[0].clone()).await.unwrap();
    vault.submit_share(keys[1].clone()).await.unwrap();
    let error = vault.submit_share(keys[2].clone()).await.err().unwrap();
    assert!(matches!(error, VaultError::Keyring), "{error}");
    assert!(
        error.to_string().contains("mesh operator verify --dir"),
        "{error}"
    );
}

#[tokio::test]
async fn a_seal_configuration_of_a_newer_version_is_named() {
    let (vault, keys) = unsealed().await;
    vault.seal();
    overwrite(&vault, seal::CONFIG, |config| config[0] = 9);
    let error = vault.submit_share(keys[0].clone()).await.err().unwrap();
    assert!(error.to_string().contains("newer"), "{error}");
}

#[tokio::test]
async fn too_large_a_value_is_refused_with_the_limit() {
    let (vault, _) = unsealed().await;
    let kv = vault.kv("test");
    let value = Zeroizing::new(vec![7; crate::core::MAX_VALUE + 1]);
    let error = kv
        .put(Meta::default(), "k", value, 0, None)
        .await
        .err()
        .unwrap();
    let limit = crate::core::MAX_VALUE.to_string();
    assert!(error.to_string().contains(&limit), "{error}");
    assert!(kv.get("k").unwrap().is_none());
}
