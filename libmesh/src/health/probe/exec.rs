//! What does a program say?

use std::collections::VecDeque;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::{OUTPUT_MAX, Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::{Health, InvalidField};

/// How long a program that has ended may still be heard of: what it left behind may hold its output open.
const AFTERMATH: Duration = Duration::from_millis(100);
/// What our own variables begin with; programs that are run must not find tokens in them.
const OWN_VARIABLES: [&str; 3] = ["MESH_", "CONSUL_", "VAULT_"];

/// Runs a program (no shell): exit code 0 is passing, 1 warning, everything else critical, as in Consul and Nagios.
///
/// It runs as the user of this process, in a process group of its own which is killed when the check's timeout is over,
/// without standard input and without `MESH_*`, `CONSUL_*` and `VAULT_*` variables. The end of what it prints is kept.
#[derive(Debug, Clone)]
pub struct ExecProbe {
    args: Vec<String>,
    output_max: usize,
}

impl ExecProbe {
    /// A probe that runs `args[0]` with the others as its arguments.
    ///
    /// # Errors
    /// [`InvalidField`] `args` when there is no program.
    pub fn new(args: Vec<String>) -> Result<Self, InvalidField> {
        if args.first().is_none_or(String::is_empty) {
            return Err(InvalidField::new("args", "must begin with a program"));
        }
        if args.iter().any(|arg| arg.contains('\0')) {
            return Err(InvalidField::new("args", "must not contain NUL bytes"));
        }
        Ok(Self {
            args,
            output_max: OUTPUT_MAX,
        })
    }

    /// Bytes of output kept. Default 4 KiB.
    pub fn output_max(mut self, bytes: usize) -> Self {
        self.output_max = bytes;
        self
    }

    async fn look(&self) -> Result<(ExitStatus, Tail), String> {
        let program = &self.args[0];
        let mut command = Command::new(program);
        command
            .args(&self.args[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let own = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
            if OWN_VARIABLES.iter().any(|prefix| own(prefix)) {
                command.env_remove(name);
            }
        }
        let failed = |error: std::io::Error| format!("{program}: {error}");
        let mut child = command.spawn().map_err(failed)?;
        let group = Group::of(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut tail = Tail::new(self.output_max);
        let mut reading = Box::pin(read(stdout, stderr, &mut tail));
        let (status, more) = tokio::select! {
            status = child.wait() => (status.map_err(failed)?, true),
            () = &mut reading => (child.wait().await.map_err(failed)?, false),
        };
        group.ended();
        if more {
            let _ = timeout(AFTERMATH, &mut reading).await;
        }
        drop(reading);
        Ok((status, tail))
    }
}

/// Reads both to their ends, in the order in which it comes.
async fn read<A, B>(stdout: Option<A>, stderr: Option<B>, tail: &mut Tail)
where
    A: AsyncRead + Unpin,
    B: AsyncRead + Unpin,
{
    let (mut stdout, mut stderr) = (stdout, stderr);
    let (mut out, mut err) = ([0; 4096], [0; 4096]);
    while stdout.is_some() || stderr.is_some() {
        tokio::select! {
            read = some(&mut stdout, &mut out) => match read {
                0 => stdout = None,
                length => tail.take(&out[..length]),
            },
            read = some(&mut stderr, &mut err) => match read {
                0 => stderr = None,
                length => tail.take(&err[..length]),
            },
        }
    }
}

/// How much came; 0 at the end.
async fn some<R: AsyncRead + Unpin>(from: &mut Option<R>, buffer: &mut [u8]) -> usize {
    match from {
        Some(from) => from.read(buffer).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// The end of something long.
struct Tail {
    kept: VecDeque<u8>,
    max: usize,
    seen: usize,
}

impl Tail {
    fn new(max: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            max,
            seen: 0,
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.seen += bytes.len();
        let bytes = &bytes[bytes.len().saturating_sub(self.max)..];
        let over = (self.kept.len() + bytes.len()).saturating_sub(self.max);
        self.kept.drain(..over);
        self.kept.extend(bytes);
    }

    fn text(mut self) -> String {
        let text = String::from_utf8_lossy(self.kept.make_contiguous());
        match self.seen > self.max {
            // The note takes the place of the oldest output.
            true => {
                let note = format!("Captured {} of {} bytes\n...\n", self.max, self.seen);
                let over = (note.len() + text.len()).saturating_sub(self.max);
                let from = text.ceil_char_boundary(over.min(text.len()));
                format!("{note}{}", &text[from..])
            }
            false => text.into_owned(),
        }
    }
}

/// Kills the process group of a program that has not ended when this is dropped.
struct Group(Option<Pid>);

impl Group {
    /// The group is named after the program that began it.
    fn of(program: Option<u32>) -> Self {
        Self(program.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)))
    }

    /// From now on its id may be another's.
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself a moment ago.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Probe for ExecProbe {
    fn kind(&self) -> &'static str {
        "script"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            match self.look().await {
                Ok((status, tail)) => ProbeResult {
                    health: match status.code() {
                        Some(0) => Health::Passing,
                        Some(1) => Health::Warning,
                        Some(_) | None => Health::Critical,
                    },
                    output: match status.code() {
                        Some(_) => tail.text(),
                        None => format!("{status}: {}", tail.text()),
                    },
                },
                Err(error) => ProbeResult::critical(error),
            }
        })
    }

    fn starts_process(&self) -> bool {
        true
    }
}
