//! Calls to other nodes over kept connections: one per address, dialled when needed, dropped when idle.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{StatusCode, uri::PathAndQuery};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    sync::broadcast,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{ALPN, ALPN_JOIN, JOIN_PATH, RpcError, Stream};
use crate::{
    identity::{Identity, Leaf, explain, join_client_config},
    model::{NodeId, NodeName},
};

/// The largest answer a caller takes.
const MAX_ANSWER: usize = 64 << 20;
/// The longest error message it keeps.
const MAX_MESSAGE: usize = 1024;
/// A connection not used for this long is closed.
const IDLE: Duration = Duration::from_secs(90);
/// How often such connections are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// Broken connections that a slow listener may lag behind.
const BROKEN_MAX: usize = 256;

/// Where a call goes, and who must answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub addr: SocketAddr,
    /// The node that must answer; `None`: any node of the mesh.
    pub node: Option<NodeName>,
    /// Whether it must have the certificate of a server. To be set for everything that carries a token
    /// or a secret, or whose answer is believed because a server gave it.
    pub server: bool,
}

impl Target {
    /// Any node of the mesh at `addr`.
    pub fn any(addr: SocketAddr) -> Self {
        Self {
            addr,
            node: None,
            server: false,
        }
    }

    /// The node `name` at `addr`.
    pub fn node(addr: SocketAddr, name: NodeName) -> Self {
        Self {
            addr,
            node: Some(name),
            server: false,
        }
    }

    /// A server at `addr`.
    pub fn server(addr: SocketAddr) -> Self {
        Self {
            addr,
            node: None,
            server: true,
        }
    }

    fn accepts(&self, leaf: &Leaf) -> Result<(), RpcError> {
        let named = match (&self.node, leaf.spiffe.as_node()) {
            (Some(wanted), got) => got == Some(wanted),
            (None, got) => got.is_some(),
        };
        if named && (!self.server || leaf.rights.is_server()) {
            return Ok(());
        }
        let node = self
            .node
            .as_ref()
            .map_or_else(|| "a node".to_owned(), |name| format!("node {name}"));
        let wanted = if self.server {
            format!("{node} with the server role")
        } else {
            node
        };
        Err(RpcError::WrongPeer {
            addr: self.addr,
            got: leaf.spiffe.to_string(),
            wanted,
        })
    }
}

/// Calls other nodes. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    tls: Arc<ClientConfig>,
    pool: Mutex<Pool>,
    broken: broadcast::Sender<NodeId>,
}

/// Connections by address.
struct Pool {
    slots: HashMap<SocketAddr, Arc<Slot>>,
    /// When idle ones were last looked for.
    swept: Instant,
}

/// The connection to one address. The lock is held while dialling, so that callers share one dial.
struct Slot {
    connection: tokio::sync::Mutex<Option<Connection>>,
    used: Mutex<Instant>,
}

#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    leaf: Arc<Leaf>,
}

impl Client {
    /// A client that presents `identity`.
    pub fn new(identity: Identity) -> Self {
        let tls = identity.client_config(ALPN);
        Self {
            inner: Arc::new(Inner {
                identity,
                tls,
                pool: Mutex::new(Pool {
                    slots: HashMap::new(),
                    swept: Instant::now(),
                }),
                broken: broadcast::Sender::new(BROKEN_MAX),
            }),
        }
    }

