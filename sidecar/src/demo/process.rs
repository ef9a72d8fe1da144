//! Child processes of the demo: the same binary, started with free ports and ended with the parent.
//!
//! Three nets catch a child: `kill_on_drop` when the demo returns or panics, an explicit SIGTERM or
//! SIGKILL where a step asks for it, and, when the parent itself is killed, the end of file on the
//! child's standard input ([`end_with_parent`]).

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

/// A child of the demo: `mesh <args>` with its output in a log file.
pub(super) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `mesh <args>`; standard output and error go to `<dir>/<name>.log`.
    pub(super) fn start(dir: &Path, name: &str, args: &[&str]) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .arg("--end-with-parent")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Fails, with the end of its log, when the process has ended although nobody asked it to.
    pub(super) fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended early ({status}); the end of its log:\n{}",
                self.name,
                self.log_tail()
            ),
        }
    }

    /// Sends `signal` and waits for the end, killing the process after `limit`.
    pub(super) async fn stop(mut self, signal: Signal, limit: Duration) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid)?), signal)
                .with_context(|| format!("cannot signal {}", self.name))?;
        }
        if tokio::time::timeout(limit, self.child.wait())
            .await
            .is_err()
        {
            self.child.kill().await?;
        }
        Ok(())
    }

    /// The last lines of the log, for an error message.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// Ends this process at once when its standard input reaches end of file: the parent held the other
/// end of that pipe, and the kernel closes it however the parent ends.
pub(crate) fn end_with_parent() {
    std::thread::spawn(|| {
        let mut sink = [0u8; 64];
        loop {
            match std::io::stdin().read(&mut sink) {
                Ok(0) | Err(_) => std::process::exit(0),
                Ok(_) => {}
            }
        }
    });
}
