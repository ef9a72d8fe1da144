//! Segment files: frames on disk, and the one walk over them.
//!
//! A segment is named after its first index (20 digits, `.log`) and is a row of frames:
//! `u32 length ‖ u32 CRC-32 of the payload ‖ payload`, numbers big-endian, the payload one encoded
//! [`Entry`]. In the frames of a group that was made durable at once, all but the first have the highest bit of
//! the length set and the checksum inverted. Opening, reading, following and offline verification all go through
//! [`walk`], so that they agree on what a good log is.
//!
//! A power cut may leave any pages of the last group and not the others. So a bad frame with whole ones
//! behind it is a write that was cut off as long as those are of the same group, and damage when one of
//! them starts a group: that was written only after the bad frame had been durable.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{Entry, FORMAT, MAX_ENTRY, StoreError, failed};

/// Bytes before the payload of a frame.
pub(super) const FRAME_HEADER: usize = 8;

/// The bit of a frame's length that says that it continues a group.
const CONTINUES: u32 = 1 << 31;
const _: () = assert!(MAX_ENTRY < CONTINUES as usize);

/// When a frame was made durable.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// Later than the one before it.
    Starts,
    /// Together with the one before it.
    Continues,
}

/// The eight bytes before a payload.
struct Header {
    length: usize,
    crc: u32,
    frame: Frame,
}

impl Header {
    fn of(payload: &[u8], frame: Frame) -> [u8; FRAME_HEADER] {
        let (length, crc) = (payload.len() as u32, crc32fast::hash(payload));
        let (length, crc) = match frame {
            Frame::Starts => (length, crc),
            Frame::Continues => (length | CONTINUES, !crc),
        };
        let mut header = [0; FRAME_HEADER];
        header[..4].copy_from_slice(&length.to_be_bytes());
        header[4..].copy_from_slice(&crc.to_be_bytes());
        header
    }

    fn read(header: [u8; FRAME_HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h] = header;
        let (length, crc) = (
            u32::from_be_bytes([a, b, c, d]),
            u32::from_be_bytes([e, f, g, h]),
        );
        match length & CONTINUES {
            0 => Self {
                length: length as usize,
                crc,
                frame: Frame::Starts,
            },
            _ => Self {
                length: (length & !CONTINUES) as usize,
                crc: !crc,
                frame: Frame::Continues,
            },
        }
    }

    fn matches(&self, payload: &[u8]) -> bool {
        crc32fast::hash(payload) == self.crc
    }
}

/// Appends the frame of `entry` to `out` and tells `placed` where in `out` the part of each operation starts.
pub(super) fn encode_frame(
    entry: &Entry,
    frame: Frame,
    out: &mut Vec<u8>,
    placed: impl FnMut(usize),
) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    entry.encode(out, placed);
    let (header, payload) = out[start..].split_at_mut(FRAME_HEADER);
    header.copy_from_slice(&Header::of(payload, frame));
}

pub(super) fn segment_path(log: &Path, first: u64) -> PathBuf {
    log.join(format!("{first:020}.log"))
}

/// The part of one segment file that is to be walked.
#[derive(Clone)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) path: PathBuf,
    /// Index and offset of the frame to start at.
    pub(super) from: (u64, u64),
    /// Where the caller stops; the file may end before.
    pub(super) to: u64,
}

/// Every segment in the folder `log`, whole, in order.
pub(super) fn spans(log: &Path) -> Result<Vec<Span>, StoreError> {
    let mut spans = Vec::new();
    for item in log.read_dir().map_err(failed("list", log))? {
        let item = item.map_err(failed("list", log))?;
        let name = item.file_name();
        let Some(digits) = name.to_str().and_then(|name| name.strip_suffix(".log")) else {
            continue;
        };
        if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(first) = digits.parse() else { continue };
        let path = item.path();
        let to = item.metadata().map_err(failed("examine", &path))?.len();
        spans.push(Span {
            first,
            path,
            from: (first, 0),
            to,
        });
    }
    spans.sort_unstable_by_key(|span| span.first);
    Ok(spans)
}

