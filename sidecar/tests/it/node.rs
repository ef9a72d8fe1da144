//! Real `mesh agent` processes with credentials of an authority that the test made.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request};
use libmesh::{
    identity::{PublishRights, SigningKeyPair, SpiffeId, TrustBundle, TrustDomain},
    join::{NodeCredentials, NodeDirectory},
    member::Keyring,
    model::{Datacenter, NodeName},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::Value;
use sidecar::http::client::Target;

/// Longer than anything here takes; only a failure waits for so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, its gossip keyring, and a directory for the nodes.
pub struct Mesh {
    pub dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
    domain: TrustDomain,
    keyring: Keyring,
}

impl Mesh {
    pub fn new() -> Mesh {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Mesh {
            dir: tempfile::tempdir().unwrap(),
            issuer: Issuer::new(params, key),
            root,
            domain: TrustDomain::parse("11111111-2222-3333-4444-555555555555.mesh").unwrap(),
            keyring: Keyring::generate().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts into `name`'s data directory what a join would have.
    pub fn credentials(&self, name: &str, publish: &[&str]) {
        let directory = self.path(name).join("node");
        let private = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        private.unwrap();
        let directory = NodeDirectory::open(&directory).unwrap();
        let key = directory.key().unwrap();
        let node = NodeName::parse(name).unwrap();
        let csr = key.csr_der().unwrap();
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let uri = SpiffeId::node(&self.domain, &node).to_string();
        request.params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let (oid, value) = PublishRights::new(publish).unwrap().to_extension();
        let rights = CustomExtension::from_oid_content(&oid, value);
        request.params.custom_extensions = vec![rights];
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(60)).into();
        request.params.not_after = (now + Duration::from_secs(3600)).into();
        let leaf = request.signed_by(&self.issuer).unwrap();
        let credentials = NodeCredentials {
            key,
            name: node,
            datacenter: Datacenter::default(),
            trust_domain: self.domain.clone(),
            chain: vec![leaf.der().to_vec()],
            bundle: TrustBundle {
                roots: vec![self.root.clone()],
            },
            keyring: self.keyring.clone(),
            seeds: Vec::new(),
            config: None,
        };
        directory.save(&credentials).unwrap();
    }

    /// Writes the configuration of `name`: free ports on loopback, and `more`.
    pub fn configure(&self, name: &str, more: &str) -> PathBuf {
        let file = self.path(&format!("{name}.toml"));
        let text = format!(
            "node = {{ name = {name:?}, data_dir = {:?}, bind = \"127.0.0.1\" }}\n\
             ports = {{ gossip = 0, http = 0, dns = 0 }}\n{more}",
            self.path(name)
        );
        fs::write(&file, text).unwrap();
        file
    }

    /// Starts an agent that has joined before.
    pub fn agent(&self, name: &str, seeds: &[SocketAddr], more: &str) -> Agent {
        self.credentials(name, &["*"]);
        let seeds: Vec<_> = seeds.iter().map(SocketAddr::to_string).collect();
        let join = format!("join = {{ seeds = {seeds:?} }}\n");
        Agent::start(&self.configure(name, &(join + more)))
    }

    /// Starts an agent at `ip`, port 8301, through `wrapper`, a command that runs another on some host. It is asked
    /// over its Unix socket: networks may lie between.
    pub fn agent_on(&self, wrapper: &[String], name: &str, ip: IpAddr, more: &str) -> Agent {
        self.credentials(name, &["*"]);
        let file = self.path(&format!("{name}.toml"));
        let text = format!(
            "node = {{ name = {name:?}, data_dir = {:?}, bind = \"{ip}\" }}\n\
             ports = {{ http = 0, dns = 0 }}\n{more}",
            self.path(name)
        );
        fs::write(&file, text).unwrap();
        let mut agent = Agent::spawn(wrapped(wrapper, &file));
        let socket = format!("unix://{}", self.path(name).join("mesh.sock").display());
        agent.http = Target::parse(&socket, 0, None).unwrap();
        agent
    }
}

/// A running agent. Dropping it kills it.
pub struct Agent {
    child: Child,
    pub gossip: SocketAddr,
    pub http: Target,
    /// The same as an address.
    pub http_addr: SocketAddr,
    pub https: Option<SocketAddr>,
    pub dns: SocketAddr,
    /// Log lines after the one that said it runs.
    pub log: mpsc::Receiver<Value>,
}

impl Agent {
    pub fn start(config: &Path) -> Agent {
        Agent::spawn(command(config))
    }

    pub fn spawn(mut command: Command) -> Agent {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = log_lines(&mut child);
        let started = next_log(&log, "agent started");
        let addr = |field: &str| -> SocketAddr {
            let text = started[field]
                .as_str()
                .unwrap_or_else(|| panic!("{started}"));
            text.parse().unwrap()
        };
        let http = addr("http");
        Agent {
            child,
            gossip: addr("gossip"),
            http: Target::parse(&http.to_string(), 0, None).unwrap(),
            http_addr: http,
            https: started["https"].as_str().map(|addr| addr.parse().unwrap()),
            dns: addr("dns"),
            log,
        }
    }

    pub async fn ask(&self, method: Method, path: &str, body: &str) -> (u16, String) {
        let (status, _, body) = self.full(method, path, body).await;
        (status, body)
    }

    pub async fn full(
        &self,
        method: Method,
        path: &str,
        body: &str,
    ) -> (u16, http::HeaderMap, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(Bytes::copy_from_slice(body.as_bytes()))
            .unwrap();
        let answer = self.http.send(request, PATIENCE).await.unwrap();
        let (head, body) = answer.into_parts();
        let body = String::from_utf8(body.to_vec()).unwrap();
        (head.status.as_u16(), head.headers, body)
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, "").await;
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn put(&self, path: &str, body: &str) {
        let (status, body) = self.ask(Method::PUT, path, body).await;
        assert_eq!(status, 200, "{path}: {body}");
    }

    /// Puts again and again until it is taken: the server may be on its way back.
    pub async fn until_put(&self, path: &str, token: &str, body: &str) {
        let deadline = Instant::now() + PATIENCE;
        let path = format!("{path}?token={token}");
        loop {
            let (status, answer) = self.ask(Method::PUT, &path, body).await;
            if status == 200 {
                return;
            }
            assert!(Instant::now() < deadline, "{path}: {status} {answer}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks again and again until `path` answers what `met` wants.
    pub async fn until(&self, path: &str, met: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.get(path).await;
            if met(&value) {
                return;
            }
            assert!(Instant::now() < deadline, "{path} still answers {value}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, signal).unwrap();
    }

    /// Waits for its end; the exit code, `None` when a signal ended it.
    pub fn wait(mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "the agent does not end");
            // The next log line, or the end of the log, is what may have changed.
            let _ = self.log.recv_timeout(Duration::from_millis(50));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Gone already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(config: &Path) -> Command {
    wrapped(&[], config)
}

fn wrapped(wrapper: &[String], config: &Path) -> Command {
    let mesh = env!("CARGO_BIN_EXE_mesh");
    let mut command = match wrapper {
        [] => Command::new(mesh),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(mesh);
            command
        }
    };
    command
        .args(["agent", "--config"])
        .arg(config)
        .env_clear()
        // The wrapper's own tools; the agent itself looks nothing up.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    command
}

/// The log of a process, line by line; what is no JSON comes as a string.
pub fn log_lines(child: &mut Child) -> mpsc::Receiver<Value> {
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let (lines, log) = mpsc::channel();
    thread::spawn(move || {
        for line in stderr.lines().map_while(Result::ok) {
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if lines.send(line).is_err() {
                // Nobody listens any more; the pipe still has to be emptied.
                continue;
            }
        }
    });
    log
}

/// Waits for the log line with this message.
pub fn next_log(log: &mpsc::Receiver<Value>, message: &str) -> Value {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match log.recv_timeout(left) {
            Ok(line) if line["message"] == message => return line,
            Ok(line) => seen.push(line),
            Err(_) => panic!("the log does not say {message:?}, but {seen:#?}"),
        }
    }
}
