//! Files that are not what was written.

use std::{fs, ops::Range};

use super::*;

/// A store of `count` entries whose fold has only the first `folded`, as after `kill -9`.
fn behind(dir: &Path, folded: u64, count: u64) {
    let store = open(dir);
    write(&store, folded);
    drop(store);
    copy(&dir.join("fold"), &dir.join("kept"));
    let store = open(dir);
    write(&store, count - folded);
    drop(store);
    fs::remove_dir_all(dir.join("fold")).unwrap();
    fs::rename(dir.join("kept"), dir.join("fold")).unwrap();
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for item in from.read_dir().unwrap() {
        let path = item.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// Where the frame of each entry lies in its segment.
fn frames(dir: &Path) -> Vec<(PathBuf, Range<usize>)> {
    let mut starts = Vec::new();
    let log = dir.join("log");
    segment::walk(
        &segment::spans(&log).unwrap(),
        &mut Chain::start(),
        |found| {
            starts.push((
                segment::segment_path(&log, found.first),
                found.offset as usize,
            ));
            Ok(ControlFlow::Continue(()))
        },
    )
    .unwrap();
    let ends = starts.iter().skip(1).map(Some).chain([None]);
    let end = |path: &Path, next: Option<&(PathBuf, usize)>| match next {
        Some((same, offset)) if same == path => *offset,
        _ => path.metadata().unwrap().len() as usize,
    };
    let ranges = starts
        .iter()
        .zip(ends)
        .map(|((path, start), next)| (path.clone(), *start..end(path, next)));
    ranges.collect()
}

fn set_aside(dir: &Path) -> usize {
    let names = dir
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name.starts_with("fold.damaged-"))
        .count()
}

#[test]
fn a_write_cut_off_at_any_byte_is_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    behind(dir, 3, 5);
    let (path, last) = frames(dir).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    copy(&dir.join("fold"), &dir.join("kept"));
    for length in last {
        fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(verified(dir).unwrap(), 4);
        let store = open(dir);
        assert_eq!(
            (store.head().index, store.shared.opened.replayed),
            (4, 1),
            "cut at {length}"
        );
        check(&store);
        write(&store, 1);
        check(&store);
        drop(store);
        assert_eq!(verified(dir).unwrap(), 5);
        fs::remove_dir_all(dir.join("fold")).unwrap();
        copy(&dir.join("kept"), &dir.join("fold"));
    }
    assert_eq!(set_aside(dir), 0);
}

#[test]
fn blocks_that_were_never_written_are_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    behind(dir, 3, 5);
    let (path, last) = frames(dir).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[last.start..].fill(0);
    bytes.resize(bytes.len() + 8192, 0);
    fs::write(&path, bytes).unwrap();
    let store = open(dir);
    assert_eq!(store.head().index, 4);
    check(&store);
}

#[test]
fn a_flipped_bit_names_its_entry() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    behind(dir, 2, 8);
    let frames = frames(dir);
    let good = fs::read(&frames[0].0).unwrap();
    for (index, (path, range)) in (1..).zip(&frames).take(7) {
        let more = [range.start + 4, range.end - 1].map(|position| (position, 0x10));
        let flips = range.clone().step_by(7).map(|position| (position, 0x10));
        for (position, bit) in flips.chain(more).chain([(range.start, 0x80)]) {
            let mut bad = good.clone();
            bad[position] ^= bit;
            fs::write(path, bad).unwrap();
            for result in [LocalStore::open(dir).map(drop), verified(dir).map(drop)] {
                match result {
                    Err(StoreError::Corrupt {
                        index: found,
                        segment,
                        offset,
                        ..
                    }) => {
                        assert_eq!((found, &segment, offset), (index, path, range.start as u64));
                    }
                    other => panic!("byte {position} of entry {index}: {other:?}"),
                }
            }
        }
    }
    fs::write(&frames[0].0, good).unwrap();
    check(&open(dir));
    assert_eq!(
        set_aside(dir),
        0,
        "a damaged log says nothing against the fold"
    );
}

