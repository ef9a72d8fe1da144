//! Verification without any key: what is on disk against itself.
//!
//! The log is read once, with its frames, chain and commitments, and what it makes of every key is kept
//! as a short digest (about 80 bytes of memory for every live record). Where the reading passes the
//! entry that a snapshot or the fold has reached, those are compared record by record. A store that no
//! process has open is verified as a whole; beside a server the fold is left out, because sled is open
//! there: that server can verify itself.

use std::{
    collections::HashMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::BufMut;

use super::{
    Entry, Extent, OpKind, Shared, StoreError, damaged,
    fold::{Fold, OpenError},
    open,
    overlay::{FoldId, Folded, Value},
    rebuild,
    segment::{self, Chain, Found},
    snapshots,
};
use crate::store::entry::sha256;

/// Walks the store in `dir`; `check` says what else does not hold about an entry.
///
/// An unfinished write at the end, as a crash or a running server leaves it, is left out of account.
///
/// # Errors
/// The first thing that does not hold: [`StoreError::Corrupt`] for an entry, [`StoreError::BadSnapshot`],
/// [`StoreError::Damaged`] for a record of the fold, [`StoreError::Fold`] when sled does not open.
pub(crate) fn verify_dir(
    dir: &Path,
    mut check: impl FnMut(&Entry) -> Result<(), &'static str>,
) -> Result<Extent, StoreError> {
    let log = dir.join("log");
    let lock = match open::lock(dir) {
        Ok(lock) => Some(lock),
        Err(StoreError::Locked { .. }) => None,
        // A backup that may only be read is verified all the same, but sled would write.
        Err(StoreError::Io { .. }) => None,
        Err(error) => return Err(error),
    };
    let fold = match (&lock, rebuild::list(dir)?.first()) {
        (Some(_), Some((_, folder))) => match Fold::open(folder) {
            Ok(fold) => Some(fold),
            Err(OpenError::Damaged(what)) => return Err(StoreError::Fold { what }),
            Err(OpenError::Other(error)) => return Err(error),
        },
        _ => None,
    };
    let mut verification = Verification::new(dir)?;
    let at = fold.as_ref().map(Fold::applied);
    let mut records = None;
    let spans = segment::spans(&log)?;
    let compare = |verification: &Verification| {
        let fold = fold.as_ref();
        fold.map(|fold| verification.compare_fold(fold)).transpose()
    };
    if at.is_some_and(|at| at.index == 0) {
        records = compare(&verification)?;
    }
    segment::walk(&spans, &mut Chain::start(), |found| {
        verification.add(&log, &found, &mut check)?;
        if at.is_some_and(|at| at.index == found.entry.index) {
            records = compare(&verification)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some(at) = at.filter(|at| at.index > verification.last) {
        return Err(StoreError::Corrupt {
            index: verification.last + 1,
            segment: spans.last().map_or(log, |span| span.path.clone()),
            offset: spans.last().map_or(0, |span| span.to),
            what: if at.index == 0 {
                "it is missing"
            } else {
                "the log ends before it, but it was durable"
            },
        });
    }
    let snapshot = verification.finish()?;
    Ok(Extent { snapshot, records })
}

/// The same for the store of this process; what is committed meanwhile is left out.
pub(super) fn verify_open(
    shared: &Shared,
    check: &mut dyn FnMut(&Entry) -> Result<(), &'static str>,
) -> Result<Extent, StoreError> {
    let log = shared.log_folder();
    let mut verification = Verification::new(&shared.dir)?;
    let mut walk = |verification: &mut Verification, to: u64| {
        let from = verification.last + 1;
        if from > to {
            return Ok(());
        }
        shared.segments.walk(from, |found| {
            if found.entry.index > to {
                return Ok(ControlFlow::Break(()));
            }
            verification.add(&log, &found, check)?;
            Ok(ControlFlow::Continue(()))
        })
    };
    let head = shared.feed.head().index;
    let applied = shared.fold.read().applied().index;
    walk(&mut verification, applied)?;
    let records = {
        let _rests = shared.fold_rests.read();
        let fold = Arc::clone(&shared.fold.read());
        walk(&mut verification, fold.applied().index)?;
        verification.compare_fold(&fold)?
    };
    walk(&mut verification, head)?;
    if verification.last < head {
        return Err(StoreError::Corrupt {
            index: verification.last + 1,
            segment: log,
            offset: 0,
            what: "it is missing",
        });
    }
    let snapshot = verification.finish()?;
    Ok(Extent {
        snapshot,
        records: Some(records),
    })
}

/// What the log has made of every key so far.
struct Verification {
    /// `None`: its payload was taken out, so a later entry must change it.
    records: HashMap<FoldId, Option<[u8; 16]>>,
    redacted: HashMap<FoldId, u64>,
    last: u64,
    genesis: [u8; 32],
    snapshots: Vec<(u64, PathBuf)>,
    compared: Option<u64>,
}

impl Verification {
    fn new(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            records: HashMap::new(),
            redacted: HashMap::new(),
            last: 0,
            genesis: [0; 32],
            snapshots: snapshots::list(dir)?,
            compared: None,
        })
    }

    fn add(
        &mut self,
        log: &Path,
        found: &Found,
        check: &mut dyn FnMut(&Entry) -> Result<(), &'static str>,
    ) -> Result<(), StoreError> {
        let entry = &found.entry;
        check(entry).map_err(|what| StoreError::Corrupt {
            index: entry.index,
            segment: segment::segment_path(log, found.first),
            offset: found.offset,
            what,
        })?;
        if entry.index == 1 {
            self.genesis = entry.hash();
        }
        for (at, part) in found.parts.iter().enumerate() {
            let (id, folded) = Folded::of(entry, at, found.first, *part);
            match folded {
                Some(folded) => {
                    self.redacted.remove(&id);
                    self.records.insert(id, Some(digest(&folded)));
                }
                None if entry.ops[at].kind == OpKind::Delete => {
                    self.redacted.remove(&id);
                    self.records.remove(&id);
                }
                None => {
                    self.redacted.insert(id, entry.index);
                    self.records.insert(id, None);
                }
            }
        }
        self.last = entry.index;
        while let Some((_, path)) = self.snapshots.pop_if(|(index, _)| *index <= entry.index) {
            self.compare_snapshot(&path)?;
        }
        Ok(())
    }

    fn compare_snapshot(&mut self, path: &Path) -> Result<(), StoreError> {
        let bad = |what: &str| StoreError::BadSnapshot {
            path: path.to_path_buf(),
            offset: 0,
            what: what.to_owned(),
        };
        let mut records = 0;
        let head = match snapshots::each(path, Some(self.genesis), |id, folded| {
            records += 1;
            match self.records.get(&id) {
                Some(Some(expected)) if *expected != digest(&folded) => Err(bad(&format!(
                    "its record {} is not what the log says",
                    id.key().short()
                ))),
                Some(_) => Ok(()),
                None => Err(bad("it has a record that the log does not have")),
            }
        }) {
            // A compaction of the running server has replaced it.
            Err(StoreError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
                return Ok(());
            }
            read => read?,
        };
        if head.index != self.last {
            return Err(bad("its name and its head differ"));
        }
        if records != self.records.len() {
            return Err(bad("it does not have every record that the log has"));
        }
        self.compared = self.compared.max(Some(head.index));
        Ok(())
    }

    /// The number of records.
    fn compare_fold(&self, fold: &Fold) -> Result<u64, StoreError> {
        let mut records = 0;
        fold.each(|id, folded| {
            let expected = self.records.get(&id);
            let Ok(folded) = folded else {
                return Err(damaged(&id, 0, "its checksum in the fold does not match"));
            };
            records += 1;
            match expected {
                Some(Some(expected)) if *expected != digest(&folded) => Err(damaged(
                    &id,
                    folded.modified,
                    "the fold has another value than the log",
                )),
                Some(_) => Ok(()),
                None => Err(damaged(
                    &id,
                    folded.modified,
                    "the fold has it and the log does not",
                )),
            }
        })?;
        // What was taken out is not there when the fold was made from the log since.
        let known = self.records.values().filter(|digest| digest.is_some());
        if records < known.count() as u64 {
            return Err(StoreError::Fold {
                what: "it does not have every record that the log has".into(),
            });
        }
        Ok(records)
    }

    /// Nothing live may have been taken out. The snapshot that was compared.
    fn finish(self) -> Result<Option<u64>, StoreError> {
        if let Some((id, index)) = self.redacted.iter().min_by_key(|(_, index)| **index) {
            return Err(damaged(
                id,
                *index,
                "its value was taken out of the log although nothing replaced it",
            ));
        }
        if let Some((index, path)) = self.snapshots.first() {
            return Err(StoreError::BadSnapshot {
                path: path.clone(),
                offset: 0,
                what: format!("it goes up to entry {index}, which the log does not have"),
            });
        }
        Ok(self.compared)
    }
}

/// Of everything but the place.
fn digest(folded: &Folded) -> [u8; 16] {
    let mut out = Vec::with_capacity(64 + folded.name.len());
    out.put_u64(folded.created);
    out.put_u64(folded.modified);
    out.put_u32(folded.name.len() as u32);
    out.put_slice(&folded.name);
    match &folded.value {
        Value::Here(value) => out.put_slice(value),
        Value::InLog(place) => {
            out.put_u32(place.length);
            out.put_u32(place.crc);
        }
    }
    let mut short = [0; 16];
    short.copy_from_slice(&sha256(&out)[..16]);
    short
}
