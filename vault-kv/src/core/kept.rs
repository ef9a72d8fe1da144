//! The index of names, written down: unsealing then opens one record, and not every name.
//!
//! It is written when the store is sealed, and behind the writer's back after many changes; sealed like any record, for a
//! path that none has. What the ledger says since then is added when it is read. It is never needed: where there is none, or
//! one that does not fit, every name is opened.

use std::{collections::HashMap, hash::BuildHasherDefault, ops::ControlFlow};

use super::{Error, Shared};
use crate::{
    barrier::{
        Barrier, NONCE, Randomness,
        names::{NameIndex, Stamp},
        sealed_length,
    },
    store::{FoldKey, Head, KeyHasher, OpKind, Store},
};

/// Its name in the store.
const NAME: &str = "names";
/// The path that it is sealed for.
const PATH: &[u8] = b"\0core/names";
/// Changes after which it is written anew, when that is an eighth of the names.
const WORTH: u64 = 65_536;
/// Bytes before the names: index and hash of the entry that they are as of.
const HEAD: usize = 8 + 32;

/// Names that have changed, by their keys: as sealed, or gone.
type Changed = HashMap<FoldKey, Option<(Vec<u8>, Stamp)>, BuildHasherDefault<KeyHasher>>;

impl Shared {
    /// Whether so much has changed that it is worth writing.
    pub(super) fn names_are_worth_keeping(&self) -> bool {
        let state = self.state.read();
        state.as_ref().is_some_and(|unsealed| {
            unsealed.unkept >= WORTH && unsealed.unkept >= unsealed.names.len() as u64 / 8
        })
    }

    /// Writes the index down, if it has changed. That it cannot is no harm.
    pub(super) fn keep_names(&self) {
        // A second one finds nothing left to do: two would write over each other.
        let _one_at_a_time = self.keeping.lock();
        let (plain, barrier, unkept) = {
            let state = self.state.read();
            let Some(unsealed) = state.as_ref().filter(|unsealed| unsealed.unkept > 0) else {
                return;
            };
            let mut head = [0; HEAD];
            head[..8].copy_from_slice(&unsealed.head.index.to_be_bytes());
            head[8..].copy_from_slice(&unsealed.head.hash);
            let plain = unsealed.names.to_bytes(&head);
            (plain, unsealed.barrier.clone(), unsealed.unkept)
        };
        let mut sealed = Vec::with_capacity(sealed_length(plain.len()));
        barrier.seal(&mut Randomness::of(NONCE), PATH, &plain, &mut sealed);
        match self.store.keep(NAME, &sealed) {
            Ok(()) => {
                if let Some(unsealed) = self.state.write().as_mut() {
                    unsealed.unkept -= unkept;
                }
            }
            Err(error) => tracing::warn!(%error, "the next unsealing will take longer"),
        }
    }
}

/// The index as it was kept, with what has changed since, and how many names that are; `None`: there is none that fits.
fn kept_names(store: &dyn Store, barrier: &Barrier) -> Option<(NameIndex, u64)> {
    let head = store.head();
    let plain = barrier.open(PATH, store.kept(NAME)?).ok()?;
    let (as_of, names) = plain.split_at_checked(HEAD)?;
    let (index, hash) = as_of.split_first_chunk()?;
    let as_of = (u64::from_be_bytes(*index), hash);
    if as_of.0 > head.index || (as_of.0 == head.index && as_of.1 != head.hash) {
        return None;
    }
    let mut names = NameIndex::from_bytes(head.index, names)?;
    let mut unkept = 0;
    if as_of.0 < head.index {
        let changed = changed_since(store, as_of, &head, names.len())?;
        unkept = changed.len() as u64;
        apply(&mut names, barrier, changed)?;
    }
    Some((names, unkept))
}

