//! A file sink: one thread that appends, fed by a bounded queue.
//!
//! The thread is what may block on a slow disk; a request waits for its line with a deadline. Lines that are
//! waiting together are written with one call.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::{AuditError, AuditSink};

/// Lines that may wait; more are refused at once.
const QUEUE: usize = 4096;
/// Bytes written with one call.
const BATCH: usize = 256 * 1024;

type Done = oneshot::Sender<Result<(), String>>;

pub(super) struct FileSink {
    pub config: AuditSink,
    queue: mpsc::Sender<(Vec<u8>, Done)>,
}

impl FileSink {
    pub fn open(config: &AuditSink) -> Result<Self, AuditError> {
        let open = |source| AuditError::Open {
            path: config.path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            // A pipe or a socket must never make a write wait.
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open(&config.path)
            .map_err(open)?;
        let meta = file.metadata().map_err(open)?;
        let mode = meta.mode() & 0o777;
        if mode & 0o077 != 0 && !meta.file_type().is_char_device() {
            return Err(AuditError::Mode {
                path: config.path.clone(),
                mode,
            });
        }
        let (queue, lines) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_all(file, lines))
            .map_err(open)?;
        Ok(Self {
            config: config.clone(),
            queue,
        })
    }

    /// Hand over a line; the receiver tells how it went.
    pub fn submit(&self, line: Vec<u8>) -> Result<oneshot::Receiver<Result<(), String>>, String> {
        let (done, wait) = oneshot::channel();
        match self.queue.try_send((line, done)) {
            Ok(()) => Ok(wait),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(format!("{QUEUE} lines are waiting already"))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err("its writer has stopped".into()),
        }
    }
}

fn write_all(mut file: File, mut lines: mpsc::Receiver<(Vec<u8>, Done)>) {
    // After a failed write half a line may stand there; the next one starts on a line of its own.
    let mut torn = false;
    while let Some((mut batch, first)) = lines.blocking_recv() {
        let mut waiting = vec![first];
        while batch.len() < BATCH
            && let Ok((line, done)) = lines.try_recv()
        {
            batch.extend_from_slice(&line);
            waiting.push(done);
        }
        if torn {
            batch.insert(0, b'\n');
        }
        let result = file.write_all(&batch).map_err(|e| e.to_string());
        torn = result.is_err();
        for done in waiting {
            // Whoever gave up waiting is not told.
            let _ = done.send(result.clone());
        }
    }
}