/// The last entry was durable, for the fold has it: this is damage and no cut-off write.
#[test]
fn the_last_entry_is_not_taken_out_when_it_was_folded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&open(dir), 5);
    let (path, last) = frames(dir).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[last.end - 1] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        LocalStore::open(dir),
        Err(StoreError::Corrupt { index: 5, .. })
    ));
    assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was cut off");
}

#[test]
fn entries_taken_out_or_put_in_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    behind(dir, 0, 6);
    let frames = frames(dir);
    let path = &frames[0].0;
    let good = fs::read(path).unwrap();
    let without = [&good[..frames[2].1.start], &good[frames[3].1.start..]].concat();
    let twice = [&good[..frames[3].1.start], &good[frames[2].1.start..]].concat();
    // A well-formed entry that does not continue the chain.
    let mut forged = good[..frames[2].1.start].to_vec();
    segment::encode_frame(
        &entry_after(
            &Head {
                index: 2,
                epoch: 1,
                hash: [3; 32],
            },
            &[],
        ),
        segment::Frame::Starts,
        &mut forged,
        |_| {},
    );
    forged.extend_from_slice(&good[frames[3].1.start..]);
    for (bad, index) in [(without, 3), (twice, 4), (forged, 3)] {
        fs::write(path, bad).unwrap();
        for result in [LocalStore::open(dir).map(drop), verified(dir).map(drop)] {
            assert!(
                matches!(result, Err(StoreError::Corrupt { index: found, .. }) if found == index),
                "{result:?}"
            );
        }
    }
}

#[test]
fn a_missing_segment_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    store.shared.log.lock().roll_at(500);
    write(&store, 20);
    drop(store);
    let segments = segments(dir);
    assert!(segments.len() > 4);
    for missing in [0, 2] {
        let bytes = fs::read(&segments[missing]).unwrap();
        fs::remove_file(&segments[missing]).unwrap();
        assert!(matches!(verified(dir), Err(StoreError::Corrupt { .. })));
        fs::write(&segments[missing], bytes).unwrap();
    }
    assert_eq!(verified(dir).unwrap(), 20);
}

#[test]
fn the_fold_is_made_anew_when_it_is_missing_or_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store = open(dir);
    write(&store, 300);
    drop(store);
    fs::remove_dir_all(dir.join("fold")).unwrap();
    let store = open(dir);
    assert_eq!(store.shared.opened.replayed, 300);
    check(&store);
    drop(store);

    let overwrite = |name: &str, byte: u8| {
        let path = fold(dir).join(name);
        fs::write(&path, vec![byte; path.metadata().unwrap().len() as usize]).unwrap();
    };
    let damages: [&dyn Fn(); 7] = [
        &|| overwrite("db", 0),
        &|| overwrite("db", 0xa5),
        &|| overwrite("conf", 0xa5),
        &|| fs::write(fold(dir).join("db"), b"short").unwrap(),
        &|| fs::remove_file(fold(dir).join("db")).unwrap(),
        &|| fs::remove_dir_all(fold(dir)).unwrap(),
        &|| fs::write(fold(dir).join("damaged"), b"a read failed").unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let store = open(dir);
        check(&store);
        assert_eq!(store.shared.opened.replayed, 300, "damage {number}");
        drop(store);
        assert_eq!(verified(dir).unwrap(), 300);
    }
    assert_eq!(set_aside(dir), 1, "only the last one is kept");
}

/// What was folded was durable: a log without it has lost entries that were acknowledged.
#[test]
fn a_log_that_ends_before_what_was_durable_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&open(dir), 5);
    let (path, last) = frames(dir).pop().unwrap();
    let log = OpenOptions::new().write(true).open(&path).unwrap();
    log.set_len(last.start as u64).unwrap();
    for result in [LocalStore::open(dir).map(drop), verified(dir).map(drop)] {
        match result {
            Err(StoreError::Corrupt {
                index,
                segment,
                offset,
                ..
            }) => assert_eq!((index, &segment, offset), (5, &path, last.start as u64)),
            other => panic!("{other:?}"),
        }
    }
}
