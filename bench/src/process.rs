//! Processes that are measured from outside.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Clock ticks a second in `/proc/<pid>/stat`; fixed on Linux (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

/// A running process. It is killed when this is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a server of this same program (see `CHILDREN`), and waits for its first line, which is returned. It
    /// ends when this program does, because its input ends.
    pub fn of_this_program(name: &str, arguments: &[String]) -> Result<(Self, String)> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command
            .arg("--child")
            .arg(name)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Self::start(&mut command)?;
        let out = process.child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        if line.is_empty() {
            bail!("{name} ended before it was ready");
        }
        Ok((process, line.trim().to_owned()))
    }

    /// Starts any program.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child })
    }

    /// Processor time used so far by all its threads.
    pub fn processor_time(&self) -> Result<Duration> {
        processor_time(self.id())
    }

    /// Names it to the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time used so far by all threads of a process and of the processes that it started.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let mut time = own_time(pid)?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // One that has ended meanwhile counts no more.
        if let Ok(child) = child.parse() {
            time += processor_time(child).unwrap_or_default();
        }
    }
    Ok(time)
}

fn own_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The second field is the program's name in parentheses and may hold anything.
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok());
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok(Duration::from_secs_f64((user + system) / TICKS)),
        _ => bail!("{path} has an unknown form"),
    }
}

/// Where an installed program is, looked up in `PATH` and the places for daemons.
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let daemons = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(daemons)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
