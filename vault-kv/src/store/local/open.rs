//! Opening: folders, lock, fold, and the part of the log that is not folded yet.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

use parking_lot::{Condvar, Mutex, RwLock};

use super::{
    CHECKPOINT, Chain, Feed, Folding, LocalStore, Shared, StoreError,
    checkpoint::checkpoint,
    failed,
    fold::{Fold, OpenError},
    log::{Log, sync_folder},
    overlay::Overlay,
    rebuild, segment, snapshots,
};

const SET_ASIDE: &str = "fold.damaged-";

impl LocalStore {
    /// Opens or creates the store in `dir`; its parent must exist.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when a process has it open, [`StoreError::Corrupt`] when an entry that was
    /// durable is damaged. A damaged fold is no error: it is set aside and made anew from the log.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        let log_folder = dir.join("log");
        let fresh = create_folder(dir)?;
        let lock = lock(dir)?;
        if create_folder(&log_folder)? {
            sync_folder(dir)?;
        }
        if let Some(parent) = dir
            .parent()
            .filter(|parent| fresh && !parent.as_os_str().is_empty())
        {
            sync_folder(parent)?;
        }

        tidy(dir)?;
        let (fold, replayed) = open_fold(dir, &log_folder)?;
        let Replayed {
            log,
            overlay,
            entries,
        } = replayed;
        tracing::debug!(entries, head = overlay.head.index, dir = %dir.display(), "opened the store");
        let bytes = overlay.bytes();
        let store = Self::start(Shared {
            dir: dir.to_path_buf(),
            segments: Arc::clone(log.segments()),
            log: Mutex::new(log),
            feed: Feed::new(overlay.head),
            overlay: RwLock::new(overlay),
            #[cfg(test)]
            opened: Opened { replayed: entries },
            fold,
            fold_rests: RwLock::default(),
            folding: Mutex::new(Folding::default()),
            wake: Condvar::new(),
            folded: Condvar::new(),
            compacting: Mutex::default(),
            refolding: Mutex::default(),
            _lock: lock,
        })?;
        if bytes > 0 {
            store.shared.tell(bytes);
        }
        Ok(store)
    }
}

/// What a test wants to know about the opening of a store.
#[cfg(test)]
pub(super) struct Opened {
    /// Entries that were read from the log beyond the fold.
    pub(super) replayed: u64,
}

/// The fold and what the log has beyond it. A fold that cannot be trusted is set aside and made anew.
fn open_fold(dir: &Path, log_folder: &Path) -> Result<(RwLock<Arc<Fold>>, Replayed), StoreError> {
    let newest = rebuild::list(dir)?.into_iter().next();
    let reason = match &newest {
        Some((_, folder)) => match Fold::open(folder) {
            Ok(fold) => {
                let fold = RwLock::new(Arc::new(fold));
                match replay(log_folder, &fold)? {
                    Ok(replayed) => return Ok((fold, replayed)),
                    Err(reason) => reason,
                }
            }
            Err(OpenError::Damaged(reason)) => reason,
            Err(OpenError::Other(error)) => return Err(error),
        },
        None => "it is missing".to_owned(),
    };
    let genesis = first_hash(log_folder)?;
    if genesis.is_some() {
        tracing::warn!(%reason, dir = %dir.display(), "the folded view is not usable; it is made anew from snapshot and log");
    }
    let folder = rebuild::next_folder(dir)?;
    if let Some((_, damaged)) = newest {
        set_aside(dir, &damaged)?;
    }
    let fold = rebuild::from_snapshot(dir, &folder, genesis, &AtomicBool::new(false))?;
    let fold = RwLock::new(Arc::new(fold));
    match replay(log_folder, &fold)? {
        Ok(replayed) => Ok((fold, replayed)),
        Err(what) => Err(StoreError::Fold { what }),
    }
}

