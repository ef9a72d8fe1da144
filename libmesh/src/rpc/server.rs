//! The listener: who may connect, how long, and how much it may send.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ServerConfig, server::Acceptor};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ALPN, ALPN_JOIN, JOIN_PATH, JoinCall, Peer, Reply, Request, Router, router::not_found,
    stream::ReplyBody,
};
use crate::identity::{Identity, Leaf, Trust, explain};

/// What a listener allows; the defaults fit a mesh of thousands of nodes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Open connections of nodes. Default 8192.
    pub connections: usize,
    /// Open connections of joiners, who are not authenticated. Default 64.
    pub joiners: usize,
    /// How long a joiner's connection may last. Default 30 s.
    pub joining: Duration,
    /// Calls at once on one connection. Default 256.
    pub streams: u32,
    /// Bytes of a request's header list. Default 16 KiB.
    pub headers: u32,
    /// Time for the TLS handshake. Default 5 s.
    pub handshake: Duration,
    /// Time for a request's body to arrive. Default 30 s.
    pub body: Duration,
    /// A connection without calls for this long is closed. Default 2 min.
    pub idle: Duration,
    /// Time for running calls to end at shutdown. Default 5 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            joiners: 64,
            joining: Duration::from_secs(30),
            streams: 256,
            headers: 16 << 10,
            handshake: Duration::from_secs(5),
            body: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves a [`Router`] on a TCP listener.
pub struct Server {
    router: Router,
    identity: Identity,
    limits: Limits,
    mesh: Arc<ServerConfig>,
    join: Arc<ServerConfig>,
    nodes: Arc<Semaphore>,
    joiners: Arc<Semaphore>,
}

/// Who is at the other end of a connection.
#[derive(Clone)]
enum Caller {
    Node(Peer),
    Joiner(SocketAddr),
}

/// Calls seen on a connection, to find out whether it is idle.
#[derive(Default)]
struct Activity {
    running: AtomicUsize,
    started: AtomicU64,
}

struct Running(Arc<Activity>);

impl Server {
    /// A server for `router` that presents `identity`.
    pub fn new(identity: Identity, router: Router, limits: Limits) -> Self {
        Self {
            mesh: identity.server_config(ALPN),
            join: identity.join_server_config(ALPN_JOIN),
            nodes: Arc::new(Semaphore::new(limits.connections)),
            joiners: Arc::new(Semaphore::new(limits.joiners)),
            router,
            identity,
            limits,
        }
    }

