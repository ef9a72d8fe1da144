//! Snapshot files: a ledger or its fold at one head, in one file that shows any damage.
//!
//! ```text
//! magic    "MESHSNAP"
//! frames   u32 length ‖ u32 CRC-32 of the payload ‖ payload, numbers big-endian
//!   1 header   format, what is in here, head (index, epoch, chain hash), hash of entry 1, time, cluster id
//!   2 record   one record of the fold: fold id, created, modified, place of a large value, name, value
//!   3 entry    one ledger entry, as in a segment
//!   4 end      number of frames between header and end, and the digest
//! ```
//!
//! The digest is SHA-256 over the chain hash of the head and then every byte before the end frame, so a
//! file is one whole and belongs to one head of one ledger. Names, values and metas are sealed as they are
//! in the log: a snapshot holds nothing in the clear that the log does not.
//!
//! A *fold* file (records) lies in the store directory and makes a new fold without replaying the whole
//! log. A *ledger* file (entries) is what `mesh operator snapshot save` writes: it is a whole store, with
//! its history, without the payloads that compaction would take out.

use std::io::{self, Read, Write};

use bytes::{Buf, BufMut, Bytes};
use ring::digest;

use super::{Entry, Head, MAX_ENTRY, StoreError};

const MAGIC: &[u8; 8] = b"MESHSNAP";
/// The format that this version writes, and the newest that it reads.
const FORMAT: u8 = 1;
const FRAME_HEADER: usize = 8;
/// A frame may have so many bytes more than the entry in it.
const SLACK: usize = 1024;
const HEADER: u8 = 1;
const RECORD: u8 = 2;
const ENTRY: u8 = 3;
const END: u8 = 4;
/// The greatest cluster id in bytes.
const MAX_ID: usize = 256;

/// What a snapshot file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The cluster whose store it is; empty when the store was not initialised.
    pub cluster_id: String,
    /// The entry that it goes up to.
    pub head: Head,
    /// When it was made; Unix seconds.
    pub created: i64,
    /// SHA-256 of the first entry: names the ledger.
    pub genesis: [u8; 32],
    pub(crate) content: Content,
}

/// What the frames between header and end are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Fold,
    Ledger,
}

