use std::sync::Arc;

use zeroize::Zeroizing;

use super::*;
use crate::{barrier::SecretKey, store::memory::MemoryStore};

fn core() -> Core {
    let (barrier, _) = Barrier::create(SecretKey::random());
    Core::start(Arc::new(MemoryStore::new()), barrier, 1).unwrap()
}

fn put(path: &str, value: &[u8]) -> Op {
    Op::Put {
        path: path.to_owned(),
        value: Zeroizing::new(value.to_vec()),
    }
}

fn delete(path: &str) -> Op {
    Op::Delete {
        path: path.to_owned(),
    }
}

fn change(ops: Vec<Op>) -> Change {
    Change {
        meta: Meta::default(),
        ops,
        expect: Vec::new(),
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_read() {
    let core = core();
    let index = core
        .commit(change(vec![put("a/b", b"1"), put("a/c/d", b"2")]))
        .await
        .unwrap();
    assert_eq!(index, 1);
    assert_eq!(&core.get("a/b").unwrap().unwrap()[..], b"1");
    assert_eq!(core.get("a").unwrap(), None);
    assert_eq!(core.list("a/").unwrap(), ["b", "c/"]);
    assert_eq!(core.scan("a/").unwrap(), ["a/b", "a/c/d"]);

    let index = core
        .commit(change(vec![put("a/b", b"3"), delete("a/c/d")]))
        .await
        .unwrap();
    let value = core.read("a/b").unwrap().unwrap();
    assert_eq!(
        (&value.bytes[..], value.created, value.modified),
        (&b"3"[..], 1, index)
    );
    assert_eq!(core.get("a/c/d").unwrap(), None);
}

#[tokio::test]
async fn an_expectation_that_does_not_hold_changes_nothing() {
    let core = core();
    core.commit(change(vec![put("k", b"1")])).await.unwrap();
    let expecting = |expect: Option<u64>| Change {
        expect: vec![("k".to_owned(), expect)],
        ..change(vec![put("k", b"2"), put("other", b"2")])
    };
    assert!(matches!(
        core.commit(expecting(None)).await,
        Err(Error::CasMismatch)
    ));
    assert!(matches!(
        core.commit(expecting(Some(9))).await,
        Err(Error::CasMismatch)
    ));
    assert_eq!(core.get("other").unwrap(), None);
    core.commit(expecting(Some(1))).await.unwrap();
    assert_eq!(&core.get("k").unwrap().unwrap()[..], b"2");
}

#[tokio::test]
async fn of_many_that_expect_the_same_one_wins() {
    let core = core();
    let tries: Vec<_> = (0..32)
        .map(|n| {
            let core = core.clone();
            tokio::spawn(async move {
                let expecting = Change {
                    expect: vec![("k".to_owned(), None)],
                    ..change(vec![put("k", &[n])])
                };
                core.commit(expecting).await.is_ok()
            })
        })
        .collect();
    let mut won = 0;
    for one in tries {
        won += usize::from(one.await.unwrap());
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn deleting_what_is_not_there_writes_no_entry() {
    let core = core();
    assert_eq!(
        core.commit(change(vec![delete("nothing")])).await.unwrap(),
        0
    );
    assert_eq!(core.head().index, 0);
}

#[tokio::test]
async fn a_waiter_wakes_for_its_own_only() {
    let core = core();
    core.commit(change(vec![put("a/x", b"1"), put("b", b"1")]))
        .await
        .unwrap();
    let waiting = {
        let core = core.clone();
        tokio::spawn(async move { core.wait_under("a/", 1).await })
    };
    core.commit(change(vec![put("b", b"2")])).await.unwrap();
    assert!(!waiting.is_finished());
    let index = core.commit(change(vec![delete("a/x")])).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), index);
    assert_eq!(core.wait("a/x", 1).await.unwrap(), index);
}

#[tokio::test]
async fn sealing_ends_reads_writes_and_waits() {
    let core = core();
    core.commit(change(vec![put("k", b"1")])).await.unwrap();
    let waiting = {
        let core = core.clone();
        tokio::spawn(async move { core.wait("k", 1).await })
    };
    tokio::task::yield_now().await;
    core.seal();
    assert!(matches!(waiting.await.unwrap(), Err(Error::Sealed)));
    assert!(matches!(core.get("k"), Err(Error::Sealed)));
    assert!(matches!(
        core.commit(change(vec![put("k", b"2")])).await,
        Err(Error::Sealed)
    ));
}

#[tokio::test]
async fn the_name_index_is_rebuilt_from_sealed_names() {
    let (barrier, wrapped) = Barrier::create(SecretKey::new([1; 32]));
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let core = Core::start(Arc::clone(&store), barrier, 1).unwrap();
    core.commit(change(vec![put("a/b", b"1")])).await.unwrap();
    core.seal();

    let barrier = Barrier::open_keyring(SecretKey::new([1; 32]), &wrapped).unwrap();
    let core = Core::start(Arc::clone(&store), barrier, 2).unwrap();
    assert_eq!(core.scan("").unwrap(), ["a/b"]);
    assert_eq!(core.index_of("a/b").unwrap(), Some(1));

    let (foreign, _) = Barrier::create(SecretKey::new([1; 32]));
    assert!(matches!(
        Core::start(store, foreign, 3),
        Err(Error::Unreadable)
    ));
}
