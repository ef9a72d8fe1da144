//! The store of one machine: an own append-only log that is the truth, and sled as its fold.
//!
//! ```text
//! <dir>/lock                               held while the store is open; who holds it
//! <dir>/log/00000000000000000001.log       segments of frames, see `segment`
//! <dir>/fold/00000000000000000001/         sled: the state after some entry, see `fold`
//! <dir>/snapshot/00000000000000000042.snap the whole fold after entry 42, see `snapshot`
//! ```
//!
//! An entry is durable when [`commit`](Store::commit) returns: it is in the log and synced. A thread
//! of the store's own folds behind: what is not folded yet lies in an overlay, and every read looks
//! there first. The fold is a checkpoint that can be made anew at any time, from the snapshot and the log
//! behind it or from the log alone, and is when it does not open.
//!
//! [Compaction](compact) never takes out of the log what the state needs. So of log and snapshot, which have every
//! live value, and the fold, which has the small ones and the places of the others, the log alone is enough.
//!
//! A value of more than 256 sealed bytes is written to the log once and to nothing else until the next snapshot: a
//! read of it is one look-up and one `pread` of what is mostly in the page cache.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use self::{
    fold::Fold,
    log::{Log, Segments},
    open::Lock,
    overlay::{FoldId, Folded, Overlay, Place, Value},
    segment::Chain,
};
use super::{
    Compacted, Entry, Extent, FORMAT, FoldKey, Head, Liveness, MAX_ENTRY, OpKind, Pace, Record,
    SALT, SealedName, SnapshotError, Store, StoreError, feed::Feed,
};

pub(crate) use restore::restore;
pub(crate) use segment::is_segment;
pub(crate) use snapshots::is_record;
pub(crate) use verify::verify_dir;

mod checkpoint;
mod compact;
mod fold;
mod log;
mod open;
mod overlay;
mod rebuild;
mod restore;
mod segment;
mod snapshots;
#[cfg(test)]
mod tests;
mod verify;

/// Bytes in the overlay that start a checkpoint.
const CHECKPOINT: usize = 8 << 20;
/// Bytes in the overlay at which commits wait for the fold.
const OVERLAY_LIMIT: usize = 64 << 20;
/// The longest that an entry waits to be folded when little is written.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(5);

/// Log and fold in a directory. Dropping it folds what is left, so that the next open replays nothing.
pub(crate) struct LocalStore {
    shared: Arc<Shared>,
    folder: Option<JoinHandle<()>>,
}

struct Shared {
    dir: PathBuf,
    log: Mutex<Log>,
    segments: Arc<Segments>,
    overlay: RwLock<Overlay>,
    /// Replaced when it is made anew.
    fold: RwLock<Arc<Fold>>,
    /// Held to read the fold as a whole, and alone to change it.
    fold_rests: RwLock<()>,
    folding: Mutex<Folding>,
    /// There is something to fold, or the store closes.
    wake: Condvar,
    /// A checkpoint has ended.
    folded: Condvar,
    feed: Feed,
    /// Held by the one compaction at a time.
    compacting: Mutex<()>,
    /// Held by who makes the fold anew.
    refolding: Mutex<()>,
    /// What opening did.
    #[cfg(test)]
    opened: open::Opened,
    /// Declared last: released when everything else is closed.
    _lock: Lock,
}

/// What the folding thread is told, and tells.
#[derive(Default)]
struct Folding {
    /// Bytes in the overlay.
    bytes: usize,
    closing: bool,
    /// Why the last checkpoint failed.
    failed: Option<String>,
    /// The fold was found damaged and is to be made anew.
    anew: bool,
}

impl Store for LocalStore {
    fn head(&self) -> Head {
        self.shared.feed.head()
    }

    /// Waits for the fold when it is far behind.
    fn commit(&self, expected: &Head, entries: Vec<Entry>) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let mut log = shared.log.lock();
        let found = self.head();
        if found != *expected {
            return Err(StoreError::Fenced {
                expected: *expected,
                found,
            });
        }
        if entries.is_empty() {
            return Ok(());
        }
        shared.wait_for_room()?;
        let placed = log.append(&entries)?;
        let mut overlay = shared.overlay.write();
        let mut parts = &placed.parts[..];
        for entry in &entries {
            let own;
            (own, parts) = parts.split_at(entry.ops.len());
            overlay.apply(entry, placed.first, own);
        }
        let bytes = overlay.bytes();
        drop(overlay);
        shared.feed.publish(entries);
        shared.tell(bytes);
        Ok(())
    }

    fn get(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        self.shared.record(&FoldId::named(key))
    }

    fn control(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        self.shared.record(&FoldId::control(key))
    }

    fn scan(&self, visit: &mut dyn FnMut(SealedName)) -> Result<(), StoreError> {
        self.shared.each(|id, folded| {
            if id.kind() == OpKind::Put {
                let Folded {
                    created,
                    modified,
                    name,
                    ..
                } = folded;
                visit(SealedName {
                    key: id.key(),
                    created,
                    modified,
                    name,
                });
            }
            Ok(())
        })?;
        Ok(())
    }

    fn log(
        &self,
        from: u64,
        visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let head = self.head().index;
        if from > head {
            return Ok(());
        }
        self.shared.segments.walk(from, |found| {
            if found.entry.index > head {
                return Ok(ControlFlow::Break(()));
            }
            Ok(visit(&found.entry))
        })
    }

    fn folded(&self) -> u64 {
        self.shared.fold.read().applied().index
    }

    fn watch(&self) -> watch::Receiver<Head> {
        self.shared.feed.watch()
    }

    fn recent(&self, from: u64) -> Option<Vec<Arc<Entry>>> {
        self.shared.feed.recent(from)
    }

    fn snapshot(
        &self,
        cluster_id: &str,
        keep_from: u64,
        out: &mut dyn Write,
    ) -> Result<Head, SnapshotError> {
        snapshots::save(self, cluster_id, keep_from, out)
    }

    fn compact(
        &self,
        keep_from: u64,
        pace: Pace,
        stop: &AtomicBool,
    ) -> Result<Compacted, StoreError> {
        self.shared.compact(keep_from, pace, stop)
    }

    fn verify(
        &self,
        check: &mut dyn FnMut(&Entry) -> Result<(), &'static str>,
    ) -> Result<Extent, StoreError> {
        verify::verify_open(&self.shared, check)
    }

    fn wants_compaction(&self) -> bool {
        self.shared.wants_compaction()
    }

    fn keep(&self, name: &'static str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.shared.dir.join(name);
        let new = path.with_extension("new");
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&new)?.write_all(bytes)?;
            std::fs::rename(&new, &path)
        };
        write().map_err(failed("write", &path))
    }

    fn kept(&self, name: &'static str) -> Option<Vec<u8>> {
        std::fs::read(self.shared.dir.join(name)).ok()
    }

    fn repair(&self, key: &FoldKey) -> Result<Option<Record>, StoreError> {
        let id = FoldId::named(key);
        let repaired = self.shared.repair(&id)?;
        repaired
            .map(|(id, folded)| self.shared.resolve(&id, folded))
            .transpose()
    }
}

