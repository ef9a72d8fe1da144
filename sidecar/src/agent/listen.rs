//! The listeners of an agent: HTTP, HTTPS, Unix socket.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use libmesh::mesh::{Mesh, Problem};
use tokio::{net::TcpListener, sync::Notify};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    version,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::AgentError;
use crate::{
    config::{Config, TlsFiles, TlsVersion},
    consul::{ConsulApi, MAX_BODY},
    http::{
        AnyClient, ConnInfo, Limits, Listener, PerClient, Remote, Routes, bind_unix, json, serve,
        text,
    },
};

/// Open connections of each listener, all clients together.
const CONNECTIONS: usize = 8192;
/// The Vault interface takes up to 32 MiB, so its way through the socket does, too.
const SOCKET_BODY: usize = 32 << 20;

/// Opens what the configuration names; returns the first addresses of HTTP and HTTPS.
pub async fn open(
    config: &Config,
    api: &ConsulApi,
    attach: &Routes,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(Option<SocketAddr>, Option<SocketAddr>), AgentError> {
    let (ports, addresses) = (&config.ports, &config.addresses);
    let limits = Limits {
        body: MAX_BODY,
        connections: CONNECTIONS,
        per_client: PerClient::new(config.limits.http_max_conns_per_client),
        ..Limits::default()
    };
    let mut http = None;
    for ip in &addresses.http {
        let Some(port) = ports.http else { break };
        let listener = bind(SocketAddr::new(*ip, port), "ports.http").await?;
        http = http.or(listener.local_addr().ok());
        let listener = Listener::Tcp(listener);
        start(listener, limits.clone(), api.clone(), stop, tasks);
    }
    let mut https = None;
    if let (Some(port), Some(files)) = (ports.https, &config.tls) {
        let clients = match &files.client_ca_file {
            Some(file) => Clients::Must(file),
            None => Clients::Anonymous,
        };
        let tls = tls_config(files, clients)?;
        for ip in &addresses.https {
            let listener = bind(SocketAddr::new(*ip, port), "ports.https").await?;
            https = https.or(listener.local_addr().ok());
            let listener = Listener::Tls(listener, Arc::clone(&tls));
            start(listener, limits.clone(), api.clone(), stop, tasks);
        }
    }
    let file = addresses.socket_file;
    let socket = bind_unix(&addresses.socket, file.mode).map_err(AgentError::Socket)?;
    if file.user.is_some() || file.group.is_some() {
        let given = std::os::unix::fs::chown(&addresses.socket, file.user, file.group);
        given.map_err(|source| AgentError::SocketOwner {
            path: addresses.socket.clone(),
            source,
        })?;
    }
    let limits = Limits {
        body: SOCKET_BODY,
        ..limits
    };
    start(socket, limits, api.with(attach.clone()), stop, tasks);
    Ok((http, https))
}

async fn bind(addr: SocketAddr, key: &'static str) -> Result<TcpListener, AgentError> {
    let listener = TcpListener::bind(addr).await;
    listener.map_err(|source| AgentError::bind(addr, key, source))
}

fn start(
    listener: Listener,
    limits: Limits,
    api: ConsulApi,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) {
    let handler = move |request: Request<Bytes>, conn: Arc<ConnInfo>| {
        let api = api.clone();
        async move { api.handle(request, conn).await }
    };
    tasks.spawn(serve(listener, limits, stop.clone(), handler));
}

/// Which certificates clients show.
#[derive(Debug, Clone, Copy)]
pub enum Clients<'f> {
    /// None; they are not asked.
    Anonymous,
    /// Any, or none; see [`AnyClient`].
    May,
    /// One of the authorities in a file.
    Must(&'f Path),
}

/// Reads certificate chain and key. TLS 1.2 stays possible for the clients of Consul's own port.
pub fn tls_config(files: &TlsFiles, clients: Clients<'_>) -> Result<Arc<ServerConfig>, AgentError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |reason: String| AgentError::Tls { path, reason }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&files.cert_file)(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| failed(&files.key_file)(error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let versions: &[_] = match files.min_version {
        TlsVersion::V12 => &[&version::TLS12, &version::TLS13],
        TlsVersion::V13 => &[&version::TLS13],
    };
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|error| failed(&files.cert_file)(error.to_string()))?;
    let config = match clients {
        Clients::Anonymous => config.with_no_client_auth(),
        Clients::May => config.with_client_cert_verifier(Arc::new(AnyClient(provider))),
        Clients::Must(file) => {
            let wrong = failed(file);
            let roots = CertificateDer::pem_file_iter(file)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| error.to_string())
                .and_then(|authorities| {
                    let mut roots = RootCertStore::empty();
                    for authority in authorities {
                        roots.add(authority).map_err(|error| error.to_string())?;
                    }
                    Ok(Arc::new(roots))
                });
            let verifier = roots.and_then(|roots| {
                WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .map_err(|error| error.to_string())
            });
            config.with_client_cert_verifier(verifier.map_err(wrong)?)
        }
    };
    let config = config
        .with_single_cert(chain, key)
        .map_err(|error| failed(&files.cert_file)(error.to_string()))?;
    Ok(Arc::new(config))
}

/// `/health/live` and `/health/ready`; and what the node knows to be wrong with itself.
pub fn health(ready: Arc<AtomicBool>, mesh: Mesh) -> Routes {
    Routes::new()
        .get("/health/live", |_| async { text(StatusCode::OK, "live\n") })
        .get("/v1/mesh/problems", move |_| {
            let problems: Vec<String> = mesh.problems().iter().map(Problem::to_string).collect();
            async move { json(StatusCode::OK, &problems) }
        })
        .get("/health/ready", move |_| {
            let ready = ready.load(Ordering::Acquire);
            async move {
                match ready {
                    true => text(StatusCode::OK, "ready\n"),
                    false => text(StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
                }
            }
        })
}

/// `POST /v1/mesh/restart`, for the agent's own user and root.
pub fn restart(again: Arc<Notify>) -> Routes {
    Routes::new().on(Method::POST, "/v1/mesh/restart", move |call| {
        let again = Arc::clone(&again);
        async move {
            let own = nix::unistd::geteuid().as_raw();
            match call.conn.remote {
                Remote::Unix { uid, .. } if uid == own || uid == 0 => {
                    again.notify_one();
                    text(StatusCode::ACCEPTED, "restarting\n")
                }
                _ => text(
                    StatusCode::FORBIDDEN,
                    "only root and the user that the agent runs as restart it",
                ),
            }
        }
    })
}
