//! Making a store of a snapshot file.

use std::{
    fs::{DirBuilder, File},
    io::{BufWriter, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{
    super::snapshot::{Content, Reader, SnapshotInfo},
    Head, SnapshotError, StoreError, failed,
    log::{SEGMENT, create, sync_folder},
    open,
    segment::{self, Frame},
};

/// Writes the ledger in `input` to the store directory `dir`, which must be empty or not exist. The fold
/// is made at the first open.
///
/// Nothing is there before the whole file has been found good.
pub(crate) fn restore(
    input: impl Read,
    dir: &Path,
    cluster_id: Option<&str>,
) -> Result<SnapshotInfo, SnapshotError> {
    let mut reader = Reader::open(input)?;
    let info = reader.info().clone();
    if info.content != Content::Ledger {
        return Err(SnapshotError::Damaged {
            offset: 0,
            what: "this is the fold alone, not a whole ledger",
        });
    }
    if let Some(expected) = cluster_id.filter(|expected| *expected != info.cluster_id) {
        return Err(SnapshotError::OtherCluster {
            found: info.cluster_id,
            expected: expected.to_owned(),
        });
    }
    if !dir.exists() {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(failed("create", dir))?;
    }
    // Before the lock is there: it is what an empty store has.
    for item in dir.read_dir().map_err(failed("list", dir))? {
        let name = item.map_err(failed("list", dir))?.file_name();
        if name != "lock" && name != RESTORING {
            return Err(SnapshotError::NotEmpty {
                dir: dir.to_path_buf(),
            });
        }
    }
    let _lock = open::lock(dir)?;
    let temporary = dir.join(RESTORING);
    if temporary.exists() {
        std::fs::remove_dir_all(&temporary).map_err(failed("remove", &temporary))?;
    }
    let made = DirBuilder::new().mode(0o700).create(&temporary);
    made.map_err(failed("create", &temporary))?;
    let written = write_log(&mut reader, &temporary);
    if let Err(error) = written {
        std::fs::remove_dir_all(&temporary).map_err(failed("remove", &temporary))?;
        return Err(error);
    }
    let log = dir.join("log");
    std::fs::rename(&temporary, &log).map_err(failed("name", &log))?;
    sync_folder(dir)?;
    Ok(info)
}

const RESTORING: &str = "restoring";

fn write_log<R: Read>(reader: &mut Reader<R>, folder: &Path) -> Result<(), SnapshotError> {
    let mut head = Head::default();
    let mut segment: Option<Segment> = None;
    while let Some(entry) = reader.next_entry(&head)? {
        if let Some(full) = segment.take_if(|segment| segment.length >= SEGMENT) {
            full.finish()?;
        }
        let into = match &mut segment {
            Some(segment) => segment,
            None => segment.insert(Segment::create(folder, entry.index)?),
        };
        into.push(&entry)?;
        head = entry.head();
    }
    if let Some(last) = segment {
        last.finish()?;
    }
    sync_folder(folder)?;
    Ok(())
}

struct Segment {
    path: PathBuf,
    file: BufWriter<File>,
    frame: Vec<u8>,
    length: u64,
}

impl Segment {
    fn create(folder: &Path, first: u64) -> Result<Self, StoreError> {
        let path = segment::segment_path(folder, first);
        let file = create(&path).map_err(failed("create", &path))?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 20, file),
            frame: Vec::new(),
            length: 0,
        })
    }

    fn push(&mut self, entry: &super::Entry) -> Result<(), StoreError> {
        self.frame.clear();
        segment::encode_frame(entry, Frame::Starts, &mut self.frame, |_| {});
        self.length += self.frame.len() as u64;
        self.file
            .write_all(&self.frame)
            .map_err(failed("write", &self.path))
    }

    fn finish(self) -> Result<(), StoreError> {
        self.file
            .into_inner()
            .map_err(|error| error.into_error())
            .and_then(|file| file.sync_all())
            .map_err(failed("write", &self.path))
    }
}
