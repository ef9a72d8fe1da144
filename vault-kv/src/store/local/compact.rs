//! Compaction: taking out for good what nobody needs, and a new snapshot and fold of what is left.
//!
//! ```text
//! 1  the segment that is written to is closed: everything up to here is in files that do not change
//! 2  the log is read: which operation made the state of each key (see `liveness`)
//! 3  each segment with needless payloads is written anew beside the old one, synced, and put in its place
//! 4  a snapshot of the state is written meanwhile, from the same reading; older snapshots go
//! 5  a new fold is made from that snapshot and what has happened since; the old one goes, as its pages
//!    still hold what was taken out
//! ```
//!
//! A segment keeps its entries, their headers and their metas: only payloads go, and the chain verifies
//! without them. Every step leaves a whole store when the process dies in it: a renamed file is the old
//! one or the new one, and the next open removes what was not finished. Commits wait only for step 1.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Read, Write},
    ops::ControlFlow,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{
    Chain, Compacted, Liveness, Pace, Shared, StoreError, failed,
    log::{Marks, sync_folder},
    open::remove_set_aside,
    segment::{self, Found, Frame, Reader, Span},
    snapshots::{self, FoldWriter},
};

/// The background compacts when so many bytes were written since the last time, and at least as many as
/// there were then.
const WORTH: u64 = 256 << 20;
/// Bytes between two rests.
const STRIDE: u64 = 1 << 20;

