//! The unsealed store: named records over sealed storage, every change an entry of the ledger.
//!
//! The layer that everything else of this crate stands on. It turns a [`Change`] — operations, and who
//! made it, through what and why — into one sealed, hash-chained entry, waits until that is durable, and
//! only then shows it to readers.
//!
//! Costs. A read: one HMAC of the name, one look-up in the store, one AES-GCM open; no lock that a writer
//! holds while it waits for the disk. A commit: one HMAC and two seals per operation, on the caller's
//! thread, and a share of one `fdatasync`: all changes that wait while the disk is busy go together in the
//! next group. What the one writing thread does for a change costs about as much as copying it.
//! A waiter costs one entry in a map and is woken only by changes to its own name or prefix.
//!
//! Sealing drops the barrier, the name index and the waiters; an operation that comes later gets
//! [`Error::Sealed`].

use std::{
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::{
    barrier::{Barrier, names::NameIndex},
    store::{Compacted, FoldKey, Head, Pace, Record, Store, StoreError},
};

mod keeper;
mod kept;
mod marks;
mod prepare;
#[cfg(test)]
mod tests;
mod transact;
mod waiters;
mod writer;

use keeper::Keeper;
use marks::Marks;
use prepare::Prepared;
pub(crate) use transact::View;
use waiters::{Waiter, Waiters};
#[cfg(test)]
pub(crate) use writer::entry_after;
pub(crate) use writer::first_entry;
use writer::{Job, Work};

/// The path that a meta is sealed for; no record has it.
pub(crate) const META: &[u8] = b"\0ledger/meta";
/// The greatest value of a record, in bytes.
pub(crate) const MAX_VALUE: usize = 16 << 20;

/// Who changed what, when and why: the sealed meta of a ledger entry, kept for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Unix microseconds; 0 = the time of the commit.
    pub time: i64,
    /// A token's display name and accessor, a SPIFFE ID, or a part of the server.
    pub actor: String,
    /// The door: an interface, the command line, internal.
    pub via: String,
    /// Why, where the caller said so.
    pub reason: String,
    /// What was done, as in `kv put`.
    pub operation: String,
    /// What it was done to, as people know it. Never a value.
    pub keys: Vec<String>,
}

/// One operation of a change.
pub(crate) enum Op {
    /// Writes a record.
    Put {
        path: String,
        value: Zeroizing<Vec<u8>>,
    },
    /// Takes a record away; nothing happens if it is not there.
    Delete { path: String },
    /// Writes a record that is readable while sealed: seal configuration, wrapped keys.
    Control { name: &'static str, value: Vec<u8> },
}

/// Operations that become durable together.
pub(crate) struct Change {
    pub(crate) meta: Meta,
    pub(crate) ops: Vec<Op>,
    /// Records that must still be at this index (`None`: absent), else nothing happens.
    pub(crate) expect: Vec<(String, Option<u64>)>,
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store is sealed.
    #[error("the store is sealed; run `mesh operator unseal`")]
    Sealed,
    /// A record that the change expects has changed meanwhile.
    #[error("the record was changed meanwhile")]
    CasMismatch,
    /// No session of this id takes keys.
    #[error("invalid session {0:?}")]
    NoSession(String),
    /// A value is larger than the store takes.
    #[error("a value of {0} bytes is too large; the store takes at most {MAX_VALUE}")]
    TooLarge(usize),
    /// A record does not open: damaged, or moved in storage.
    #[error(
        "a record of the store does not open: damaged, or moved by somebody; run `mesh operator verify`"
    )]
    Unreadable,
    /// Storage failed.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// A handle on the unsealed store. Cheap to clone; all clones end with the seal.
#[derive(Clone)]
pub(crate) struct Core {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Work>,
}

struct Shared {
    store: Arc<dyn Store>,
    state: RwLock<Option<Unsealed>>,
    waiters: Waiters,
    marks: Marks,
    /// Held by who writes the names down.
    keeping: Mutex<()>,
    keeper: Keeper,
}

/// What sealing drops.
struct Unsealed {
    barrier: Arc<Barrier>,
    names: NameIndex,
    /// The entry that the names are as of.
    head: Head,
    /// Changes of names since the index was written down.
    unkept: u64,
}