    /// Calls `path` (with its query) and returns the body of a 200.
    ///
    /// The deadline covers dialling, sending and the whole answer. A call that was surely not sent on a
    /// kept connection is sent once more on a fresh one; any other is never repeated here.
    pub async fn call(
        &self,
        target: &Target,
        path: &str,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, RpcError> {
        let until = Instant::now() + deadline;
        let call = async {
            let (response, _) = self.send(target, path, body, until).await?;
            answer(target.addr, path, response).await
        };
        match timeout_at(until, call).await {
            Ok(answer) => answer,
            Err(_) => Err(RpcError::TimedOut {
                addr: target.addr,
                path: path.to_owned(),
                after: deadline,
            }),
        }
    }

    /// Calls `path` and returns the frames of a 200, each of `frame_max` bytes at most; see
    /// [`Reply::frames`](super::Reply::frames).
    ///
    /// The deadline covers dialling, sending and the beginning of the answer.
    ///
    /// # Errors
    /// As of [`call`](Self::call).
    pub async fn open(
        &self,
        target: &Target,
        path: &str,
        body: Bytes,
        deadline: Duration,
        frame_max: usize,
    ) -> Result<Stream, RpcError> {
        let until = Instant::now() + deadline;
        let begin = async {
            let (response, connection) = self.send(target, path, body, until).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(target.addr, path, response).await);
            }
            Ok(Stream {
                addr: target.addr,
                path: path.to_owned(),
                body: response.into_body(),
                buffer: BytesMut::new(),
                frame_max,
                _connection: connection,
            })
        };
        match timeout_at(until, begin).await {
            Ok(begun) => begun,
            Err(_) => Err(RpcError::TimedOut {
                addr: target.addr,
                path: path.to_owned(),
                after: deadline,
            }),
        }
    }

    /// Nodes whose connection ended without a goodbye: their process may be gone.
    pub fn broken(&self) -> broadcast::Receiver<NodeId> {
        self.inner.broken.subscribe()
    }

    /// Forgets the connection to `addr`; running calls on it end by themselves.
    pub fn forget(&self, addr: SocketAddr) {
        self.inner.pool.lock().slots.remove(&addr);
    }

    async fn send(
        &self,
        target: &Target,
        path: &str,
        body: Bytes,
        until: Instant,
    ) -> Result<(http::Response<Incoming>, Connection), RpcError> {
        let addr = target.addr;
        let mut request = request(addr, path, body)?;
        let mut fresh = false;
        loop {
            let mut connection = self.connection(addr, fresh, until).await?;
            target.accepts(&connection.leaf)?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, connection)),
                Err(mut unsent) => match unsent.take_message() {
                    Some(message) if !fresh => {
                        request = message;
                        fresh = true;
                    }
                    _ => return Err(closed(addr, path, &unsent.into_error())),
                },
            }
        }
    }

    /// The kept connection to `addr`, or a new one if there is none that works (or `fresh` is wanted).
    async fn connection(
        &self,
        addr: SocketAddr,
        fresh: bool,
        until: Instant,
    ) -> Result<Connection, RpcError> {
        let slot = self.slot(addr);
        let mut kept = slot.connection.lock().await;
        if let Some(connection) = kept.as_ref()
            && !fresh
            && !connection.sender.is_closed()
            && self.trusts(&connection.leaf)
        {
            return Ok(connection.clone());
        }
        *kept = None;
        let broken = self.inner.broken.clone();
        let on_broken = move |peer| drop(broken.send(peer));
        let (sender, leaf) = dial(addr, self.inner.tls.clone(), until, on_broken).await?;
        let connection = Connection {
            sender,
            leaf: Arc::new(leaf),
        };
        *kept = Some(connection.clone());
        Ok(connection)
    }

    fn slot(&self, addr: SocketAddr) -> Arc<Slot> {
        let now = Instant::now();
        let mut pool = self.inner.pool.lock();
        if now.duration_since(pool.swept) >= SWEEP {
            pool.swept = now;
            pool.slots.retain(|_, slot| {
                now.duration_since(*slot.used.lock()) < IDLE || Arc::strong_count(slot) > 1
            });
        }
        let new = || {
            Arc::new(Slot {
                connection: tokio::sync::Mutex::default(),
                used: Mutex::new(now),
            })
        };
        let slot = pool.slots.entry(addr).or_insert_with(new).clone();
        *slot.used.lock() = now;
        slot
    }

    /// Whether a peer accepted at its handshake would still be.
    fn trusts(&self, leaf: &Leaf) -> bool {
        leaf.not_after > SystemTime::now() && !self.inner.identity.trust().revoked().covers(leaf)
    }
}

