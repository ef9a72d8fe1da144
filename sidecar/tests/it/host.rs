//! A server and its agents as processes, and the command line against them.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use sidecar::http::client::Target;

use crate::node::{PATIENCE, command, log_lines, next_log};

/// A process that does not outlive the test.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Gone already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running server.
pub struct Server {
    pub child: Guard,
    pub log: mpsc::Receiver<Value>,
    pub vault: String,
}

/// How a command ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Server {
    pub fn start(dir: &Path) -> Server {
        Self::start_with(dir, "")
    }

    pub fn start_with(dir: &Path, more: &str) -> Server {
        let file = dir.join("server.toml");
        let text = format!(
            "node = {{ name = \"s1\", data_dir = {:?}, bind = \"127.0.0.1\" }}\n\
             ports = {{ gossip = 0, http = 0, dns = 0, vault = 0 }}\n{more}",
            dir.join("s1")
        );
        fs::write(&file, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["server", "--config"])
            .arg(&file)
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = log_lines(&mut child);
        let child = Guard(child);
        let opened = next_log(&log, "the Vault port is open");
        let addr = opened["addr"].as_str().unwrap();
        Server {
            vault: format!("http://{addr}"),
            child,
            log,
        }
    }

    /// Waits until it is a node; its gossip and HTTP addresses.
    pub fn node(&self) -> (SocketAddr, String) {
        let started = next_log(&self.log, "agent started");
        let text = |field: &str| started[field].as_str().unwrap().to_owned();
        (
            text("gossip").parse().unwrap(),
            format!("http://{}", text("http")),
        )
    }

    pub async fn vault(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Value,
    ) -> (u16, Value) {
        let (status, body) = ask(&self.vault, method, path, token, body.to_string()).await;
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Makes the store; the shares in hex and the root token.
    pub async fn init(&self, shares: u8, threshold: u8) -> (Vec<String>, String) {
        let body = json!({"secret_shares": shares, "secret_threshold": threshold});
        let (status, made) = self.vault(Method::PUT, "/v1/sys/init", "", body).await;
        assert_eq!(status, 200, "{made}");
        let keys = serde_json::from_value(made["keys"].clone()).unwrap();
        (keys, made["root_token"].as_str().unwrap().to_owned())
    }

    /// Unseals with the only share, and waits until it is a node: where its gossip and its HTTP port are.
    pub fn unseal(&self, share: &str) -> (SocketAddr, String) {
        let unsealed = self.operator(&["unseal", "-"], "", share);
        assert_eq!(unsealed.code, Some(0), "{}", unsealed.err);
        self.node()
    }

    pub async fn seal_status(&self) -> Value {
        let path = "/v1/sys/seal-status";
        self.vault(Method::GET, path, "", Value::Null).await.1
    }

    /// `mesh operator ...` against it, with `input` on stdin.
    pub fn operator(&self, args: &[&str], token: &str, input: &str) -> Ran {
        self.mesh(&[&["operator"], args].concat(), token, input)
    }

    /// `mesh ...` against its Vault port, with `input` on stdin.
    pub fn mesh(&self, args: &[&str], token: &str, input: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command
            .args(args)
            .env_clear()
            .env("MESH_VAULT_ADDR", &self.vault)
            .env("MESH_TOKEN", token);
        run(&mut command, input)
    }

    pub fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.0.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0));
                return;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            // The next log line, or the end of the log, is what may have changed.
            let _ = self.log.recv_timeout(Duration::from_millis(50));
        }
    }
}

pub fn run(command: &mut Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that takes no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub async fn ask(
    base: &str,
    method: Method,
    path: &str,
    token: &str,
    body: impl Into<Bytes>,
) -> (u16, String) {
    let mut request = Request::builder().method(method).uri(path);
    if !token.is_empty() {
        request = request
            .header("x-vault-token", token)
            .header("x-consul-token", token);
    }
    let request = request.body(body.into()).unwrap();
    let target = Target::parse(base, 0, None).unwrap();
    let answer = target.send(request, PATIENCE).await.unwrap();
    let (head, body) = answer.into_parts();
    (
        head.status.as_u16(),
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

/// A server that agents join.
pub struct Host<'a> {
    pub dir: &'a Path,
    pub gossip: SocketAddr,
    pub http: String,
    pub root: String,
}

impl<'a> Host<'a> {
    /// Makes and unseals the store of a new server in `dir`: the server as agents see it, and its only share.
    pub async fn open(server: &Server, dir: &'a Path) -> (Self, String) {
        let (shares, root) = server.init(1, 1).await;
        let [share] = <[String; 1]>::try_from(shares).unwrap();
        let (gossip, http) = server.unseal(&share);
        let host = Host {
            dir,
            gossip,
            http,
            root,
        };
        (host, share)
    }

    pub fn join_token(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh"));
        command
            .arg("join-token")
            .args(args)
            .env_clear()
            .env("MESH_HTTP_ADDR", &self.http)
            .env("MESH_TOKEN", &self.root);
        run(&mut command, "")
    }

    pub fn new_token(&self, name: &str, ttl: &str) -> PathBuf {
        let file = self.dir.join(name);
        let out = file.to_str().unwrap();
        let made = self.join_token(&["create", "--ttl", ttl, "--publish", "web", "--out", out]);
        assert_eq!(made.code, Some(0), "{}", made.err);
        file
    }

    pub fn listed(&self) -> Vec<Value> {
        let list = self.join_token(&["list", "--output", "json"]);
        assert_eq!(list.code, Some(0), "{}", list.err);
        serde_json::from_str(&list.out).unwrap()
    }

    pub fn agent(&self, name: &str, token: &Path) -> Command {
        let file = self.dir.join(format!("{name}.toml"));
        let text = format!(
            "node = {{ name = {name:?}, data_dir = {:?}, bind = \"127.0.0.1\" }}\n\
             ports = {{ gossip = 0, http = 0, dns = 0 }}\n\
             join = {{ seeds = [\"{}\"], token_file = {token:?}, patience = \"1s\" }}\n",
            self.dir.join(name),
            self.gossip,
        );
        fs::write(&file, text).unwrap();
        command(&file)
    }

    /// Starts an agent that is let in, and waits until it runs.
    pub fn admitted(&self, name: &str, token: &Path) -> Guard {
        let mut command = self.agent(name, token);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = log_lines(&mut child);
        let child = Guard(child);
        next_log(&log, "agent started");
        child
    }

    /// Runs an agent that is not let in: its exit code, and what it says.
    pub fn refused(&self, name: &str, token: &Path) -> (Option<i32>, String) {
        let ran = run(&mut self.agent(name, token), "");
        (ran.code, ran.err)
    }
}
