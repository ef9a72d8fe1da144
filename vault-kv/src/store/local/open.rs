//! Opening: folders, lock, fold, and the part of the log that is not folded yet.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::watch;

use super::{
    CHECKPOINT, Folding, Head, LocalStore, Shared, StoreError,
    checkpoint::checkpoint,
    failed,
    fold::{Fold, OpenError},
    log::{Log, sync_folder},
    overlay::Overlay,
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
        let fold_folder = dir.join("fold");
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

        let (fold, replayed) = match Self::fold(&fold_folder, &log_folder)? {
            Ok(opened) => opened,
            Err(reason) => {
                tracing::warn!(%reason, dir = %dir.display(), "the folded view is damaged; it is made anew from the log");
                set_aside(dir, &fold_folder)?;
                match Self::fold(&fold_folder, &log_folder)? {
                    Ok(opened) => opened,
                    Err(what) => return Err(StoreError::Fold { what }),
                }
            }
        };
        let Replayed {
            log,
            overlay,
            entries,
        } = replayed;
        tracing::debug!(entries, head = overlay.head.index, dir = %dir.display(), "opened the store");
        let store = Self::start(Shared {
            log_folder,
            log: Mutex::new(log),
            head: watch::Sender::new(overlay.head),
            overlay: RwLock::new(overlay),
            fold,
            fold_rests: RwLock::default(),
            folding: Mutex::new(Folding::default()),
            wake: Condvar::new(),
            folded: Condvar::new(),
            #[cfg(test)]
            replayed: entries,
            _lock: lock,
        })?;
        store.shared.tell();
        Ok(store)
    }

    /// The fold and what the log has beyond it, or why the fold cannot be trusted.
    fn fold(
        folder: &Path,
        log_folder: &Path,
    ) -> Result<Result<(Fold, Replayed), String>, StoreError> {
        let missing = !folder.exists();
        let (fold, applied) = match Fold::open(folder) {
            Ok(opened) => opened,
            Err(OpenError::Damaged(reason)) => return Ok(Err(reason)),
            Err(OpenError::Other(error)) => return Err(error),
        };
        let replayed = replay(log_folder, &fold, applied)?;
        if missing && replayed.as_ref().is_ok_and(|replayed| replayed.entries > 0) {
            tracing::warn!(folder = %folder.display(), "the folded view was missing; it is made anew from the log");
        }
        Ok(replayed.map(|replayed| (fold, replayed)))
    }
}

struct Replayed {
    log: Log,
    overlay: Overlay,
    entries: u64,
}

/// Reads the log from the entry that the fold has reached; `Err` when the log has no such entry.
fn replay(
    folder: &Path,
    fold: &Fold,
    applied: Head,
) -> Result<Result<Replayed, String>, StoreError> {
    let overlay = RwLock::new(Overlay {
        head: applied,
        ..Overlay::default()
    });
    let fold_rests = RwLock::new(());
    let mut met = applied.index == 0;
    let mut entries = 0;
    let (mut log, torn) = Log::open(folder, applied.index, |found| {
        let index = found.entry.index;
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
    if !met {
        return Ok(Err(format!(
            "it has reached entry {}, which the log does not have",
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

fn lock(dir: &Path) -> Result<Lock, StoreError> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            dir: dir.to_path_buf(),
        }),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

/// Renames the damaged fold, and removes the one that was set aside before it.
fn set_aside(dir: &Path, fold: &Path) -> Result<(), StoreError> {
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
    let now = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |now| now.as_secs());
    let aside: PathBuf = dir.join(format!("{SET_ASIDE}{now}"));
    std::fs::rename(fold, &aside).map_err(failed("set aside", fold))?;
    sync_folder(dir)
}