impl Shared {
    fn record(&self, id: &FoldId) -> Result<Option<Record>, StoreError> {
        let waiting = self.overlay.read().get(id);
        let folded = match waiting {
            Some(waiting) => waiting,
            None => {
                let fold = Arc::clone(&self.fold.read());
                match fold.get(id) {
                    Ok(Ok(folded)) => folded,
                    Ok(Err(_)) => self.repair(id)?.map(|(_, folded)| folded),
                    Err(error) if fold.is_damaged() => {
                        self.fold_anew();
                        tracing::warn!(%error, "a read met a damaged fold; it is answered from the log");
                        self.look_up(id)?.map(|(_, folded)| folded)
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        folded.map(|folded| self.resolve(id, folded)).transpose()
    }

    fn resolve(&self, id: &FoldId, folded: Folded) -> Result<Record, StoreError> {
        let value = match folded.value {
            Value::Here(value) => value.into(),
            Value::InLog(place) => match self.read_place(&place)? {
                Some(value) => value,
                None => self.large_value(id, folded.modified)?,
            },
        };
        Ok(Record {
            created: folded.created,
            modified: folded.modified,
            value,
        })
    }

    fn read_place(&self, place: &Place) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self
            .segments
            .read_at(place.first, place.offset, place.length)?;
        Ok(value.filter(|value| crc32fast::hash(value) == place.crc))
    }

    /// The value that entry `index` gave the record, where compaction has moved it.
    fn large_value(&self, id: &FoldId, index: u64) -> Result<Vec<u8>, StoreError> {
        let mut value = None;
        self.segments.walk(index, |found| {
            let mut ops = found.entry.ops.iter().rev();
            let op = ops.find(|op| FoldId::of(op) == *id);
            value = op.and_then(|op| match op.kind {
                OpKind::Put => op.name_and_value().map(|(_, value)| value),
                OpKind::Control => op.content(),
                OpKind::Delete => None,
            });
            Ok(ControlFlow::Break(()))
        })?;
        value
            .map(Vec::from)
            .ok_or_else(|| damaged(id, index, "the log does not have its value"))
    }

    /// Every record at one head, which is returned.
    fn each(
        &self,
        mut visit: impl FnMut(FoldId, Folded) -> Result<(), StoreError>,
    ) -> Result<Head, StoreError> {
        let mut unreadable = Vec::new();
        let overlay;
        let head = {
            let _rests = self.fold_rests.read();
            overlay = self.overlay.read().clone();
            for (id, folded) in overlay.active.iter() {
                if let Some(folded) = folded {
                    visit(*id, folded.clone())?;
                }
            }
            for (id, folded) in overlay.folding.iter().flat_map(|changes| changes.iter()) {
                if let Some(folded) = folded.filter(|_| overlay.active.get(id).is_none()) {
                    visit(*id, folded.clone())?;
                }
            }
            let fold = Arc::clone(&self.fold.read());
            fold.each(|id, folded| {
                if overlay.get(&id).is_some() {
                    return Ok(());
                }
                match folded {
                    Ok(folded) => visit(id, folded),
                    Err(_) => {
                        unreadable.push(id);
                        Ok(())
                    }
                }
            })?;
            overlay.head
        };
        for id in unreadable {
            // Under an id of which not all was readable it was not seen to be there already.
            match self.repair(&id)? {
                Some((id, folded)) if overlay.get(&id).is_none() => visit(id, folded)?,
                _ => {}
            }
        }
        Ok(head)
    }

    fn log_folder(&self) -> PathBuf {
        self.dir.join("log")
    }
}

/// What the log says about a record is not what the store has.
fn damaged(id: &FoldId, index: u64, what: &'static str) -> StoreError {
    StoreError::Damaged {
        record: id.key().short(),
        index,
        what,
    }
}

/// An I/O error with what was tried, as in "cannot *what* path".
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |cause| StoreError::Io {
        what,
        path: path.to_path_buf(),
        cause,
    }
}
