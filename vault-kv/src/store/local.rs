//! The store of one machine: an own append-only log that is the truth, and sled as its fold.
//!
//! ```text
//! <dir>/lock                              held while the store is open
//! <dir>/log/00000000000000000001.log      segments of frames, see `segment`
//! <dir>/fold/                             sled: the state after some entry, see `fold`
//! ```
//!
//! An entry is durable when [`commit`](Store::commit) returns: it is in the log and synced. A thread
//! of the store's own folds behind: what is not folded yet lies in an overlay, and every read looks
//! there first. The fold is a checkpoint that can be made anew from the log at any time, and is when
//! it does not open.

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use self::{
    fold::Fold,
    log::Log,
    open::Lock,
    overlay::{FoldId, Folded, Overlay, Value},
    segment::Chain,
};
use super::{Entry, FoldKey, Head, MAX_ENTRY, OpKind, Record, SALT, SealedName, Store, StoreError};

pub(crate) use verify::verify_dir;

mod checkpoint;
mod fold;
mod log;
mod open;
mod overlay;
mod segment;
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
    log_folder: PathBuf,
    log: Mutex<Log>,
    overlay: RwLock<Overlay>,
    fold: Fold,
    /// Held to read the fold as a whole, and alone to change it.
    fold_rests: RwLock<()>,
    folding: Mutex<Folding>,
    /// There is something to fold, or the store closes.
    wake: Condvar,
    /// A checkpoint has ended.
    folded: Condvar,
    head: watch::Sender<Head>,
    /// Entries that opening read from the log.
    #[cfg(test)]
    replayed: u64,
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
}

impl Store for LocalStore {
    fn head(&self) -> Head {
        *self.shared.head.borrow()
    }

    /// Waits for the fold when it is far behind, a [`snapshot`](Store::snapshot) under way included.
    fn commit(&self, expected: &Head, entries: &[Entry]) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let mut log = shared.log.lock();
        let found = self.head();
        if found != *expected {
            return Err(StoreError::Fenced {
                expected: *expected,
                found,
            });
        }
        let Some(last) = entries.last() else {
            return Ok(());
        };
        shared.wait_for_room()?;
        let placed = log.append(entries)?;
        let mut overlay = shared.overlay.write();
        for (entry, placed) in entries.iter().zip(&placed) {
            overlay.apply(entry, placed.first, &placed.parts);
        }
        drop(overlay);
        shared.head.send_replace(Head {
            index: last.index,
            epoch: last.epoch,
            hash: last.hash(),
        });
        shared.tell();
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
        if from > self.head().index {
            return Ok(());
        }
        let spans = self.shared.log.lock().spans_from(from);
        let Some(first) = spans.first() else {
            return Ok(());
        };
        let mut chain = if first.from.0 == 1 {
            Chain::start()
        } else {
            Chain {
                next: first.from.0,
                previous: None,
            }
        };
        let torn = segment::walk(&spans, &mut chain, |found| {
            if found.entry.index < from {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(visit(&found.entry))
        })?;
        torn.map_or(Ok(()), |torn| Err(torn.corrupt()))
    }

    /// The fold does not move while this runs; commits go on until the overlay is full.
    #[cfg(test)]
    fn snapshot(&self, visit: &mut dyn FnMut(super::SnapshotRecord)) -> Result<Head, StoreError> {
        self.shared.each(|id, folded| {
            let name = folded.name.clone();
            let record = self.shared.resolve(folded)?;
            visit(super::SnapshotRecord {
                key: id.key(),
                name,
                record,
            });
            Ok(())
        })
    }
}

impl Shared {
    fn record(&self, id: &FoldId) -> Result<Option<Record>, StoreError> {
        let waiting = self.overlay.read().get(id);
        let folded = match waiting {
            Some(waiting) => waiting.map(|folded| Folded::clone(&folded)),
            None => self.fold.get(id)?,
        };
        folded.map(|folded| self.resolve(folded)).transpose()
    }

    fn resolve(&self, folded: Folded) -> Result<Record, StoreError> {
        let value = match folded.value {
            Value::Here(value) => value.into(),
            Value::InLog {
                first,
                offset,
                length,
            } => segment::read_at(&self.log_folder, first, offset, length)?,
        };
        Ok(Record {
            created: folded.created,
            modified: folded.modified,
            value,
        })
    }

    /// Every record at one head, which is returned.
    fn each(
        &self,
        mut visit: impl FnMut(FoldId, Folded) -> Result<(), StoreError>,
    ) -> Result<Head, StoreError> {
        let _rests = self.fold_rests.read();
        let overlay = self.overlay.read().clone();
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
        self.fold.each(|id, folded| {
            if overlay.get(&id).is_some() {
                Ok(())
            } else {
                visit(id, folded)
            }
        })?;
        Ok(overlay.head)
    }
}

/// An I/O error with what was tried, as in "cannot *what* path".
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| StoreError::Io {
        what,
        path: path.to_path_buf(),
        source,
    }
}
