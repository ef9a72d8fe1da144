//! Where entries are kept and folded into state: the seam under the ledger.
//!
//! A [`Store`] sees sealed bytes only: names are HMACs ([`FoldKey`]), metas, names and values are
//! sealed. Index, chain and writer epoch are made above it. Its [`commit`](Store::commit) is
//! compare-and-swap on the head, so a writer that was fenced off fails on any engine.
//!
//! Engines: [`memory::MemoryStore`] and [`local::LocalStore`]; one conformance suite (in the tests)
//! runs on each.

use std::{
    hash::{Hash, Hasher},
    io::{self, Write},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use tokio::sync::watch;

pub(crate) use entry::{Entry, EntryOp, FORMAT, MAX_ENTRY, OpKind, Part, SALT};
pub(crate) use liveness::Liveness;
pub use snapshot::{SnapshotError, SnapshotInfo};

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod entry;
pub(crate) mod feed;
mod liveness;
pub(crate) mod local;
pub(crate) mod memory;
pub(crate) mod snapshot;

/// The name of a record as storage sees it: the HMAC of a logical path, or a control name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoldKey(pub(crate) [u8; 32]);

/// A key is an HMAC: any eight bytes of it spread as well as a hash of all would, and nobody can choose them. (The keys
/// of control records are names, but those are few.)
impl Hash for FoldKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// Takes the one number that a [`FoldKey`] gives.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

impl FoldKey {
    /// Enough of it to name it in a message.
    pub(crate) fn short(&self) -> String {
        self.0[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// A record that is readable while sealed; `name` has at most 32 bytes.
    pub(crate) const fn control(name: &str) -> Self {
        let name = name.as_bytes();
        let mut key = [0; 32];
        let mut at = 0;
        while at < name.len() {
            key[at] = name[at];
            at += 1;
        }
        Self(key)
    }
}

/// The newest entry of a ledger. Index 0 with a zero hash is the empty ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Ledger index; the first entry has 1.
    pub index: u64,
    /// Writer epoch of that entry.
    pub epoch: u64,
    /// Chain hash of that entry (SHA-256).
    pub hash: [u8; 32],
}

/// One record of the fold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Ledger index at which it came into being.
    pub(crate) created: u64,
    /// Ledger index of its last change.
    pub(crate) modified: u64,
    /// The sealed value, or the bytes of a control record.
    pub(crate) value: Vec<u8>,
}

/// The sealed name of one record with its indexes.
pub(crate) struct SealedName {
    pub(crate) key: FoldKey,
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) name: Bytes,
}

/// An engine that keeps entries and their fold. Calls block; the ledger writer has its own thread.
pub(crate) trait Store: Send + Sync {
    /// The newest durable entry.
    fn head(&self) -> Head;

    /// Appends `entries` durably and folds them, all or none, if the head still is `expected`.
    ///
    /// They are visible to [`get`](Store::get) and [`scan`](Store::scan) when this returns.
    fn commit(&self, expected: &Head, entries: Vec<Entry>) -> Result<(), StoreError>;

    /// One named record.
    fn get(&self, key: &FoldKey) -> Result<Option<Record>, StoreError>;

    /// One control record.
    fn control(&self, key: &FoldKey) -> Result<Option<Record>, StoreError>;

    /// Every sealed name, in no useful order.
    fn scan(&self, visit: &mut dyn FnMut(SealedName)) -> Result<(), StoreError>;

    /// The entries from index `from` on, in order, until `visit` breaks.
    fn log(
        &self,
        from: u64,
        visit: &mut dyn FnMut(&Entry) -> ControlFlow<()>,
    ) -> Result<(), StoreError>;

    /// The last entry that is in the fold itself and not only in memory over it.
    fn folded(&self) -> u64;

    /// Follows the head: it is told of every entry that becomes durable, the last one at least.
    fn watch(&self) -> watch::Receiver<Head>;

    /// Entries from index `from` on that are still in memory; empty when there are none yet, `None` when
    /// they have to be read with [`log`](Store::log).
    fn recent(&self, from: u64) -> Option<Vec<Arc<Entry>>>;

    /// Writes the ledger up to the head that is returned, as a [snapshot file](snapshot): every entry,
    /// with the payloads that [`compact`](Store::compact) would leave.
    fn snapshot(
        &self,
        cluster_id: &str,
        keep_from: u64,
        out: &mut dyn Write,
    ) -> Result<Head, SnapshotError>;

