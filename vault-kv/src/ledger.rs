//! The history of changes: who changed what, when, through what and why, in a chain that shows tampering.

use std::{
    ops::{ControlFlow, Range},
    path::Path,
    sync::Arc,
};

use serde::Serialize;
use tokio::sync::watch;

use crate::{
    barrier::Barrier,
    core::{Error, META, Meta},
    seal,
    store::{Compacted, Entry, Extent, FoldKey, Head, OpKind, Pace, StoreError, local::verify_dir},
    vault::{Vault, heads},
};

#[cfg(test)]
mod tests;

/// The greatest number of entries that a [`LedgerWatch`] gives at once.
const AT_ONCE: usize = 1024;

/// The history of one store.
#[derive(Clone)]
pub struct Ledger {
    vault: Vault,
}

/// One entry, as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HistoryItem {
    /// Ledger index.
    pub index: u64,
    /// Who, what, when and why.
    #[serde(flatten)]
    pub meta: Meta,
}

/// A store that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Number of entries.
    pub entries: u64,
    /// The newest one.
    pub head: Head,
    /// Parts that were taken out by compaction; the chain holds without them.
    pub redacted: u64,
    /// The entry that the newest snapshot in the store goes up to; `None`: there is none.
    pub snapshot: Option<u64>,
    /// Records of the folded view, which say what the log says; `None`: a server has it open, and only
    /// that server can look at it ([`Ledger::verify`]).
    pub records: Option<u64>,
    /// Records that were opened with the keys; 0 where there were none.
    pub opened: u64,
}

impl Ledger {
    pub(crate) fn new(vault: Vault) -> Self {
        Self { vault }
    }

    /// The newest entry; known also while sealed.
    pub fn head(&self) -> Head {
        self.vault.store().head()
    }

    /// The newest entry under the index that is told to others: above the ledger's own after a rollback was accepted,
    /// so that nobody takes what follows for old. While unsealed, what is read after this is as new as this at least.
    ///
    /// # Errors
    /// Storage cannot be read.
    pub fn published(&self) -> Result<Head, Error> {
        let store = &**self.vault.store();
        let open = self.vault.unsealed();
        let shown = open.and_then(|open| open.core.shown());
        let head = shown.unwrap_or_else(|_| store.head());
        Ok(heads::published(store, head)?)
    }

    /// The last `count` entries before index `before` (`None`: the newest), newest first.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn history(&self, count: usize, before: Option<u64>) -> Result<Vec<HistoryItem>, Error> {
        let open = self.vault.unsealed()?;
        let barrier = open.core.barrier()?;
        let store = open.core.store();
        let end = before.unwrap_or(u64::MAX).min(open.core.head().index + 1);
        let from = end.saturating_sub(count as u64).max(1);
        let mut items = Vec::new();
        let mut unreadable = false;
        store.log(from, &mut |entry| {
            if entry.index >= end {
                return ControlFlow::Break(());
            }
            match item(&barrier, entry) {
                Ok(item) => items.push(item),
                Err(_) => unreadable = true,
            }
            ControlFlow::Continue(())
        })?;
        if unreadable {
            return Err(Error::Unreadable);
        }
        items.reverse();
        Ok(items)
    }

    /// The entries with these indexes, oldest first, at most `limit` of them.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn range(&self, indexes: Range<u64>, limit: usize) -> Result<Vec<HistoryItem>, Error> {
        let open = self.vault.unsealed()?;
        let barrier = open.core.barrier()?;
        let mut items = Vec::new();
        let mut outcome = Ok(());
        open.core.store().log(indexes.start, &mut |entry| {
            if entry.index >= indexes.end || items.len() >= limit {
                return ControlFlow::Break(());
            }
            match item(&barrier, entry) {
                Ok(item) => items.push(item),
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        outcome.map(|()| items)
    }

    /// Follows the entries from index `from` on, those that are there already first. Misses none: what is
    /// not in memory any more is read from the log. Costs nothing while nothing happens.
    pub fn watch(&self, from: u64) -> LedgerWatch {
        LedgerWatch {
            next: from.max(1),
            head: self.vault.store().watch(),
            sealed: self.vault.watch_sealed(),
            vault: self.vault.clone(),
        }
    }

    /// Verifies the running store: chain, commitments, snapshot, every record of the folded view against
    /// the log, and, while unsealed, that every record opens with the keys. Blocks; reads everything.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self) -> Result<Verified, Error> {
        let store = self.vault.store();
        let mut chain = Chain::default();
        let extent = store.verify(&mut |entry| chain.add(entry))?;
        let mut verified = chain.verified(extent)?;
        if let Ok(open) = self.vault.unsealed() {
            verified.opened = open.core.open_all()?;
        }
        Ok(verified)
    }

    /// Takes out for good what nobody needs: the values of deleted records, and those of overwritten ones
    /// that are older than `history_retention`. Entries, and who did what, stay for ever. Blocks; reads
    /// and writes go on meanwhile. It also runs by itself when enough was written.
    ///
    /// # Errors
    /// Sealed (the age of an entry is sealed with it), or storage fails: then what was done so far
    /// stands, and nothing is lost.
    pub fn compact(&self) -> Result<Compacted, Error> {
        let open = self.vault.unsealed()?;
        open.core
            .compact(self.vault.history_retention(), Pace::Prompt)
    }
}

