//! The fold: the state after some entry of the log, in sled.
//!
//! It can always be made anew from the log, so it is only ever a checkpoint. sled's `flush` does not
//! sync; the files are synced here, first with the changes and then with the index they lead to.

use std::{
    fs::{DirBuilder, File},
    io::{self, ErrorKind},
    ops::Bound,
    os::unix::fs::DirBuilderExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;

use super::{
    Head, OpKind, StoreError, failed,
    log::{sync_file, sync_folder},
    overlay::{Changes, FoldId, Folded, Place, Value},
};

/// Of sled, at most. A store whose keys do not fit reads pages from the disk for every write of the fold.
const CACHE: u64 = 256 << 20;
/// The key of the head that the fold has reached.
const APPLIED: [u8; 1] = [0];
/// Format of the head that was reached, and with it of keys: 2 has short ones.
const FORMAT: u8 = 2;
/// Format of a record: 3 has the end of its id.
const RECORD_FORMAT: u8 = 3;
/// What sled keeps of a key in place, without memory of its own for each.
const SHORT: usize = 22;
/// A file in the folder that says: do not trust this at the next open.
const DAMAGED: &str = "damaged";

pub(super) struct Fold {
    tree: sled::Db,
    /// What [`Fold::apply`] has reached.
    applied: Mutex<Head>,
    /// It cannot be trusted any more and is to be made anew.
    damaged: AtomicBool,
    /// Declared behind the tree: dropped when that is closed.
    pages: Pages,
}

/// sled notes where its pages are only when it opens, and to do so reads all that was written since it last did. After
/// many writes this has it done when the store closes, so that the next opening is quick.
struct Pages {
    folder: PathBuf,
    /// Bytes of records since it was opened.
    written: AtomicU64,
}

impl Drop for Pages {
    fn drop(&mut self) {
        if *self.written.get_mut() < SLOW_TO_OPEN || thread::panicking() {
            return;
        }
        let noted = wait_until_closed(&self.folder)
            .map(|()| catch_unwind(|| drop(open_tree(&self.folder))));
        if !matches!(noted, Ok(Ok(()))) {
            tracing::warn!(folder = %self.folder.display(), "the next start of the store will take longer");
        }
    }
}

fn open_tree(folder: &Path) -> sled::Result<sled::Db> {
    sled::Config::new()
        .path(folder)
        .cache_capacity(CACHE)
        .flush_every_ms(None)
        .open()
}

/// Records that are read at once.
const READ_AHEAD: usize = 512;
/// Bytes of records whose reading at the next opening is noticed.
const SLOW_TO_OPEN: u64 = 32 << 20;

type Batch = Vec<(FoldId, Result<Folded, Unreadable>)>;
type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// All keys of records in `count` ranges. Those of named records spread evenly: they are HMACs.
fn ranges(count: usize) -> impl Iterator<Item = KeyRange> {
    let start = move |at: usize| vec![FoldId::NAMED, (256 * at / count) as u8];
    (0..count).map(move |at| {
        let from = match at {
            0 => vec![FoldId::NAMED],
            at => start(at),
        };
        let to = match at + 1 {
            end if end == count => Bound::Unbounded,
            end => Bound::Excluded(start(end)),
        };
        (Bound::Included(from), to)
    })
}

/// A record whose bytes are not what was written.
pub(super) struct Unreadable;

/// Why a fold cannot be opened.
pub(super) enum OpenError {
    /// It is damaged; the log will do.
    Damaged(String),
    /// Something that making it anew would not cure.
    Other(StoreError),
}

impl Fold {
    /// Opens or creates the fold in `folder`; also the head it has reached.
    pub(super) fn open(folder: &Path) -> Result<Self, OpenError> {
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
            let tree = open_tree(folder)?;
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
            tree,
            applied: Mutex::default(),
            damaged: AtomicBool::new(false),
            pages: Pages {
                folder: folder.to_path_buf(),
                written: AtomicU64::new(0),
            },
        };
        match applied {
            Some(applied) => match decode_head(&applied) {
                Some(head) => {
                    *fold.applied.lock() = head;
                    Ok(fold)
                }
                None => Err(OpenError::Damaged(
                    "the index it has reached is not readable".into(),
                )),
            },
            None if fresh => {
                fold.reach(&Head::default()).map_err(OpenError::Other)?;
                Ok(fold)
            }
            None => Err(OpenError::Damaged(
                "it does not say which index it has reached".into(),
            )),
        }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.pages.folder
    }

    /// The last entry that is in here.
    pub(super) fn applied(&self) -> Head {
        *self.applied.lock()
    }

    /// Whether sled said that its files are damaged.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Takes `changes` in durably, and then that it has.
    pub(super) fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut sorted: Vec<_> = changes.iter().collect();
        // Neighbours share pages.
        sorted.sort_unstable_by_key(|(id, _)| id.0);
        self.write(sorted)?;
        self.sync()?;
        self.reach(&changes.head)
    }

    /// Takes records in, not yet durably.
    pub(super) fn write<'a>(
        &self,
        records: impl IntoIterator<Item = (&'a FoldId, Option<&'a Folded>)>,
    ) -> Result<(), StoreError> {
        // One by one: what sled has replaced is freed as its calls come and go, and a batch is one call. With batches a
        // million records left gigabytes behind.
        let mut value = Vec::new();
        for (id, folded) in records {
            let replaced = match folded {
                Some(folded) => {
                    value.clear();
                    encode_record(id, folded, &mut value);
                    let written = value.len() as u64;
                    self.pages.written.fetch_add(written, Ordering::Relaxed);
                    self.tree.insert(key_of(id), value.as_slice())
                }
                None => self.tree.remove(key_of(id)),
            };
            replaced.map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// What was written is the state after `head`; durable when this returns.
    pub(super) fn reach(&self, head: &Head) -> Result<(), StoreError> {
        self.tree
            .insert(APPLIED, encode_head(head))
            .map_err(|error| self.failed(&error))?;
        self.sync()?;
        *self.applied.lock() = *head;
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.tree.flush().map_err(|error| self.failed(&error))?;
        sync_tree(self.folder())
    }

    pub(super) fn get(
        &self,
        id: &FoldId,
    ) -> Result<Result<Option<Folded>, Unreadable>, StoreError> {
        let bytes = self.tree.get(key_of(id));
        let Some(bytes) = bytes.map_err(|error| self.failed(&error))? else {
            return Ok(Ok(None));
        };
        Ok(decode_record(id, &bytes).map(Some).ok_or(Unreadable))
    }

    /// Every record in no useful order, until `visit` fails. Of one that is unreadable the key holds and the rest of the
    /// id may not: see [`is_key_of_both`]. Reading pages takes longest, so as many threads as there
    /// are processors (four at most) read ranges of keys ahead of it.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(FoldId, Result<Folded, Unreadable>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let threads = thread::available_parallelism().map_or(1, |threads| threads.get().min(4));
        let (sender, batches) = mpsc::sync_channel(2 * threads);
        thread::scope(|scope| {
            for range in ranges(threads) {
                let sender = sender.clone();
                scope.spawn(move || self.read_ahead(range, &sender));
            }
            drop(sender);
            // Those who read end when nobody takes what they send.
            for batch in batches {
                for (id, folded) in batch? {
                    visit(id, folded)?;
                }
            }
            Ok(())
        })
    }

    /// Sends the records of a range of keys, or the first error.
    fn read_ahead(&self, range: KeyRange, sender: &mpsc::SyncSender<Result<Batch, StoreError>>) {
        let mut batch = Vec::with_capacity(READ_AHEAD);
        for pair in self.tree.range::<Vec<u8>, _>(range) {
            let record = match pair {
                Ok((key, bytes)) => match id_of(&key, &bytes) {
                    Some(id) => Ok((id, decode_record(&id, &bytes).ok_or(Unreadable))),
                    None => Err(self.damaged("it holds a key that is none".into())),
                },
                Err(error) => Err(self.failed(&error)),
            };
            match record {
                Ok(record) => batch.push(record),
                Err(error) => {
                    // Whoever asked may have stopped at an error of its own.
                    let _ = sender.send(Err(error));
                    return;
                }
            }
            if batch.len() == READ_AHEAD {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(READ_AHEAD));
                if sender.send(Ok(full)).is_err() {
                    return;
                }
            }
        }
        let _ = sender.send(Ok(batch));
    }

    /// It is dropped to be removed, or opened again at once.
    pub(super) fn is_done_with(&self) {
        self.pages.written.store(0, Ordering::Relaxed);
    }

    /// Leaves a record whose checksum does not match.
    #[cfg(test)]
    pub(super) fn spoil(&self, id: &FoldId, at: usize) {
        let mut bytes = self.tree.get(key_of(id)).unwrap().unwrap().to_vec();
        bytes[at] ^= 1;
        self.tree.insert(key_of(id), bytes).unwrap();
        self.sync().unwrap();
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
        self.damaged.store(true, Ordering::Relaxed);
        let mark = self.folder().join(DAMAGED);
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
        Ok(file) => {
            file.lock()?;
            // Closing alone would leave it to such a child, and sled does not wait.
            file.unlock()
        }
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
            Err(StoreError::Io { cause, .. }) if cause.kind() == ErrorKind::NotFound => {}
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

/// The key of a record. Of a named one, whose id is an HMAC, so much of it that no two are the same; the rest is in the
/// record. The names of the others are short words, of which there are few.
fn key_of(id: &FoldId) -> &[u8] {
    match id.kind() {
        OpKind::Control => &id.0,
        OpKind::Put | OpKind::Delete => &id.0[..SHORT],
    }
}

/// Whether two records would have the same key: of two that there are none do.
pub(super) fn is_key_of_both(one: &FoldId, other: &FoldId) -> bool {
    key_of(one) == key_of(other)
}

/// What [`encode_record`] has put behind such a key.
fn id_of(key: &[u8], record: &[u8]) -> Option<FoldId> {
    let mut id = [0; 33];
    let (start, rest) = id.split_at_mut_checked(key.len())?;
    start.copy_from_slice(key);
    rest.copy_from_slice(record.get(1..1 + rest.len())?);
    Some(FoldId(id))
}

/// A record with what its key lacks of its id, and the checksum of its id and itself.
fn encode_record(id: &FoldId, folded: &Folded, out: &mut Vec<u8>) {
    out.put_u8(RECORD_FORMAT);
    out.put_slice(&id.0[key_of(id).len()..]);
    encode(folded, out);
    let crc = checksum(id, out);
    out.put_u32(crc);
}

fn decode_record(id: &FoldId, bytes: &[u8]) -> Option<Folded> {
    let (record, crc) = bytes.split_last_chunk()?;
    if checksum(id, record) != u32::from_be_bytes(*crc) {
        return None;
    }
    let [RECORD_FORMAT, rest @ ..] = record else {
        return None;
    };
    decode(rest.strip_prefix(&id.0[key_of(id).len()..])?)
}

fn checksum(id: &FoldId, record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.0);
    hasher.update(record);
    hasher.finalize()
}

