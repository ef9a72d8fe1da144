//! One process per node directory: two with one key would be two nodes with one id.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Held while a process uses the directory; the system lets go of it with the process, however that ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

/// Why the directory is not ours.
pub(super) enum Taken {
    /// Another process has it: its id, where it left one.
    By(Option<u32>),
    /// The file cannot be used.
    Unusable(io::Error),
}

impl DirectoryLock {
    /// Takes the lock in `path`, and leaves this process's id there for whoever comes too late.
    pub(super) fn take(path: &Path) -> Result<Self, Taken> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Taken::Unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Taken::By(holder(&mut file))),
            Err(TryLockError::Error(error)) => return Err(Taken::Unusable(error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(Taken::Unusable)?;
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