/// Follows a ledger; see [`Ledger::watch`].
pub struct LedgerWatch {
    vault: Vault,
    next: u64,
    head: watch::Receiver<Head>,
    sealed: watch::Receiver<bool>,
}

impl LedgerWatch {
    /// The next entries, in order, at most 1,024; waits until there are some. May be dropped while it
    /// waits without missing any.
    ///
    /// # Errors
    /// Sealed, also while waiting, or storage fails. The same entries come when it is called again.
    pub async fn next(&mut self) -> Result<Vec<HistoryItem>, Error> {
        loop {
            let open = self.vault.unsealed()?;
            let barrier = open.core.barrier()?;
            if self.head.borrow_and_update().index >= self.next {
                let items = self.read(barrier).await?;
                if let Some(last) = items.last() {
                    self.next = last.index + 1;
                    return Ok(items);
                }
            }
            drop(open);
            tokio::select! {
                changed = self.head.changed() => changed.map_err(|_| Error::Sealed)?,
                changed = self.sealed.changed() => changed.map_err(|_| Error::Sealed)?,
            }
        }
    }

    async fn read(&self, barrier: Arc<Barrier>) -> Result<Vec<HistoryItem>, Error> {
        if let Some(recent) = self.vault.store().recent(self.next) {
            let entries = recent.iter().take(AT_ONCE);
            return entries.map(|entry| item(&barrier, entry)).collect();
        }
        drop(barrier);
        let (ledger, from) = (self.vault.ledger(), self.next);
        tokio::task::spawn_blocking(move || ledger.range(from..u64::MAX, AT_ONCE))
            .await
            .map_err(|_| Error::Sealed)?
    }
}

fn item(barrier: &Barrier, entry: &Entry) -> Result<HistoryItem, Error> {
    let meta = entry
        .meta()
        .and_then(|sealed| barrier.open(META, sealed.to_vec()).ok())
        .and_then(|plain| postcard::from_bytes::<Meta>(&plain).ok());
    Ok(HistoryItem {
        index: entry.index,
        meta: meta.ok_or(Error::Unreadable)?,
    })
}

/// Verifies the store in `dir` without any key; a server may be running on it.
///
/// Checks the frames on disk, the order of the entries, the chain of hashes, that what is there matches
/// the commitments in the chain, that seal configuration and keyring are there, the snapshot, and, when
/// no server has it open, every record of the folded view.
///
/// # Errors
/// [`StoreError::Corrupt`] with the first entry that does not hold; [`StoreError::BadSnapshot`],
/// [`StoreError::Damaged`] and [`StoreError::Fold`] for copies of it that differ; [`StoreError::Io`] when
/// the files are not readable.
pub fn verify(dir: &Path) -> Result<Verified, StoreError> {
    let mut chain = Chain::default();
    let extent = verify_dir(dir, |entry| chain.add(entry))?;
    chain.verified(extent)
}

/// What has been seen of a chain, entry by entry.
#[derive(Default)]
struct Chain {
    head: Head,
    redacted: u64,
    seal: SealRecords,
}

/// The last entry that wrote each of the records without which nothing can be unsealed.
#[derive(Default)]
struct SealRecords {
    config: u64,
    root: u64,
    keyring: u64,
}

impl Chain {
    /// The next entry; what does not hold otherwise.
    fn add(&mut self, entry: &Entry) -> Result<(), &'static str> {
        if entry.index != self.head.index + 1 {
            return Err("an entry before it is missing, or it is out of order");
        }
        if entry.previous != self.head.hash {
            return Err("it does not continue the chain");
        }
        if entry.epoch < self.head.epoch {
            return Err("its writer is older than the one before it");
        }
        if !entry.commitments_hold() {
            return Err("a part does not match its commitment");
        }
        self.seal.add(entry)?;
        self.redacted += entry.redacted_parts() as u64;
        self.head = Head {
            index: entry.index,
            epoch: entry.epoch,
            hash: entry.hash(),
        };
        Ok(())
    }

    fn verified(&self, extent: Extent) -> Result<Verified, StoreError> {
        let SealRecords {
            config,
            root,
            keyring,
        } = self.seal;
        if self.head.index > 0 && (config == 0 || root == 0 || keyring == 0) {
            return Err(StoreError::Damaged {
                record: "seal".to_owned(),
                index: 0,
                what: "the store has entries, but no seal configuration, root key or keyring",
            });
        }
        Ok(Verified {
            entries: self.head.index,
            head: self.head,
            redacted: self.redacted,
            snapshot: extent.snapshot,
            records: extent.records,
            opened: 0,
        })
    }
}

impl SealRecords {
    fn add(&mut self, entry: &Entry) -> Result<(), &'static str> {
        let controls = entry.ops.iter().filter(|op| op.kind == OpKind::Control);
        for op in controls {
            let content = op.content();
            let present = content.as_ref().is_none_or(|content| !content.is_empty());
            if op.key == FoldKey::control(seal::CONFIG) {
                if content.is_some_and(|content| seal::SealConfig::decode(&content).is_none()) {
                    return Err("its seal configuration is not readable");
                }
                self.config = entry.index;
            } else if op.key == FoldKey::control(seal::ROOT) {
                if !present {
                    return Err("its root key is empty");
                }
                self.root = entry.index;
            } else if op.key == FoldKey::control(seal::KEYRING) {
                if !present {
                    return Err("its keyring is empty");
                }
                self.keyring = entry.index;
            }
        }
        Ok(())
    }
}