/// Calls `/join` at `addr` without a certificate of our own; the server's chain must hold the root whose
/// hash is `pin`.
pub(crate) async fn call_join(
    addr: SocketAddr,
    pin: [u8; 32],
    body: Bytes,
    deadline: Duration,
) -> Result<Bytes, RpcError> {
    let until = Instant::now() + deadline;
    let call = async {
        let (mut sender, _) = dial(addr, join_client_config(pin, ALPN_JOIN), until, drop).await?;
        let sent = sender.send_request(request(addr, JOIN_PATH, body)?).await;
        answer(
            addr,
            JOIN_PATH,
            sent.map_err(|e| closed(addr, JOIN_PATH, &e))?,
        )
        .await
    };
    match timeout_at(until, call).await {
        Ok(answer) => answer,
        Err(_) => Err(RpcError::TimedOut {
            addr,
            path: JOIN_PATH.to_owned(),
            after: deadline,
        }),
    }
}

/// Connects and makes both handshakes; the HTTP/2 connection runs in a task of its own.
async fn dial(
    addr: SocketAddr,
    tls: Arc<ClientConfig>,
    until: Instant,
    on_broken: impl FnOnce(NodeId) + Send + 'static,
) -> Result<(SendRequest<Full<Bytes>>, Leaf), RpcError> {
    let timed_out = |_| RpcError::Unreachable {
        addr,
        source: io::ErrorKind::TimedOut.into(),
    };
    let stream = timeout_at(until, TcpStream::connect(addr))
        .await
        .map_err(timed_out)?;
    let stream = stream.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => RpcError::Refused { addr },
        _ => RpcError::Unreachable { addr, source },
    })?;
    let failed = |reason: String| RpcError::Handshake { addr, reason };
    stream
        .set_nodelay(true)
        .map_err(|e| failed(e.to_string()))?;
    let name = ServerName::IpAddress(addr.ip().into());
    let wanted = tls.alpn_protocols.clone();
    let stream = TlsConnector::from(tls)
        .connect(name, stream)
        .await
        .map_err(|e| failed(explain(&e)))?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != wanted.first().map(Vec::as_slice) {
        return Err(failed(
            "the peer is no mesh node of this version".to_owned(),
        ));
    }
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    let leaf = leaf.ok_or_else(|| failed("the peer showed no certificate".to_owned()))?;
    let leaf = Leaf::parse(leaf).map_err(|e| failed(e.to_string()))?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| failed(e.to_string()))?;
    let peer = leaf.node_id;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%addr, %error, "connection to a node broke");
            on_broken(peer);
        }
    });
    Ok((sender, leaf))
}

fn request(
    addr: SocketAddr,
    path: &str,
    body: Bytes,
) -> Result<http::Request<Full<Bytes>>, RpcError> {
    let bad = |e: http::Error| RpcError::Closed {
        addr,
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let path_and_query = PathAndQuery::try_from(path).map_err(|e| bad(e.into()))?;
    let uri = http::Uri::builder()
        .scheme("https")
        .authority(addr.to_string())
        .path_and_query(path_and_query);
    let uri = uri.build().map_err(bad)?;
    http::Request::post(uri).body(Full::new(body)).map_err(bad)
}

async fn answer(
    addr: SocketAddr,
    path: &str,
    response: http::Response<Incoming>,
) -> Result<Bytes, RpcError> {
    if response.status() == StatusCode::OK {
        read_body(addr, path, response).await
    } else {
        Err(refusal(addr, path, response).await)
    }
}

/// The error that an answer with another status is.
async fn refusal(addr: SocketAddr, path: &str, response: http::Response<Incoming>) -> RpcError {
    let status = response.status();
    match read_body(addr, path, response).await {
        Ok(body) => RpcError::Status {
            addr,
            path: path.to_owned(),
            status,
            message: String::from_utf8_lossy(&body[..body.len().min(MAX_MESSAGE)]).into_owned(),
        },
        Err(error) => error,
    }
}

async fn read_body(
    addr: SocketAddr,
    path: &str,
    response: http::Response<Incoming>,
) -> Result<Bytes, RpcError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await;
    let body = body.map_err(|error| RpcError::Closed {
        addr,
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(body.to_bytes())
}

fn closed(addr: SocketAddr, path: &str, error: &hyper::Error) -> RpcError {
    use std::error::Error;

    let cause = error.source().map(|cause| format!("{error}: {cause}"));
    RpcError::Closed {
        addr,
        path: path.to_owned(),
        reason: cause.unwrap_or_else(|| error.to_string()),
    }
}
