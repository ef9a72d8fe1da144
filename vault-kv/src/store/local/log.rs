//! The log: what makes an entry durable.
//!
//! One commit is one write and one `fdatasync`. A write that fails is taken back, so that a full disk
//! costs the change that met it and nothing else.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    ops::ControlFlow,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::RwLock;

use super::{
    Entry, MAX_ENTRY, StoreError, failed,
    segment::{self, Chain, Found, Frame, Span, Torn, Walked},
};

/// A segment that has reached this length is followed by a new one.
pub(super) const SEGMENT: u64 = 64 << 20;
/// Distance in bytes between the remembered frames of a segment.
const MARK_EVERY: u64 = 64 << 10;
/// Segments that are kept open for reading values.
const OPEN: usize = 64;
/// A write buffer above this is given back.
const BUFFER_KEPT: usize = 4 << 20;

/// The end of the log, where entries are appended.
pub(super) struct Log {
    segments: Arc<Segments>,
    active: Option<File>,
    /// Next entry; the walk at open left it here.
    next: u64,
    /// Why nothing can be appended any more.
    poisoned: Option<&'static str>,
    buffer: Vec<u8>,
    roll_at: u64,
    /// Lets a test have the disk fail.
    #[cfg(test)]
    pub(super) fault: Option<Fault>,
}

/// A write that fails after some of its bytes.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct Fault {
    pub(super) after: usize,
    pub(super) kind: io::ErrorKind,
}

/// What segments there are, for those who read while the log grows or is compacted. Nobody holds this
/// while waiting for the disk to sync.
pub(super) struct Segments {
    folder: PathBuf,
    list: RwLock<Vec<Segment>>,
    /// Segments that values were read from, by their first entry; at most [`OPEN`].
    open: RwLock<HashMap<u64, Arc<File>>>,
}

struct Segment {
    first: u64,
    /// How often its file was replaced.
    replaced: u32,
    /// Good bytes.
    length: u64,
    /// Some of its frames (index, offset), in order, so that readers need not start at its beginning.
    marks: Marks,
}

/// Some frames of a segment (index, offset), in order.
#[derive(Default)]
pub(super) struct Marks(Vec<(u64, u64)>);

impl Marks {
    /// Remembers a frame if it is far enough from the last one.
    pub(super) fn add(&mut self, index: u64, offset: u64) {
        if self
            .0
            .last()
            .is_none_or(|(_, last)| offset - last >= MARK_EVERY)
        {
            self.0.push((index, offset));
        }
    }
}

/// Where committed entries lie.
pub(super) struct Placed {
    /// The segment.
    pub(super) first: u64,
    /// Offset in it of the part of each operation, one entry after the other.
    pub(super) parts: Vec<u64>,
}

impl Segments {
    /// Reads durable entries from `from` on, until `visit` breaks or there are no more.
    pub(super) fn walk(
        &self,
        from: u64,
        mut visit: impl FnMut(Found) -> Result<ControlFlow<()>, StoreError>,
    ) -> Result<(), StoreError> {
        let mut chain: Option<Chain> = None;
        let mut next = from.max(1);
        while let Some((reader, replaced)) = self.reader(next, chain.is_some())? {
            let (first, start) = (reader.span.first, reader.span.from);
            let chain = chain.get_or_insert_with(|| Chain::at(start.0));
            // Where the segment was not walked when it was opened, its marks are learnt now.
            let mut marks = Marks::default();
            let walked = segment::walk_one(reader, chain, false, &mut |found| {
                marks.add(found.entry.index, found.offset);
                if found.entry.index < from {
                    return Ok(ControlFlow::Continue(()));
                }
                visit(found)
            })?;
            if start.1 == 0 {
                self.learn(first, replaced, marks);
            }
            if !matches!(walked, Walked::All) || chain.next <= next {
                break;
            }
            next = chain.next;
        }
        Ok(())
    }

