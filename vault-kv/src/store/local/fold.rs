//! The fold: the state after some entry of the log, in sled.
//!
//! It can always be made anew from the log, so it is only ever a checkpoint. sled's `flush` does not
//! sync; the files are synced here, first with the changes and then with the index they lead to.

use std::{
    fs::{DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use bytes::{Buf, BufMut, Bytes};

use super::{
    Head, StoreError, failed,
    log::{sync_file, sync_folder},
    overlay::{Changes, FoldId, Folded, Value},
};

const CACHE: u64 = 32 << 20;
/// Bytes of one batch given to sled.
const BATCH: usize = 1 << 20;
/// The key of the head that the fold has reached.
const APPLIED: [u8; 1] = [0];
const FORMAT: u8 = 1;
/// A file in the folder that says: do not trust this at the next open.
const DAMAGED: &str = "damaged";

pub(super) struct Fold {
    folder: PathBuf,
    tree: sled::Db,
}

/// Why a fold cannot be opened.
pub(super) enum OpenError {
    /// It is damaged; the log will do.
    Damaged(String),
    /// Something that making it anew would not cure.
    Other(StoreError),
}

impl Fold {
    /// Opens or creates the fold in `folder`; also the head it has reached.
    pub(super) fn open(folder: &Path) -> Result<(Self, Head), OpenError> {
        let fresh = !folder.exists();
        if fresh {
            let made = DirBuilder::new().mode(0o700).create(folder);
            made.map_err(failed("create", folder))
                .map_err(OpenError::Other)?;
        }
        if folder.join(DAMAGED).exists() {
            return Err(OpenError::Damaged(
                "it was found damaged while it was read".into(),
            ));
        }
        wait_until_closed(folder)
            .map_err(failed("lock", folder))
            .map_err(OpenError::Other)?;
        // sled asserts where damage surprises it, and this is where it meets most.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let tree = sled::Config::new()
                .path(folder)
                .cache_capacity(CACHE)
                .flush_every_ms(None)
                .open()?;
            let applied = tree.get(APPLIED)?;
            sled::Result::Ok((tree, applied))
        }));
        let (tree, applied) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(sled::Error::Io(source))) if is_environment(&source) => {
                return Err(OpenError::Other(failed("open", folder)(source)));
            }
            Ok(Err(error)) => return Err(OpenError::Damaged(error.to_string())),
            Err(_) => return Err(OpenError::Damaged("sled gave up while it opened it".into())),
        };
        let fold = Self {
            folder: folder.to_path_buf(),
            tree,
        };
        match applied {
            Some(applied) => match decode_head(&applied) {
                Some(head) => Ok((fold, head)),
                None => Err(OpenError::Damaged(
                    "the index it has reached is not readable".into(),
                )),
            },
            None if fresh => {
                fold.reach(&Head::default()).map_err(OpenError::Other)?;
                Ok((fold, Head::default()))
            }
            None => Err(OpenError::Damaged(
                "it does not say which index it has reached".into(),
            )),
        }
    }

    /// Takes `changes` in durably, and then that it has.
    pub(super) fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        let mut bytes = 0;
        let mut value = Vec::new();
        for (id, folded) in changes.iter() {
            match folded {
                Some(folded) => {
                    value.clear();
                    encode(folded, &mut value);
                    bytes += value.len();
                    batch.insert(id.0.as_slice(), value.as_slice());
                }
                None => batch.remove(id.0.as_slice()),
            }
            bytes += id.0.len();
            if bytes >= BATCH {
                self.tree
                    .apply_batch(std::mem::take(&mut batch))
                    .map_err(|error| self.failed(&error))?;
                bytes = 0;
            }
        }
        self.tree
            .apply_batch(batch)
            .map_err(|error| self.failed(&error))?;
        self.sync()?;
        self.reach(&changes.head)
    }

    fn reach(&self, head: &Head) -> Result<(), StoreError> {
        self.tree
            .insert(APPLIED, encode_head(head))
            .map_err(|error| self.failed(&error))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.tree.flush().map_err(|error| self.failed(&error))?;
        sync_tree(&self.folder)
    }

    pub(super) fn get(&self, id: &FoldId) -> Result<Option<Folded>, StoreError> {
        let Some(bytes) = self.tree.get(id.0).map_err(|error| self.failed(&error))? else {
            return Ok(None);
        };
        decode(&bytes)
            .map(Some)
            .ok_or_else(|| self.damaged("a record is not readable".into()))
    }

    /// Every record, until `visit` fails.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(FoldId, Folded) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for pair in self.tree.range([FoldId::NAMED]..) {
            let (key, bytes) = pair.map_err(|error| self.failed(&error))?;
            let (Ok(id), Some(folded)) = (key.as_ref().try_into(), decode(&bytes)) else {
                return Err(self.damaged("a record is not readable".into()));
            };
            visit(FoldId(id), folded)?;
        }
        Ok(())
    }

    fn failed(&self, error: &sled::Error) -> StoreError {
        match error {
            sled::Error::Io(source) if is_environment(source) => StoreError::Fold {
                what: source.to_string(),
            },
            error => self.damaged(error.to_string()),
        }
    }

    /// Leaves word for the next open.
    fn damaged(&self, what: String) -> StoreError {
        let mark = self.folder.join(DAMAGED);
        if let Err(error) = std::fs::write(&mark, &what) {
            tracing::warn!(%error, file = %mark.display(), "cannot mark the folded view as damaged");
        }
        StoreError::Fold { what }
    }
}