    /// Accepts and answers until `stop`; then finishes running calls (see [`Limits::drain`]) and returns.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let server = Arc::new(self);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, addr)) => {
                    let addr = unmapped(addr);
                    let (server, stop) = (server.clone(), stop.clone());
                    connections.spawn(async move {
                        if let Err(reason) = server.connection(stream, addr, stop).await {
                            tracing::debug!(%addr, %reason, "mesh connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or the peer has gone already: neither ends the listener.
                    tracing::warn!(%error, "cannot accept a mesh connection");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        addr: SocketAddr,
        stop: CancellationToken,
    ) -> Result<(), String> {
        // Until the handshake is over nobody is known; it has a deadline, so this bounds strangers too.
        let node = self
            .nodes
            .clone()
            .try_acquire_owned()
            .map_err(|_| "too many connections")?;
        let handshake = timeout(self.limits.handshake, self.handshake(stream));
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            stream = handshake => stream.map_err(|_| "no handshake in time")??,
        };
        let (_, tls) = stream.get_ref();
        if tls.alpn_protocol() == Some(ALPN_JOIN) {
            drop(node);
            let joiner = self
                .joiners
                .clone()
                .try_acquire_owned()
                .map_err(|_| "too many joiners")?;
            let serve = self.serve(stream, Caller::Joiner(addr), None, stop);
            let served = timeout(self.limits.joining, serve).await;
            drop(joiner);
            return served.map_err(|_| "the joiner took too long".to_owned());
        }
        let leaf = tls
            .peer_certificates()
            .and_then(|chain| chain.first())
            .ok_or("no client certificate")?;
        let leaf = Leaf::parse(leaf).map_err(|e| e.to_string())?;
        let peer = Peer::from_leaf(leaf.clone(), addr).ok_or("the caller is not a node")?;
        self.serve(stream, Caller::Node(peer), Some(leaf), stop)
            .await;
        drop(node);
        Ok(())
    }

    async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, String> {
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream)
            .await
            .map_err(|e| explain(&e))?;
        let joins = start
            .client_hello()
            .alpn()
            .is_some_and(|mut offered| offered.any(|p| p == ALPN_JOIN));
        let config = if joins && self.router.join_limit().is_some() {
            &self.join
        } else {
            &self.mesh
        };
        let stream = start
            .into_stream(config.clone())
            .await
            .map_err(|e| explain(&e))?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN | ALPN_JOIN) => Ok(stream),
            _ => Err("the caller speaks no protocol of ours".to_owned()),
        }
    }

    /// Answers calls until the connection ends, is idle, is no longer trusted, or `stop`.
    async fn serve(
        self: &Arc<Self>,
        stream: TlsStream<TcpStream>,
        caller: Caller,
        leaf: Option<Leaf>,
        stop: CancellationToken,
    ) {
        let activity = Arc::new(Activity::default());
        let service = service_fn({
            let (server, activity) = (self.clone(), activity.clone());
            move |request| {
                server
                    .clone()
                    .answer(request, caller.clone(), activity.clone())
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.limits.streams)
            .max_header_list_size(self.limits.headers)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10))
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let mut revoked = pin!(revoked(self.identity.trust(), leaf.as_ref()));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = revoked.as_mut() => return,
            () = expired(leaf.as_ref()) => {}
            () = stop.cancelled() => {}
            () = activity.idle(self.limits.idle) => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            () = revoked => {}
            () = sleep(self.limits.drain) => {}
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: http::Request<Incoming>,
        caller: Caller,
        activity: Arc<Activity>,
    ) -> Result<http::Response<ReplyBody<Running>>, Infallible> {
        let running = activity.begin();
        let reply = self
            .dispatch(request, caller)
            .await
            .unwrap_or_else(|refused| refused);
        let body = match reply.frames.and_then(|frames| frames.lock().take()) {
            Some(waiting) => ReplyBody::Frames {
                waiting,
                _guard: running,
            },
            None => ReplyBody::Whole(reply.body.into()),
        };
        let mut response = http::Response::new(body);
        *response.status_mut() = reply.status;
        Ok(response)
    }

    async fn dispatch(
        &self,
        request: http::Request<Incoming>,
        caller: Caller,
    ) -> Result<Reply, Reply> {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        if head.method != http::Method::POST {
            return Err(Reply::error(
                StatusCode::METHOD_NOT_ALLOWED,
                "calls between nodes are POST",
            ));
        }
        let limit = match &caller {
            Caller::Node(_) => self.router.limit(path),
            Caller::Joiner(_) if path == JOIN_PATH => self.router.join_limit(),
            Caller::Joiner(_) => None,
        };
        let limit = limit.ok_or_else(|| not_found(path))?;
        let body = self.body(body, limit).await?;
        Ok(match caller {
            Caller::Joiner(addr) => self.router.handle_join(JoinCall { addr, body }).await,
            Caller::Node(peer) => {
                let query = head.uri.query().unwrap_or_default().to_owned();
                self.router
                    .handle(Request {
                        peer,
                        path: path.to_owned(),
                        query,
                        body,
                    })
                    .await
            }
        })
    }

    async fn body(&self, body: Incoming, limit: usize) -> Result<Bytes, Reply> {
        match timeout(self.limits.body, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                let message = format!("the body is over the limit of {limit} bytes");
                Err(Reply::error(StatusCode::PAYLOAD_TOO_LARGE, message))
            }
            Ok(Err(_)) => Err(Reply::error(StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => Err(Reply::error(
                StatusCode::REQUEST_TIMEOUT,
                "the body did not arrive in time",
            )),
        }
    }
}

impl Activity {
    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.started.fetch_add(1, Ordering::Relaxed);
        Running(self.clone())
    }

    /// Returns when no call ran for between one and two times `span`.
    async fn idle(&self, span: Duration) {
        let mut seen = u64::MAX;
        loop {
            let started = self.started.load(Ordering::Relaxed);
            if started == seen && self.running.load(Ordering::Relaxed) == 0 {
                return;
            }
            seen = started;
            sleep(span).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns when the peer of a connection is revoked; never for joiners, whose calls are short.
async fn revoked(trust: &Trust, leaf: Option<&Leaf>) {
    let Some(leaf) = leaf else {
        return std::future::pending().await;
    };
    let mut changes = trust.watch();
    while !trust.revoked().covers(leaf) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Returns when the certificate of a connection has expired: running calls may end, new ones need a new
/// handshake.
async fn expired(leaf: Option<&Leaf>) {
    let Some(leaf) = leaf else {
        return std::future::pending().await;
    };
    loop {
        let left = leaf
            .not_after
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if left.is_zero() {
            return;
        }
        // The longest nap notices a clock that was moved.
        sleep(left.min(Duration::from_secs(60))).await;
    }
}

/// An IPv4 caller of a dual-stack listener, as IPv4.
fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