    /// Opens the segment that has the durable entry `index`, at a frame not far before it; `at_start`:
    /// only the segment that begins with it. With how often its file has been replaced.
    fn reader(
        &self,
        index: u64,
        at_start: bool,
    ) -> Result<Option<(segment::Reader, u32)>, StoreError> {
        // Held while the file is opened: no other file takes its name in between.
        let list = self.list.read();
        let at = list
            .partition_point(|segment| segment.first <= index)
            .saturating_sub(1);
        let found = list.get(at);
        let Some(segment) = found.filter(|segment| !at_start || segment.first == index) else {
            return Ok(None);
        };
        let marks = &segment.marks.0;
        let known = marks.partition_point(|(marked, _)| *marked <= index);
        let from = known
            .checked_sub(1)
            .map_or((segment.first, 0), |at| marks[at]);
        let reader = segment::Reader::open(Span {
            first: segment.first,
            path: segment::segment_path(&self.folder, segment.first),
            from,
            to: segment.length,
        })?;
        Ok(Some((reader, segment.replaced)))
    }

    /// `replaced`: which of its files the marks are of.
    fn learn(&self, first: u64, replaced: u32, marks: Marks) {
        let mut list = self.list.write();
        if let Ok(at) = list.binary_search_by_key(&first, |segment| segment.first)
            && list[at].replaced == replaced
            && list[at].marks.0.is_empty()
        {
            list[at].marks = marks;
        }
    }

    /// Every segment but the last, to which entries are appended.
    pub(super) fn closed(&self) -> Vec<Span> {
        let list = self.list.read();
        let closed = list.len().saturating_sub(1);
        let span = |segment: &Segment| Span {
            first: segment.first,
            path: segment::segment_path(&self.folder, segment.first),
            from: (segment.first, 0),
            to: segment.length,
        };
        list[..closed].iter().map(span).collect()
    }