/// A record as a reader gets it.
pub(crate) struct Value {
    pub(crate) bytes: Zeroizing<Vec<u8>>,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

impl Core {
    /// Builds the name index and starts the writer. `epoch` is this writer's, greater than any before.
    ///
    /// # Errors
    /// Storage fails, or a name does not open with this barrier.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        barrier: Barrier,
        epoch: u64,
    ) -> Result<Self, Error> {
        let head = store.head();
        let (names, unkept) = kept::name_index(&*store, &barrier)?;
        let shared = Arc::new(Shared {
            store,
            state: RwLock::new(Some(Unsealed {
                barrier: Arc::new(barrier),
                names,
                head,
                unkept,
            })),
            waiters: Waiters::default(),
            marks: Marks::default(),
            keeping: Mutex::default(),
            keeper: Keeper::default(),
        });
        let jobs = writer::start(Arc::clone(&shared), epoch);
        Ok(Self { shared, jobs })
    }

    /// Drops the keys and the name index, and wakes all waiters. What was handed to the writer before
    /// is either durable and acknowledged, or refused as sealed.
    pub(crate) fn seal(&self) {
        self.shared.keep_names();
        let dropped = self.shared.state.write().take();
        drop(dropped);
        self.shared.marks.seal();
        self.shared.waiters.wake_all();
        self.shared.keeper.stop();
    }

    /// Compacts by itself from now on, when it is worth it, until sealed.
    pub(crate) fn compact_behind(&self, retention: Duration) {
        self.shared.keeper.start(&self.shared, retention);
    }

    /// See [`Ledger::compact`](crate::Ledger::compact).
    pub(crate) fn compact(&self, retention: Duration, pace: Pace) -> Result<Compacted, Error> {
        self.shared.compact(retention, pace)
    }

    /// The first entry that is not older than `retention`.
    pub(crate) fn keep_from(&self, retention: Duration) -> Result<u64, Error> {
        self.shared.keep_from(retention)
    }

    /// Opens every record with the keys; how many there are.
    ///
    /// # Errors
    /// The first one that does not open.
    pub(crate) fn open_all(&self) -> Result<u64, Error> {
        let mut opened = 0;
        for name in self.scan("")? {
            opened += u64::from(self.read(&name)?.is_some());
        }
        Ok(opened)
    }

    /// The value of a record.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        Ok(self.read(path)?.map(|value| value.bytes))
    }

    /// The value of a record with its ledger indexes.
    pub(crate) fn read(&self, path: &str) -> Result<Option<Value>, Error> {
        self.shared.read(path)
    }

    /// The ledger index of a record's last change; `None` if there is no such record.
    pub(crate) fn index_of(&self, path: &str) -> Result<Option<u64>, Error> {
        self.with_names(|names| names.get(path).map(|stamp| stamp.modified))
    }

    /// What is the same for as long as `path` has not changed, and soon after. Costs a hash of the path, where
    /// [`Core::index_of`] looks it up among all names.
    pub(crate) fn mark_of(&self, path: &str) -> Result<u64, Error> {
        self.shared.marks.of(path).ok_or(Error::Sealed)
    }

    /// What lies directly below `prefix`, relative to it; folders end with `/`.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let level = self.with_names(|names| names.level(prefix, "/"))?;
        Ok(level
            .into_iter()
            .map(|name| name[prefix.len()..].to_owned())
            .filter(|name| !name.is_empty())
            .collect())
    }

    /// What lies below `prefix`, cut behind the first `separator`: full names, each once.
    pub(crate) fn level(&self, prefix: &str, separator: &str) -> Result<Vec<String>, Error> {
        self.with_names(|names| names.level(prefix, separator))
    }

    /// Every full name that starts with `prefix`, in order.
    pub(crate) fn scan(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.shared.scan(prefix)
    }

    /// The first `most` of these that sort after `last`.
    pub(crate) fn scan_after(
        &self,
        prefix: &str,
        last: &str,
        most: usize,
    ) -> Result<Vec<String>, Error> {
        self.with_names(|names| names.after(prefix, last, most))
    }

    /// The ledger index of the last change to `path`, its deletion included.
    pub(crate) fn changed(&self, path: &str) -> Result<u64, Error> {
        self.with_names(|names| names.changed(path))
    }

    /// The ledger index of the last change to a name that starts with `prefix`, deletions included.
    pub(crate) fn changed_under(&self, prefix: &str) -> Result<u64, Error> {
        self.with_names(|names| names.changed_under(prefix))
    }

    /// Waits until `path` was changed after `index`; the new index.
    pub(crate) async fn wait(&self, path: &str, index: u64) -> Result<u64, Error> {
        let waiter = self.shared.waiters.on_name(path);
        let look = || self.changed(path);
        self.wait_at(&waiter, look, index).await
    }

    /// Waits until something below `prefix` was changed after `index`; the new index.
    pub(crate) async fn wait_under(&self, prefix: &str, index: u64) -> Result<u64, Error> {
        let waiter = self.shared.waiters.on_prefix(prefix);
        let look = || self.changed_under(prefix);
        self.wait_at(&waiter, look, index).await
    }

    /// Looks once; whoever is woken is told the index: a thousand do not look at the same names.
    async fn wait_at(
        &self,
        waiter: &Waiter,
        look: impl Fn() -> Result<u64, Error>,
        index: u64,
    ) -> Result<u64, Error> {
        let mut notified = waiter.notified();
        let looked = look()?;
        let mut now = looked;
        while now <= index {
            notified.await;
            notified = waiter.notified();
            self.with_names(|_| ())?;
            now = looked.max(waiter.changed());
        }
        Ok(now)
    }

    /// Makes a change durable; the index of its entry.
    ///
    /// # Errors
    /// When nothing of it happened: sealed, an expectation that does not hold, storage failed.
    pub(crate) async fn commit(&self, change: Change) -> Result<u64, Error> {
        // Sealed here, so that the writer has nothing to do that takes long.
        let change = self.shared.prepare(change)?;
        let (reply, answer) = oneshot::channel();
        self.jobs
            .send(Work::Job(Job { change, reply }))
            .map_err(|_| Error::Sealed)?;
        answer.await.map_err(|_| Error::Sealed)?
    }

    /// The newest durable entry.
    pub(crate) fn head(&self) -> Head {
        self.shared.store.head()
    }

    /// The newest entry that readers of names see: one that is durable is shown a moment later.
    pub(crate) fn shown(&self) -> Result<Head, Error> {
        let state = self.shared.state.read();
        Ok(state.as_ref().ok_or(Error::Sealed)?.head)
    }

    /// The store below, for the ledger's readers.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The keys, while unsealed.
    pub(crate) fn barrier(&self) -> Result<Arc<Barrier>, Error> {
        self.shared.barrier()
    }

    /// Seals with these keys from here on. The ledger has them already.
    pub(crate) fn replace_barrier(&self, barrier: Barrier) {
        if let Some(unsealed) = self.shared.state.write().as_mut() {
            unsealed.barrier = Arc::new(barrier);
        }
    }

    fn with_names<T>(&self, read: impl FnOnce(&NameIndex) -> T) -> Result<T, Error> {
        self.shared.with_names(read)
    }
}

