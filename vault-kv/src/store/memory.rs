//! A store that forgets everything with the process: for tests, and for those who want that.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::watch;

use super::{
    Compacted, Entry, Extent, FoldKey, Head, Liveness, OpKind, Pace, Record, SealedName,
    SnapshotError, Store, StoreError,
    feed::Feed,
    snapshot::{Content, SnapshotInfo, Writer, now},
};

/// The background compacts when so many bytes were written since the last time.
const WORTH: usize = 64 << 20;

/// Entries and fold in memory. As sealed as on disk.
pub(crate) struct MemoryStore {
    state: RwLock<State>,
    feed: Feed,
    /// Bytes of entries since the last compaction.
    written: AtomicUsize,
}

#[derive(Default)]
struct State {
    entries: Vec<Entry>,
    named: BTreeMap<FoldKey, (Bytes, Record)>,
    control: BTreeMap<FoldKey, Record>,
    kept: BTreeMap<&'static str, Vec<u8>>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self {
            state: RwLock::default(),
            feed: Feed::new(Head::default()),
            written: AtomicUsize::new(0),
        }
    }
}

impl Store for MemoryStore {
    fn head(&self) -> Head {
        self.feed.head()
    }

    fn commit(&self, expected: &Head, entries: Vec<Entry>) -> Result<(), StoreError> {
        let mut state = self.state.write();
        let found = self.head();
        if found != *expected {
            return Err(StoreError::Fenced {
                expected: *expected,
                found,
            });
        }
        for entry in &entries {
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
            self.written
                .fetch_add(entry.encoded_length(), Ordering::Relaxed);
        }
        self.feed.publish(entries);
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

    fn folded(&self) -> u64 {
        self.head().index
    }

    fn watch(&self) -> watch::Receiver<Head> {
        self.feed.watch()
    }

    fn recent(&self, from: u64) -> Option<Vec<Arc<Entry>>> {
        self.feed.recent(from)
    }

    fn snapshot(
        &self,
        cluster_id: &str,
        keep_from: u64,
        out: &mut dyn Write,
    ) -> Result<Head, SnapshotError> {
        let state = self.state.read();
        let head = self.head();
        let live = liveness(&state.entries);
        let info = SnapshotInfo {
            cluster_id: cluster_id.to_owned(),
            head,
            created: now(),
            genesis: state.entries.first().map_or([0; 32], Entry::hash),
            content: Content::Ledger,
        };
        let mut writer = Writer::new(BufWriter::new(out), &info)?;
        for entry in &state.entries {
            let mut entry = entry.clone();
            live.redact(&mut entry, keep_from);
            writer.entry(&entry)?;
        }
        writer
            .finish()?
            .into_inner()
            .map_err(|error| SnapshotError::Io(error.into_error()))?;
        Ok(head)
    }

    fn compact(&self, keep_from: u64, _: Pace, _: &AtomicBool) -> Result<Compacted, StoreError> {
        let mut state = self.state.write();
        let bytes = |entries: &[Entry]| -> u64 {
            let lengths = entries.iter().map(|entry| entry.encoded_length() as u64);
            lengths.sum()
        };
        let bytes_before = bytes(&state.entries);
        let live = liveness(&state.entries);
        let entries = state.entries.iter_mut();
        let redacted = entries.map(|entry| live.redact(entry, keep_from)).sum();
        self.feed.clear();
        self.written.store(0, Ordering::Relaxed);
        Ok(Compacted {
            head: self.head().index,
            redacted,
            bytes_before,
            bytes_after: bytes(&state.entries),
        })
    }

    fn wants_compaction(&self) -> bool {
        self.written.load(Ordering::Relaxed) >= WORTH
    }

    fn verify(
        &self,
        check: &mut dyn FnMut(&Entry) -> Result<(), &'static str>,
    ) -> Result<Extent, StoreError> {
        let state = self.state.read();
        for entry in &state.entries {
            check(entry).map_err(|what| StoreError::Corrupt {
                index: entry.index,
                segment: "memory".into(),
                offset: 0,
                what,
            })?;
        }
        Ok(Extent {
            snapshot: None,
            records: Some((state.named.len() + state.control.len()) as u64),
        })
    }

    fn keep(&self, name: &'static str, bytes: &[u8]) -> Result<(), StoreError> {
        self.state.write().kept.insert(name, bytes.to_vec());
        Ok(())
    }

    fn kept(&self, name: &'static str) -> Option<Vec<u8>> {
        self.state.read().kept.get(name).cloned()
    }

    fn repair(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        self.get(key)
    }
}

fn liveness(entries: &[Entry]) -> Liveness {
    let mut live = Liveness::default();
    for entry in entries {
        live.add(entry);
    }
    live
}
