//! Snapshots for operators: a whole store in one file, to keep elsewhere and to make a store of again.

use std::{
    io::{Read, Write},
    path::Path,
};

use crate::{
    seal::SealConfig,
    store::{Entry, OpKind, SnapshotError, SnapshotInfo, local, snapshot::Reader},
    vault::Vault,
};

impl Vault {
    /// Writes the store as it is now to `out`: every entry of the ledger, sealed as it is on disk, without
    /// the values that [`compact`](crate::Ledger::compact) would take out. It can be unsealed with the same
    /// shares or key file, and with nothing else. Blocks; reads and writes go on meanwhile.
    ///
    /// While sealed the age of entries is not known, and overwritten values are all kept.
    ///
    /// # Errors
    /// `out` cannot be written, or the store cannot be read. What was written is then not a snapshot.
    pub fn save_snapshot(&self, out: &mut dyn Write) -> Result<SnapshotInfo, SnapshotError> {
        let config = SealConfig::load(&**self.store())?;
        let cluster_id = config.map(|config| config.cluster_id).unwrap_or_default();
        let keep_from = match self.unsealed() {
            Ok(open) => open
                .core
                .keep_from(self.history_retention())
                .map_err(|error| std::io::Error::other(error.to_string()))?,
            Err(_) => 0,
        };
        let mut begin = Beginning {
            out,
            bytes: Vec::new(),
        };
        self.store().snapshot(&cluster_id, keep_from, &mut begin)?;
        Ok(Reader::open(&begin.bytes[..])?.info().clone())
    }
}

/// Keeps the first bytes of what it passes on: the header of the snapshot is in them.
struct Beginning<'a> {
    out: &'a mut dyn Write,
    bytes: Vec<u8>,
}

impl Write for Beginning<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        let room = 4096usize.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..written.min(room)]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// A whole snapshot that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// What it says of itself.
    pub info: SnapshotInfo,
    /// Entries of the ledger.
    pub entries: u64,
    /// Named records that there are after the last one.
    pub records: u64,
    /// Parts that were taken out before or while it was saved.
    pub redacted: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Reads a whole snapshot and checks all of it: frames, chain, commitments, digest. Needs no key, and no memory to
/// speak of.
///
/// # Errors
/// [`SnapshotError`] with the place of the first thing that does not hold.
pub fn inspect_snapshot(input: impl Read) -> Result<Inspected, SnapshotError> {
    let mut input = Counted { input, bytes: 0 };
    let mut reader = Reader::open(&mut input)?;
    let mut head = crate::Head::default();
    let (mut records, mut redacted) = (0u64, 0);
    while let Some(entry) = reader.next_entry(&head)? {
        let (come, gone) = records_of(&entry);
        records = (records + come).saturating_sub(gone);
        redacted += entry.redacted_parts() as u64;
        head = entry.head();
    }
    let info = reader.info().clone();
    Ok(Inspected {
        info,
        entries: head.index,
        records,
        redacted,
        bytes: input.bytes,
    })
}

/// How many named records an entry has brought into being, and how many it took away.
fn records_of(entry: &Entry) -> (u64, u64) {
    let (mut come, mut gone) = (0, 0);
    let named = |kind| kind != OpKind::Control;
    for (at, op) in entry.ops.iter().enumerate() {
        let mut later = entry.ops[at + 1..].iter();
        if !named(op.kind) || later.any(|later| named(later.kind) && later.key == op.key) {
            continue;
        }
        let was_there = op.previous != 0;
        come += u64::from(op.kind == OpKind::Put && !was_there);
        gone += u64::from(op.kind == OpKind::Delete && was_there);
    }
    (come, gone)
}

struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let read = self.input.read(into)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Makes a store of a snapshot in `dir`, which must be empty or not exist (its parent must). The store is
/// sealed, as the one was that the snapshot is of. `cluster_id`: only if it is of this cluster.
///
/// # Errors
/// It is not a whole snapshot, of a newer version, of another cluster; the directory is not empty or is in
/// use. Then nothing is there that was not there before, but for the directory and its lock.
pub fn restore_snapshot(
    input: impl Read,
    dir: &Path,
    cluster_id: Option<&str>,
) -> Result<SnapshotInfo, SnapshotError> {
    local::restore(input, dir, cluster_id)
}
