//! The log: what makes an entry durable.
//!
//! One commit is one write and one `fdatasync`. A write that fails is taken back, so that a full disk
//! costs the change that met it and nothing else.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    Entry, MAX_ENTRY, StoreError, failed,
    segment::{self, Chain, Found, Span, Torn},
};

/// A segment that has reached this length is followed by a new one.
const SEGMENT: u64 = 64 << 20;
/// Distance in bytes between the remembered frames of a segment.
const MARK_EVERY: u64 = 256 << 10;
/// A write buffer above this is given back.
const BUFFER_KEPT: usize = 4 << 20;

/// The segments, and the open last one.
pub(super) struct Log {
    folder: PathBuf,
    segments: Vec<Segment>,
    active: Option<File>,
    /// Next entry; the walk at open left it here.
    next: u64,
    /// Why nothing can be appended any more.
    poisoned: Option<&'static str>,
    buffer: Vec<u8>,
    roll_at: u64,
}

struct Segment {
    first: u64,
    /// Good bytes.
    length: u64,
    /// Some of its frames (index, offset), in order, so that readers need not start at its beginning.
    marks: Vec<(u64, u64)>,
}

impl Segment {
    fn mark(&mut self, index: u64, offset: u64) {
        if self
            .marks
            .last()
            .is_none_or(|(_, last)| offset - last >= MARK_EVERY)
        {
            self.marks.push((index, offset));
        }
    }
}

/// Where a committed entry lies.
pub(super) struct Placed {
    pub(super) first: u64,
    /// Offset in the segment of the part of each operation.
    pub(super) parts: Vec<u64>,
}

impl Log {
    /// Opens the log in `folder` and gives `visit` every entry of the segment that holds `from` and of
    /// those after it.
    ///
    /// The torn end of a crashed write is cut off and returned. What was written but not yet synced
    /// when a process died is synced first: it may be folded after this.
    pub(super) fn open(
        folder: &Path,
        from: u64,
        mut visit: impl FnMut(Found) -> Result<(), StoreError>,
    ) -> Result<(Self, Option<Torn>), StoreError> {
        let mut spans = segment::spans(folder)?;
        if let Some(last) = spans.last() {
            sync_file(&last.path)?;
            sync_folder(folder)?;
        }
        let mut segments: Vec<_> = spans
            .iter()
            .map(|span| Segment {
                first: span.first,
                length: span.to,
                marks: Vec::new(),
            })
            .collect();
        let skipped = spans
            .partition_point(|span| span.first <= from.max(1))
            .saturating_sub(1);
        spans.drain(..skipped);
        let mut chain = match spans.first() {
            Some(span) if skipped > 0 => Chain {
                next: span.first,
                previous: None,
            },
            _ => Chain::start(),
        };
        let mut at = skipped;
        let torn = segment::walk(&spans, &mut chain, |found| {
            while segments[at].first != found.first {
                at += 1;
            }
            segments[at].mark(found.entry.index, found.offset);
            visit(found)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let mut log = Self {
            folder: folder.to_path_buf(),
            segments,
            active: None,
            next: chain.next,
            poisoned: None,
            buffer: Vec::new(),
            roll_at: SEGMENT,
        };
        if let Some(last) = spans.last() {
            let mut options = OpenOptions::new();
            log.active = Some(
                options
                    .write(true)
                    .open(&last.path)
                    .map_err(failed("open", &last.path))?,
            );
        }
        Ok((log, torn))
    }

    /// Cuts off what [`Log::open`] found torn.
    pub(super) fn cut(&mut self, torn: &Torn) -> Result<(), StoreError> {
        if let (Some(last), Some(file)) = (self.segments.last_mut(), &self.active) {
            truncate(file, torn.offset).map_err(failed("truncate", &torn.path))?;
            last.length = torn.offset;
        }
        Ok(())
    }

    /// Appends `entries` durably, all or none.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<Vec<Placed>, StoreError> {
        if let Some(what) = self.poisoned {
            return Err(failed(what, &self.folder)(io::Error::other(
                "restart to read it anew",
            )));
        }
        if self
            .segments
            .last()
            .is_none_or(|last| last.length >= self.roll_at)
        {
            self.roll()?;
        }
        let (Some(last), Some(file)) = (self.segments.last_mut(), &self.active) else {
            return Err(failed("append to", &self.folder)(io::Error::other(
                "it has no segment",
            )));
        };
        let path = segment::segment_path(&self.folder, last.first);
        self.buffer.clear();
        let mut placed = Vec::with_capacity(entries.len());
        let mut frames = Vec::with_capacity(entries.len());
        for (entry, index) in entries.iter().zip(self.next..) {
            if entry.index != index || entry.encoded_length() > MAX_ENTRY {
                let what = "the entry is too large or does not follow the one before it";
                let error = io::Error::new(io::ErrorKind::InvalidInput, what);
                return Err(failed("append to", &path)(error));
            }
            frames.push((index, last.length + self.buffer.len() as u64));
            let parts = segment::encode_frame(entry, &mut self.buffer);
            let parts = parts
                .into_iter()
                .map(|part| last.length + part as u64)
                .collect();
            placed.push(Placed {
                first: last.first,
                parts,
            });
        }
        let written = file
            .write_all_at(&self.buffer, last.length)
            .and_then(|()| file.sync_data());
        if let Err(error) = written {
            if truncate(file, last.length).is_err() {
                self.poisoned =
                    Some("append after a failed write, which could not be taken back, to");
            }
            return Err(failed("append to", &path)(error));
        }
        for (index, offset) in frames {
            last.mark(index, offset);
        }
        last.length += self.buffer.len() as u64;
        self.next += entries.len() as u64;
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(placed)
    }

    fn roll(&mut self) -> Result<(), StoreError> {
        let path = segment::segment_path(&self.folder, self.next);
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        if let Err(error) = sync_folder(&self.folder) {
            if std::fs::remove_file(&path).is_err() {
                self.poisoned = Some("start a segment after a failed start in");
            }
            return Err(error);
        }
        self.segments.push(Segment {
            first: self.next,
            length: 0,
            marks: Vec::new(),
        });
        self.active = Some(file);
        Ok(())
    }

    /// What has to be walked to see the durable entries from `index` on; earlier ones may come first.
    pub(super) fn spans_from(&self, index: u64) -> Vec<Span> {
        let skipped = self
            .segments
            .partition_point(|segment| segment.first <= index)
            .saturating_sub(1);
        let span = |segment: &Segment| {
            let known = segment
                .marks
                .partition_point(|(marked, _)| *marked <= index);
            let from = known
                .checked_sub(1)
                .map_or((segment.first, 0), |at| segment.marks[at]);
            let path = segment::segment_path(&self.folder, segment.first);
            Span {
                first: segment.first,
                path,
                from,
                to: segment.length,
            }
        };
        self.segments[skipped..]
            .iter()
            .map(span)
            .filter(|span| span.from.1 < span.to)
            .collect()
    }

    /// Lets a test roll segments without writing 64 MiB.
    #[cfg(test)]
    pub(super) fn roll_at(&mut self, length: u64) {
        self.roll_at = length;
    }
}

fn truncate(file: &File, length: u64) -> io::Result<()> {
    file.set_len(length)?;
    file.sync_data()
}

/// Makes the contents of `path` durable.
pub(super) fn sync_file(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|file| file.sync_data())
        .map_err(failed("sync", path))
}

/// Makes the names in `folder` durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", folder))
}
