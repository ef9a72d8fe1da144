//! The snapshots of this store: the whole fold after some entry, in a file; and saving the whole ledger.
//!
//! A snapshot is made while compaction reads the log, from the log alone: it cannot inherit a mistake of
//! the fold, and nobody waits for it.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{BufReader, BufWriter, Write},
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::{Buf, BufMut, Bytes};

use super::{
    super::snapshot::{Content, Item, Reader, SnapshotInfo, Writer, now},
    Entry, Head, Liveness, LocalStore, OpKind, SALT, SnapshotError, Store, StoreError, failed,
    fold,
    log::sync_folder,
    overlay::{FoldId, Folded, Value, place},
};

const SUFFIX: &str = ".snap";

/// Snapshots in the store `dir`, newest first.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let folder = dir.join("snapshot");
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for item in folder.read_dir().map_err(failed("list", &folder))? {
        let path = item.map_err(failed("list", &folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let index = name.and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        if let Some(index) = index {
            found.push((index, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A snapshot being written. It is there when [`FoldWriter::finish`] returns, and not before.
pub(super) struct FoldWriter {
    writer: Option<Writer<BufWriter<File>>>,
    folder: PathBuf,
    temporary: PathBuf,
    path: PathBuf,
}

impl FoldWriter {
    pub(super) fn create(dir: &Path, head: Head, genesis: [u8; 32]) -> Result<Self, StoreError> {
        let folder = dir.join("snapshot");
        if !folder.exists() {
            let made = DirBuilder::new().mode(0o700).create(&folder);
            made.map_err(failed("create", &folder))?;
            sync_folder(dir)?;
        }
        let path = folder.join(format!("{:020}{SUFFIX}", head.index));
        let temporary = path.with_extension("snap.new");
        let info = SnapshotInfo {
            cluster_id: String::new(),
            head,
            created: now(),
            genesis,
            content: Content::Fold,
        };
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed("create", &temporary))?;
        let writer = Writer::new(BufWriter::with_capacity(1 << 20, file), &info);
        Ok(Self {
            writer: Some(writer.map_err(failed("write", &temporary))?),
            folder,
            temporary,
            path,
        })
    }

    /// Adds the record that operation `at` of `entry` made, whose part is at `part` of the segment that
    /// starts with `first`.
    pub(super) fn add(
        &mut self,
        entry: &Entry,
        at: usize,
        first: u64,
        part: u64,
    ) -> Result<(), StoreError> {
        let op = &entry.ops[at];
        let (name, value) = match op.kind {
            OpKind::Put => match op.name_and_value() {
                Some(both) => both,
                None => return Ok(()),
            },
            OpKind::Control => match op.content() {
                Some(value) => (Bytes::new(), value),
                None => return Ok(()),
            },
            OpKind::Delete => return Ok(()),
        };
        let before = if op.kind == OpKind::Put {
            4 + name.len()
        } else {
            0
        };
        let offset = part + (SALT + before) as u64;
        let folded = Folded {
            created: op.created,
            modified: entry.index,
            name,
            value: Value::Here(value),
        };
        let id = FoldId::of(op);
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        writer
            .record(|out| {
                out.put_slice(&id.0);
                out.put_u64(first);
                out.put_u64(offset);
                fold::encode(&folded, out);
            })
            .map_err(failed("write", &self.temporary))
    }

    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        if let Some(writer) = self.writer.take() {
            writer
                .finish()
                .and_then(|out| out.into_inner().map_err(|error| error.into_error()))
                .and_then(|file| file.sync_all())
                .map_err(failed("write", &self.temporary))?;
            std::fs::rename(&self.temporary, &self.path).map_err(failed("name", &self.path))?;
        }
        sync_folder(&self.folder)
    }
}

impl Drop for FoldWriter {
    fn drop(&mut self) {
        if self.writer.is_some()
            && let Err(error) = std::fs::remove_file(&self.temporary)
        {
            tracing::warn!(%error, file = %self.temporary.display(), "cannot remove an unfinished snapshot");
        }
    }
}

/// Gives `visit` every record of the snapshot `path`, which must belong to the ledger that `genesis`
/// names. Only when this returns the head has the whole file been found good.
pub(super) fn each(
    path: &Path,
    genesis: Option<[u8; 32]>,
    mut visit: impl FnMut(FoldId, Folded) -> Result<(), StoreError>,
) -> Result<Head, StoreError> {
    let bad = |offset, what: &str| StoreError::BadSnapshot {
        path: path.to_path_buf(),
        offset,
        what: what.to_owned(),
    };
    let named = |error| match error {
        SnapshotError::Io(source) => failed("read", path)(source),
        SnapshotError::Store(error) => error,
        SnapshotError::Damaged { offset, what } => bad(offset, what),
        SnapshotError::Newer { found } => StoreError::Newer {
            path: path.to_path_buf(),
            format: found,
        },
        other => bad(0, &other.to_string()),
    };
    let file = File::open(path).map_err(failed("open", path))?;
    let mut reader = Reader::open(BufReader::with_capacity(1 << 20, file)).map_err(named)?;
    let info = reader.info().clone();
    if info.content != Content::Fold {
        return Err(bad(0, "it holds a ledger and not a fold"));
    }
    if genesis.is_some_and(|genesis| genesis != info.genesis) {
        return Err(bad(0, "it belongs to another store"));
    }
    loop {
        let offset = reader.offset();
        match reader.next().map_err(named)? {
            Some(Item::Record(bytes)) => {
                let (id, folded) =
                    decode(&bytes).ok_or_else(|| bad(offset, "a record is not well-formed"))?;
                visit(id, folded)?;
            }
            Some(Item::Entry(_)) => return Err(bad(offset, "it holds an entry")),
            None => return Ok(info.head),
        }
    }
}

fn decode(bytes: &[u8]) -> Option<(FoldId, Folded)> {
    let (id, mut rest) = bytes.split_first_chunk()?;
    let first = rest.try_get_u64().ok()?;
    let offset = rest.try_get_u64().ok()?;
    let mut folded = fold::decode(rest)?;
    if let Value::Here(value) = &folded.value {
        folded.value = place(value, first, offset);
    }
    Some((FoldId(*id), folded))
}

/// Whether `bytes` are the record of a snapshot.
pub(crate) fn is_record(bytes: &[u8]) -> bool {
    decode(bytes).is_some()
}

/// See [`Store::snapshot`].
pub(super) fn save(
    store: &LocalStore,
    cluster_id: &str,
    keep_from: u64,
    out: &mut dyn Write,
) -> Result<Head, SnapshotError> {
    let head = store.head();
    let mut live = Liveness::default();
    let mut genesis = [0; 32];
    each_entry(store, head, |entry| {
        if entry.index == 1 {
            genesis = entry.hash();
        }
        live.add(entry);
        Ok(())
    })?;
    let info = SnapshotInfo {
        cluster_id: cluster_id.to_owned(),
        head,
        created: now(),
        genesis,
        content: Content::Ledger,
    };
    let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, out), &info)?;
    each_entry(store, head, |entry| {
        live.redact(entry, keep_from);
        Ok(writer.entry(entry)?)
    })?;
    writer
        .finish()?
        .into_inner()
        .map_err(|error| SnapshotError::Io(error.into_error()))?;
    Ok(head)
}

fn each_entry(
    store: &LocalStore,
    head: Head,
    mut visit: impl FnMut(&mut Entry) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let mut outcome = Ok(());
    store.shared.segments.walk(1, |mut found| {
        if found.entry.index > head.index {
            return Ok(ControlFlow::Break(()));
        }
        outcome = visit(&mut found.entry);
        Ok(match outcome {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    })?;
    outcome
}