/// `None`: the ledger cannot be read, is another one, or so much has changed that it is no use.
fn changed_since(
    store: &dyn Store,
    (index, hash): (u64, &[u8]),
    head: &Head,
    names: usize,
) -> Option<Changed> {
    let mut changed = Changed::default();
    let (mut last, mut fits) = (index, true);
    let read = store.log(index + 1, &mut |entry| {
        fits = last > index || entry.previous == hash;
        last = entry.index;
        for op in &entry.ops {
            // One whose name was taken out is followed by another of the same record.
            let change = match op.kind {
                OpKind::Control => continue,
                OpKind::Delete => None,
                OpKind::Put => op.name_and_value_bytes().map(|(name, _)| {
                    let stamp = Stamp {
                        created: op.created,
                        modified: entry.index,
                    };
                    (name.to_vec(), stamp)
                }),
            };
            changed.insert(op.key, change);
        }
        match fits && changed.len() <= names + WORTH as usize {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    (read.is_ok() && fits && last == head.index).then_some(changed)
}

fn apply(names: &mut NameIndex, barrier: &Barrier, mut changed: Changed) -> Option<()> {
    if changed.values().any(Option::is_none) {
        // A deletion has no name.
        let mut gone = Vec::new();
        names.each_under("", |name, _| {
            if let Some(None) = changed.get(&barrier.fold_key(name)) {
                gone.push(name.to_owned());
            }
        });
        gone.iter().for_each(|name| names.drop_name(name));
    }
    for (key, change) in changed.drain() {
        let Some((sealed, stamp)) = change else {
            continue;
        };
        let name = barrier.open(&key.0, sealed).ok()?;
        names.put(std::str::from_utf8(&name).ok()?, stamp);
    }
    Some(())
}

/// Every name with its indexes, and how many changes of names are not kept.
pub(super) fn name_index(store: &dyn Store, barrier: &Barrier) -> Result<(NameIndex, u64), Error> {
    if let Some(kept) = kept_names(store, barrier) {
        return Ok(kept);
    }
    let names = sealed_names(store, barrier)?;
    let unkept = names.len() as u64;
    Ok((names, unkept))
}

/// The index from every name in the store.
fn sealed_names(store: &dyn Store, barrier: &Barrier) -> Result<NameIndex, Error> {
    let mut names = Vec::new();
    let mut unreadable = None;
    store.scan(&mut |sealed| {
        let opened = barrier.open(&sealed.key.0, sealed.name.to_vec());
        match opened.ok().and_then(|name| boxed(&name)) {
            Some(name) => names.push((
                name,
                Stamp {
                    created: sealed.created,
                    modified: sealed.modified,
                },
            )),
            None => unreadable = Some((sealed.key, sealed.modified)),
        }
    })?;
    let index = NameIndex::of(store.head().index, names);
    match unreadable {
        Some(_) if index.is_empty() => Err(Error::Unreadable),
        Some((key, modified)) => Err(super::unopenable(&key, modified)),
        None => Ok(index),
    }
}

fn boxed(name: &[u8]) -> Option<Box<str>> {
    Some(std::str::from_utf8(name).ok()?.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;
    use crate::{
        barrier::SecretKey,
        core::{Change, Core, Meta, Op, Pace},
        store::memory::MemoryStore,
    };

    /// A store that is opened again and again.
    struct Again {
        store: Arc<MemoryStore>,
        wrapped: Vec<u8>,
        epoch: u64,
    }

    fn root() -> SecretKey {
        SecretKey::new([7; 32])
    }

    impl Again {
        fn new() -> Self {
            Self {
                store: Arc::new(MemoryStore::new()),
                wrapped: Barrier::create(root()).1,
                epoch: 0,
            }
        }

        fn barrier(&self) -> Barrier {
            Barrier::open_keyring(root(), &self.wrapped).unwrap()
        }

        fn start(&mut self) -> Core {
            self.epoch += 1;
            let store = Arc::clone(&self.store) as Arc<dyn Store>;
            Core::start(store, self.barrier(), self.epoch).unwrap()
        }

        /// As kept, if it fits; it must be what a look at every name gives.
        fn kept(&self) -> bool {
            let (store, barrier) = (&*self.store, self.barrier());
            let Some((kept, _)) = kept_names(store, &barrier) else {
                return false;
            };
            let all = sealed_names(store, &barrier).unwrap();
            assert_eq!(kept.len(), all.len());
            assert_eq!(contents(&kept), contents(&all));
            true
        }
    }

    fn contents(names: &NameIndex) -> Vec<(String, Stamp)> {
        let mut found = Vec::new();
        names.each_under("", |name, stamp| found.push((name.to_owned(), stamp)));
        found
    }

    async fn commit(core: &Core, ops: Vec<Op>) {
        let change = Change {
            meta: Meta::default(),
            ops,
            expect: Vec::new(),
        };
        core.commit(change).await.unwrap();
    }

    fn put(path: &str) -> Op {
        Op::Put {
            path: path.to_owned(),
            value: Zeroizing::new(path.into()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn with_what_has_changed_since_it_is_as_if_every_name_was_opened(
            steps in proptest::collection::vec((0_u8..12, 0_u8..9), 1..60),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut again = Again::new();
                let mut core = again.start();
                for (what, name) in steps {
                    let path = format!("a/{name}");
                    match what {
                        0 => {
                            let any = !core.scan("").unwrap().is_empty();
                            core.seal();
                            core = again.start();
                            assert!(again.store.kept(NAME).is_some() || !any);
                        }
                        // It crashes: nothing is written down.
                        1 => core = again.start(),
                        2 => {
                            core.compact(std::time::Duration::ZERO, Pace::Prompt).unwrap();
                        }
                        3..6 => commit(&core, vec![Op::Delete { path }]).await,
                        6 => commit(&core, vec![Op::Delete { path: path.clone() }, put("b")]).await,
                        _ => commit(&core, vec![put(&path)]).await,
                    }
                    assert_eq!(again.kept(), again.store.kept(NAME).is_some());
                }
            });
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_passed_over() {
        let mut again = Again::new();
        let core = again.start();
        commit(&core, vec![put("a")]).await;
        core.seal();
        let old = again.store.kept(NAME).unwrap();
        assert!(again.kept());

        // Damaged, or of another store.
        let mut damaged = old.clone();
        damaged[40] ^= 1;
        let mut other = Again::new();
        let core = other.start();
        commit(&core, vec![put("other")]).await;
        core.seal();
        for wrong in [damaged, other.store.kept(NAME).unwrap(), Vec::new()] {
            again.store.keep(NAME, &wrong).unwrap();
            assert!(!again.kept());
            assert_eq!(again.start().scan("").unwrap(), ["a"]);
        }

        // Of a ledger that went on differently from the same beginning, as after a restore.
        let mut forked = Again {
            store: Arc::new(MemoryStore::new()),
            wrapped: again.wrapped.clone(),
            epoch: 0,
        };
        let core = forked.start();
        commit(&core, vec![put("b")]).await;
        forked.store.keep(NAME, &old).unwrap();
        assert!(!forked.kept());
        commit(&core, vec![put("c")]).await;
        assert!(!forked.kept());
    }
}
