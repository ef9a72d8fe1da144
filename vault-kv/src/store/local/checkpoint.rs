//! The thread that folds behind the log, and how commits and it talk.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use parking_lot::RwLock;

use super::{
    CHECKPOINT, CHECKPOINT_AFTER, Head, LocalStore, OVERLAY_LIMIT, Shared, StoreError, failed,
    fold::Fold, overlay::Overlay,
};

/// Folds what is in the overlay durably and takes it out of there; the head the fold has reached.
pub(super) fn checkpoint(
    overlay: &RwLock<Overlay>,
    fold: &RwLock<Arc<Fold>>,
    fold_rests: &RwLock<()>,
) -> Result<Option<Head>, StoreError> {
    let Some(changes) = overlay.write().cut() else {
        return Ok(None);
    };
    {
        let _alone = fold_rests.write();
        // Only now: it may have been replaced until here.
        let fold = Arc::clone(&fold.read());
        fold.apply(&changes)?;
        overlay.write().folding = None;
    }
    Ok(Some(changes.head))
}

impl Shared {
    /// Tells the folding thread that the overlay has so many bytes now.
    pub(super) fn tell(&self, bytes: usize) {
        let mut folding = self.folding.lock();
        let before = std::mem::replace(&mut folding.bytes, bytes);
        if before == 0 || (before < CHECKPOINT && bytes >= CHECKPOINT) {
            self.wake.notify_one();
        }
    }

    /// Waits while the overlay is full.
    pub(super) fn wait_for_room(&self) -> Result<(), StoreError> {
        let mut folding = self.folding.lock();
        while folding.bytes >= OVERLAY_LIMIT {
            if let Some(what) = &folding.failed {
                return Err(StoreError::Fold { what: what.clone() });
            }
            self.folded.wait(&mut folding);
        }
        Ok(())
    }

    /// Folds after enough bytes or enough time, until the store closes; then once more.
    fn fold_behind(&self) {
        loop {
            let (closing, anew) = {
                let mut folding = self.folding.lock();
                while folding.bytes == 0 && !folding.closing && !folding.anew {
                    self.wake.wait(&mut folding);
                }
                // A failed checkpoint is tried again after the same time.
                let waits = folding.bytes < CHECKPOINT || folding.failed.is_some();
                if waits && !folding.closing && !folding.anew {
                    self.wake.wait_for(&mut folding, CHECKPOINT_AFTER);
                }
                (folding.closing, folding.anew)
            };
            if anew && !closing {
                self.make_anew();
            }
            let mut ended = self.checkpoint();
            while closing && matches!(ended, Ok(Some(_))) {
                ended = self.checkpoint();
            }
            let mut folding = self.folding.lock();
            folding.bytes = self.overlay.read().bytes();
            folding.failed = ended.err().map(|error| error.to_string());
            self.folded.notify_all();
            if closing {
                return;
            }
        }
    }

    fn make_anew(&self) {
        tracing::warn!(dir = %self.dir.display(), "the folded view is damaged; it is made anew from snapshot and log");
        let made = catch_unwind(AssertUnwindSafe(|| self.refold(&AtomicBool::new(false))));
        match made {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the folded view was not made anew"),
            Err(_) => tracing::warn!("sled gave up while the folded view was made anew"),
        }
        self.folding.lock().anew = false;
    }

    fn checkpoint(&self) -> Result<Option<Head>, StoreError> {
        // Commits wait for this thread: a panic in sled must end as an error.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            checkpoint(&self.overlay, &self.fold, &self.fold_rests)
        }));
        let ended = ended.unwrap_or_else(|_| {
            Err(StoreError::Fold {
                what: "sled gave up".into(),
            })
        });
        if let Err(error) = &ended {
            tracing::warn!(%error, "cannot fold the log; the entries are safe in it");
            if self.fold.read().is_damaged() {
                self.folding.lock().anew = true;
            }
        }
        ended
    }
}

impl LocalStore {
    pub(super) fn start(shared: Shared) -> Result<Self, StoreError> {
        let shared = Arc::new(shared);
        let worker = shared.clone();
        let folder = thread::Builder::new()
            .name("vault-kv-fold".into())
            .spawn(move || worker.fold_behind())
            .map_err(failed("start the folding thread of", &shared.dir))?;
        Ok(Self {
            shared,
            folder: Some(folder),
        })
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        self.shared.folding.lock().closing = true;
        self.shared.wake.notify_one();
        if let Some(folder) = self.folder.take() {
            // It catches what sled does, and has nothing else to report.
            let _ = folder.join();
        }
    }
}