/// The hash of the first entry of a log that is not open.
fn first_hash(log_folder: &Path) -> Result<Option<[u8; 32]>, StoreError> {
    let mut spans = segment::spans(log_folder)?;
    spans.truncate(1);
    let mut hash = None;
    segment::walk(&spans, &mut Chain::start(), |found| {
        hash = Some(found.entry.hash());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(hash)
}

/// Removes what a process left that died while it wrote something new, and folds that were replaced.
fn tidy(dir: &Path) -> Result<(), StoreError> {
    for folder in ["log", "fold", "snapshot"] {
        let folder = dir.join(folder);
        if !folder.exists() {
            continue;
        }
        for item in folder.read_dir().map_err(failed("list", &folder))? {
            let path = item.map_err(failed("list", &folder))?.path();
            if path.extension().is_some_and(|end| end == "new") {
                let removed = if path.is_dir() {
                    std::fs::remove_dir_all(&path)
                } else {
                    std::fs::remove_file(&path)
                };
                removed.map_err(failed("remove", &path))?;
            }
        }
    }
    for (_, replaced) in rebuild::list(dir)?.into_iter().skip(1) {
        std::fs::remove_dir_all(&replaced).map_err(failed("remove", &replaced))?;
    }
    for (_, replaced) in snapshots::list(dir)?.into_iter().skip(1) {
        std::fs::remove_file(&replaced).map_err(failed("remove", &replaced))?;
    }
    Ok(())
}

struct Replayed {
    log: Log,
    overlay: Overlay,
    entries: u64,
}

/// Reads the log from the entry that the fold has reached; `Err` when the fold is not of this log.
///
/// What has been folded or is in a snapshot was durable: a log that ends before it has lost entries, and
/// is not opened.
fn replay(folder: &Path, fold: &RwLock<Arc<Fold>>) -> Result<Result<Replayed, String>, StoreError> {
    let applied = fold.read().applied();
    let overlay = RwLock::new(Overlay {
        head: applied,
        ..Overlay::default()
    });
    let fold_rests = RwLock::new(());
    let mut met = applied.index == 0;
    let mut entries = 0;
    let mut last = 0;
    let (mut log, torn) = Log::open(folder, applied.index, |found| {
        let index = found.entry.index;
        last = index;
        if index <= applied.index {
            met |= index == applied.index && found.entry.hash() == applied.hash;
            return Ok(());
        }
        if !met {
            return Ok(());
        }
        entries += 1;
        let bytes = {
            let mut overlay = overlay.write();
            overlay.apply(&found.entry, found.first, &found.parts);
            overlay.bytes()
        };
        if bytes >= CHECKPOINT {
            checkpoint(&overlay, fold, &fold_rests)?;
        }
        Ok(())
    })?;
    if let Some(torn) = torn {
        if torn.index <= applied.index {
            // Only what was durable is folded, so this is no write that a crash cut off.
            return Err(torn.corrupt());
        }
        tracing::warn!(
            segment = %torn.path.display(), offset = torn.offset, bytes = torn.bytes,
            "the last write to the log was cut off by a crash; it had not been acknowledged and is taken out"
        );
        log.cut(&torn)?;
    }
    if last < applied.index {
        let span = segment::spans(folder)?.pop();
        return Err(StoreError::Corrupt {
            index: last + 1,
            offset: span.as_ref().map_or(0, |span| span.to),
            segment: span.map_or_else(|| folder.to_path_buf(), |span| span.path),
            what: "the log ends before it, but it was durable",
        });
    }
    if !met {
        return Ok(Err(format!(
            "entry {} of the log is another one than the fold has",
            applied.index
        )));
    }
    Ok(Ok(Replayed {
        log,
        overlay: overlay.into_inner(),
        entries,
    }))
}

/// Whether `folder` had to be created.
fn create_folder(folder: &Path) -> Result<bool, StoreError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => Ok(true),
        Err(_) if folder.is_dir() => Ok(false),
        Err(error) => Err(failed("create", folder)(error)),
    }
}

/// Keeps other processes out until it is dropped.
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone would leave it to a child between fork and exec, which has the file too.
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "cannot release the lock of the store before its file is closed");
        }
    }
}

pub(super) fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => {
            // Only for the message of the next one: who it is, at the same width each time.
            let pid = format!("{:<10}\n", std::process::id());
            if let Err(error) = file.write_all(pid.as_bytes()) {
                tracing::debug!(%error, "cannot write to the lock who holds it");
            }
            Ok(Lock(file))
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let read = file.take(16).read_to_string(&mut pid);
            Err(StoreError::Locked {
                dir: dir.to_path_buf(),
                pid: read.ok().and_then(|_| pid.trim().parse().ok()),
            })
        }
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

/// Renames the damaged fold, and removes the one that was set aside before it.
fn set_aside(dir: &Path, fold: &Path) -> Result<(), StoreError> {
    remove_set_aside(dir)?;
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |now| now.as_secs());
    let aside: PathBuf = dir.join(format!("{SET_ASIDE}{now}"));
    std::fs::rename(fold, &aside).map_err(failed("set aside", fold))?;
    sync_folder(&dir.join("fold"))?;
    sync_folder(dir)
}

/// Removes damaged folds that were kept to be looked at.
pub(super) fn remove_set_aside(dir: &Path) -> Result<(), StoreError> {
    for item in dir.read_dir().map_err(failed("list", dir))? {
        let item = item.map_err(failed("list", dir))?;
        if item
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(SET_ASIDE))
        {
            std::fs::remove_dir_all(item.path()).map_err(failed("remove", &item.path()))?;
        }
    }
    Ok(())
}