/// Waits for sled's lock. Who still holds it while this store's own is ours is about to let go: a store
/// of this process whose sled is being dropped in the background, or a child between fork and exec.
fn wait_until_closed(folder: &Path) -> io::Result<()> {
    match File::open(folder.join("db")) {
        Ok(file) => file.lock(),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether `error` is about the machine and not about what the files hold. A file of sled's that is not
/// there is damage: a power cut in a checkpoint can leave references to files that never came to be.
fn is_environment(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        ErrorKind::NotFound
            | ErrorKind::UnexpectedEof
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
    )
}

/// Syncs every file and folder under `folder`.
fn sync_tree(folder: &Path) -> Result<(), StoreError> {
    for item in folder.read_dir().map_err(failed("list", folder))? {
        let path = item.map_err(failed("list", folder))?.path();
        let synced = if path.is_dir() {
            sync_tree(&path)
        } else {
            sync_file(&path)
        };
        match synced {
            // sled deletes files of its own that it has outgrown.
            Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            synced => synced?,
        }
    }
    sync_folder(folder)
}

fn encode_head(head: &Head) -> Vec<u8> {
    let mut out = Vec::with_capacity(49);
    out.put_u8(FORMAT);
    out.put_u64(head.index);
    out.put_u64(head.epoch);
    out.put_slice(&head.hash);
    out
}

fn decode_head(bytes: &[u8]) -> Option<Head> {
    let [FORMAT, rest @ ..] = bytes else {
        return None;
    };
    let (index, rest) = rest.split_first_chunk()?;
    let (epoch, hash) = rest.split_first_chunk()?;
    Some(Head {
        index: u64::from_be_bytes(*index),
        epoch: u64::from_be_bytes(*epoch),
        hash: hash.try_into().ok()?,
    })
}

fn encode(folded: &Folded, out: &mut Vec<u8>) {
    out.put_u8(FORMAT);
    out.put_u64(folded.created);
    out.put_u64(folded.modified);
    out.put_u32(folded.name.len() as u32);
    out.put_slice(&folded.name);
    match &folded.value {
        Value::Here(value) => {
            out.put_u8(0);
            out.put_slice(value);
        }
        Value::InLog {
            first,
            offset,
            length,
        } => {
            out.put_u8(1);
            out.put_u64(*first);
            out.put_u64(*offset);
            out.put_u32(*length);
        }
    }
}

fn decode(mut bytes: &[u8]) -> Option<Folded> {
    if bytes.try_get_u8().ok()? != FORMAT {
        return None;
    }
    let created = bytes.try_get_u64().ok()?;
    let modified = bytes.try_get_u64().ok()?;
    let length = bytes.try_get_u32().ok()? as usize;
    let name = Bytes::copy_from_slice(bytes.split_off(..length)?);
    let value = match bytes.try_get_u8().ok()? {
        0 => Value::Here(Bytes::copy_from_slice(bytes)),
        1 => Value::InLog {
            first: bytes.try_get_u64().ok()?,
            offset: bytes.try_get_u64().ok()?,
            length: bytes.try_get_u32().ok()?,
        },
        _ => return None,
    };
    Some(Folded {
        created,
        modified,
        name,
        value,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn decoding_outside_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
            let _ = decode_head(&bytes);
        }
    }
}
