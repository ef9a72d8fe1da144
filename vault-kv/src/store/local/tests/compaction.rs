//! What compaction takes out, and what a death in the middle of it leaves.

use std::{fs, ops::ControlFlow};

use super::*;
use crate::store::local::log::Marks;

/// Ciphertexts that are looked for on the disk.
const SECRETS: [&[u8]; 4] = [
    b"overwritten-6cb1d3",
    b"destroyed-b31f07aa",
    b"old keyring-90ab1c",
    b"alive-77e0cf21d4ab",
];

fn stopped(stop: bool) -> AtomicBool {
    AtomicBool::new(stop)
}

fn compact(store: &LocalStore, keep_from: u64) -> Compacted {
    store
        .compact(keep_from, Pace::Prompt, &stopped(false))
        .unwrap()
}

/// Each of [`SECRETS`] in an entry of its own, and then what makes the first three needless.
fn history(store: &LocalStore) {
    commit(store, &[Do::Put(1, SECRETS[0].into())]).unwrap();
    commit(store, &[Do::Put(2, SECRETS[1].into())]).unwrap();
    commit(store, &[Do::Control("seal", SECRETS[2].into())]).unwrap();
    commit(store, &[Do::Put(3, SECRETS[3].into())]).unwrap();
    commit(store, &[Do::Put(1, b"new".into()), Do::Delete(2)]).unwrap();
    commit(store, &[Do::Control("seal", b"new keyring".into())]).unwrap();
}

/// Which of [`SECRETS`] are somewhere under `dir`.
fn on_disk(dir: &Path) -> [bool; 4] {
    let mut found = [false; 4];
    for item in dir.read_dir().unwrap() {
        let path = item.unwrap().path();
        let here = if path.is_dir() {
            on_disk(&path)
        } else {
            let bytes = fs::read(&path).unwrap();
            SECRETS.map(|secret| bytes.windows(secret.len()).any(|window| window == secret))
        };
        for (found, here) in found.iter_mut().zip(here) {
            *found |= here;
        }
    }
    found
}

#[test]
fn what_was_destroyed_is_nowhere_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    history(&store);
    drop(store);
    let store = open(dir);
    assert_eq!(on_disk(dir), [true; 4]);
    let before = contents(&store);

    let compacted = compact(&store, 1);
    assert_eq!((compacted.head, compacted.redacted), (6, 2));
    // The overwritten value is history that is still kept.
    assert_eq!(on_disk(dir), [true, false, false, true]);
    assert_eq!(contents(&store), before);

    assert_eq!(compact(&store, 7).redacted, 1);
    assert_eq!(on_disk(dir), [false, false, false, true]);
    assert_eq!(contents(&store), before);
    assert_eq!(indexes(&store, 1), [1, 2, 3, 4, 5, 6]);
    drop(store);
    assert_eq!(on_disk(dir), [false, false, false, true]);
    assert_eq!(verified(dir).unwrap(), 6);
    let store = open(dir);
    assert_eq!(contents(&store), before);
    commit(&store, &[Do::Put(9, b"goes on".into())]).unwrap();
    assert_eq!(compact(&store, 8).redacted, 0);
}

#[test]
fn a_damaged_fold_that_was_kept_goes_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    history(&store);
    drop(store);
    fs::write(fold(dir).join("damaged"), b"for this test").unwrap();
    let store = open(dir);
    compact(&store, 7);
    assert_eq!(on_disk(dir), [false, false, false, true]);
    assert_eq!(dir.read_dir().unwrap().count(), 4);
}

/// Many segments, values of all sizes, some overwritten and some deleted.
fn varied(store: &LocalStore, rounds: u64) {
    for round in 0..rounds {
        let index = store.head().index + 1;
        let value = vec![index as u8; (index * 7919 % 50_000) as usize];
        let mut dos = vec![
            Do::Put(round % 17, value.clone()),
            Do::Put(100 + round, value),
        ];
        if round % 5 == 4 {
            dos.push(Do::Delete(100 + round - 3));
        }
        commit(store, &dos).unwrap();
    }
}