/// What the next entry must be.
pub(super) struct Chain {
    pub(super) next: u64,
    /// Hash of the entry before it; `None` when the walk starts in the middle of a log.
    pub(super) previous: Option<[u8; 32]>,
}

impl Chain {
    /// From `index` on, which may be in the middle of a log.
    pub(super) fn at(index: u64) -> Self {
        match index {
            0 | 1 => Self::start(),
            next => Self {
                next,
                previous: None,
            },
        }
    }

    /// The start of a ledger.
    pub(super) fn start() -> Self {
        Self {
            next: 1,
            previous: Some([0; 32]),
        }
    }
}

/// One entry and where it lies.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) first: u64,
    /// Offset of the frame in its segment.
    pub(super) offset: u64,
    /// Offset in the segment of the part of each operation.
    pub(super) parts: Vec<u64>,
}

/// The end of the last segment that is no frame: a write that a crash cut off.
pub(super) struct Torn {
    pub(super) index: u64,
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    /// Bytes from there to the end.
    pub(super) bytes: u64,
    what: &'static str,
}

impl Torn {
    /// The same for a caller who knows that this entry had been durable.
    pub(super) fn corrupt(self) -> StoreError {
        StoreError::Corrupt {
            index: self.index,
            segment: self.path,
            offset: self.offset,
            what: self.what,
        }
    }
}

/// How a walk ended.
pub(super) enum Walked {
    All,
    /// `visit` broke it off.
    Broken,
    Torn(Torn),
}

/// Reads the entries of `spans` in order, checks frames, indexes and chain, and gives each to `visit`.
///
/// A bad frame is [`StoreError::Corrupt`], except in the last group of the last span.
pub(super) fn walk(
    spans: &[Span],
    chain: &mut Chain,
    mut visit: impl FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
) -> Result<Option<Torn>, StoreError> {
    for (at, span) in spans.iter().enumerate() {
        let last = at + 1 == spans.len();
        match walk_one(Reader::open(span.clone())?, chain, last, &mut visit)? {
            Walked::All => {}
            Walked::Broken => break,
            Walked::Torn(torn) => return Ok(Some(torn)),
        }
    }
    Ok(None)
}

/// The same for one span; `last`: a write that was cut off may end it.
pub(super) fn walk_one(
    mut reader: Reader,
    chain: &mut Chain,
    last: bool,
    visit: &mut dyn FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
) -> Result<Walked, StoreError> {
    let Span {
        first, path, from, ..
    } = reader.span.clone();
    let corrupt = |index, offset, what| StoreError::Corrupt {
        index,
        segment: path.clone(),
        offset,
        what,
    };
    if from.0 != chain.next {
        let what = "entries before this segment are missing";
        return Err(corrupt(chain.next.min(from.0), from.1, what));
    }
    while reader.offset < reader.to {
        let offset = reader.offset;
        let frame = match reader.frame()? {
            Ok(frame) => frame,
            Err(what) => {
                let tail = match last {
                    true => reader.tail(offset)?,
                    false => return Err(corrupt(chain.next, offset, what)),
                };
                if (1..tail.len()).any(|at| starts_group(&tail[at..], chain.next)) {
                    return Err(corrupt(chain.next, offset, what));
                }
                return Ok(Walked::Torn(Torn {
                    index: chain.next,
                    bytes: tail.len() as u64,
                    path,
                    offset,
                    what,
                }));
            }
        };
        let format = frame.first().copied().unwrap_or_default();
        if format > FORMAT {
            return Err(StoreError::Newer { path, format });
        }
        let Some((entry, parts)) = Entry::decode(&frame) else {
            return Err(corrupt(chain.next, offset, "the entry is not well-formed"));
        };
        if entry.index != chain.next {
            return Err(corrupt(chain.next, offset, "another entry is in its place"));
        }
        if chain
            .previous
            .is_some_and(|previous| previous != entry.previous)
        {
            return Err(corrupt(
                entry.index,
                offset,
                "it does not hold the hash of the entry before it",
            ));
        }
        *chain = Chain {
            next: entry.index + 1,
            previous: Some(entry.hash()),
        };
        let payload = offset + FRAME_HEADER as u64;
        let parts = parts
            .into_iter()
            .map(|part| payload + part as u64)
            .collect();
        let found = Found {
            entry,
            first,
            offset,
            parts,
        };
        if visit(found)?.is_break() {
            return Ok(Walked::Broken);
        }
    }
    Ok(Walked::All)
}

