use std::path::Path;

use zeroize::Zeroizing;

use super::*;
use crate::{
    core::Meta,
    vault::{InitOptions, VaultConfig},
};

type Share = Zeroizing<Vec<u8>>;

fn open(dir: &Path) -> Vault {
    let mut config = VaultConfig::new(StoreConfig::Dir(dir.join("store")));
    config.head_file = Some(dir.join("head"));
    Vault::open(config).unwrap()
}

async fn made(dir: &Path) -> (Vault, Share) {
    let vault = open(dir);
    let one = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let key = vault.init(one).await.unwrap().keys.remove(0);
    vault.submit_share(key.clone()).await.unwrap();
    (vault, key)
}

async fn put(vault: &Vault, key: &str) {
    let value = Zeroizing::new(key.as_bytes().to_vec());
    let kv = vault.kv("test");
    kv.put(Meta::default(), key, value, 0, None).await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for item in from.read_dir().unwrap() {
        let path = item.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(fs::copy(&path, &to).unwrap()),
        }
    }
}

/// A store with a few entries, sealed, of which `backup` is an older copy; its share.
async fn rolled_back_store(dir: &Path) -> Share {
    let (vault, key) = made(dir).await;
    put(&vault, "a").await;
    vault.close().await;
    drop(vault);
    copy(&dir.join("store"), &dir.join("backup"));
    let vault = open(dir);
    vault.submit_share(key.clone()).await.unwrap();
    put(&vault, "b").await;
    put(&vault, "c").await;
    vault.close().await;
    drop(vault);
    key
}

fn restore(dir: &Path) {
    fs::remove_dir_all(dir.join("store")).unwrap();
    copy(&dir.join("backup"), &dir.join("store"));
}

#[tokio::test]
async fn a_store_put_back_to_an_older_state_does_not_unseal_until_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let key = rolled_back_store(dir.path()).await;
    restore(dir.path());
    let vault = open(dir.path());
    let ends = vault.ledger().head().index;
    let error = vault.submit_share(key.clone()).await.err().unwrap();
    let VaultError::RolledBack {
        ends: had, seen, ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(*had, ends);
    assert!(*seen > ends, "{error}");
    let text = error.to_string();
    for part in [&ends.to_string(), &seen.to_string(), "--accept-rollback"] {
        assert!(text.contains(part), "{text} names {part}");
    }
    assert!(vault.is_sealed());

    vault.accept_rollback(true);
    vault.submit_share(key.clone()).await.unwrap();
    assert!(!vault.is_sealed());
    let history = vault.ledger().history(1, None).unwrap();
    assert_eq!(history[0].meta.operation, "rollback accepted");
    let published = vault.ledger().published().unwrap();
    assert!(
        published.index > *seen,
        "{published:?} is above what was seen"
    );
    put(&vault, "d").await;
    vault.close().await;
    drop(vault);

    // Once is enough, and it opens the door to nothing more.
    let vault = open(dir.path());
    vault.submit_share(key.clone()).await.unwrap();
    vault.close().await;
    drop(vault);
    restore(dir.path());
    let vault = open(dir.path());
    let error = vault.submit_share(key).await.err().unwrap();
    assert!(matches!(error, VaultError::RolledBack { .. }), "{error}");
}

#[tokio::test]
async fn a_log_cut_off_at_its_end_is_noticed_by_the_record_of_the_last_seal() {
    let dir = tempfile::tempdir().unwrap();
    let key = rolled_back_store(dir.path()).await;
    // Only what is beside the log remembers.
    fs::remove_file(dir.path().join("head")).unwrap();
    fs::remove_dir_all(dir.path().join("store/log")).unwrap();
    fs::remove_dir_all(dir.path().join("store/fold")).unwrap();
    for part in ["log", "fold"] {
        copy(
            &dir.path().join("backup").join(part),
            &dir.path().join("store").join(part),
        );
    }
    let vault = open(dir.path());
    let error = vault.submit_share(key).await.err().unwrap();
    assert!(
        error.to_string().contains("the record of its last seal"),
        "{error}"
    );
}

#[tokio::test]
async fn another_history_of_the_same_length_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (vault, key) = made(dir.path()).await;
    put(&vault, "a").await;
    let head = vault.ledger().head();
    let seen = |index, hash| SeenHead {
        index,
        hash,
        by: "an agent".to_owned(),
    };
    vault.seen(seen(head.index, head.hash)).unwrap();
    assert!(!vault.is_sealed());
    let error = vault.seen(seen(head.index, [7; 32])).err().unwrap();
    assert!(error.to_string().contains("an agent"), "{error}");
    assert!(
        vault.is_sealed(),
        "an open store that others contradict is sealed"
    );
    let error = vault.submit_share(key).await.err().unwrap();
    assert!(matches!(error, VaultError::RolledBack { .. }), "{error}");
}

#[tokio::test]
async fn the_head_kept_for_another_store_is_told_from_a_rollback() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = made(one.path()).await;
    first.close().await;
    let (vault, key) = made(other.path()).await;
    vault.seal();
    fs::copy(one.path().join("head"), other.path().join("head")).unwrap();
    let error = vault.submit_share(key.clone()).await.err().unwrap();
    assert!(matches!(error, VaultError::OtherStore { .. }), "{error}");

    // A file with nothing usable in it proves nothing, and is written anew.
    fs::write(other.path().join("head"), "nonsense").unwrap();
    vault.submit_share(key).await.unwrap();
    vault.close().await;
    assert!(read(&other.path().join("head")).unwrap().is_some());
}
