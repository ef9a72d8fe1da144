//! The history of changes: who changed what, when, through what and why, in a chain that shows tampering.

use std::{ops::ControlFlow, path::Path};

use serde::Serialize;

use crate::{
    core::{Error, META, Meta},
    store::{Entry, Head, StoreError, local::verify_dir},
    vault::Vault,
};

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

/// A chain that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Number of entries.
    pub entries: u64,
    /// The newest one.
    pub head: Head,
    /// Parts that were taken out by compaction; the chain holds without them.
    pub redacted: u64,
}

impl Ledger {
    pub(crate) fn new(vault: Vault) -> Self {
        Self { vault }
    }

    /// The newest entry; known also while sealed.
    pub fn head(&self) -> Head {
        self.vault.store().head()
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
            let meta = entry
                .meta()
                .and_then(|sealed| barrier.open(META, sealed.to_vec()).ok())
                .and_then(|plain| postcard::from_bytes::<Meta>(&plain).ok());
            match meta {
                Some(meta) => items.push(HistoryItem {
                    index: entry.index,
                    meta,
                }),
                None => unreadable = true,
            }
            ControlFlow::Continue(())
        })?;
        if unreadable {
            return Err(Error::Unreadable);
        }
        items.reverse();
        Ok(items)
    }

    /// Walks the whole chain of the running store. Needs no key.
    ///
    /// # Errors
    /// The first entry that does not hold.
    pub fn verify(&self) -> Result<Verified, Error> {
        let store = self.vault.store();
        let mut chain = Chain::default();
        let mut broken = None;
        store.log(1, &mut |entry| match chain.add(entry) {
            Ok(()) => ControlFlow::Continue(()),
            Err(what) => {
                broken = Some((entry.index, what));
                ControlFlow::Break(())
            }
        })?;
        let head = store.head();
        if broken.is_none() && chain.head.index < head.index {
            broken = Some((chain.head.index + 1, "it is missing"));
        }
        match broken {
            Some((index, what)) => Err(StoreError::Corrupt {
                index,
                segment: "the running store".into(),
                offset: 0,
                what,
            }
            .into()),
            None => Ok(chain.verified()),
        }
    }
}

/// Verifies the ledger of the store in `dir` without any key; a server may be running on it.
///
/// Checks the frames on disk, the order of the entries, the chain of hashes, and that what is there
/// matches the commitments in the chain.
///
/// # Errors
/// [`StoreError::Corrupt`] with the first entry that does not hold; [`StoreError::Io`] when the files
/// are not readable.
pub fn verify(dir: &Path) -> Result<Verified, StoreError> {
    let mut chain = Chain::default();
    verify_dir(dir, |entry| chain.add(entry))?;
    Ok(chain.verified())
}

/// What has been seen of a chain, entry by entry.
#[derive(Default)]
pub(crate) struct Chain {
    head: Head,
    redacted: u64,
}

impl Chain {
    /// The next entry; what does not hold otherwise.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), &'static str> {
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
        self.redacted += entry.redacted_parts() as u64;
        self.head = Head {
            index: entry.index,
            epoch: entry.epoch,
            hash: entry.hash(),
        };
        Ok(())
    }

    pub(crate) fn verified(&self) -> Verified {
        Verified {
            entries: self.head.index,
            head: self.head,
            redacted: self.redacted,
        }
    }
}
