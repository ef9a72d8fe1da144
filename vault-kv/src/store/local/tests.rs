use std::path::{Path, PathBuf};

use super::{super::conformance::*, *};

mod compaction;
mod copies;
mod crash;
mod damage;
mod groups;
mod model;

fn open(dir: &Path) -> LocalStore {
    LocalStore::open(dir).unwrap()
}

/// Writes `count` entries, each of which puts the key of its index to that index.
fn write(store: &LocalStore, count: u64) {
    for _ in 0..count {
        let index = store.head().index + 1;
        commit(store, &[Do::Put(index, index.to_string().into())]).unwrap();
    }
}

/// Whether the newest entries, up to 200, are what [`write`] made of them.
fn check(store: &LocalStore) {
    let head = store.head().index;
    for index in (1..=head).rev().take(200) {
        let record = store.get(&key(index)).unwrap().unwrap();
        assert_eq!(
            (record.modified, record.value),
            (index, index.to_string().into_bytes())
        );
    }
    assert_eq!(indexes(store, 1), (1..=head).collect::<Vec<_>>());
}

fn verified(dir: &Path) -> Result<u64, StoreError> {
    let mut entries = 0;
    verify_dir(dir, |entry| {
        entries += 1;
        if entry.commitments_hold() {
            Ok(())
        } else {
            Err("commitment")
        }
    })?;
    Ok(entries)
}

/// The folder of the one fold.
fn fold(dir: &Path) -> PathBuf {
    let folds = rebuild::list(dir).unwrap();
    assert_eq!(folds.len(), 1);
    folds[0].1.clone()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::spans(&dir.join("log"))
        .unwrap()
        .into_iter()
        .map(|span| span.path)
        .collect()
}

#[test]
fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    suite(open(&dir), |store| {
        drop(store);
        let store = open(&dir);
        assert_eq!(
            store.shared.opened.replayed, 0,
            "a clean drop leaves nothing to replay"
        );
        store
    });
    assert_eq!(verified(&dir).unwrap(), 9);
}

#[test]
fn keeps_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let own = std::process::id();
    assert!(matches!(
        LocalStore::open(dir.path()),
        Err(StoreError::Locked { pid: Some(pid), .. }) if pid == own
    ));
    drop(store);
    open(dir.path());
}

#[test]
fn nobody_else_can_read_it() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("store");
    write(&open(&dir), 1);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    for folder in [dir.clone(), dir.join("log"), dir.join("fold"), fold(&dir)] {
        assert_eq!(mode(&folder), 0o700, "{}", folder.display());
    }
    for file in [dir.join("lock"), segments(&dir)[0].clone()] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn goes_on_in_new_segments() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.shared.log.lock().roll_at(1000);
    write(&store, 40);
    assert!(segments(dir.path()).len() > 3);
    check(&store);
    for from in 1..=41 {
        assert_eq!(indexes(&store, from), (from..=40).collect::<Vec<_>>());
    }
    drop(store);
    let store = open(dir.path());
    check(&store);
    write(&store, 5);
    check(&store);
    assert_eq!(verified(dir.path()).unwrap(), 45);
}

#[test]
fn refuses_an_entry_that_does_not_follow() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    write(&store, 2);
    let head = store.head();
    let gap = entry_after(&Head { index: 5, ..head }, &[Do::Delete(1)]);
    assert!(matches!(
        store.commit(&head, vec![gap]),
        Err(StoreError::Io { .. })
    ));
    write(&store, 1);
    check(&store);
}

#[test]
fn enough_bytes_start_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let value = |number| vec![number as u8; overlay::INLINE];
    for number in 0..256 {
        commit(&store, &[Do::Put(number, value(number))]).unwrap();
    }
    let mut folding = store.shared.folding.lock();
    while folding.bytes >= CHECKPOINT {
        let waited = store
            .shared
            .folded
            .wait_for(&mut folding, Duration::from_secs(60));
        assert!(
            !waited.timed_out() && folding.failed.is_none(),
            "nothing was folded"
        );
    }
    drop(folding);
    assert!(store.shared.overlay.read().bytes() < CHECKPOINT);
    for number in 0..256 {
        assert_eq!(
            store.get(&key(number)).unwrap().unwrap().value,
            value(number)
        );
    }
}
