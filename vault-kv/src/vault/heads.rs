//! Rollback detection: the ledger that is here against the heads that others remember.
//!
//! A chain proves that nothing inside was changed; it cannot prove that nothing is missing at its end. What can is
//! somebody who saw a later head: the file beside the log that is written at each seal, a file outside of the store
//! ([`VaultConfig::head_file`](super::VaultConfig::head_file)), and whoever else the embedding program knows
//! ([`Vault::seen`]; in a mesh every agent keeps the head of the last configuration it got). A store that ends before
//! such a head, or has another entry in its place, does not unseal.
//!
//! A backup that is restored on purpose looks the same. [`Vault::accept_rollback`] lets the next unseal pass; the
//! ledger says so, and from then on indexes that are *published* start above everything that was seen:
//! [`Ledger::published`](crate::Ledger::published).

use std::{
    fs,
    io::{self, Write as _},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Weak,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Inner, StoreConfig, Vault, VaultError};
use crate::{
    core::Core,
    db::{Batch, By},
    seal::SealConfig,
    store::{FoldKey, Head, Store, StoreError},
};

#[cfg(test)]
mod tests;

/// Control record: what was accepted.
const ACCEPTED: &str = "ledger/rollback";
/// The file beside the log.
const AT_SEAL: &str = "head";
/// How often the file outside of the store follows the ledger.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// A head of this store's ledger that somebody remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenHead {
    /// Ledger index, as published.
    pub index: u64,
    /// Chain hash of that entry.
    pub hash: [u8; 32],
    /// Who remembers, for people.
    pub by: String,
}

/// A rollback that was accepted, and what became of indexes.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Accepted {
    /// Published indexes up to this one tell nothing: they are of the history that was given up.
    until: u64,
    /// Added to ledger indexes when they are published.
    shift: u64,
}

impl Accepted {
    fn load(store: &dyn Store) -> Result<Self, StoreError> {
        let record = store.control(&FoldKey::control(ACCEPTED))?;
        let record = record.map(|record| postcard::from_bytes(&record.value));
        record
            .transpose()
            .map(Option::unwrap_or_default)
            .map_err(|_| StoreError::Fold {
                what: "the record of accepted rollbacks is not readable by this version".to_owned(),
            })
    }
}

/// Time that clocks may differ by.
const TOLERANCE: i64 = 60_000_000;

/// How far the clock is behind the newest entry of the ledger, in microseconds; 0: it is not.
pub(super) fn clock_behind(vault: &Vault, now: i64) -> i64 {
    let newest = vault.ledger().history(1, None).ok();
    let newest = newest.and_then(|items| items.first().map(|item| item.meta.time));
    match newest {
        Some(newest) if newest - now > TOLERANCE => newest - now,
        _ => 0,
    }
}

/// `head` under the index under which it is published.
pub(crate) fn published(store: &dyn Store, head: Head) -> Result<Head, StoreError> {
    let shift = Accepted::load(store)?.shift;
    Ok(Head {
        index: head.index + shift,
        ..head
    })
}

impl Vault {
    /// Somebody remembers this head. It counts at every unseal of this process from here on.
    ///
    /// # Errors
    /// [`VaultError::RolledBack`] when the ledger contradicts it. If the store was open it is sealed: it has lost
    /// what others acted upon.
    pub fn seen(&self, head: SeenHead) -> Result<(), VaultError> {
        let store = &*self.inner.store;
        // What was compared once and let the store be open still holds.
        if !self.is_sealed() && self.inner.seen.lock().contains(&head) {
            return Ok(());
        }
        let holds = holds(store, &Accepted::load(store)?, &head);
        let mut seen = self.inner.seen.lock();
        seen.retain(|known| known.by != head.by);
        seen.push(head);
        drop(seen);
        if matches!(holds, Err(VaultError::RolledBack { .. })) {
            self.seal();
        }
        holds
    }

    /// Lets the next unseal pass although heads are remembered that this ledger does not have: after a restore from
    /// a backup. It is recorded in the ledger.
    pub fn accept_rollback(&self, accept: bool) {
        *self.inner.accepting.lock() = accept;
    }

