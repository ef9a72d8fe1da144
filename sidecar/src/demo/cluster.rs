//! The processes of the demo: three nodes, two versions of a service, one consumer, their sidecars.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Request;
use nix::sys::signal::Signal;
use tokio::{io::AsyncWriteExt, process::Command};

use super::{
    calls::{eventually, get},
    process::Process,
    screen::command,
};
use crate::{http::client::Target, ports};

/// How long a process may take to stop after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(8);
/// How long a node may take to come up.
const START_LIMIT: Duration = Duration::from_secs(15);
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
    fn of([gossip, http, dns, vault]: [SocketAddr; 4]) -> Self {
        Self {
            gossip,
            http,
            dns,
            vault,
        }
    }
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
    /// Where the sidecars of both versions take calls.
    inbound: [SocketAddr; 2],
}

impl Cluster {
    pub(super) fn new(dir: &Path) -> anyhow::Result<Self> {
        // All at once, so that they differ.
        let ports: [SocketAddr; 20] = ports::free()?;
        let node = |n: usize| Ports::of([ports[n], ports[n + 1], ports[n + 2], ports[n + 3]]);
        Ok(Self {
            dir: dir.to_owned(),
            processes: Vec::new(),
            node1: node(0),
            node2: node(4),
            node3: node(8),
            web_v1: ports[12],
            web_v2: ports[13],
            upstream: ports[14],
            shop_admin: ports[15],
            web_v1_admin: ports[16],
            web_v2_admin: ports[17],
            inbound: [ports[18], ports[19]],
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

    /// Writes the configuration of a node. `seed`: whom it joins, with the token in `<name>.token`.
    fn write_node(
        &self,
        name: &str,
        ports: Ports,
        seed: Option<Ports>,
        more: &str,
    ) -> anyhow::Result<()> {
        let dir = self.dir.display();
        let join = seed.map_or_else(String::new, |seed| {
            format!(
                "[join]\nseeds = [\"{}\"]\ntoken_file = \"{dir}/{name}.token\"\n",
                seed.gossip
            )
        });
        let config = format!(
            "[node]\nname = \"{name}\"\ndata_dir = \"{dir}/{name}\"\nbind = \"127.0.0.1\"\n{join}\
             [ports]\ngossip = {}\nhttp = {}\ndns = {}\nvault = {}\n\
             [log]\nlevel = \"info\"\n{more}",
            ports.gossip.port(),
            ports.http.port(),
            ports.dns.port(),
            ports.vault.port(),
        );
        self.write(&format!("{name}.toml"), &config)?;
        Ok(())
    }

    /// Starts the process of a node whose configuration is written. `role`: `server` or `agent`.
    pub(super) fn start_node(&mut self, name: &str, role: &str) -> anyhow::Result<()> {
        let config = self.path(&format!("{name}.toml")).display().to_string();
        self.start(name, &[role, "--config", &config])
    }

    /// Starts and initialises the server; its root token.
    pub(super) async fn start_server(&mut self) -> anyhow::Result<String> {
        let key: [u8; 32] = rand::random();
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.write("unseal.key", &key)?;
        let dir = self.dir.display();
        let more = format!(
            "[server]\naudit = [\"{dir}/audit.log\"]\n\
             [server.seal]\ntype = \"static\"\nkey_file = \"{dir}/unseal.key\"\n"
        );
        self.write_node("node1", self.node1, None, &more)?;
        command(&format!("mesh server --config {dir}/node1.toml &"));
        self.start_node("node1", "server")?;
        let out = self.path("init.json").display().to_string();
        let vault = format!("http://{}", self.node1.vault);
        let env = [("MESH_VAULT_ADDR", vault.as_str())];
        command("mesh operator init --out init.json");
        let port = target(self.node1.vault);
        eventually("the Vault port open", START_LIMIT, || async {
            let request = Request::get("/v1/sys/seal-status").body(Bytes::new())?;
            Ok(port.send(request, Duration::from_secs(1)).await.ok())
        })
        .await?;
        self.mesh_ok(&["operator", "init", "--out", &out], &env, "")
            .await?;
        let init: serde_json::Value = serde_json::from_slice(&fs::read(&out)?)?;
        let root = init["root_token"].as_str();
        let root = root.context("init gave no root token")?.to_owned();
        self.wait_ready(self.node1).await?;
        Ok(root)
    }

    /// Joins a node with a token of its own.
    pub(super) async fn start_agent(
        &mut self,
        name: &str,
        publish: &str,
        root: &str,
    ) -> anyhow::Result<()> {
        let ports = if name == "node2" {
            self.node2
        } else {
            self.node3
        };
        let http = format!("http://{}", self.node1.http);
        let env = [("MESH_HTTP_ADDR", http.as_str()), ("MESH_TOKEN", root)];
        let out = self.path(&format!("{name}.token")).display().to_string();
        let create = [
            "join-token",
            "create",
            "--publish",
            publish,
            "--uses",
            "1",
            "--ttl",
            "10m",
            "--out",
            &out,
        ];
        self.mesh_ok(&create, &env, "").await?;
        let mut more = String::new();
        for service in publish.split(',') {
            let token: [u8; 24] = rand::random();
            let token: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
            let file = self.write(&format!("{name}-{service}.attach"), &token)?;
            more += &format!(
                "[[service]]\nname = \"{service}\"\nattach = {{ token_file = \"{}\" }}\n",
                file.display()
            );
        }
        self.write_node(name, ports, Some(self.node1), &more)?;
        command(&format!("mesh agent --config {name}.toml &"));
        self.start_node(name, "agent")?;
        self.wait_ready(ports).await
    }

    async fn wait_ready(&mut self, ports: Ports) -> anyhow::Result<()> {
        let http = target(ports.http);
        let ready = eventually("the node ready", START_LIMIT, || async {
            Ok(get(&http, "/health/ready").await.ok())
        })
        .await;
        if ready.is_err() {
            self.check_running()?;
        }
        ready.map(|_| ())
    }

    /// Starts the consumer and both versions of the service, each behind a sidecar.
    pub(super) fn start_services(&mut self) -> anyhow::Result<()> {
        for version in ["v1", "v2"] {
            self.start_app(version)?;
        }
        self.start_sidecar(
            "web-v1-sidecar",
            "node2",
            "web",
            &[
                "--app",
                &self.web_v1.to_string(),
                "--admin",
                &self.web_v1_admin.to_string(),
                "--instance",
                "web-v1",
                "--app-version",
                "v1",
                "--tag",
                "v1",
                "--inbound",
                &self.inbound[0].to_string(),
                "--check-http",
                "/health",
                "--check-interval",
                "1s",
            ],
        )?;
        self.start_sidecar(
            "web-v2-sidecar",
            "node3",
            "web",
            &[
                "--app",
                &self.web_v2.to_string(),
                "--admin",
                &self.web_v2_admin.to_string(),
                "--instance",
                "web-v2",
                "--app-version",
                "v2",
                "--tag",
                "v2",
                "--inbound",
                &self.inbound[1].to_string(),
                "--check-http",
                "/health",
                "--check-interval",
                "1s",
                "--leaf-ttl",
                "20s",
            ],
        )?;
        self.start_sidecar(
            "shop-sidecar",
            "node2",
            "shop",
            &[
                "--upstream",
                &format!("web={}", self.upstream),
                "--admin",
                &self.shop_admin.to_string(),
            ],
        )
    }

    fn start_sidecar(
        &mut self,
        name: &str,
        node: &str,
        service: &str,
        more: &[&str],
    ) -> anyhow::Result<()> {
        let (socket, token) = (self.socket(node), self.attach_token(node, service));
        let mut args = vec!["--socket", &socket, "--attach-token-file", &token];
        args.extend(["sidecar", "--service", service]);
        args.extend(more);
        let shown = more.join(" ");
        command(&format!("mesh sidecar --service {service} {shown} &"));
        self.start(name, &args)
    }

    /// Starts one version of the service.
    pub(super) fn start_app(&mut self, version: &str) -> anyhow::Result<()> {
        let addr = if version == "v1" {
            self.web_v1
        } else {
            self.web_v2
        };
        let (name, addr) = (format!("web-{version}"), addr.to_string());
        let args = ["demo-app", "--listen", &addr, "--app-version", version];
        self.start(&name, &args)
    }

    /// The agent's Unix socket on a node.
    pub(super) fn socket(&self, node: &str) -> String {
        self.path(node).join("mesh.sock").display().to_string()
    }

    /// The file by which a process on a node shows that it is a service.
    pub(super) fn attach_token(&self, node: &str, service: &str) -> String {
        let name = format!("{node}-{service}.attach");
        self.path(&name).display().to_string()
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
