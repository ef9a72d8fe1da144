//! A real `mesh server` that is killed again and again while it is written to.

use std::{
    collections::HashMap,
    fs,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::{Method, Request};
use libmesh::join::JoinToken;
use serde_json::{Value, json};
use sidecar::http::client::Target;
use tokio::sync::watch;

use crate::node::PATIENCE;

const KILLS: usize = 20;
/// Keys of one writer; it writes them in turn, so most are overwritten often.
const KEYS: u64 = 40;
/// Starts every value that is written.
const VALUE: &str = "canary-value-5b1f0c";
/// Starts every name that is written.
const NAME: &str = "canary-name-77ad21";
/// Stands in the text of a policy.
const POLICY: &str = "canary-policy-text-e93c4d";

/// A server with one data directory, and its process while it runs.
pub struct Server {
    dir: tempfile::TempDir,
    vault: Target,
    pub http: Target,
    unseal_key: [u8; 32],
    process: Option<Process>,
}

/// Dropping it kills it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGKILL; gone already, mostly.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    pub fn configure() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unseal_key: [u8; 32] = rand::random();
        let mut key_file = fs::File::options();
        let key_file = key_file.create_new(true).write(true).mode(0o600);
        let key_file = key_file.open(dir.path().join("unseal.key")).unwrap();
        std::io::Write::write_all(&mut &key_file, hex(&unseal_key).as_bytes()).unwrap();
        let [gossip, http, dns, vault] = free_ports();
        let at = dir.path().display();
        let config = format!(
            "node = {{ name = \"node1\", data_dir = \"{at}/data\", bind = \"127.0.0.1\" }}\n\
             ports = {{ gossip = {gossip}, http = {http}, dns = {dns}, vault = {vault} }}\n\
             log = {{ level = \"debug\" }}\n\
             [server]\naudit = [\"{at}/audit.log\"]\n\
             [server.seal]\ntype = \"static\"\nkey_file = \"{at}/unseal.key\"\n"
        );
        fs::write(dir.path().join("server.toml"), config).unwrap();
        let target = |port| Target::parse(&format!("127.0.0.1:{port}"), 0, None).unwrap();
        Self {
            vault: target(vault),
            http: target(http),
            unseal_key,
            process: None,
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&mut self) {
        let mut log = fs::File::options();
        let log = log.create(true).append(true).open(self.path("server.log"));
        let log = log.unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["server", "--config"])
            .arg(self.path("server.toml"))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(Process(child.unwrap()));
    }

    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        let ended = process.0.try_wait().unwrap();
        assert!(
            ended.is_none(),
            "the server ended by itself: {}",
            self.log_tail()
        );
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Starts it for the first time, and makes its store; the root token, and what else was told.
    pub async fn initialised(&mut self) -> (String, Value) {
        self.start();
        // 501: not initialised.
        self.ready(&self.vault, "/v1/sys/health", 501).await;
        let init_file = self.path("init.json").display().to_string();
        self.mesh("", &["operator", "init", "--out", &init_file]);
        let init: Value = serde_json::from_slice(&fs::read(&init_file).unwrap()).unwrap();
        self.ready(&self.http, "/health/ready", 200).await;
        (init["root_token"].as_str().unwrap().to_owned(), init)
    }

    /// Waits until `path` answers with 200.
    pub async fn ready(&self, target: &Target, path: &str, also: u16) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask(target, Method::GET, path, "", "").await {
                Some((status, _)) if status == 200 || status == also => return,
                other => assert!(
                    Instant::now() < deadline,
                    "{path}: {other:?}; {}",
                    self.log_tail()
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a command to its end; what it printed.
    fn mesh(&self, token: &str, args: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(args)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("MESH_VAULT_ADDR", self.vault.to_string())
            .env("MESH_HTTP_ADDR", self.http.to_string())
            .env("MESH_TOKEN", token)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Ports for TCP and UDP, below those that the system hands out to others while the server is down.
fn free_ports() -> [u16; 4] {
    let mut ports: Vec<u16> = Vec::new();
    while ports.len() < 4 {
        let port = rand::random_range(20_000..32_000);
        let addr = (Ipv4Addr::LOCALHOST, port);
        let free = TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok();
        if free && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports.try_into().unwrap()
}

/// Status and body; `None` when there was no answer.
pub async fn ask(
    target: &Target,
    method: Method,
    path: &str,
    token: &str,
    body: &str,
) -> Option<(u16, String)> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-vault-token", token)
        .body(Bytes::copy_from_slice(body.as_bytes()))
        .unwrap();
    let answer = target.send(request, PATIENCE).await.ok()?;
    let status = answer.status().as_u16();
    Some((
        status,
        String::from_utf8_lossy(&answer.into_body()).into_owned(),
    ))
}

/// Which interface a writer writes to.
#[derive(Clone, Copy, Debug)]
enum Interface {
    Secrets,
    Pairs,
}

impl Interface {
    fn path(self, key: &str) -> String {
        match self {
            Interface::Secrets => format!("/v1/secret/data/{key}"),
            Interface::Pairs => format!("/v1/kv/{key}"),
        }
    }

    fn body(self, value: &str) -> String {
        match self {
            Interface::Secrets => json!({"data": {"field": value}}).to_string(),
            Interface::Pairs => value.to_owned(),
        }
    }

    fn value(self, body: &str) -> String {
        let body: Value = serde_json::from_str(body).unwrap();
        match self {
            Interface::Secrets => body["data"]["data"]["field"].as_str().unwrap().to_owned(),
            Interface::Pairs => {
                let value = STANDARD.decode(body[0]["Value"].as_str().unwrap()).unwrap();
                String::from_utf8(value).unwrap()
            }
        }
    }
}

/// What became of the writes to one key: the newest that was acknowledged, the newest that was sent.
#[derive(Clone, Copy, Default)]
struct Written {
    acknowledged: u64,
    sent: u64,
}

struct Writer {
    interface: Interface,
    target: Target,
    token: String,
    name: String,
    acknowledged: watch::Sender<u64>,
    stop: watch::Receiver<bool>,
}

impl Writer {
    fn key(&self, number: u64) -> String {
        format!("{NAME}/{}-{}", self.name, number % KEYS)
    }

    async fn run(self) -> (Interface, HashMap<String, Written>) {
        let mut written: HashMap<String, Written> = HashMap::new();
        let mut number = 0;
        while !*self.stop.borrow() {
            number += 1;
            let key = self.key(number);
            let record = written.entry(key.clone()).or_default();
            record.sent = number;
            let (path, body) = (
                self.interface.path(&key),
                self.interface.body(&format!("{VALUE}-{number}")),
            );
            match ask(&self.target, Method::PUT, &path, &self.token, &body).await {
                Some((200, body)) => {
                    assert_ne!(body.trim(), "false", "{path}");
                    record.acknowledged = number;
                    self.acknowledged.send_modify(|count| *count += 1);
                }
                // Down, or up and not unsealed yet.
                None | Some((503, _)) => tokio::time::sleep(Duration::from_millis(10)).await,
                Some(other) => panic!("{path}: {other:?}"),
            }
        }
        (self.interface, written)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_outlive_kills_and_secrets_stay_sealed() {
    let mut server = Server::configure();
    let (root, init) = server.initialised().await;

    let (count, mut acknowledged) = watch::channel(0);
    let (stop, stopped) = watch::channel(false);
    let writers = [
        (Interface::Secrets, "a"),
        (Interface::Secrets, "b"),
        (Interface::Pairs, "c"),
    ];
    let writers = writers.map(|(interface, name)| {
        let target = match interface {
            Interface::Secrets => &server.vault,
            Interface::Pairs => &server.http,
        };
        let writer = Writer {
            interface,
            target: target.clone(),
            token: root.clone(),
            name: name.to_owned(),
            acknowledged: count.clone(),
            stop: stopped.clone(),
        };
        tokio::spawn(writer.run())
    });
    for kill in 0..KILLS {
        if kill % 4 != 3 {
            // Somewhere among the writes; every fourth time wherever it is, mostly while it starts.
            let before = *acknowledged.borrow_and_update();
            let more = acknowledged.wait_for(|count| *count > before);
            let waited = tokio::time::timeout(PATIENCE, more).await;
            assert!(
                waited.is_ok(),
                "no write gets through: {}",
                server.log_tail()
            );
        }
        let moment = Duration::from_millis(rand::random_range(0..250));
        tokio::time::sleep(moment).await;
        server.kill();
        server.start();
    }
    server.ready(&server.http, "/health/ready", 200).await;
    stop.send_replace(true);
    let mut total = 0;
    for writer in writers {
        let (interface, written) = writer.await.unwrap();
        let target = match interface {
            Interface::Secrets => &server.vault,
            Interface::Pairs => &server.http,
        };
        for (key, written) in written
            .iter()
            .filter(|(_, written)| written.acknowledged > 0)
        {
            let path = interface.path(key);
            let (status, body) = ask(target, Method::GET, &path, &root, "").await.unwrap();
            assert_eq!(status, 200, "{path} was acknowledged: {body}");
            let value = interface.value(&body);
            let number = value.strip_prefix(VALUE).unwrap()[1..].parse().unwrap();
            // A write whose answer was cut off may have become durable; an older value is a lost one.
            let allowed = written.acknowledged..=written.sent;
            assert!(
                allowed.contains(&number),
                "{path}: {number}, not {allowed:?}"
            );
            total += 1;
        }
    }
    assert!(total > 30, "{total} keys are too few to show anything");
    let report: Value = serde_json::from_str(&server.mesh(&root, &["operator", "verify"])).unwrap();
    assert_eq!(report["ok"], true, "{report}");
    assert!(
        report["entries"].as_u64().unwrap() >= *count.borrow(),
        "{report}"
    );

    canaries(&mut server, &root, &init).await;
}

/// Nothing that was given to the server as a secret lies on its disk or in its logs in the clear.
async fn canaries(server: &mut Server, root: &str, init: &Value) {
    let path = format!("/v1/sys/policies/acl/{NAME}");
    let text = format!("path \"secret/data/{POLICY}/*\" {{ capabilities = [\"read\"] }}");
    let body = json!({"policy": text}).to_string();
    let answer = ask(&server.vault, Method::PUT, &path, root, &body).await;
    assert_eq!(answer.unwrap().0, 204);
    // Requests that fail are logged too.
    let broken = format!("{{\"data\": {{\"field\": \"{VALUE}\"");
    let path = Interface::Secrets.path(NAME);
    let answer = ask(&server.vault, Method::PUT, &path, root, &broken).await;
    assert_eq!(answer.unwrap().0, 400);
    let path = format!("/v1/kv/{NAME}/none?token={root}");
    let answer = ask(&server.http, Method::GET, &path, "", "").await;
    assert_eq!(answer.unwrap().0, 404);
    let token_file = server.path("join.token").display().to_string();
    let create = ["join-token", "create", "--publish", "web", "--out"];
    server.mesh(root, &[&create[..], &[&token_file]].concat());
    let join = fs::read_to_string(&token_file).unwrap();
    let join: JoinToken = join.trim().parse().unwrap();
    server.kill();

    let mut secrets = vec![
        ("a value", VALUE.as_bytes().to_vec()),
        ("a policy", POLICY.as_bytes().to_vec()),
        ("the root token", root.as_bytes().to_vec()),
        ("the unseal key", server.unseal_key.to_vec()),
        ("the join token's secret", join.secret().to_vec()),
    ];
    for key in init["keys_base64"].as_array().into_iter().flatten() {
        let key = STANDARD.decode(key.as_str().unwrap()).unwrap();
        secrets.push(("a recovery key", key));
    }
    let audit = fs::read(server.path("audit.log")).unwrap();
    let log = fs::read(server.path("server.log")).unwrap();
    assert!(finds(&audit, b"secret/data/canary-name") && finds(&log, b"agent started"));
    let files = files(&server.path("data/store"));
    assert!(files.len() > 2, "{files:?}");
    for (what, secret) in &secrets {
        for form in forms(secret) {
            assert!(!finds(&audit, &form), "{what} is in the audit log");
            assert!(!finds(&log, &form), "{what} is in the log of the server");
        }
    }
    // A name is in the audit log on purpose: it says what was asked for.
    secrets.push(("a name", NAME.as_bytes().to_vec()));
    for form in forms(NAME.as_bytes()) {
        assert!(!finds(&log, &form), "a name is in the log of the server");
    }
    for file in files {
        let content = fs::read(&file).unwrap();
        for (what, secret) in &secrets {
            for form in forms(secret) {
                assert!(!finds(&content, &form), "{what} is in {}", file.display());
            }
        }
    }
}

/// A secret as it is, in hex, and the start of its Base64.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let whole = &secret[..secret.len() - secret.len() % 3];
    vec![
        secret.to_vec(),
        hex(secret).into_bytes(),
        STANDARD.encode(whole).into_bytes(),
        URL_SAFE_NO_PAD.encode(whole).into_bytes(),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn finds(content: &[u8], needle: &[u8]) -> bool {
    let first = needle[0];
    let starts = content
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == first);
    starts
        .into_iter()
        .any(|(at, _)| content[at..].starts_with(needle))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
