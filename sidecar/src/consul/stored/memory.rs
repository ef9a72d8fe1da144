//! Pairs in memory, with the indexes a ledger would give them.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{BoxPairs, Change, Pair, Pairs, Scope, StoreError};

pub struct Memory {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    pairs: BTreeMap<String, Pair>,
    /// When keys went.
    gone: BTreeMap<String, u64>,
    index: u64,
    sealed: bool,
}

impl Scope<'_> {
    fn has(&self, key: &str) -> bool {
        match self {
            Scope::Key(own) => *own == key,
            Scope::Prefix(prefix) => key.starts_with(prefix),
        }
    }
}

impl Memory {
    pub fn new() -> Memory {
        let state = State {
            index: 100,
            ..State::default()
        };
        Memory {
            state: Mutex::new(state),
            changes: watch::channel(0).0,
        }
    }

    pub fn seal(&self) {
        self.state.lock().sealed = true;
    }

    fn last_change(&self, scope: Scope<'_>) -> Option<u64> {
        let state = self.state.lock();
        let live = state.pairs.values().filter(|pair| scope.has(&pair.key));
        let gone = state.gone.iter().filter(|(key, _)| scope.has(key));
        live.map(|pair| pair.modified)
            .chain(gone.map(|(_, index)| *index))
            .max()
    }
}

impl Pairs for Memory {
    fn read<'a>(&'a self, scope: Scope<'a>) -> BoxPairs<'a, Result<(Vec<Pair>, u64), StoreError>> {
        Box::pin(async move {
            let last = self.last_change(scope);
            let state = self.state.lock();
            if state.sealed {
                return Err(StoreError::Sealed);
            }
            let found = state.pairs.values().filter(|pair| scope.has(&pair.key));
            Ok((found.cloned().collect(), last.unwrap_or(state.index)))
        })
    }

    fn change<'a>(&'a self, change: Change<'a>) -> BoxPairs<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            let next = state.index + 1;
            let holds = |known: Option<&Pair>, cas: Option<u64>| match (known, cas) {
                (_, None) => true,
                (None, Some(index)) => index == 0,
                (Some(known), Some(index)) => known.modified == index,
            };
            match change {
                Change::Put {
                    key,
                    value,
                    flags,
                    cas,
                } => {
                    let known = state.pairs.get(key);
                    if !holds(known, cas) {
                        return Ok(false);
                    }
                    if known.is_some_and(|known| known.value == value && known.flags == flags) {
                        return Ok(true);
                    }
                    let created = known.map_or(next, |known| known.created);
                    let pair = Pair {
                        key: key.to_owned(),
                        value,
                        flags,
                        created,
                        modified: next,
                    };
                    state.pairs.insert(key.to_owned(), pair);
                }
                Change::Delete { scope, cas } => {
                    if let Scope::Key(key) = scope {
                        let known = state.pairs.get(key);
                        if known.is_some() && !holds(known, cas) {
                            return Ok(false);
                        }
                    }
                    let keys: Vec<_> = state
                        .pairs
                        .keys()
                        .filter(|k| scope.has(k))
                        .cloned()
                        .collect();
                    for key in keys {
                        state.pairs.remove(&key);
                        state.gone.insert(key, next);
                    }
                }
            }
            state.index = next;
            self.changes.send_replace(next);
            Ok(true)
        })
    }

    fn changed_after<'a>(&'a self, scope: Scope<'a>, index: u64) -> BoxPairs<'a, ()> {
        Box::pin(async move {
            let mut changes = self.changes.subscribe();
            let met = |_: &u64| self.last_change(scope).is_some_and(|last| last > index);
            let _ = changes.wait_for(met).await;
        })
    }
}
