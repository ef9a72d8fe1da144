//! A file sink: one thread that appends, fed by a bounded queue.
//!
//! The thread is what may block on a slow disk; a request waits for its line with a deadline. Lines that are
//! waiting together are written with one call.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;

use tokio::sync::{mpsc, oneshot};

use super::{AuditError, AuditSink};

/// Lines that may wait; more are refused at once.
const QUEUE: usize = 4096;
/// Bytes written with one call.
const BATCH: usize = 256 * 1024;

/// What came of a line.
pub(super) type Outcome = Result<(), String>;
type Done = oneshot::Sender<Outcome>;
/// Tells what came of it; or why nobody has taken it.
pub(super) type HandedOver = Result<oneshot::Receiver<Outcome>, String>;

enum Job {
    Line(Vec<u8>, Done),
    Reopen(Done),
}

pub(super) struct FileSink {
    pub config: AuditSink,
    queue: mpsc::Sender<Job>,
}

impl FileSink {
    pub fn open(config: &AuditSink) -> Result<Self, AuditError> {
        let file = open_private(&config.path)?;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let path = config.path.clone();
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_all(&path, file, jobs))
            .map_err(|source| AuditError::Open {
                path: config.path.clone(),
                source,
            })?;
        Ok(Self {
            config: config.clone(),
            queue,
        })
    }

    /// Hand over a line; the receiver tells how it went.
    pub fn submit(&self, line: Vec<u8>) -> HandedOver {
        self.hand_over(|done| Job::Line(line, done))
    }

    /// Have the file at the path opened, after the lines handed over so far; the receiver tells how it went.
    pub fn reopen(&self) -> HandedOver {
        self.hand_over(Job::Reopen)
    }

    fn hand_over(&self, job: impl FnOnce(Done) -> Job) -> HandedOver {
        let (done, wait) = oneshot::channel();
        match self.queue.try_send(job(done)) {
            Ok(()) => Ok(wait),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(format!("{QUEUE} lines are waiting already"))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err("its writer has stopped".into()),
        }
    }
}

fn open_private(path: &Path) -> Result<File, AuditError> {
    let open = |source| AuditError::Open {
        path: path.to_path_buf(),
        source,
    };
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        // A pipe or a socket must never make a write wait.
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(open)?;
    let meta = file.metadata().map_err(open)?;
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 && !meta.file_type().is_char_device() {
        return Err(AuditError::Mode {
            path: path.to_path_buf(),
            mode,
        });
    }
    Ok(file)
}

fn write_all(path: &Path, mut file: File, mut jobs: mpsc::Receiver<Job>) {
    // After a failed write half a line may stand there; the next one starts on a line of its own.
    let mut torn = false;
    let mut next = None;
    while let Some(job) = next.take().or_else(|| jobs.blocking_recv()) {
        let (mut batch, first) = match job {
            Job::Line(line, done) => (line, done),
            Job::Reopen(done) => {
                let reopened = open_private(path).map(|new| {
                    file = new;
                    torn = false;
                });
                // Whoever gave up waiting is not told.
                let _ = done.send(reopened.map_err(|error| reason(&error)));
                continue;
            }
        };
        let mut waiting = vec![first];
        while batch.len() < BATCH
            && let Ok(job) = jobs.try_recv()
        {
            match job {
                Job::Line(line, done) => {
                    batch.extend_from_slice(&line);
                    waiting.push(done);
                }
                reopen @ Job::Reopen(_) => {
                    next = Some(reopen);
                    break;
                }
            }
        }
        if torn {
            batch.insert(0, b'\n');
        }
        let result = file.write_all(&batch).map_err(|e| e.to_string());
        torn = result.is_err();
        for done in waiting {
            let _ = done.send(result.clone());
        }
    }
}

/// With its cause, in one line.
fn reason(error: &AuditError) -> String {
    match error {
        AuditError::Open { source, .. } => format!("{error}: {source}"),
        other => other.to_string(),
    }
}
