//! The servers that are measured: the Vault interface behind our HTTP front, and a bare hyper.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use sidecar::http::{ConnInfo, Limits, Listener, Remote, serve};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::rustls::{ServerConfig, crypto::ring, pki_types::PrivatePkcs8KeyDer};
use tokio_util::sync::CancellationToken;
use vault_kv::{AuditSink, Caller, InitOptions, StoreConfig, Vault, VaultConfig, Via};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A server: its folder, then `audit` and `tls` as wanted. Prints its address and the root token.
pub fn server(arguments: &[String]) -> Result<()> {
    let (dir, flags) = arguments.split_first().context("which folder?")?;
    let has = |flag: &str| flags.iter().any(|given| given == flag);
    let runtime = Runtime::new()?;
    let (vault, root) = make(&runtime, Path::new(dir), has("audit"))?;
    let addr = runtime.block_on(listen(vault, has("tls")))?;
    println!("{addr} {root}");
    until_input_ends()
}

/// A new store in this folder, unsealed; its root token.
fn make(runtime: &Runtime, dir: &Path, audit: bool) -> Result<(Vault, String)> {
    // As the server does.
    vault_kv::clear_freed_memory();
    std::fs::create_dir_all(dir)?;
    std::fs::write(key_of(dir), [7; 32])?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(key_of(dir), mode)?;
    let vault = Vault::open(config(dir, audit))?;
    let options = InitOptions {
        shares: 1,
        threshold: 1,
    };
    let root = runtime.block_on(vault.init(options))?.root_token;
    Ok((vault, root.to_string()))
}

fn config(dir: &Path, audit: bool) -> VaultConfig {
    let mut config = VaultConfig::new(StoreConfig::Dir(dir.join("store")));
    config.static_key = Some(key_of(dir));
    config.audit.extend(audit.then(|| AuditSink {
        name: "file".to_owned(),
        path: dir.join("audit.log"),
    }));
    config
}

fn key_of(dir: &Path) -> PathBuf {
    dir.join("key")
}

async fn listen(vault: Vault, tls: bool) -> Result<SocketAddr> {
    let tcp = TcpListener::bind(ANY_PORT).await?;
    let addr = tcp.local_addr()?;
    let listener = match tls {
        true => Listener::Tls(tcp, tls_config()?),
        false => Listener::Tcp(tcp),
    };
    // As the server does on its Vault port.
    let handler = move |request: Request<Bytes>, conn: Arc<ConnInfo>| {
        let vault = vault.clone();
        async move {
            let remote = match &conn.remote {
                Remote::Tcp(addr) => vault_kv::Remote::Ip(addr.ip()),
                Remote::Unix { .. } => vault_kv::Remote::Unix,
            };
            let caller = Caller::anonymous(remote, Via::Http);
            vault.handle(request, caller).await.map(Into::into)
        }
    };
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, Limits::default(), stop, handler));
    Ok(addr)
}

fn tls_config() -> Result<Arc<ServerConfig>> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
    let certificate = certificate.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    Ok(Arc::new(config))
}

/// The floor: hyper alone, with a body as long as an answer's (400 bytes unless told).
pub fn hello(arguments: &[String]) -> Result<()> {
    let length = arguments.first().map_or(Ok(400), |length| length.parse())?;
    let runtime = Runtime::new()?;
    let listener = runtime.block_on(TcpListener::bind(ANY_PORT))?;
    println!("{}", listener.local_addr()?);
    runtime.spawn(async move {
        let body = Bytes::from(vec![b'x'; length]);
        while let Ok((stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let service = service_fn(move |_| {
                    let answer = Response::new(Full::new(body.clone()));
                    async move { Ok::<_, Infallible>(answer) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                // The load ends by closing its connections.
                let _ = connection.await;
            });
        }
    });
    until_input_ends()
}

/// Makes things and says what one of them takes in memory: `kv`, `tokens` or `leases`, and how many.
pub fn memory(arguments: &[String]) -> Result<()> {
    let [dir, what, count] = arguments else {
        anyhow::bail!("folder, kind and number are needed")
    };
    let count: u64 = count.parse()?;
    let runtime = Runtime::new()?;
    let (vault, root) = make(&runtime, Path::new(dir), false)?;
    let by = Asker { vault, root };
    runtime.block_on(async {
        by.ok("POST", "sys/mounts/ssh", json!({"type": "ssh"}))
            .await?;
        let role = json!({"key_type": "otp", "default_user": "u", "cidr_list": "127.0.0.0/8"});
        by.ok("POST", "ssh/roles/ops", role).await
    })?;
    // What the allocator, the disk cache and the first entries take once is not counted.
    runtime.block_on(by.many(what, 0..count / 20))?;
    settle(&runtime, &by.vault);
    let before = resident()?;
    runtime.block_on(by.many(what, count / 20..count))?;
    settle(&runtime, &by.vault);
    let made = count - count / 20;
    let each = (resident()?.saturating_sub(before)) as f64 / made as f64;
    println!("{each}");
    until_input_ends()
}

/// Until the fold has caught up with the log.
fn settle(runtime: &Runtime, vault: &Vault) {
    while vault_kv::bench::unfolded(vault) > 0 {
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
    }
}

fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.context("no VmRSS")?.parse::<u64>()? << 10)
}