    /// Takes out payloads for good: those of deleted records and of control records that were replaced,
    /// and those of records that were overwritten, if older than the entry `keep_from`.
    /// It gives up with [`StoreError::Closing`] soon after `stop` is set.
    fn compact(
        &self,
        keep_from: u64,
        pace: Pace,
        stop: &AtomicBool,
    ) -> Result<Compacted, StoreError>;

    /// Whether enough was written since the last compaction to make another one worth its while.
    fn wants_compaction(&self) -> bool;

    /// Reads everything and compares it; `check` gets every entry, in order, and says what else does not
    /// hold.
    fn verify(
        &self,
        check: &mut dyn FnMut(&Entry) -> Result<(), &'static str>,
    ) -> Result<Extent, StoreError>;

    /// Keeps something that whoever wants it can do without, in the place of what it kept under this name: after a crash it
    /// may be there, gone, or neither.
    fn keep(&self, name: &'static str, bytes: &[u8]) -> Result<(), StoreError>;

    /// What was kept.
    fn kept(&self, name: &'static str) -> Option<Vec<u8>>;

    /// Reads a record anew from the log after what [`get`](Store::get) gave did not open.
    fn repair(&self, key: &FoldKey) -> Result<Option<Record>, StoreError>;
}

/// What a verification has covered beside the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The entry that the newest snapshot goes up to.
    pub(crate) snapshot: Option<u64>,
    /// Records of the fold; `None` when it could not be looked at because a server has it open.
    pub(crate) records: Option<u64>,
}

/// How much of the machine a compaction may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Somebody waits for it.
    Prompt,
    /// It rests as long as it works.
    Background,
}

/// What a compaction has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// The last entry that it looked at.
    pub head: u64,
    /// Payloads that were taken out.
    pub redacted: u64,
    /// Bytes of the store before it.
    pub bytes_before: u64,
    /// And after it.
    pub bytes_after: u64,
}

/// What went wrong below the ledger.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed. A full disk shows here as [`io::ErrorKind::StorageFull`]; nothing of
    /// the change was kept, and the next one is tried anew.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// The operation, as in "cannot *write*".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// An entry that had been durable cannot be read any more.
    #[error("ledger entry {index} is damaged in {} at byte {offset}: {what}; restore this store from a backup", segment.display())]
    Corrupt {
        /// The first entry that is affected.
        index: u64,
        /// The segment file.
        segment: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// Another writer has moved the head or taken the epoch.
    #[error("another writer has taken over this store (its head is {}, expected {})", found.index, expected.index)]
    Fenced {
        /// The head this writer built on.
        expected: Head,
        /// The head the store has.
        found: Head,
    },
    /// Another process has the directory open.
    #[error("the store {} is in use by {}; stop that server first", dir.display(),
        pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
    Locked {
        /// The store directory.
        dir: PathBuf,
        /// The process that has it, where it said so.
        pid: Option<u32>,
    },
    /// A newer version wrote this.
    #[error("{} has format {format}, written by a newer version than this one (which knows {FORMAT}); start that version", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// The format it has.
        format: u8,
    },
    /// A snapshot in the store does not hold.
    #[error("the snapshot {} is damaged at byte {offset}: {what}; the log has everything that is in it: remove the file", path.display())]
    BadSnapshot {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What does not hold.
        what: String,
    },
    /// A record of the fold does not say what the log says.
    #[error(
        "the record {record} (ledger index {index}) is damaged: {what}; run `mesh operator verify`"
    )]
    Damaged {
        /// The first bytes of its storage key, which is an HMAC of its name.
        record: String,
        /// Ledger index of its last change; 0 when that is not known.
        index: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// The store was closed while this ran.
    #[error("the store was closed meanwhile; what had been written stands")]
    Closing,
    /// Something was written in a form that this version does not know.
    #[error(
        "{what} of this store is not readable by this version of mesh: it was written by a newer one, or is damaged; start the newer version, or run `mesh operator verify --dir` on the store"
    )]
    Unknown {
        /// What it is.
        what: &'static str,
    },
    /// The folded view cannot be read or written now; it is rebuilt from the log.
    #[error(
        "the folded view of the store is not readable ({what}); it is rebuilt from the log at the next start"
    )]
    Fold {
        /// What the engine under it said.
        what: String,
    },
}
