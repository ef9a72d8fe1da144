//! Random operations, the process dying at any byte of any write, the disk failing: the store is what a map
//! in memory says it is.

use std::{collections::BTreeMap, fs};

use proptest::prelude::*;

use super::{damage::copy, *};

#[derive(Debug, Clone)]
enum Step {
    Put(u64, usize),
    Delete(u64),
    /// The state of the fold that the next death falls back to.
    Checkpoint,
    Compact(u64),
    /// The process dies with so much of the last write on the disk, in thousandths.
    Die(u64),
    /// The disk takes so many bytes of a write and then no more.
    Fail(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6u64, prop_oneof![0..50usize, 32_000..34_000usize]).prop_map(|(key, size)| Step::Put(key, size)),
        2 => (0..6u64).prop_map(Step::Delete),
        1 => Just(Step::Checkpoint),
        1 => (0..20u64).prop_map(Step::Compact),
        2 => (0..=1000u64).prop_map(Step::Die),
        1 => (0..400usize, any::<bool>()).prop_map(|(after, full)| Step::Fail(after, full)),
    ]
}

type Model = BTreeMap<u64, (u64, Vec<u8>)>;

fn check_model(store: &LocalStore, model: &Model, index: u64) {
    assert_eq!(store.head().index, index);
    let found = contents(store);
    assert_eq!(found.len(), model.len());
    for (number, (modified, value)) in model {
        let record = &found[&key(*number)].1;
        assert_eq!((record.modified, &record.value), (*modified, value));
    }
}

fn bytes_of(path: &Path) -> u64 {
    path.metadata().map_or(0, |meta| meta.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_is_what_a_map_says(steps in proptest::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let (dir, kept) = (dir.path().join("store"), dir.path().join("kept"));
        let mut store = open(&dir);
        store.shared.log.lock().roll_at(60_000);
        let mut model = Model::new();
        let mut index = 0;
        // Before the last commit, and how long its segment was.
        let mut before = (Model::new(), 0, 0);
        for step in steps {
            match step {
                Step::Put(_, _) | Step::Delete(_) => {
                    let end = segments(&dir).last().map_or(0, |path| bytes_of(path));
                    before = (model.clone(), index, end);
                    index += 1;
                    let change = match step {
                        Step::Put(number, size) => {
                            let value = vec![index as u8; size];
                            model.insert(number, (index, value.clone()));
                            Do::Put(number, value)
                        }
                        Step::Delete(number) => {
                            model.remove(&number);
                            Do::Delete(number)
                        }
                        _ => continue,
                    };
                    prop_assert_eq!(commit(&store, &[change]).unwrap(), index);
                }
                Step::Checkpoint => {
                    drop(store);
                    let _ = fs::remove_dir_all(&kept);
                    copy(&dir.join("fold"), &kept);
                    store = open(&dir);
                    before = (model.clone(), index, u64::MAX);
                }
                Step::Compact(keep_from) => {
                    store.compact(keep_from, Pace::Prompt, &AtomicBool::new(false)).unwrap();
                    // The fold that was kept has what is gone from the disk.
                    let _ = fs::remove_dir_all(&kept);
                    before = (model.clone(), index, u64::MAX);
                }
                Step::Die(share) => {
                    drop(store);
                    let _ = fs::remove_dir_all(dir.join("fold"));
                    if kept.exists() {
                        copy(&kept, &dir.join("fold"));
                    }
                    let (old, old_index, end) = &before;
                    let last = segments(&dir).pop();
                    if let Some(last) = last.filter(|last| *end < bytes_of(last)) {
                        let whole = bytes_of(&last);
                        let cut = end + (whole - end) * share / 1000;
                        OpenOptions::new().write(true).open(&last).unwrap().set_len(cut).unwrap();
                        if cut < whole {
                            (model, index) = (old.clone(), *old_index);
                        }
                    }
                    store = open(&dir);
                    before = (model.clone(), index, u64::MAX);
                }
                Step::Fail(after, full) => {
                    let kind = if full { io::ErrorKind::StorageFull } else { io::ErrorKind::ReadOnlyFilesystem };
                    store.shared.log.lock().fault = Some(log::Fault { after, kind });
                    match commit(&store, &[Do::Put(1, b"never".into())]) {
                        Err(StoreError::Io { cause, .. }) => prop_assert_eq!(cause.kind(), kind),
                        other => prop_assert!(false, "the disk failed, but {other:?}"),
                    }
                    store.shared.log.lock().fault = None;
                }
            }
            check_model(&store, &model, index);
        }
        drop(store);
        prop_assert_eq!(verified(&dir).unwrap(), index);
    }
}