/// Fills a store with so many secrets; with `stay` it does not close it and waits to be killed.
pub fn fill(arguments: &[String]) -> Result<()> {
    let (dir, count) = (arguments.first().context("which?")?, arguments.get(1));
    let count = count.context("how many?")?.parse()?;
    let runtime = Runtime::new()?;
    let (vault, root) = make(&runtime, Path::new(dir), false)?;
    std::fs::write(Path::new(dir).join("root"), &root)?;
    let by = Asker { vault, root };
    runtime.block_on(by.many("kv", 0..count))?;
    if !arguments.iter().any(|argument| argument == "stay") {
        // As a server that ends: with the last handle the store folds what is left, and closes.
        runtime.block_on(by.vault.close());
        drop((by, runtime));
    }
    println!("filled");
    until_input_ends()
}

/// Opens a store, unseals it and reads a secret; how many ms that took.
pub fn start(arguments: &[String]) -> Result<()> {
    let dir = Path::new(arguments.first().context("which folder?")?);
    let root = std::fs::read_to_string(dir.join("root"))?;
    let runtime = Runtime::new()?;
    vault_kv::clear_freed_memory();
    let begun = Instant::now();
    let vault = Vault::open(config(dir, false))?;
    runtime.block_on(vault.unseal_static())?;
    let by = Asker { vault, root };
    runtime.block_on(by.ok("GET", "secret/data/k1", Value::Null))?;
    println!("{}", (Instant::now() - begun).as_secs_f64() * 1e3);
    runtime.block_on(by.vault.close());
    until_input_ends()
}

/// Asks without HTTP.
#[derive(Clone)]
struct Asker {
    vault: Vault,
    root: String,
}

impl Asker {
    async fn ok(&self, method: &str, path: &str, body: Value) -> Result<()> {
        let body = match body {
            Value::Null => Bytes::new(),
            body => body.to_string().into(),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("/v1/{path}"))
            .header("x-vault-token", &self.root)
            .body(body)?;
        let caller = Caller::anonymous(vault_kv::Remote::Unix, Via::Embedded);
        let answer = self.vault.handle(request, caller).await;
        let good = matches!(answer.status(), StatusCode::OK | StatusCode::NO_CONTENT);
        ensure!(good, "{method} {path}: {}", answer.status());
        Ok(())
    }

    /// 256 at once.
    async fn many(&self, what: &str, range: std::ops::Range<u64>) -> Result<()> {
        let next = Arc::new(AtomicU64::new(range.start));
        let mut workers: JoinSet<Result<()>> = JoinSet::new();
        for _ in 0..256 {
            let (by, what, next) = (self.clone(), what.to_owned(), Arc::clone(&next));
            workers.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= range.end {
                        return Ok(());
                    }
                    by.one(&what, n).await?;
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn one(&self, what: &str, n: u64) -> Result<()> {
        let (path, body) = match what {
            "kv" => (
                format!("secret/data/k{n}"),
                json!({"data": {"password": format!("secret {n}")}}),
            ),
            "tokens" => (
                "auth/token/create-orphan".to_owned(),
                json!({"policies": ["default"], "ttl": "1h"}),
            ),
            _ => ("ssh/creds/ops".to_owned(), json!({"ip": "127.0.0.1"})),
        };
        self.ok("POST", &path, body).await
    }
}

fn until_input_ends() -> Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
