//! Making the fold anew: from the newest snapshot and the log behind it, or from the log alone.

use std::{
    fs::DirBuilder,
    ops::ControlFlow,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    CHECKPOINT, Head, Shared, StoreError, failed,
    fold::{Fold, OpenError, is_key_of_both},
    log::{Segments, sync_folder},
    overlay::{Changes, FoldId, Folded},
    segment::Found,
    snapshots,
};

/// Bytes of records that are sorted together: neighbours share pages.
const SORTED: usize = 64 << 20;

/// Folds in the store `dir` by number, newest first.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let root = dir.join("fold");
    let mut found = Vec::new();
    if !root.exists() {
        return Ok(found);
    }
    for item in root.read_dir().map_err(failed("list", &root))? {
        let path = item.map_err(failed("list", &root))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(number) = name.and_then(|name| name.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The folder of the next fold, which does not exist.
pub(super) fn next_folder(dir: &Path) -> Result<PathBuf, StoreError> {
    let root = dir.join("fold");
    if !root.exists() {
        let made = DirBuilder::new().mode(0o700).create(&root);
        made.map_err(failed("create", &root))?;
        sync_folder(dir)?;
    }
    let newest = list(dir)?.first().map_or(0, |(number, _)| *number);
    Ok(root.join(format!("{:020}", newest + 1)))
}

/// A new fold in `folder` with what the newest good snapshot has, which may be nothing.
pub(super) fn from_snapshot(
    dir: &Path,
    folder: &Path,
    genesis: Option<[u8; 32]>,
    stop: &AtomicBool,
) -> Result<Fold, StoreError> {
    let temporary = folder.with_extension("new");
    for (_, path) in snapshots::list(dir)? {
        remove(&temporary)?;
        let fold = open(&temporary)?;
        match load(&fold, &path, genesis, stop) {
            Ok(head) => {
                fold.reach(&head)?;
                fold.is_done_with();
                drop(fold);
                tracing::info!(snapshot = %path.display(), head = head.index, "the folded view is made anew from a snapshot");
                return put_in_place(&temporary, folder);
            }
            Err(
                error @ (StoreError::BadSnapshot { .. }
                | StoreError::Io { .. }
                | StoreError::Newer { .. }),
            ) => {
                tracing::warn!(%error, "a snapshot is not used");
            }
            Err(error) => return Err(error),
        }
    }
    remove(&temporary)?;
    drop(open(&temporary)?);
    put_in_place(&temporary, folder)
}

fn put_in_place(temporary: &Path, folder: &Path) -> Result<Fold, StoreError> {
    std::fs::rename(temporary, folder).map_err(failed("name", folder))?;
    if let Some(root) = folder.parent() {
        sync_folder(root)?;
    }
    open(folder)
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(failed("remove", folder))?;
    }
    Ok(())
}

fn open(folder: &Path) -> Result<Fold, StoreError> {
    Fold::open(folder).map_err(|error| match error {
        OpenError::Damaged(what) => StoreError::Fold { what },
        OpenError::Other(error) => error,
    })
}

fn load(
    fold: &Fold,
    snapshot: &Path,
    genesis: Option<[u8; 32]>,
    stop: &AtomicBool,
) -> Result<Head, StoreError> {
    let mut records: Vec<(FoldId, Folded)> = Vec::new();
    let mut bytes = 0;
    let write = |records: &mut Vec<(FoldId, Folded)>| {
        records.sort_unstable_by_key(|(id, _)| id.0);
        let written = fold.write(records.iter().map(|(id, folded)| (id, Some(folded))));
        records.clear();
        written
    };
    let head = snapshots::each(snapshot, genesis, |id, folded| {
        bytes += folded.bytes();
        records.push((id, folded));
        if bytes >= SORTED {
            bytes = 0;
            write(&mut records)?;
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Closing);
            }
        }
        Ok(())
    })?;
    write(&mut records)?;
    Ok(head)
}

