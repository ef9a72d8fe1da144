//! The listeners of an agent: HTTP, HTTPS, Unix socket.

use std::{
    net::SocketAddr,
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
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::AgentError;
use crate::{
    config::{Config, TlsFiles},
    consul::{ConsulApi, MAX_BODY},
    http::{AnyClient, ConnInfo, Limits, Listener, Remote, Routes, bind_unix, json, serve, text},
};

/// The socket is open to every local user: who may do what is decided by the peer's uid or attach token.
const SOCKET_MODE: u32 = 0o666;
/// The Vault interface takes up to 32 MiB, so its way through the socket does, too.
const SOCKET_BODY: usize = 32 << 20;

/// Opens what the configuration names; returns the addresses of HTTP and HTTPS.
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
        ..Limits::default()
    };
    let mut http = None;
    if let Some(port) = ports.http {
        let listener = bind(SocketAddr::new(addresses.http, port), "ports.http").await?;
        http = listener.local_addr().ok();
        start(
            Listener::Tcp(listener),
            limits.clone(),
            api.clone(),
            stop,
            tasks,
        );
    }
    let mut https = None;
    if let (Some(port), Some(files)) = (ports.https, &config.tls) {
        let tls = tls_config(files, false)?;
        let listener = bind(SocketAddr::new(addresses.https, port), "ports.https").await?;
        https = listener.local_addr().ok();
        start(
            Listener::Tls(listener, tls),
            limits.clone(),
            api.clone(),
            stop,
            tasks,
        );
    }
    let socket = bind_unix(&addresses.socket, SOCKET_MODE).map_err(AgentError::Socket)?;
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

/// Reads certificate chain and key. TLS 1.2 stays possible for the clients of Consul's own port.
///
/// With `ask`, clients may show a certificate; see [`AnyClient`].
pub fn tls_config(files: &TlsFiles, ask: bool) -> Result<Arc<ServerConfig>, AgentError> {
    let failed = |path: &std::path::Path| {
        let path = path.to_owned();
        move |reason: String| AgentError::Tls { path, reason }
    };
    let chain = CertificateDer::pem_file_iter(&files.cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| failed(&files.cert_file)(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&files.key_file)
        .map_err(|error| failed(&files.key_file)(error.to_string()))?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&files.cert_file)(error.to_string()))?;
    let config = match ask {
        true => config.with_client_cert_verifier(Arc::new(AnyClient(provider))),
        false => config.with_no_client_auth(),
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