impl Shared {
    /// See [`Store::compact`](super::Store::compact).
    pub(super) fn compact(
        &self,
        keep_from: u64,
        pace: Pace,
        stop: &AtomicBool,
    ) -> Result<Compacted, StoreError> {
        let _one_at_a_time = self.compacting.lock();
        let bytes_before = bytes_under(&self.dir);
        let head = {
            let mut log = self.log.lock();
            let head = self.feed.head();
            log.close_segment()?;
            head
        };
        if head.index == 0 {
            return Ok(Compacted::default());
        }
        let mut pacer = Pacer::new(self, pace, stop);
        let closed = self.segments.closed();
        let mut live = Liveness::default();
        let mut genesis = [0; 32];
        let mut chain = Chain::start();
        for span in &closed {
            segment::walk_one(
                Reader::open(span.clone())?,
                &mut chain,
                false,
                &mut |found| {
                    if found.entry.index == 1 {
                        genesis = found.entry.hash();
                    }
                    live.add(&found.entry);
                    pacer.step(found.entry.encoded_length())?;
                    Ok(ControlFlow::Continue(()))
                },
            )?;
        }

        let mut snapshot = FoldWriter::create(&self.dir, head, genesis)?;
        let mut redacted = 0;
        let mut chain = Chain::start();
        for span in &closed {
            redacted += self.rewrite(
                span,
                &mut chain,
                &live,
                keep_from,
                &mut snapshot,
                &mut pacer,
            )?;
        }
        drop(live);
        snapshot.finish()?;
        // What is in memory may hold what was taken out.
        self.feed.clear();
        for (index, path) in snapshots::list(&self.dir)? {
            if index != head.index {
                std::fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        self.refold(stop)?;
        remove_set_aside(&self.dir)?;
        sync_folder(&self.dir)?;
        let compacted = Compacted {
            head: head.index,
            redacted,
            bytes_before,
            bytes_after: bytes_under(&self.dir),
        };
        tracing::info!(
            head = compacted.head,
            redacted,
            bytes_before,
            bytes_after = compacted.bytes_after,
            "compacted the store"
        );
        Ok(compacted)
    }

    /// Puts a segment without its needless payloads in the place of `span`, if it has any, and adds what is
    /// live in it to `snapshot`.
    fn rewrite(
        &self,
        span: &Span,
        chain: &mut Chain,
        live: &Liveness,
        keep_from: u64,
        snapshot: &mut FoldWriter,
        pacer: &mut Pacer<'_>,
    ) -> Result<u64, StoreError> {
        let mut anew: Option<NewSegment> = None;
        let mut total = 0;
        segment::walk_one(Reader::open(span.clone())?, chain, false, &mut |found| {
            let Found {
                mut entry,
                first,
                offset,
                mut parts,
            } = found;
            pacer.step(entry.encoded_length())?;
            let redacted = live.redact(&mut entry, keep_from);
            total += redacted;
            if redacted > 0 && anew.is_none() {
                anew = Some(NewSegment::start(span, offset)?);
            }
            if let Some(anew) = &mut anew {
                parts = anew.push(&entry)?;
            }
            for (at, part) in parts.iter().enumerate() {
                if live.is_live(&entry, at) {
                    snapshot.add(&entry, at, first, *part)?;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(anew) = anew {
            anew.finish(self)?;
        }
        Ok(total)
    }

    /// See [`Store::wants_compaction`](super::Store::wants_compaction).
    pub(super) fn wants_compaction(&self) -> bool {
        let last = snapshots::list(&self.dir)
            .ok()
            .and_then(|list| list.first().map(|(index, _)| *index))
            .unwrap_or(0);
        let (all, since) = self.segments.bytes(last);
        since >= WORTH.max(all - since)
    }
}

/// A segment that is written anew.
struct NewSegment<'a> {
    span: &'a Span,
    path: std::path::PathBuf,
    file: BufWriter<File>,
    length: u64,
    marks: Marks,
    frame: Vec<u8>,
    /// Entries before the first one that changed were not looked at again.
    complete: bool,
}

impl<'a> NewSegment<'a> {
    /// With the frames of `span` before `offset`, as they are.
    fn start(span: &'a Span, offset: u64) -> Result<Self, StoreError> {
        let path = span.path.with_extension("log.new");
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let old = File::open(&span.path).map_err(failed("open", &span.path))?;
        std::io::copy(&mut old.take(offset), &mut file).map_err(failed("write", &path))?;
        Ok(Self {
            span,
            path,
            file,
            length: offset,
            marks: Marks::default(),
            frame: Vec::new(),
            complete: offset == 0,
        })
    }

    /// Offsets of the parts in the new segment.
    fn push(&mut self, entry: &super::Entry) -> Result<Vec<u64>, StoreError> {
        self.frame.clear();
        let (offset, mut parts) = (self.length, Vec::with_capacity(entry.ops.len()));
        segment::encode_frame(entry, Frame::Starts, &mut self.frame, |part| {
            parts.push(offset + part as u64);
        });
        self.file
            .write_all(&self.frame)
            .map_err(failed("write", &self.path))?;
        self.marks.add(entry.index, offset);
        self.length += self.frame.len() as u64;
        Ok(parts)
    }

    fn finish(self, shared: &Shared) -> Result<(), StoreError> {
        let Self { path, file, .. } = self;
        let file = file
            .into_inner()
            .map_err(|error| failed("write", &path)(error.into_error()))?;
        file.sync_all().map_err(failed("sync", &path))?;
        // Without marks the next reader of this segment learns them.
        let marks = if self.complete {
            self.marks
        } else {
            Marks::default()
        };
        shared
            .segments
            .replace(self.span.first, &path, self.length, marks)
    }
}

/// Lets others have the machine in between.
pub(super) struct Pacer<'a> {
    shared: &'a Shared,
    pace: Pace,
    stop: &'a AtomicBool,
    bytes: u64,
    since: Instant,
}

/// The longest rest.
const REST: Duration = Duration::from_millis(50);

impl<'a> Pacer<'a> {
    pub(super) fn new(shared: &'a Shared, pace: Pace, stop: &'a AtomicBool) -> Self {
        Self {
            shared,
            pace,
            stop,
            bytes: 0,
            since: Instant::now(),
        }
    }

    /// After every `STRIDE` bytes: is it to stop? In the background it rests as long as it has worked.
    fn step(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.bytes += bytes as u64;
        if self.bytes < STRIDE {
            return Ok(());
        }
        self.bytes = 0;
        if self.stop.load(Ordering::Relaxed) {
            return Err(StoreError::Closing);
        }
        if self.pace == Pace::Background {
            let worked = Instant::now() - self.since;
            let mut folding = self.shared.folding.lock();
            self.shared.folded.wait_for(&mut folding, worked.min(REST));
            drop(folding);
            self.since = Instant::now();
        }
        Ok(())
    }
}

/// Bytes of the files under `dir`; what goes away meanwhile is not counted.
fn bytes_under(dir: &Path) -> u64 {
    let Ok(items) = dir.read_dir() else { return 0 };
    items
        .flatten()
        .map(|item| match item.metadata() {
            Ok(meta) if meta.is_dir() => bytes_under(&item.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