pub(super) fn encode(folded: &Folded, out: &mut Vec<u8>) {
    out.put_u64(folded.created);
    out.put_u64(folded.modified);
    out.put_u32(folded.name.len() as u32);
    out.put_slice(&folded.name);
    match &folded.value {
        Value::Here(value) => {
            out.put_u8(0);
            out.put_slice(value);
        }
        Value::InLog(place) => {
            out.put_u8(1);
            out.put_u64(place.first);
            out.put_u64(place.offset);
            out.put_u32(place.length);
            out.put_u32(place.crc);
        }
    }
}

pub(super) fn decode(mut bytes: &[u8]) -> Option<Folded> {
    let created = bytes.try_get_u64().ok()?;
    let modified = bytes.try_get_u64().ok()?;
    let length = bytes.try_get_u32().ok()? as usize;
    let name = Bytes::copy_from_slice(bytes.split_off(..length)?);
    let value = match bytes.try_get_u8().ok()? {
        0 => Value::Here(Bytes::copy_from_slice(bytes)),
        1 => Value::InLog(Place {
            first: bytes.try_get_u64().ok()?,
            offset: bytes.try_get_u64().ok()?,
            length: bytes.try_get_u32().ok()?,
            crc: bytes.try_get_u32().ok()?,
        }),
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
            let _ = decode_record(&FoldId([1; 33]), &bytes);
            let _ = decode(&bytes);
            let _ = decode_head(&bytes);
        }
    }
}
