//! Where entries are kept and folded into state: the seam under the ledger.
//!
//! A [`Store`] sees sealed bytes only: names are HMACs ([`FoldKey`]), metas, names and values are
//! sealed. Index, chain and writer epoch are made above it. Its [`commit`](Store::commit) is
//! compare-and-swap on the head, so a writer that was fenced off fails on any engine.
//!
//! Engines: [`memory::MemoryStore`] and [`local::LocalStore`]; one conformance suite (in the tests)
//! runs on each.

use std::{io, ops::ControlFlow, path::PathBuf};

use bytes::Bytes;

pub(crate) use entry::{Entry, EntryOp, MAX_ENTRY, OpKind, Part, SALT};

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod entry;
pub(crate) mod local;
pub(crate) mod memory;

/// The name of a record as storage sees it: the HMAC of a logical path, or a control name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FoldKey(pub(crate) [u8; 32]);

impl FoldKey {
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
    fn commit(&self, expected: &Head, entries: &[Entry]) -> Result<(), StoreError>;

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

    /// The whole fold at one head: every control and named record, none missing, none newer.
    #[cfg(test)]
    fn snapshot(&self, visit: &mut dyn FnMut(SnapshotRecord)) -> Result<Head, StoreError>;
}

/// One record of a [`Store::snapshot`].
#[cfg(test)]
pub(crate) struct SnapshotRecord {
    pub(crate) key: FoldKey,
    /// Sealed; empty for a control record.
    pub(crate) name: Bytes,
    pub(crate) record: Record,
}

/// What went wrong below the ledger.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed. A full disk shows here as [`io::ErrorKind::StorageFull`]; nothing of
    /// the change was kept, and the next one is tried anew.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation, as in "cannot *write*".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
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
    #[error("the store {} is in use by another process; stop that server first", dir.display())]
    Locked {
        /// The store directory.
        dir: PathBuf,
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
