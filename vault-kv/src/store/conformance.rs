//! What every engine must do, as one suite.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{Entry, EntryOp, FoldKey, Head, OpKind, Part, Record, SALT, Store, StoreError};

/// An operation of a test entry.
#[derive(Clone)]
pub(crate) enum Do {
    Put(u64, Vec<u8>),
    Delete(u64),
    Control(&'static str, Vec<u8>),
}

pub(crate) fn key(number: u64) -> FoldKey {
    let mut key = [0xee; 32];
    key[..8].copy_from_slice(&number.to_be_bytes());
    FoldKey(key)
}

/// The sealed name that test records have.
pub(crate) fn name(number: u64) -> Vec<u8> {
    format!("name of {number}").into_bytes()
}

/// An entry that follows `head`.
pub(crate) fn entry_after(head: &Head, dos: &[Do]) -> Entry {
    let index = head.index + 1;
    let part = |content: &[u8]| Some(Part::new([&[index as u8; SALT], content].concat().into()));
    let ops = dos.iter().map(|op| match op {
        Do::Put(number, value) => {
            let name = name(*number);
            let content = [&(name.len() as u32).to_be_bytes()[..], &name, value].concat();
            EntryOp::new(OpKind::Put, key(*number), index, 0, part(&content))
        }
        Do::Delete(number) => EntryOp::new(OpKind::Delete, key(*number), index, 0, None),
        Do::Control(name, value) => EntryOp::new(
            OpKind::Control,
            FoldKey::control(name),
            index,
            0,
            part(value),
        ),
    });
    let meta = Part::new([&[index as u8; SALT][..], b"meta"].concat().into());
    Entry::new(index, 1, head.hash, meta, ops.collect())
}

pub(crate) fn head_of(entry: &Entry) -> Head {
    Head {
        index: entry.index,
        epoch: entry.epoch,
        hash: entry.hash(),
    }
}

/// Commits one entry on the head.
pub(crate) fn commit(store: &dyn Store, dos: &[Do]) -> Result<u64, StoreError> {
    let head = store.head();
    let entry = entry_after(&head, dos);
    store.commit(&head, vec![entry.clone()])?;
    Ok(entry.index)
}

/// Every record by key, from the names that a scan gives and from the control records of the suite.
pub(crate) fn contents(store: &dyn Store) -> BTreeMap<FoldKey, (Vec<u8>, Record)> {
    let mut names = BTreeMap::new();
    store
        .scan(&mut |item| {
            let twice = names.insert(item.key, item);
            assert!(twice.is_none(), "a scan has each record once");
        })
        .unwrap();
    let named = names.into_iter().map(|(key, item)| {
        let record = store.get(&key).unwrap().unwrap();
        assert_eq!(
            (item.created, item.modified),
            (record.created, record.modified)
        );
        (key, (item.name.to_vec(), record))
    });
    let control = ["seal", "large"].into_iter().filter_map(|name| {
        let key = FoldKey::control(name);
        Some((key, (Vec::new(), store.control(&key).unwrap()?)))
    });
    named.chain(control).collect()
}

/// Indexes of the entries from `from` on.
pub(crate) fn indexes(store: &dyn Store, from: u64) -> Vec<u64> {
    let mut indexes = Vec::new();
    store
        .log(from, &mut |entry| {
            assert!(entry.commitments_hold());
            indexes.push(entry.index);
            ControlFlow::Continue(())
        })
        .unwrap();
    indexes
}

/// Runs the suite; `reopen` closes the store and opens it again where it outlives that.
pub(crate) fn suite<S: Store>(mut store: S, reopen: impl Fn(S) -> S) {
    assert_eq!(store.head(), Head::default());
    assert!(indexes(&store, 0).is_empty() && contents(&store).is_empty());
    store.commit(&Head::default(), Vec::new()).unwrap();

    commit(
        &store,
        &[Do::Put(1, b"one".into()), Do::Put(2, b"two".into())],
    )
    .unwrap();
    commit(&store, &[Do::Put(1, b"uno".into())]).unwrap();
    commit(&store, &[Do::Delete(2), Do::Delete(77)]).unwrap();
    commit(&store, &[Do::Control("seal", b"config".into())]).unwrap();
    let large = vec![7; 200_000];
    commit(
        &store,
        &[
            Do::Put(3, large.clone()),
            Do::Put(4, Vec::new()),
            Do::Control("large", large.clone()),
        ],
    )
    .unwrap();
    several_at_once(&store);
    check(&store, &large);

    let head = store.head();
    store = reopen(store);
    assert_eq!(store.head(), head);
    check(&store, &large);

    fenced(&store);
    check(&store, &large);

    // Changes over what has been folded.
    commit(&store, &[Do::Put(2, b"back".into())]).unwrap();
    commit(&store, &[Do::Delete(1), Do::Put(3, b"small now".into())]).unwrap();
    assert_eq!(store.get(&key(1)).unwrap(), None);
    assert_eq!(store.get(&key(2)).unwrap().unwrap().value, b"back");
    let before = contents(&store);
    assert_eq!(before[&key(3)].1.value, b"small now");
    store = reopen(store);
    assert_eq!(contents(&store), before);
    assert_eq!(
        indexes(&store, 1),
        (1..=store.head().index).collect::<Vec<_>>()
    );
}

fn several_at_once(store: &dyn Store) {
    let head = store.head();
    let first = entry_after(&head, &[Do::Put(5, b"first".into())]);
    let second = entry_after(
        &head_of(&first),
        &[Do::Put(5, b"second".into()), Do::Put(6, b"six".into())],
    );
    store.commit(&head, vec![first, second]).unwrap();
}

fn fenced(store: &dyn Store) {
    let head = store.head();
    for stale in [
        Head::default(),
        Head {
            epoch: head.epoch + 1,
            ..head
        },
        Head {
            hash: [9; 32],
            ..head
        },
    ] {
        let entry = entry_after(&head, &[Do::Put(1, b"stale".into())]);
        match store.commit(&stale, vec![entry]) {
            Err(StoreError::Fenced { expected, found }) => {
                assert_eq!((expected, found), (stale, head))
            }
            other => panic!("expected to be fenced, not {other:?}"),
        }
    }
    assert_eq!(store.head(), head);
}

fn check(store: &dyn Store, large: &[u8]) {
    let record = |created, modified, value: &[u8]| {
        Some(Record {
            created,
            modified,
            value: value.to_vec(),
        })
    };
    assert_eq!(store.get(&key(1)).unwrap(), record(2, 2, b"uno"));
    assert_eq!(store.get(&key(2)).unwrap(), None);
    assert_eq!(store.get(&key(3)).unwrap(), record(5, 5, large));
    assert_eq!(store.get(&key(4)).unwrap(), record(5, 5, b""));
    assert_eq!(store.get(&key(5)).unwrap(), record(7, 7, b"second"));
    assert_eq!(store.get(&key(77)).unwrap(), None);
    let seal = FoldKey::control("seal");
    assert_eq!(store.control(&seal).unwrap(), record(4, 4, b"config"));
    assert_eq!(
        store.get(&seal).unwrap(),
        None,
        "a control record is not a named one"
    );
    assert_eq!(
        store.control(&FoldKey::control("large")).unwrap(),
        record(5, 5, large)
    );

    let mut names = BTreeMap::new();
    store
        .scan(&mut |item| assert!(names.insert(item.key, (item.name, item.modified)).is_none()))
        .unwrap();
    let expected = [(1, 2), (3, 5), (4, 5), (5, 7), (6, 7)];
    let expected =
        expected.map(|(number, modified)| (key(number), (name(number).into(), modified)));
    assert_eq!(names, BTreeMap::from(expected));

    let contents = contents(store);
    assert_eq!(contents.len(), 7);
    assert_eq!(contents[&key(3)].1.value, large);
    assert_eq!(contents[&seal].1.value, b"config");

    assert_eq!(indexes(store, 0), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(indexes(store, 6), [6, 7]);
    assert!(indexes(store, 8).is_empty());
    let mut first = None;
    store
        .log(3, &mut |entry| {
            first = Some(entry.index);
            ControlFlow::Break(())
        })
        .unwrap();
    assert_eq!(first, Some(3));
}

#[test]
fn memory_conforms() {
    suite(super::memory::MemoryStore::new(), |store| store);
}
