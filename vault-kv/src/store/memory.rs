//! A store that forgets everything with the process: for tests, and for those who want that.

use std::{collections::BTreeMap, ops::ControlFlow};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{Entry, FoldKey, Head, OpKind, Record, SealedName, Store, StoreError};

/// Entries and fold in memory. As sealed as on disk.
pub(crate) struct MemoryStore {
    state: RwLock<State>,
    head: watch::Sender<Head>,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    named: BTreeMap<FoldKey, (Bytes, Record)>,
    control: BTreeMap<FoldKey, Record>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self {
            state: RwLock::default(),
            head: watch::Sender::new(Head::default()),
        }
    }
}

impl Store for MemoryStore {
    fn head(&self) -> Head {
        *self.head.borrow()
    }

    fn commit(&self, expected: &Head, entries: &[Entry]) -> Result<(), StoreError> {
        let mut state = self.state.write();
        let found = self.head();
        if found != *expected {
            return Err(StoreError::Fenced {
                expected: *expected,
                found,
            });
        }
        for entry in entries {
            for op in &entry.ops {
                match op.kind {
                    OpKind::Put => {
                        let Some((name, value)) = op.name_and_value() else {
                            continue;
                        };
                        let record = Record {
                            created: op.created,
                            modified: entry.index,
                            value: value.to_vec(),
                        };
                        state.named.insert(op.key, (name, record));
                    }
                    OpKind::Delete => {
                        state.named.remove(&op.key);
                    }
                    OpKind::Control => {
                        let value = op.content().unwrap_or_default().to_vec();
                        let record = Record {
                            created: op.created,
                            modified: entry.index,
                            value,
                        };
                        state.control.insert(op.key, record);
                    }
                }
            }
            state.entries.push(entry.clone());
        }
        if let Some(last) = entries.last() {
            self.head.send_replace(Head {
                index: last.index,
                epoch: last.epoch,
                hash: last.hash(),
            });
        }
        Ok(())
    }

    fn get(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        Ok(self
            .state
            .read()
            .named
            .get(key)
            .map(|(_, record)| record.clone()))
    }

    fn control(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        Ok(self.state.read().control.get(key).cloned())
    }

    fn scan(&self, visit: &mut dyn FnMut(SealedName)) -> Result<(), StoreError> {
        for (key, (name, record)) in &self.state.read().named {
            visit(SealedName {
                key: *key,
                created: record.created,
                modified: record.modified,
                name: name.clone(),
            });
        }
        Ok(())
    }

    fn log(
        &self,
        from: u64,
        visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let state = self.state.read();
        let start = state.entries.partition_point(|entry| entry.index < from);
        for entry in &state.entries[start..] {
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    #[cfg(test)]
    fn snapshot(&self, visit: &mut dyn FnMut(super::SnapshotRecord)) -> Result<Head, StoreError> {
        let state = self.state.read();
        for (key, record) in &state.control {
            visit(super::SnapshotRecord {
                key: *key,
                name: Bytes::new(),
                record: record.clone(),
            });
        }
        for (key, (name, record)) in &state.named {
            visit(super::SnapshotRecord {
                key: *key,
                name: name.clone(),
                record: record.clone(),
            });
        }
        Ok(self.head())
    }
}