    /// What all that is remembered says of the ledger: the newest head that is missing, if one is and that may be.
    pub(super) fn compare_heads(&self) -> Result<Option<SeenHead>, VaultError> {
        let store = &*self.inner.store;
        let accepted = Accepted::load(store)?;
        let mut seen = self.inner.seen.lock().clone();
        for (path, by) in self.head_files() {
            match read(&path) {
                Ok(Some(kept)) => {
                    let config = SealConfig::load(store)?;
                    let ours = config.map(|config| config.cluster_id).unwrap_or_default();
                    if kept.cluster_id != ours {
                        return Err(VaultError::OtherStore {
                            file: path,
                            remembered: kept.cluster_id,
                            found: ours,
                        });
                    }
                    seen.push(SeenHead {
                        index: kept.index,
                        hash: kept.hash,
                        by,
                    });
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(
                    path = %path.display(), %error,
                    "the remembered head of the ledger is not readable and proves nothing; it is written anew"
                ),
            }
        }
        seen.sort_by_key(|head| head.index);
        let mut missing = None;
        for head in seen {
            match holds(store, &accepted, &head) {
                Ok(()) => {}
                Err(VaultError::RolledBack { .. }) => missing = Some(head),
                Err(other) => return Err(other),
            }
        }
        match missing {
            Some(missing) if !*self.inner.accepting.lock() => {
                Err(rolled_back(store.head(), missing))
            }
            missing => Ok(missing),
        }
    }

    /// Records that `missing` was given up; what is published from here on is above it.
    pub(super) async fn give_up(&self, core: &Core, missing: &SeenHead) -> Result<(), VaultError> {
        let store = &*self.inner.store;
        let before = Accepted::load(store)?;
        let head = store.head();
        let accepted = Accepted {
            until: missing.index.max(before.until),
            shift: missing.index.saturating_sub(head.index).max(before.shift),
        };
        let mut batch = Batch::new(&By::system("unseal"), "rollback accepted");
        let bytes = postcard::to_stdvec(&accepted).expect("plain data always encodes");
        batch.control(ACCEPTED, bytes).key(format!(
            "entry {} that {} remembers; this store ended at entry {}",
            missing.index, missing.by, head.index
        ));
        core.commit(batch.into_change()).await?;
        *self.inner.accepting.lock() = false;
        self.inner
            .seen
            .lock()
            .retain(|seen| seen.index > accepted.until);
        tracing::warn!(
            ended = head.index,
            remembered = missing.index,
            by = missing.by,
            "a rollback of this store was accepted"
        );
        Ok(())
    }

    /// Writes the head where it is looked for at the next unseal.
    pub(super) fn keep_head(&self, at_seal: bool) {
        self.inner.keep_head(at_seal);
    }

    fn head_files(&self) -> Vec<(PathBuf, String)> {
        self.inner.head_files()
    }
}

impl Inner {
    fn head_files(&self) -> Vec<(PathBuf, String)> {
        let mut files = Vec::new();
        if let StoreConfig::Dir(dir) = &self.config.store {
            let path = dir.join(AT_SEAL);
            files.push((path, "the record of its last seal".to_owned()));
        }
        if let Some(path) = &self.config.head_file {
            files.push((path.clone(), format!("{}", path.display())));
        }
        files
    }

    fn keep_head(&self, at_seal: bool) {
        let kept = (|| {
            let head = published(&*self.store, self.store.head())?;
            let config = SealConfig::load(&*self.store)?;
            Ok::<_, StoreError>(Kept {
                index: head.index,
                hash: head.hash,
                cluster_id: config.map(|config| config.cluster_id).unwrap_or_default(),
            })
        })();
        let kept = match kept {
            Ok(kept) if kept.index > 0 => kept,
            Ok(_) => return,
            Err(error) => return tracing::warn!(%error, "the head of the ledger is not remembered"),
        };
        let mut files = self.head_files();
        if !at_seal {
            files.retain(|(path, _)| Some(path) == self.config.head_file.as_ref());
        }
        for (path, _) in files {
            if let Err(error) = write(&path, &kept) {
                tracing::warn!(path = %path.display(), %error, "the head of the ledger is not remembered");
            }
        }
    }
}

/// Follows the ledger with the file outside of the store, until the store is sealed or gone.
pub(super) async fn keep(inner: Weak<Inner>) {
    let mut last = 0;
    loop {
        tokio::time::sleep(KEEP_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.open.read().is_none() {
            return;
        }
        let index = inner.store.head().index;
        if index != last {
            last = index;
            // A rename and a sync, every ten seconds at most.
            let _ = tokio::task::spawn_blocking(move || inner.keep_head(false)).await;
        }
    }
}

/// Whether the ledger has what somebody remembers.
fn holds(store: &dyn Store, accepted: &Accepted, seen: &SeenHead) -> Result<(), VaultError> {
    if seen.index <= accepted.until || seen.index <= accepted.shift {
        return Ok(());
    }
    let (index, head) = (seen.index - accepted.shift, store.head());
    if index > head.index {
        return Err(rolled_back(head, seen.clone()));
    }
    let mut hash = None;
    store.log(index, &mut |entry| {
        hash = (entry.index == index).then(|| entry.hash());
        ControlFlow::Break(())
    })?;
    match hash {
        Some(hash) if hash != seen.hash => Err(rolled_back(head, seen.clone())),
        _ => Ok(()),
    }
}

fn rolled_back(ends: Head, seen: SeenHead) -> VaultError {
    let hex = |hash: [u8; 32]| hash[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    VaultError::RolledBack {
        ends: ends.index,
        ends_hash: hex(ends.hash),
        seen: seen.index,
        seen_hash: hex(seen.hash),
        by: seen.by,
    }
}

struct Kept {
    index: u64,
    hash: [u8; 32],
    cluster_id: String,
}

/// One line: index, hash, name of the store. Nothing of it is secret.
fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let hash: String = kept.hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    writeln!(file, "{} {hash} {}", kept.index, kept.cluster_id)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> io::Result<Option<Kept>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&text)
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not index, hash and store"))
}

fn parse(text: &str) -> Option<Kept> {
    let mut words = text.split_ascii_whitespace();
    let (index, hex, cluster_id) = (words.next()?, words.next()?, words.next()?);
    let mut hash = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() || words.next().is_some() {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(Kept {
        index: index.parse().ok()?,
        hash,
        cluster_id: cluster_id.to_owned(),
    })
}
