use std::time::Duration;

use zeroize::Zeroizing;

use super::*;
use crate::{
    InitOptions, StoreConfig, VaultConfig, inspect_snapshot, restore_snapshot, store::SnapshotError,
};

async fn unsealed(store: StoreConfig, retention: Duration) -> (Vault, Zeroizing<Vec<u8>>) {
    let mut config = VaultConfig::new(store);
    config.history_retention = retention;
    let vault = Vault::open(config).unwrap();
    let one = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let share = vault.init(one).await.unwrap().keys.remove(0);
    vault.submit_share(share.clone()).await.unwrap();
    (vault, share)
}

async fn put(vault: &Vault, key: &str, value: Vec<u8>) {
    let kv = vault.kv("test");
    let meta = Meta {
        keys: vec![key.to_owned()],
        ..Meta::default()
    };
    let value = Zeroizing::new(value);
    assert!(kv.put(meta, key, value, 0, None).await.unwrap());
}

fn numbers(items: &[HistoryItem]) -> Vec<u64> {
    items.iter().map(|item| item.index).collect()
}

#[tokio::test]
async fn a_range_is_what_was_asked_for() {
    let (vault, _) = unsealed(StoreConfig::Memory, Duration::MAX).await;
    for n in 0..9u8 {
        put(&vault, &n.to_string(), vec![n]).await;
    }
    let ledger = vault.ledger();
    let head = ledger.head().index;
    assert_eq!(numbers(&ledger.range(3..6, 100).unwrap()), [3, 4, 5]);
    assert_eq!(numbers(&ledger.range(3..u64::MAX, 2).unwrap()), [3, 4]);
    let last = ledger.range(head..u64::MAX, 100).unwrap();
    assert_eq!(last[0].meta.keys, ["8"]);
    assert!(ledger.range(head + 1..u64::MAX, 9).unwrap().is_empty());
    vault.seal();
    assert!(matches!(ledger.range(1..2, 1), Err(Error::Sealed)));
}

/// More is written than is kept in memory, so that the one that lags must read the log.
#[tokio::test]
async fn a_watch_misses_nothing_however_far_behind_it_is() {
    for dir in [None, Some(tempfile::tempdir().unwrap())] {
        let store = match &dir {
            Some(dir) => StoreConfig::Dir(dir.path().join("store")),
            None => StoreConfig::Memory,
        };
        let (vault, _) = unsealed(store, Duration::MAX).await;
        let follow = |vault: &Vault, to: u64| {
            let mut watch = vault.ledger().watch(1);
            async move {
                let mut seen = Vec::new();
                while seen.last().is_none_or(|last| *last < to) {
                    seen.extend(numbers(&watch.next().await.unwrap()));
                }
                seen
            }
        };
        let to = vault.ledger().head().index + 120;
        let beside: Vec<_> = (0..50).map(|_| tokio::spawn(follow(&vault, to))).collect();
        for n in 0..120u8 {
            put(&vault, "k", vec![n; 100_000]).await;
        }
        assert!(
            vault.store().recent(1).is_none(),
            "the first are only in the log"
        );
        assert!(
            vault
                .store()
                .recent(to)
                .is_some_and(|recent| recent.len() == 1)
        );
        let all: Vec<_> = (1..=to).collect();
        for watch in beside {
            assert_eq!(watch.await.unwrap(), all);
        }
        assert_eq!(follow(&vault, to).await, all);

        let mut watch = vault.ledger().watch(to + 1);
        let waiting = tokio::spawn(async move { watch.next().await });
        tokio::task::yield_now().await;
        vault.seal();
        assert!(matches!(waiting.await.unwrap(), Err(Error::Sealed)));
    }
}

#[tokio::test]
async fn the_history_of_values_is_kept_as_long_as_it_was_told() {
    for (retention, redacted) in [(Duration::MAX, 0), (Duration::ZERO, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreConfig::Dir(dir.path().join("store"));
        let (vault, _) = unsealed(store, retention).await;
        let ledger = vault.ledger();
        ledger.compact().unwrap();
        let before = ledger.verify().unwrap().redacted;
        put(&vault, "k", b"old".to_vec()).await;
        put(&vault, "k", b"new".to_vec()).await;
        let compacted = ledger.compact().unwrap();
        assert_eq!(
            (compacted.head, compacted.redacted),
            (ledger.head().index, redacted)
        );
        let verified = ledger.verify().unwrap();
        assert_eq!(verified.redacted - before, redacted);
        assert_eq!(verified.snapshot, Some(ledger.head().index));
        assert!(verified.opened > 0);
        let all = ledger.range(1..u64::MAX, 100).unwrap();
        assert_eq!(all.len() as u64, ledger.head().index, "who did what stays");
        assert_eq!(
            &vault.kv("test").get("k").unwrap().unwrap().value[..],
            b"new"
        );
    }
}

#[tokio::test]
async fn a_restored_snapshot_is_unsealed_by_the_same_share() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreConfig::Dir(dir.path().join("old"));
    let (vault, share) = unsealed(store, Duration::ZERO).await;
    for value in ["first", "second", "value"] {
        put(&vault, "k", value.as_bytes().to_vec()).await;
    }
    let before = vault.ledger().verify().unwrap();
    let mut file = Vec::new();
    let info = vault.save_snapshot(&mut file).unwrap();
    let cluster = vault.seal_status().unwrap().cluster_id;
    assert_eq!(
        (&info.cluster_id, info.head),
        (&cluster, vault.ledger().head())
    );
    let inspected = inspect_snapshot(&file[..]).unwrap();
    assert_eq!(inspected.info, info);
    assert_eq!(
        (inspected.entries, inspected.bytes),
        (info.head.index, file.len() as u64)
    );
    assert_eq!(
        inspected.records,
        vault.ledger().verify().unwrap().opened,
        "every name once"
    );
    let compacted = vault.ledger().compact().unwrap();
    assert!(compacted.redacted >= 2);
    assert_eq!(inspected.redacted, before.redacted + compacted.redacted);
    let cut = &file[..file.len() - 1];
    assert!(matches!(
        inspect_snapshot(cut),
        Err(SnapshotError::Damaged { .. })
    ));

    let new = dir.path().join("new");
    assert_eq!(
        restore_snapshot(&file[..], &new, Some(&cluster)).unwrap(),
        info
    );
    assert_eq!(verify(&new).unwrap().head, info.head);
    let restored = Vault::open(VaultConfig::new(StoreConfig::Dir(new))).unwrap();
    restored.submit_share(share).await.unwrap();
    assert_eq!(
        &restored.kv("test").get("k").unwrap().unwrap().value[..],
        b"value"
    );
}