/// Takes the entries from where `fold` is to entry `to` into it.
fn catch_up(fold: &Fold, segments: &Segments, to: u64) -> Result<(), StoreError> {
    let from = fold.applied().index + 1;
    if from > to {
        return Ok(());
    }
    let mut changes = Changes::default();
    segments.walk(from, |found| {
        if found.entry.index > to {
            return Ok(ControlFlow::Break(()));
        }
        changes.apply(&found.entry, found.first, &found.parts);
        if changes.bytes >= CHECKPOINT {
            fold.apply(&std::mem::take(&mut changes))?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if changes.is_empty() {
        return Ok(());
    }
    fold.apply(&changes)
}

impl Shared {
    /// Makes the fold anew beside the present one, and puts it in its place. Reads and commits go on.
    pub(super) fn refold(&self, stop: &AtomicBool) -> Result<(), StoreError> {
        let _one_at_a_time = self.refolding.lock();
        let old = Arc::clone(&self.fold.read());
        let folder = next_folder(&self.dir)?;
        let genesis = genesis(&self.segments)?;
        let new = from_snapshot(&self.dir, &folder, genesis, stop)?;
        // What was folded in the meantime, and then the little that was folded during that.
        catch_up(&new, &self.segments, old.applied().index)?;
        {
            let _alone = self.fold_rests.write();
            catch_up(&new, &self.segments, old.applied().index)?;
            *self.fold.write() = Arc::new(new);
        }
        // Reads that began before hold it for a moment.
        while Arc::strong_count(&old) > 1 {
            std::thread::yield_now();
        }
        let gone = old.folder().to_path_buf();
        old.is_done_with();
        drop(old);
        remove(&gone)?;
        sync_folder(&self.dir.join("fold"))
    }

    /// Asks the folding thread to make the fold anew.
    pub(super) fn fold_anew(&self) {
        let mut folding = self.folding.lock();
        if !std::mem::replace(&mut folding.anew, true) {
            self.wake.notify_one();
        }
    }

    /// What the newest snapshot and the log say about the record that has the fold's key of `id`, whatever the fold says; and
    /// the id that it has.
    pub(super) fn look_up(&self, id: &FoldId) -> Result<Option<(FoldId, Folded)>, StoreError> {
        let genesis = genesis(&self.segments)?;
        let mut state = None;
        let mut from = 1;
        for (_, path) in snapshots::list(&self.dir)? {
            let mut found = None;
            let read = snapshots::each(&path, genesis, |other, folded| {
                if is_key_of_both(&other, id) {
                    found = Some((other, folded));
                }
                Ok(())
            });
            match read {
                Ok(head) => {
                    state = found;
                    from = head.index + 1;
                    break;
                }
                Err(error) => tracing::warn!(%error, "a snapshot is not used"),
            }
        }
        self.segments.walk(from, |found| {
            let Found {
                entry,
                first,
                parts,
                ..
            } = found;
            for (at, part) in parts.iter().enumerate() {
                if is_key_of_both(&FoldId::of(&entry.ops[at]), id) {
                    let (id, folded) = Folded::of(&entry, at, first, *part);
                    state = folded.map(|folded| (id, folded));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(state)
    }

    /// Puts a record of the fold right that is not what was written; what it is.
    pub(super) fn repair(&self, id: &FoldId) -> Result<Option<(FoldId, Folded)>, StoreError> {
        let _alone = self.fold_rests.write();
        // It may have been changed since, and then there is nothing to put right.
        if let Some(waiting) = self.overlay.read().get(id) {
            return Ok(waiting.map(|folded| (*id, folded)));
        }
        let state = self.look_up(id)?;
        tracing::warn!(
            record = id.key().short(),
            index = state.as_ref().map_or(0, |(_, folded)| folded.modified),
            "a record of the folded view was damaged; it was put right from the log"
        );
        let fold = Arc::clone(&self.fold.read());
        let (id, folded) = match &state {
            Some((id, folded)) => (id, Some(folded)),
            None => (id, None),
        };
        fold.write([(id, folded)])?;
        fold.sync()?;
        Ok(state)
    }
}

/// The hash of the first entry; `None` when there is none.
fn genesis(segments: &Segments) -> Result<Option<[u8; 32]>, StoreError> {
    let mut genesis = None;
    segments.walk(1, |found| {
        genesis = Some(found.entry.hash());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(genesis)
}