    /// `length` bytes at `offset` of the segment that starts with `first`, if it has so many.
    pub(super) fn read_at(
        &self,
        first: u64,
        offset: u64,
        length: u32,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = || segment::segment_path(&self.folder, first);
        let known = self.open.read().get(&first).cloned();
        let file = match known {
            Some(file) => file,
            None => match self.open_to_read(first) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("open", &path())(error)),
            },
        };
        let mut bytes = vec![0; length as usize];
        match file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(failed("read", &path())(error)),
        }
    }

    fn open_to_read(&self, first: u64) -> io::Result<Arc<File>> {
        // Held while the file is opened and noted: none is noted that was replaced.
        let _list = self.list.read();
        let file = Arc::new(File::open(segment::segment_path(&self.folder, first))?);
        let mut open = self.open.write();
        if open.len() >= OPEN {
            open.clear();
        }
        open.insert(first, Arc::clone(&file));
        Ok(file)
    }

    /// Puts the file `with` in the place of the closed segment `first`.
    pub(super) fn replace(
        &self,
        first: u64,
        with: &Path,
        length: u64,
        marks: Marks,
    ) -> Result<(), StoreError> {
        let mut list = self.list.write();
        let path = segment::segment_path(&self.folder, first);
        std::fs::rename(with, &path).map_err(failed("replace", &path))?;
        self.open.write().remove(&first);
        if let Ok(at) = list.binary_search_by_key(&first, |segment| segment.first) {
            list[at] = Segment {
                first,
                replaced: list[at].replaced + 1,
                length,
                marks,
            };
        }
        drop(list);
        sync_folder(&self.folder)
    }

    /// Bytes of all segments, and of those that have an entry from `index` on.
    pub(super) fn bytes(&self, index: u64) -> (u64, u64) {
        let list = self.list.read();
        let (mut all, mut newer) = (0, 0);
        for (at, segment) in list.iter().enumerate() {
            all += segment.length;
            let next = list.get(at + 1).map(|next| next.first);
            if next.is_none_or(|next| next > index) {
                newer += segment.length;
            }
        }
        (all, newer)
    }
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
                replaced: 0,
                length: span.to,
                marks: Marks::default(),
            })
            .collect();
        let skipped = spans
            .partition_point(|span| span.first <= from.max(1))
            .saturating_sub(1);
        spans.drain(..skipped);
        let mut chain = match spans.first() {
            Some(span) if skipped > 0 => Chain::at(span.first),
            _ => Chain::start(),
        };
        let mut at = skipped;
        let torn = segment::walk(&spans, &mut chain, |found| {
            while segments[at].first != found.first {
                at += 1;
            }
            segments[at].marks.add(found.entry.index, found.offset);
            visit(found)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let active = match spans.last() {
            Some(last) => {
                let mut options = OpenOptions::new();
                let file = options.write(true).open(&last.path);
                Some(file.map_err(failed("open", &last.path))?)
            }
            None => None,
        };
        let segments = Segments {
            folder: folder.to_path_buf(),
            list: RwLock::new(segments),
            open: RwLock::default(),
        };
        let log = Self {
            segments: Arc::new(segments),
            active,
            next: chain.next,
            poisoned: None,
            buffer: Vec::new(),
            roll_at: SEGMENT,
            #[cfg(test)]
            fault: None,
        };
        Ok((log, torn))
    }

    pub(super) fn segments(&self) -> &Arc<Segments> {
        &self.segments
    }

    /// Cuts off what [`Log::open`] found torn.
    pub(super) fn cut(&mut self, torn: &Torn) -> Result<(), StoreError> {
        if let (Some(last), Some(file)) = (self.segments.list.write().last_mut(), &self.active) {
            truncate(file, torn.offset).map_err(failed("truncate", &torn.path))?;
            last.length = torn.offset;
        }
        Ok(())
    }

    /// Appends `entries` durably, all or none.
    pub(super) fn append(&mut self, entries: &[Entry]) -> Result<Placed, StoreError> {
        let folder = &self.segments.folder;
        if let Some(what) = self.poisoned {
            return Err(failed(what, folder)(io::Error::other(
                "restart to read it anew",
            )));
        }
        let last = |log: &Self| {
            let list = log.segments.list.read();
            list.last().map(|last| (last.first, last.length))
        };
        if last(self).is_none_or(|(_, length)| length >= self.roll_at) {
            self.roll()?;
        }
        let folder = &self.segments.folder;
        let (Some((first, length)), Some(file)) = (last(self), &self.active) else {
            return Err(failed("append to", folder)(io::Error::other(
                "it has no segment",
            )));
        };
        let path = segment::segment_path(folder, first);
        self.buffer.clear();
        let mut parts = Vec::with_capacity(entries.len());
        let mut frames = Vec::with_capacity(entries.len());
        for (entry, index) in entries.iter().zip(self.next..) {
            if entry.index != index || entry.encoded_length() > MAX_ENTRY {
                let what = "the entry is too large or does not follow the one before it";
                let error = io::Error::new(io::ErrorKind::InvalidInput, what);
                return Err(failed("append to", &path)(error));
            }
            let frame = match frames.is_empty() {
                true => Frame::Starts,
                false => Frame::Continues,
            };
            frames.push((index, length + self.buffer.len() as u64));
            segment::encode_frame(entry, frame, &mut self.buffer, |part| {
                parts.push(length + part as u64);
            });
        }
        if let Err(error) = self.write(file, length) {
            if truncate(file, length).is_err() {
                self.poisoned =
                    Some("append after a failed write, which could not be taken back, to");
            }
            return Err(failed("append to", &path)(error));
        }
        if let Some(last) = self.segments.list.write().last_mut() {
            for (index, offset) in frames {
                last.marks.add(index, offset);
            }
            last.length += self.buffer.len() as u64;
        }
        self.next += entries.len() as u64;
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(Placed { first, parts })
    }

    /// Durably.
    fn write(&self, file: &File, at: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Some(fault) = self.fault {
            file.write_all_at(&self.buffer[..fault.after.min(self.buffer.len())], at)?;
            return Err(fault.kind.into());
        }
        file.write_all_at(&self.buffer, at)?;
        file.sync_data()
    }

    /// Starts a new segment unless the last one is empty; every entry so far is in a closed one then.
    pub(super) fn close_segment(&mut self) -> Result<(), StoreError> {
        let list = self.segments.list.read();
        if list.last().is_none_or(|last| last.length == 0) {
            return Ok(());
        }
        drop(list);
        self.roll()
    }

    fn roll(&mut self) -> Result<(), StoreError> {
        let folder = &self.segments.folder;
        let path = segment::segment_path(folder, self.next);
        let file = create(&path).map_err(failed("create", &path))?;
        if let Err(error) = sync_folder(folder) {
            if std::fs::remove_file(&path).is_err() {
                self.poisoned = Some("start a segment after a failed start in");
            }
            return Err(error);
        }
        self.segments.list.write().push(Segment {
            first: self.next,
            replaced: 0,
            length: 0,
            marks: Marks::default(),
        });
        self.active = Some(file);
        Ok(())
    }

    /// Lets a test roll segments without writing 64 MiB.
    #[cfg(test)]
    pub(super) fn roll_at(&mut self, length: u64) {
        self.roll_at = length;
    }
}

/// A file for the log, which must not be there.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
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
