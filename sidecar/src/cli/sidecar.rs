//! `mesh sidecar`

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgGroup, Args};
use libmesh::model::{InstanceId, ServiceName};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use super::{Exit, Failure, Global};
use crate::attach::wire::CheckSpec;
use crate::proxy::tcp::Limits;
use crate::sidecar_role::{self, Addresses, Inbound, Settings, SidecarError, Upstream};

/// Connect a service to the mesh over mutual TLS, beside an agent.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("check").args(["check_http", "check_tcp"]))]
pub struct Command {
    /// The service that the application is.
    #[arg(long, value_name = "NAME", value_parser = ServiceName::parse)]
    service: ServiceName,
    /// Its instance, unique on the node [default: the service's name].
    #[arg(long, value_name = "NAME", value_parser = InstanceId::parse)]
    instance: Option<InstanceId>,
    /// The agent's Unix socket; the same as --socket.
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// Take calls of the mesh here, over mTLS.
    #[arg(long, value_name = "ADDR:PORT", requires = "app")]
    inbound: Option<SocketAddr>,
    /// Where the application listens, on loopback.
    #[arg(long, value_name = "ADDR:PORT", requires = "inbound")]
    app: Option<SocketAddr>,
    /// Let the application reach a service at a loopback address; may be repeated.
    #[arg(long = "upstream", value_name = "SERVICE=ADDR:PORT")]
    upstreams: Vec<Upstream>,
    /// Life of its certificates, renewed at half of it [default: the authority's, 24h].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    leaf_ttl: Option<Duration>,
    /// Answer /connections, /identity, /health/live and /health/ready here, on loopback.
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
    /// Publish this address instead of the node's.
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// A tag of the instance; may be repeated.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Arc<str>>,
    /// Metadata of the instance; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(Arc<str>, Arc<str>)>,
    /// Version of the application.
    #[arg(long = "app-version", value_name = "VERSION")]
    version: Option<Arc<str>>,
    /// Have the agent check the application: GET this path must answer 2xx.
    #[arg(long, value_name = "PATH", requires = "app")]
    check_http: Option<Arc<str>>,
    /// Have the agent check the application: its port must take connections.
    #[arg(long, requires = "app")]
    check_tcp: bool,
    /// Time between two checks.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    check_interval: Duration,
    /// Close connections that move nothing for so long [default: never].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// Connections at once, in and out together.
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections)]
    max_connections: usize,
    /// How long open connections may go on after TERM.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    drain: Duration,
    /// Threads that carry connections [default: one per processor].
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
}

fn pair(text: &str) -> Result<(Arc<str>, Arc<str>), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

impl Command {
    /// Runs until TERM or INT; a second one ends it at once.
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        log_to_stderr();
        let settings = self.settings(global)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
        runtime.block_on(async {
            let (stop, stop_now) = (CancellationToken::new(), CancellationToken::new());
            tokio::spawn(signals(stop.clone(), stop_now.clone())?);
            sidecar_role::run(settings, stop, stop_now, say)
                .await
                .map_err(failure)
        })
    }

    fn settings(self, global: &Global) -> Result<Settings, Failure> {
        let interval = u16::try_from(self.check_interval.as_secs())
            .ok()
            .filter(|seconds| *seconds > 0);
        let interval =
            interval.ok_or_else(|| Failure::usage("--check-interval: from 1s to 18h"))?;
        let check = self
            .app
            .and_then(|address| match (self.check_http, self.check_tcp) {
                (Some(path), _) => Some(CheckSpec::Http {
                    address,
                    path,
                    interval,
                }),
                (None, true) => Some(CheckSpec::Tcp { address, interval }),
                (None, false) => None,
            });
        let agent = self.agent.unwrap_or_else(|| global.addresses.socket_path());
        Ok(Settings {
            instance: self.instance,
            token_file: global.addresses.attach_token_path(),
            inbound: self
                .inbound
                .zip(self.app)
                .map(|(listen, application)| Inbound {
                    listen,
                    application,
                }),
            upstreams: self.upstreams,
            leaf_ttl: self.leaf_ttl,
            admin: self.admin,
            address: self.address,
            tags: self.tags,
            meta: self.meta.into_iter().collect(),
            version: self.version,
            checks: check.into_iter().collect(),
            limits: Limits {
                connections: self.max_connections,
                idle: self.idle_timeout,
                ..Limits::default()
            },
            drain: self.drain,
            workers: self.workers,
            ..Settings::new(self.service, agent)
        })
    }
}

/// Logs go to stderr, as `RUST_LOG` says; warnings and what happens to the sidecar itself by default.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever embeds the command line may have set up logging already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

fn signals(
    stop: CancellationToken,
    stop_now: CancellationToken,
) -> Result<impl Future<Output = ()>, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))
    };
    let (mut term, mut int) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    Ok(async move {
        for token in [stop, stop_now] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            token.cancel();
        }
    })
}

/// Tells on stdout where it listens, for people and scripts that gave port 0.
fn say(addresses: &Addresses) {
    let mut lines = String::new();
    if let Some(addr) = addresses.inbound {
        lines += &format!("inbound  {addr}\n");
    }
    for addr in &addresses.upstreams {
        lines += &format!("upstream {addr}\n");
    }
    if let Some(addr) = addresses.admin {
        lines += &format!("admin    http://{addr}\n");
    }
    // The reader of stdout may have closed it; that is no reason to end.
    let _ = std::io::stdout().write_all(lines.as_bytes());
}

fn failure(error: SidecarError) -> Failure {
    let denied = error.is_denied();
    let usage = matches!(error, SidecarError::Settings(_));
    let exit = match (denied, usage) {
        (true, _) => Exit::Denied,
        (_, true) => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, format!("{:#}", anyhow::Error::from(error)))
}
