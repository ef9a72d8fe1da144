//! The processes of the demo: three nodes, two versions of a service, one consumer, their sidecars.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt, process::Command};

use super::process::Process;
use crate::http::Target;

/// How long a process may take to stop after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(8);
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// The addresses of one node.
#[derive(Clone, Copy)]
pub(super) struct Ports {
    pub(super) gossip: SocketAddr,
    pub(super) http: SocketAddr,
    pub(super) dns: SocketAddr,
    pub(super) vault: SocketAddr,
}

impl Ports {
    fn free() -> anyhow::Result<Self> {
        Ok(Self {
            gossip: free_port()?,
            http: free_port()?,
            dns: free_port()?,
            vault: free_port()?,
        })
    }
}

/// A loopback address whose port is free for TCP and UDP.
pub(super) fn free_port() -> anyhow::Result<SocketAddr> {
    for _ in 0..64 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr()?;
        if UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("no port is free for both TCP and UDP on 127.0.0.1")
}

/// What a command printed.
pub(super) struct Output {
    pub(super) code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Everything that runs, by name.
pub(super) struct Cluster {
    dir: PathBuf,
    processes: Vec<(String, Process)>,
    pub(super) node1: Ports,
    pub(super) node2: Ports,
    pub(super) node3: Ports,
    pub(super) web_v1: SocketAddr,
    pub(super) web_v2: SocketAddr,
    /// Where the consumer finds `web`: its sidecar's outbound listener.
    pub(super) upstream: SocketAddr,
    pub(super) shop_admin: SocketAddr,
    pub(super) web_v1_admin: SocketAddr,
    pub(super) web_v2_admin: SocketAddr,
}

impl Cluster {
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            processes: Vec::new(),
            node1: Ports::free()?,
            node2: Ports::free()?,
            node3: Ports::free()?,
            web_v1: free_port()?,
            web_v2: free_port()?,
            upstream: free_port()?,
            shop_admin: free_port()?,
            web_v1_admin: free_port()?,
            web_v2_admin: free_port()?,
        })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes a file that only its owner may read.
    pub(super) fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        use std::io::Write;

        let path = self.path(name);
        fs::File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    /// Starts `mesh <args>` under `name`.
    pub(super) fn start(&mut self, name: &str, args: &[&str]) -> anyhow::Result<()> {
        let process = Process::start(&self.dir, name, args)?;
        self.processes.push((name.to_owned(), process));
        Ok(())
    }

    /// Sends `signal` to `name` and waits for its end.
    pub(super) async fn stop(&mut self, name: &str, signal: Signal) -> anyhow::Result<()> {
        let at = self
            .processes
            .iter()
            .position(|(known, _)| known == name)
            .with_context(|| format!("no process is called {name}"))?;
        let (_, process) = self.processes.remove(at);
        process.stop(signal, STOP_LIMIT).await
    }

    /// The pid of `name`.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        let (_, process) = self.processes.iter().find(|(known, _)| known == name)?;
        process.pid()
    }

    /// Fails when a process has ended on its own.
    pub(super) fn check_running(&mut self) -> anyhow::Result<()> {
        self.processes
            .iter_mut()
            .try_for_each(|(_, process)| process.check_running())
    }

    /// Ends everything: sidecars and services first, then the nodes, the server last.
    pub(super) async fn stop_all(&mut self) {
        while let Some((_, process)) = self.processes.pop() {
            // Whatever went wrong, the process is dropped here, and that kills it.
            let _ = process.stop(Signal::SIGKILL, STOP_LIMIT).await;
        }
    }

    /// Runs one `mesh` command to its end. `input` is its standard input.
    pub(super) async fn mesh(
        &self,
        args: &[&str],
        env: &[(&str, &str)],
        input: &str,
    ) -> anyhow::Result<Output> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .env_clear()
            .env("HOME", &self.dir)
            .env("NO_COLOR", "1")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing closes its input; that is no failure of the step.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = tokio::time::timeout(COMMAND_LIMIT, child.wait_with_output())
            .await
            .with_context(|| format!("`mesh {}` did not end", args.join(" ")))??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Like [`Cluster::mesh`], but any exit code other than 0 is an error that shows the message.
    pub(super) async fn mesh_ok(
        &self,
        args: &[&str],
        env: &[(&str, &str)],
        input: &str,
    ) -> anyhow::Result<String> {
        let output = self.mesh(args, env, input).await?;
        if output.code != 0 {
            bail!(
                "`mesh {}` ended with exit code {}: {}",
                args.join(" "),
                output.code,
                output.stderr.trim()
            );
        }
        Ok(output.stdout)
    }
}

/// The HTTP target of a loopback address.
pub(super) fn target(addr: SocketAddr) -> Target {
    Target::Tcp {
        host: addr.ip().to_string(),
        port: addr.port(),
        tls: None,
    }
}