/// Why a snapshot cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read or written.
    #[error("cannot read or write the snapshot")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("this is no snapshot of a mesh store (it does not start with MESHSNAP)")]
    NotASnapshot,
    /// A newer version wrote it.
    #[error(
        "the snapshot has format {found}, written by a newer version than this one (which knows {FORMAT}); restore it with that version"
    )]
    Newer {
        /// The format it has.
        found: u8,
    },
    /// It belongs to another cluster.
    #[error("the snapshot is of cluster {found}, not of {expected}")]
    OtherCluster {
        /// The cluster that it is of.
        found: String,
        /// The one that was asked for.
        expected: String,
    },
    /// A byte is not what was written, or the file was cut off.
    #[error("the snapshot is damaged at byte {offset}: {what}; take another one")]
    Damaged {
        /// Where in the file the frame starts that does not hold.
        offset: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// There is something in the directory already.
    #[error("{} is not empty; a snapshot is only restored into an empty directory: move the old store away first", dir.display())]
    NotEmpty {
        /// The directory.
        dir: std::path::PathBuf,
    },
    /// The store could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A snapshot being written.
pub(crate) struct Writer<W> {
    out: W,
    digest: digest::Context,
    frames: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W, info: &SnapshotInfo) -> io::Result<Self> {
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&info.head.hash);
        let mut writer = Self {
            out,
            digest,
            frames: 0,
            buffer: Vec::new(),
        };
        writer.write_all(MAGIC)?;
        writer.frame(HEADER, |out| {
            out.put_u8(FORMAT);
            out.put_u8(match info.content {
                Content::Fold => 1,
                Content::Ledger => 2,
            });
            out.put_u64(info.head.index);
            out.put_u64(info.head.epoch);
            out.put_slice(&info.head.hash);
            out.put_slice(&info.genesis);
            out.put_i64(info.created);
            out.put_slice(info.cluster_id.as_bytes());
        })?;
        writer.frames = 0;
        Ok(writer)
    }

    pub(crate) fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.frame(ENTRY, |out| {
            entry.encode(out, |_| {});
        })
    }

    pub(crate) fn record(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        self.frame(RECORD, encode)
    }

    /// Writes the end; what was written is not a snapshot without it.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        let frames = self.frames;
        let digest = self.digest.clone().finish();
        self.frame(END, |out| {
            out.put_u64(frames);
            out.put_slice(digest.as_ref());
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn frame(&mut self, kind: u8, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.extend_from_slice(&[0; FRAME_HEADER]);
        buffer.push(kind);
        encode(&mut buffer);
        let payload = &buffer[FRAME_HEADER..];
        let (length, crc) = (payload.len() as u32, crc32fast::hash(payload));
        buffer[..4].copy_from_slice(&length.to_be_bytes());
        buffer[4..8].copy_from_slice(&crc.to_be_bytes());
        self.write_all(&buffer)?;
        self.buffer = buffer;
        self.frames += 1;
        Ok(())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.digest.update(bytes);
        self.out.write_all(bytes)
    }
}

/// What is in one frame between header and end.
pub(crate) enum Item {
    Record(Bytes),
    Entry(Bytes),
}

/// A snapshot being read.
pub(crate) struct Reader<R> {
    input: R,
    info: SnapshotInfo,
    digest: digest::Context,
    /// Where the next frame starts.
    offset: u64,
    frames: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    pub(crate) fn open(mut input: R) -> Result<Self, SnapshotError> {
        let mut magic = [0; MAGIC.len()];
        match input.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(SnapshotError::NotASnapshot);
            }
            read => read?,
        }
        if magic != *MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let offset = MAGIC.len() as u64;
        let (kind, payload, raw) = read_frame(&mut input, offset)?;
        let damaged = |what| SnapshotError::Damaged { offset, what };
        if kind != HEADER {
            return Err(damaged("it does not start with its header"));
        }
        let format = payload.first().copied().unwrap_or_default();
        if format > FORMAT {
            return Err(SnapshotError::Newer { found: format });
        }
        let info = decode_info(&payload).ok_or(damaged("its header is not well-formed"))?;
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&info.head.hash);
        digest.update(&magic);
        digest.update(&raw);
        digest.update(&[kind]);
        digest.update(&payload);
        Ok(Self {
            input,
            info,
            digest,
            offset: offset + (FRAME_HEADER + 1 + payload.len()) as u64,
            frames: 0,
        })
    }

    pub(crate) fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// Where the next frame starts.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next record or entry; `None` behind the last one, when the whole file has been found good.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, SnapshotError> {
        let offset = self.offset;
        let damaged = |what| SnapshotError::Damaged { offset, what };
        let (kind, payload, raw) = read_frame(&mut self.input, offset)?;
        if kind == END {
            let mut rest = &payload[..];
            let frames = rest.try_get_u64().ok();
            if frames != Some(self.frames) || rest != self.digest.clone().finish().as_ref() {
                return Err(damaged("its digest does not match what is in it"));
            }
            if self.input.read(&mut [0])? != 0 {
                return Err(damaged("there is something behind its end"));
            }
            return Ok(None);
        }
        self.digest.update(&raw);
        self.digest.update(&[kind]);
        self.digest.update(&payload);
        self.offset += (FRAME_HEADER + 1 + payload.len()) as u64;
        self.frames += 1;
        match (kind, self.info.content) {
            (RECORD, Content::Fold) => Ok(Some(Item::Record(payload))),
            (ENTRY, Content::Ledger) => Ok(Some(Item::Entry(payload))),
            _ => Err(damaged("a frame of an unknown kind")),
        }
    }

    /// The next entry of a ledger file.
    pub(crate) fn next_entry(&mut self, after: &Head) -> Result<Option<Entry>, SnapshotError> {
        let offset = self.offset;
        let damaged = |what| SnapshotError::Damaged { offset, what };
        match self.next()? {
            Some(Item::Entry(bytes)) => {
                let (entry, _) =
                    Entry::decode(&bytes).ok_or(damaged("an entry is not well-formed"))?;
                if entry.index != after.index + 1
                    || entry.previous != after.hash
                    || entry.epoch < after.epoch
                {
                    return Err(damaged("an entry does not continue the chain"));
                }
                if !entry.commitments_hold() {
                    return Err(damaged("a part of an entry does not match its commitment"));
                }
                Ok(Some(entry))
            }
            Some(Item::Record(_)) => Err(damaged("this is the fold alone, not a whole ledger")),
            None if *after != self.info.head => {
                Err(damaged("it does not reach the head that it says"))
            }
            None => Ok(None),
        }
    }
}