impl Shared {
    fn barrier(&self) -> Result<Arc<Barrier>, Error> {
        let state = self.state.read();
        let unsealed = state.as_ref().ok_or(Error::Sealed)?;
        Ok(Arc::clone(&unsealed.barrier))
    }

    fn with_names<T>(&self, read: impl FnOnce(&NameIndex) -> T) -> Result<T, Error> {
        let state = self.state.read();
        let unsealed = state.as_ref().ok_or(Error::Sealed)?;
        Ok(read(&unsealed.names))
    }

    fn scan(&self, prefix: &str) -> Result<Vec<String>, Error> {
        self.with_names(|names| {
            let mut all = Vec::new();
            names.each_under(prefix, |name, _| all.push(name.to_owned()));
            all
        })
    }

    /// The value of a record with its ledger indexes.
    fn read(&self, path: &str) -> Result<Option<Value>, Error> {
        let barrier = self.barrier()?;
        let key = barrier.fold_key(path);
        let Some(mut record) = self.store.get(&key)? else {
            return Ok(None);
        };
        let value = std::mem::take(&mut record.value);
        let bytes = match barrier.open(path.as_bytes(), value) {
            Ok(bytes) => bytes,
            Err(_) => {
                record = self.repaired(&key, record.modified)?;
                let value = std::mem::take(&mut record.value);
                let opened = barrier.open(path.as_bytes(), value);
                opened.map_err(|_| unopenable(&key, record.modified))?
            }
        };
        Ok(Some(Value {
            bytes,
            created: record.created,
            modified: record.modified,
        }))
    }

    /// What the log says of a record that did not open.
    fn repaired(&self, key: &FoldKey, modified: u64) -> Result<Record, Error> {
        let repaired = self.store.repair(key)?;
        repaired.ok_or_else(|| unopenable(key, modified))
    }

    /// Checks and seals a change.
    fn prepare(&self, mut change: Change) -> Result<Prepared, Error> {
        for op in &change.ops {
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE
            {
                return Err(Error::TooLarge(value.len()));
            }
        }
        if change.meta.time == 0 {
            change.meta.time = now_micros();
        }
        Ok(Prepared::new(&*self.barrier()?, change))
    }
}

/// Unix microseconds.
pub(crate) fn now_micros() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

fn unopenable(key: &FoldKey, index: u64) -> Error {
    StoreError::Damaged {
        record: key.short(),
        index,
        what: "it does not open with the keys of this store",
    }
    .into()
}