#[test]
fn the_state_is_the_same_from_fold_snapshot_and_log() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    store.shared.log.lock().roll_at(200_000);
    varied(&store, 60);
    compact(&store, 40);
    assert!(segments(dir).len() > 5);
    // Large values were moved by the compaction: the fold finds them.
    let before = contents(&store);
    varied(&store, 10);
    let after = contents(&store);
    assert_ne!(before, after);
    drop(store);
    assert_eq!(verified(dir).unwrap(), 70);

    fs::remove_dir_all(dir.join("fold")).unwrap();
    let store = open(dir);
    assert_eq!(
        store.shared.opened.replayed, 10,
        "the rest is from the snapshot"
    );
    assert_eq!(contents(&store), after);
    drop(store);

    fs::remove_dir_all(dir.join("fold")).unwrap();
    fs::remove_dir_all(dir.join("snapshot")).unwrap();
    let store = open(dir);
    assert_eq!(store.shared.opened.replayed, 70);
    assert_eq!(contents(&store), after);
    drop(store);

    // A snapshot that is damaged is not believed.
    let store = open(dir);
    compact(&store, 1);
    drop(store);
    let (_, snapshot) = snapshots::list(dir).unwrap().remove(0);
    let mut bytes = fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&snapshot, bytes).unwrap();
    assert!(matches!(
        verified(dir),
        Err(StoreError::BadSnapshot { path, .. }) if path == snapshot
    ));
    fs::remove_dir_all(dir.join("fold")).unwrap();
    let store = open(dir);
    assert_eq!(store.shared.opened.replayed, 70);
    assert_eq!(contents(&store), after);
}

#[test]
fn reads_and_commits_go_on_while_it_compacts() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.shared.log.lock().roll_at(100_000);
    varied(&store, 100);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for keep_from in [1, 50, 1000, 1000] {
                compact(&store, keep_from);
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut written = 0;
        while !done.load(std::sync::atomic::Ordering::Acquire) || written < 20 {
            let index = commit(&store, &[Do::Put(5000, vec![7; 40_000])]).unwrap();
            written += 1;
            let record = store.get(&key(5000)).unwrap().unwrap();
            assert_eq!((record.modified, record.value.len()), (index, 40_000));
            assert_eq!(store.get(&key(199)).unwrap().unwrap().modified, 100);
            assert_eq!(indexes(&store, index - 50).len(), 51);
        }
    });
    let before = contents(&store);
    let head = store.head().index;
    drop(store);
    assert_eq!(verified(dir.path()).unwrap(), head);
    assert_eq!(contents(&open(dir.path())), before);
}

#[test]
fn a_reader_of_a_file_that_is_replaced_meanwhile_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    commit(&store, &[Do::Put(2, b"stays".into())]).unwrap();
    for _ in 0..40 {
        commit(&store, &[Do::Put(1, vec![1; 40_000])]).unwrap();
    }
    let log = dir.path().join("log");
    let old = fs::read(segment::segment_path(&log, 1)).unwrap();
    assert!(compact(&store, 100).redacted > 0);
    let new = fs::read(segment::segment_path(&log, 1)).unwrap();
    assert!(new.len() < old.len());

    // The file as it was, and the compacted one in its place while somebody reads the former.
    let segments = &store.shared.segments;
    let put = |bytes: &[u8]| {
        let path = dir.path().join("anew");
        fs::write(&path, bytes).unwrap();
        let length = bytes.len() as u64;
        segments
            .replace(1, &path, length, Marks::default())
            .unwrap();
    };
    put(&old);
    let mut replaced = false;
    segments
        .walk(1, |_| {
            if !std::mem::replace(&mut replaced, true) {
                put(&new);
            }
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
    for from in 1..=41 {
        assert_eq!(indexes(&store, from).len() as u64, 42 - from);
    }
}

#[test]
fn stopping_it_leaves_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for _ in 0..40 {
        commit(&store, &[Do::Put(1, vec![1; 100_000])]).unwrap();
    }
    let stopped = store.compact(100, Pace::Prompt, &stopped(true));
    assert!(matches!(stopped, Err(StoreError::Closing)));
    let before = contents(&store);
    drop(store);
    assert_eq!(verified(dir.path()).unwrap(), 40);
    assert_eq!(contents(&open(dir.path())), before);
}

#[test]
fn values_that_were_overwritten_in_one_entry_go_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    commit(
        &store,
        &[
            Do::Put(1, SECRETS[0].into()),
            Do::Put(1, b"second".into()),
            Do::Put(2, SECRETS[1].into()),
            Do::Delete(2),
        ],
    )
    .unwrap();
    assert_eq!(compact(&store, 1).redacted, 1, "the deleted one");
    assert_eq!(compact(&store, 2).redacted, 1, "and the overwritten one");
    assert_eq!(on_disk(dir.path()), [false; 4]);
    assert_eq!(store.get(&key(1)).unwrap().unwrap().value, b"second");
    assert_eq!(store.get(&key(2)).unwrap(), None);
}