/// An open segment file.
pub(super) struct Reader {
    pub(super) span: Span,
    file: BufReader<File>,
    offset: u64,
    to: u64,
}

impl Reader {
    pub(super) fn open(span: Span) -> Result<Self, StoreError> {
        let file = File::open(&span.path).map_err(failed("open", &span.path))?;
        let length = file
            .metadata()
            .map_err(failed("examine", &span.path))?
            .len();
        let mut file = BufReader::with_capacity(256 << 10, file);
        file.seek(SeekFrom::Start(span.from.1))
            .map_err(failed("read", &span.path))?;
        Ok(Self {
            file,
            offset: span.from.1,
            to: span.to.min(length),
            span,
        })
    }

    /// The payload of the next frame, or what is wrong with it.
    fn frame(&mut self) -> Result<Result<Bytes, &'static str>, StoreError> {
        let left = self.to - self.offset;
        if left < FRAME_HEADER as u64 {
            return Ok(Err("the frame is incomplete"));
        }
        let mut header = [0; FRAME_HEADER];
        self.read(&mut header)?;
        let header = Header::read(header);
        let length = header.length;
        if length == 0 || length > MAX_ENTRY {
            return Ok(Err("the frame has an impossible length"));
        }
        if length as u64 > left - FRAME_HEADER as u64 {
            return Ok(Err("the frame is incomplete"));
        }
        let mut payload = vec![0; length];
        self.read(&mut payload)?;
        if !header.matches(&payload) {
            return Ok(Err("the checksum does not match"));
        }
        self.offset += (FRAME_HEADER + length) as u64;
        Ok(Ok(payload.into()))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact(out)
            .map_err(failed("read", &self.span.path))
    }

    /// What is behind `offset`.
    fn tail(&mut self, offset: u64) -> Result<Vec<u8>, StoreError> {
        let mut tail = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| {
                self.file
                    .by_ref()
                    .take(self.to - offset)
                    .read_to_end(&mut tail)
            })
            .map_err(failed("read", &self.span.path))?;
        Ok(tail)
    }
}

/// Whether `bytes` start with a frame that starts a group, with the entry `index` or a later one.
fn starts_group(bytes: &[u8], index: u64) -> bool {
    let Some(header) = bytes.first_chunk().map(|header| Header::read(*header)) else {
        return false;
    };
    let end = FRAME_HEADER.saturating_add(header.length);
    let Some(payload) = bytes.get(FRAME_HEADER..end) else {
        return false;
    };
    // The format byte and index of an entry first: a checksum at every offset would take minutes.
    let Some(([FORMAT], rest)) = payload.split_first_chunk() else {
        return false;
    };
    let Some(found) = rest.first_chunk().map(|found| u64::from_be_bytes(*found)) else {
        return false;
    };
    header.frame == Frame::Starts
        && found >= index
        && found - index < bytes.len() as u64
        && header.matches(payload)
        && Entry::decode(&Bytes::copy_from_slice(payload)).is_some()
}

/// Whether `bytes` are a row of whole frames with entries whose parts match their commitments.
pub(crate) fn is_segment(mut bytes: &[u8]) -> bool {
    while let Some((header, rest)) = bytes.split_first_chunk() {
        let header = Header::read(*header);
        let Some((payload, rest)) = rest.split_at_checked(header.length) else {
            return false;
        };
        let entry = Entry::decode(&Bytes::copy_from_slice(payload));
        let whole = entry.is_some_and(|(entry, _)| entry.commitments_hold());
        if !whole || !header.matches(payload) {
            return false;
        }
        bytes = rest;
    }
    bytes.is_empty()
}
