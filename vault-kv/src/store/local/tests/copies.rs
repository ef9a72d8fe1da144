//! Snapshot files of a whole ledger, records of the fold that lie, and any flipped byte.

use std::fs;

use super::*;
use crate::store::snapshot::{Content, Reader};

fn saved(store: &dyn Store, keep_from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let head = store.snapshot("cluster-1", keep_from, &mut out).unwrap();
    assert_eq!(head, store.head());
    out
}

fn restored(bytes: &[u8], dir: &Path) -> Result<(), SnapshotError> {
    restore(bytes, dir, Some("cluster-1")).map(drop)
}

#[test]
fn a_saved_ledger_makes_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("old"));
    write(&store, 30);
    commit(&store, &[Do::Put(1, b"secret-19ab7f".into())]).unwrap();
    commit(&store, &[Do::Delete(1), Do::Put(2, vec![3; 100_000])]).unwrap();
    let bytes = saved(&store, 1);
    let info = Reader::open(&bytes[..]).unwrap().info().clone();
    assert_eq!((info.head, info.content), (store.head(), Content::Ledger));
    assert!(
        !bytes.windows(13).any(|window| window == b"secret-19ab7f"),
        "a backup does not keep what was destroyed"
    );

    let new = dir.path().join("new");
    restored(&bytes, &new).unwrap();
    assert_eq!(verified(&new).unwrap(), 32);
    let copy = open(&new);
    assert_eq!(contents(&copy), contents(&store));
    assert_eq!(indexes(&copy, 1), indexes(&store, 1));
    assert_eq!(copy.head(), store.head());
    commit(&copy, &[Do::Put(3, b"goes on".into())]).unwrap();
}

#[test]
fn a_snapshot_is_restored_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("old"));
    write(&store, 5);
    let bytes = saved(&store, 1);
    let new = dir.path().join("new");
    for cut in [0, 3, 40, bytes.len() / 2, bytes.len() - 1] {
        assert!(restored(&bytes[..cut], &new).is_err(), "cut at {cut}");
        assert!(!new.join("log").exists() && !new.join("restoring").exists());
    }
    let other = restore(&bytes[..], &new, Some("cluster-2"));
    assert!(matches!(
        other,
        Err(SnapshotError::OtherCluster { found, .. }) if found == "cluster-1"
    ));
    fs::write(new.join("something"), b"").unwrap();
    assert!(matches!(
        restored(&bytes, &new),
        Err(SnapshotError::NotEmpty { .. })
    ));
    fs::remove_file(new.join("something")).unwrap();
    restored(&bytes, &new).unwrap();
    let used = open(&new);
    check(&used);
    assert!(matches!(
        restored(&bytes, &new),
        Err(SnapshotError::NotEmpty { .. })
    ));
}

/// What [`Fold::write`] puts there is well-formed for sled and not what the log says.
fn falsify(store: &LocalStore, number: u64, change: impl FnOnce(&mut Folded)) {
    let id = FoldId::named(&key(number));
    let fold = Arc::clone(&store.shared.fold.read());
    let mut folded = fold.get(&id).unwrap().ok().unwrap().unwrap();
    change(&mut folded);
    fold.write([(&id, Some(&folded))]).unwrap();
    fold.sync().unwrap();
}

#[test]
fn a_record_of_the_fold_that_lies_is_named_and_put_right() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&open(dir), 9);
    let store = open(dir);
    falsify(&store, 4, |folded| {
        folded.value = Value::Here("forged".into())
    });
    match store.verify(&mut |_| Ok(())) {
        Err(StoreError::Damaged { record, index, .. }) => {
            assert_eq!((record, index), (key(4).short(), 4))
        }
        other => panic!("{other:?}"),
    }
    // The barrier does not open it, and asks for what the log has.
    assert_eq!(store.repair(&key(4)).unwrap().unwrap().value, b"4");
    assert_eq!(store.get(&key(4)).unwrap().unwrap().value, b"4");
    assert_eq!(store.verify(&mut |_| Ok(())).unwrap().records, Some(9));
}

#[test]
fn a_read_that_meets_a_damaged_record_puts_it_right() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&open(dir), 9);
    let store = open(dir);
    store.shared.fold.read().spoil(&FoldId::named(&key(4)), 20);
    assert!(matches!(
        store.verify(&mut |_| Ok(())),
        Err(StoreError::Damaged { .. })
    ));
    drop(store);
    assert!(
        matches!(verified(dir), Err(StoreError::Damaged { record, .. }) if record == key(4).short())
    );
    let store = open(dir);
    assert_eq!(store.get(&key(4)).unwrap().unwrap().value, b"4");
    assert!(store.verify(&mut |_| Ok(())).is_ok());
    // In the value, and in what is left of the id there.
    for at in [20, 5] {
        store.shared.fold.read().spoil(&FoldId::named(&key(5)), at);
        assert_eq!(contents(&store).len(), 9, "a scan finds it too");
        assert!(store.verify(&mut |_| Ok(())).is_ok());
        store.shared.fold.read().spoil(&FoldId::named(&key(5)), at);
        assert_eq!(store.get(&key(5)).unwrap().unwrap().value, b"5");
    }
    // The scan has what is not folded yet once, whatever the fold says.
    commit(&store, &[Do::Put(5, b"new".into())]).unwrap();
    store.shared.fold.read().spoil(&FoldId::named(&key(5)), 5);
    assert_eq!(contents(&store).len(), 9);
    assert_eq!(store.get(&key(5)).unwrap().unwrap().value, b"new");
}

#[test]
fn any_flipped_byte_of_log_and_snapshot_is_named_and_of_the_fold_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    let store = open(&dir);
    write(&store, 4);
    commit(&store, &[Do::Control("seal", b"config".into())]).unwrap();
    commit(&store, &[Do::Delete(2), Do::Put(1, b"1".into())]).unwrap();
    store
        .compact(7, Pace::Prompt, &AtomicBool::new(false))
        .unwrap();
    drop(store);
    let good = contents(&open(&dir));
    verified(&dir).unwrap();

    let (_, snapshot) = snapshots::list(&dir).unwrap().remove(0);
    for path in segments(&dir).into_iter().chain([snapshot]) {
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 0x04;
            fs::write(&path, bad).unwrap();
            let found = verified(&dir);
            let named = match &found {
                Err(StoreError::Corrupt { segment, .. }) => *segment == path,
                Err(
                    StoreError::BadSnapshot { path: bad, .. } | StoreError::Newer { path: bad, .. },
                ) => *bad == path,
                _ => false,
            };
            assert!(named, "byte {at} of {}: {found:?}", path.display());
        }
        fs::write(&path, whole).unwrap();
    }

    // sled has pages that nobody reads any more. What counts is that no read is wrong.
    let kept = dir.with_extension("kept");
    let fold = fold(&dir);
    damage::copy(&fold, &kept);
    for item in kept.read_dir().unwrap() {
        let kept_file = item.unwrap().path();
        if kept_file.is_dir() {
            continue;
        }
        let whole = fs::read(&kept_file).unwrap();
        let used = whole
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        for at in (0..used).step_by((used / 25).max(1)) {
            let mut bad = whole.clone();
            bad[at] ^= 0x04;
            let _ = fs::remove_dir_all(dir.join("fold"));
            fs::create_dir(dir.join("fold")).unwrap();
            damage::copy(&kept, &fold);
            fs::write(fold.join(kept_file.file_name().unwrap()), bad).unwrap();
            assert_eq!(
                contents(&open(&dir)),
                good,
                "byte {at} of {}",
                kept_file.display()
            );
        }
    }
}
