//! Groups of which a crash left some pages.

use std::fs;

use proptest::prelude::*;

use super::{damage::copy, *};

/// Writes one group of `count` entries, each of which puts the key of its index to that index.
fn group(store: &LocalStore, count: u64) {
    let start = store.head();
    let mut head = start;
    let entries: Vec<_> = (0..count)
        .map(|_| {
            let index = head.index + 1;
            let entry = entry_after(&head, &[Do::Put(index, index.to_string().into())]);
            head = head_of(&entry);
            entry
        })
        .collect();
    store.commit(&start, entries).unwrap();
}

fn last_segment(dir: &Path) -> (PathBuf, u64) {
    let path = segments(dir).pop().unwrap();
    let length = path.metadata().unwrap().len();
    (path, length)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever pages of the last group a power cut left: what was acknowledged is there, and what is there
    /// beyond that is the start of the group.
    #[test]
    fn any_pages_of_the_last_group_may_be_missing(
        groups in proptest::collection::vec(1u64..12, 1..4),
        last in 1u64..12,
        page in prop::sample::select(vec![16usize, 64, 512]),
        kept in any::<u128>(),
        room in 0usize..10_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let store = open(dir);
        for count in &groups {
            group(&store, *count);
        }
        drop(store);
        let acknowledged: u64 = groups.iter().sum();
        copy(&dir.join("fold"), &dir.join("kept"));
        let (path, good) = last_segment(dir);
        let store = open(dir);
        group(&store, last);
        drop(store);
        fs::remove_dir_all(dir.join("fold")).unwrap();
        fs::rename(dir.join("kept"), dir.join("fold")).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        for (at, start) in (good as usize..end).step_by(page).enumerate() {
            if kept >> (at % 128) & 1 == 0 {
                bytes[start..end.min(start + page)].fill(0);
            }
        }
        bytes.resize(end + room, 0);
        fs::write(&path, bytes).unwrap();
        let store = open(dir);
        let head = store.head().index;
        prop_assert!((acknowledged..=acknowledged + last).contains(&head));
        check(&store);
        drop(store);
        prop_assert_eq!(verified(dir).unwrap(), head);
        let store = open(dir);
        group(&store, 3);
        check(&store);
    }

    /// But a group that another one follows was durable.
    #[test]
    fn a_page_that_is_missing_before_the_last_group_is_damage(
        first in 1u64..12,
        last in 1u64..12,
        at in any::<prop::sample::Index>(),
        room in 0usize..10_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let store = open(dir);
        group(&store, first);
        let first_group = store.shared.segments.bytes(0).0 as usize;
        group(&store, last);
        drop(store);
        let (path, _) = last_segment(dir);
        let mut bytes = fs::read(&path).unwrap();
        let start = at.index(first_group);
        let page = start..first_group.min(start + 16);
        if bytes[page.clone()].iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        bytes[page].fill(0);
        bytes.resize(bytes.len() + room, 0);
        fs::write(&path, bytes).unwrap();
        for result in [LocalStore::open(dir).map(drop), verified(dir).map(drop)] {
            let corrupt = matches!(result, Err(StoreError::Corrupt { index, .. }) if index <= first);
            prop_assert!(corrupt, "{result:?}");
        }
    }
}