/// Kind, payload behind it, and the eight bytes before it.
fn read_frame(
    input: &mut impl Read,
    offset: u64,
) -> Result<(u8, Bytes, [u8; FRAME_HEADER]), SnapshotError> {
    let damaged = |what| SnapshotError::Damaged { offset, what };
    let cut_off = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it was cut off"),
        _ => SnapshotError::Io(error),
    };
    let mut raw = [0; FRAME_HEADER];
    input.read_exact(&mut raw).map_err(cut_off)?;
    let mut header = &raw[..];
    let (length, crc) = (header.get_u32() as usize, header.get_u32());
    if length == 0 || length > MAX_ENTRY + SLACK {
        return Err(damaged("a frame has an impossible length"));
    }
    // Grows with what is there, not with what a damaged length says.
    let mut payload = Vec::with_capacity(length.min(64 << 10));
    let read = input.take(length as u64).read_to_end(&mut payload)?;
    if read < length {
        return Err(damaged("it was cut off"));
    }
    if crc32fast::hash(&payload) != crc {
        return Err(damaged("the checksum of a frame does not match"));
    }
    let payload = Bytes::from(payload);
    Ok((payload[0], payload.slice(1..), raw))
}

fn decode_info(payload: &[u8]) -> Option<SnapshotInfo> {
    let mut rest = payload;
    rest.try_get_u8().ok()?;
    let content = match rest.try_get_u8().ok()? {
        1 => Content::Fold,
        2 => Content::Ledger,
        _ => return None,
    };
    let index = rest.try_get_u64().ok()?;
    let epoch = rest.try_get_u64().ok()?;
    let (hash, rest) = rest.split_first_chunk()?;
    let (genesis, mut rest) = rest.split_first_chunk()?;
    let created = rest.try_get_i64().ok()?;
    if rest.len() > MAX_ID {
        return None;
    }
    Some(SnapshotInfo {
        cluster_id: std::str::from_utf8(rest).ok()?.to_owned(),
        head: Head {
            index,
            epoch,
            hash: *hash,
        },
        created,
        genesis: *genesis,
        content,
    })
}

/// Unix seconds.
pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{Do, entry_after};

    fn sample() -> Vec<u8> {
        let first = entry_after(&Head::default(), &[Do::Put(1, b"one".into())]);
        let second = entry_after(&first.head(), &[Do::Delete(1)]);
        let info = SnapshotInfo {
            cluster_id: "c1".into(),
            head: second.head(),
            created: 7,
            genesis: first.hash(),
            content: Content::Ledger,
        };
        let mut writer = Writer::new(Vec::new(), &info).unwrap();
        writer.entry(&first).unwrap();
        writer.entry(&second).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<SnapshotInfo, SnapshotError> {
        let mut reader = Reader::open(bytes)?;
        let mut head = Head::default();
        while let Some(entry) = reader.next_entry(&head)? {
            head = entry.head();
        }
        Ok(reader.info().clone())
    }

    #[test]
    fn comes_back() {
        let info = read(&sample()).unwrap();
        assert_eq!((info.cluster_id.as_str(), info.head.index), ("c1", 2));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = sample();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                assert!(read(&bad).is_err(), "byte {at}, bit {bit}");
            }
            assert!(read(&good[..at]).is_err(), "cut at {at}");
        }
        assert!(
            read(&[&good[..], b"x"].concat()).is_err(),
            "more at the end"
        );
    }

    #[test]
    fn what_a_newer_version_wrote_is_named() {
        let mut bytes = sample();
        bytes[MAGIC.len() + FRAME_HEADER + 1] = FORMAT + 1;
        let length = u32::from_be_bytes(bytes[8..12].try_into().unwrap()) as usize;
        let crc = crc32fast::hash(&bytes[16..16 + length]);
        bytes[12..16].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(
            read(&bytes),
            Err(SnapshotError::Newer { found: 2 })
        ));
        assert!(matches!(
            read(b"PK\x03\x04 something"),
            Err(SnapshotError::NotASnapshot)
        ));
    }
}
