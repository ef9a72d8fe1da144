//! The accept loop.
//!
//! Each connection is one task. A request's body is collected within [`Limits::body`] before the handler
//! runs; when the client goes away, hyper drops the handler's future, which is what ends long polls.
//! Shutdown is a [`CancellationToken`]: accepting stops, running requests get [`Limits::drain`], and
//! long polls see [`ConnInfo::shutdown`] and answer at once.

use std::{
    convert::Infallible,
    fs,
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Reply, json, text};

mod clients;
mod per_client;
mod stall;

pub use clients::AnyClient;
pub use per_client::PerClient;

use per_client::Counted;
use stall::Stalling;

/// Certificates of one client that are kept.
const CHAIN: usize = 10;

/// A bound socket to serve on.
pub enum Listener {
    /// Clear TCP.
    Tcp(TcpListener),
    /// TLS over TCP. Client certificates are asked for or not as the configuration says.
    Tls(TcpListener, Arc<ServerConfig>),
    /// A Unix socket; the path is removed when serving ends.
    Unix(UnixListener, PathBuf),
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    /// A TCP peer.
    Tcp(SocketAddr),
    /// A local process; the kernel vouches for uid and gid, the pid may be unknown.
    Unix {
        /// Effective user id at connect time.
        uid: u32,
        /// Effective group id at connect time.
        gid: u32,
        /// Process id, where the platform tells.
        pid: Option<i32>,
    },
}

/// What a connection's certificate is worth, as of a state of the trust that judged it.
#[derive(Debug)]
pub struct Proof {
    /// Names that state.
    pub generation: u64,
    /// A SPIFFE ID and until when; `None`: nobody's.
    pub identity: Option<(String, SystemTime)>,
}

/// What is known of a connection.
#[derive(Debug)]
pub struct ConnInfo {
    /// Who is at the other end.
    pub remote: Remote,
    /// The client's TLS certificates (DER, leaf first), if one was asked for and given. Only that the client has the
    /// key is checked.
    pub certificates: Vec<Vec<u8>>,
    /// Whom they speak for, as far as somebody asked.
    pub proof: Mutex<Option<Proof>>,
    /// Cancelled when the listener drains: long polls answer what they have.
    pub shutdown: CancellationToken,
}

impl ConnInfo {
    /// A clear connection from `remote` that is never told to shut down.
    pub fn new(remote: Remote) -> ConnInfo {
        ConnInfo {
            remote,
            certificates: Vec::new(),
            proof: Mutex::default(),
            shutdown: CancellationToken::new(),
        }
    }
}

/// Bounds of one listener.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Time for a request's head, and how long an idle connection is kept. Default 60 s.
    pub header_timeout: Duration,
    /// Time for a request's body. Default 60 s.
    pub body_timeout: Duration,
    /// Largest request body in bytes; more is 413. Default 1 MiB.
    pub body: usize,
    /// That 413 is `{"errors": [..]}`, as Vault's. Default: a plain text.
    pub json_errors: bool,
    /// How long nothing of an answer may go out before the client is taken for gone. Default 60 s.
    pub write_timeout: Duration,
    /// Open connections; further ones get 429 and are closed. Default 4096.
    pub connections: usize,
    /// The same for each client. Clones share the count. Default no limit.
    pub per_client: Arc<PerClient>,
    /// How long running requests may go on after shutdown began. Default 5 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            body: 1 << 20,
            json_errors: false,
            write_timeout: Duration::from_secs(60),
            connections: 4096,
            per_client: Arc::default(),
            drain: Duration::from_secs(5),
        }
    }
}

/// Binds a TCP listener. The error names the address.
pub async fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {addr}: {error}")))
}

/// Binds a Unix socket that only this user may open, replacing a socket nobody listens on.
///
/// `mode` is the socket file's permission bits; the peer's uid is known to handlers whatever they are.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    let wrap = |error: io::Error| {
        io::Error::new(
            error.kind(),
            format!("cannot listen on {}: {error}", path.display()),
        )
    };
    if let Ok(meta) = fs::symlink_metadata(path)
        && meta.file_type().is_socket()
    {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(wrap(io::ErrorKind::AddrInUse.into()));
        }
        fs::remove_file(path).map_err(wrap)?;
    }
    let listener = UnixListener::bind(path).map_err(wrap)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(wrap)?;
    Ok(Listener::Unix(listener, path.to_owned()))
}

/// Serves until `shutdown`, then drains and returns.
pub async fn serve<H, F>(
    listener: Listener,
    limits: Limits,
    shutdown: CancellationToken,
    handler: H,
) where
    H: Fn(Request<Bytes>, Arc<ConnInfo>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let tasks = TaskTracker::new();
    let room = Arc::new(Semaphore::new(limits.connections));
    let refusals = Arc::new(Semaphore::new(REFUSALS));
    let worker = Worker {
        limits,
        handler,
        shutdown: shutdown.clone(),
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: a short pause lets some be closed.
                warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(remote) = stream.remote() else {
            warn!("a Unix socket peer without credentials was refused");
            continue;
        };
        let counted = worker.limits.per_client.count(&remote);
        let permit = Arc::clone(&room).try_acquire_owned().ok();
        match (counted, permit) {
            (Some(counted), Some(permit)) => {
                let admitted = (permit, counted);
                tasks.spawn(worker.clone().connection(stream, remote, admitted));
            }
            // Those who come when even telling is too much are closed without a word.
            _ => {
                if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                    tasks.spawn(refuse(stream, permit));
                }
            }
        }
    }
    let path = match &listener {
        Listener::Unix(_, path) => Some(path.clone()),
        _ => None,
    };
    drop(listener);
    if let Some(path) = path {
        // Somebody else may have cleaned up the directory already.
        let _ = fs::remove_file(path);
    }
    tasks.close();
    tasks.wait().await;
}

enum Stream {
    Tcp(TcpStream, SocketAddr),
    Tls(TcpStream, SocketAddr, TlsAcceptor),
    Unix(UnixStream),
}

impl Stream {
    fn remote(&self) -> Option<Remote> {
        match self {
            Stream::Tcp(_, addr) | Stream::Tls(_, addr, _) => Some(Remote::Tcp(*addr)),
            Stream::Unix(stream) => stream.peer_cred().ok().map(|peer| Remote::Unix {
                uid: peer.uid(),
                gid: peer.gid(),
                pid: peer.pid(),
            }),
        }
    }
}

/// A connection within all limits, as long as it lives.
type Admitted = (OwnedSemaphorePermit, Counted);

async fn accept(listener: &Listener) -> io::Result<Stream> {
    match listener {
        Listener::Tcp(tcp) => {
            let (stream, addr) = tcp.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream, addr))
        }
        Listener::Tls(tcp, config) => {
            let (stream, addr) = tcp.accept().await?;
            stream.set_nodelay(true)?;
            Ok(Stream::Tls(stream, addr, Arc::clone(config).into()))
        }
        Listener::Unix(unix, _) => Ok(Stream::Unix(unix.accept().await?.0)),
    }
}

#[derive(Clone)]
struct Worker<H> {
    limits: Limits,
    handler: H,
    shutdown: CancellationToken,
}

impl<H, F> Worker<H>
where
    H: Fn(Request<Bytes>, Arc<ConnInfo>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    async fn connection(self, stream: Stream, remote: Remote, admitted: Admitted) {
        match stream {
            Stream::Tcp(stream, _) => self.run(stream, remote, Vec::new()).await,
            Stream::Unix(stream) => self.run(stream, remote, Vec::new()).await,
            Stream::Tls(stream, _, acceptor) => {
                let handshake = timeout(self.limits.header_timeout, acceptor.accept(stream));
                let stream = tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    done = handshake => match done {
                        Ok(Ok(stream)) => stream,
                        Ok(Err(error)) => return debug!(?remote, %error, "TLS handshake failed"),
                        Err(_) => return debug!(?remote, "TLS handshake timed out"),
                    },
                };
                let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let shown = shown.iter().take(CHAIN).map(|der| der.to_vec()).collect();
                // It is much larger than the others, whose tasks would be as large.
                Box::pin(self.run(stream, remote, shown)).await;
            }
        }
        drop(admitted);
    }

    async fn run<S>(self, stream: S, remote: Remote, certificates: Vec<Vec<u8>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = Stalling::new(stream, self.limits.write_timeout);
        let conn = Arc::new(ConnInfo {
            remote,
            certificates,
            proof: Mutex::default(),
            shutdown: self.shutdown.clone(),
        });
        let worker = Arc::new(self);
        let service = service_fn(|request| {
            let (worker, conn) = (Arc::clone(&worker), Arc::clone(&conn));
            async move { Ok::<_, Infallible>(worker.answer(request, conn).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(worker.limits.header_timeout)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = worker.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(worker.limits.drain, connection).await.ok()
            }
        };
        match ended {
            Some(Err(error)) => debug!(remote = ?conn.remote, %error, "connection ended"),
            None => debug!(remote = ?conn.remote, "connection cut: drain time is over"),
            Some(Ok(())) => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>, conn: Arc<ConnInfo>) -> Reply {
        let limit = self.limits.body;
        let (head, mut body) = request.into_parts();
        let declared = head
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > limit as u64) {
            // A client that asked first sends nothing after this answer.
            if !head.headers.contains_key(header::EXPECT) {
                tokio::spawn(discard(body));
            }
            return too_large(&self.limits);
        }
        if head.headers.get_all(header::HOST).iter().nth(1).is_some() {
            return closing(text(StatusCode::BAD_REQUEST, "too many Host headers"));
        }
        if body.is_end_stream() {
            return (self.handler)(Request::from_parts(head, Bytes::new()), conn).await;
        }
        let collected = timeout(
            self.limits.body_timeout,
            Limited::new(&mut body, limit).collect(),
        );
        let body = match collected.await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                tokio::spawn(discard(body));
                return too_large(&self.limits);
            }
            Ok(Err(error)) => {
                return closing(text(
                    StatusCode::BAD_REQUEST,
                    format!("the request's body could not be read: {error}"),
                ));
            }
            Err(_) => {
                return closing(text(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request's body did not arrive in time",
                ));
            }
        };
        (self.handler)(Request::from_parts(head, body), conn).await
    }
}

const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: text/plain\r\n\
    content-length: 51\r\nconnection: close\r\n\r\ntoo many open connections; close some or try later\n";

/// Connections over the limits that are told so at a time, and how long telling one may take.
const REFUSALS: usize = 64;
const REFUSING: Duration = Duration::from_secs(2);

/// Tells a client that there is no room, and takes in what it sends meanwhile: see [`discard`].
async fn refuse(stream: Stream, _permit: OwnedSemaphorePermit) {
    async fn tell<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
        stream.write_all(TOO_MANY).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        Ok(())
    }
    let telling = async {
        match stream {
            Stream::Tcp(stream, _) => tell(stream).await,
            Stream::Unix(stream) => tell(stream).await,
            Stream::Tls(stream, _, acceptor) => tell(acceptor.accept(stream).await?).await,
        }
    };
    // The client may be gone already; there is nobody else to tell.
    let _ = timeout(REFUSING, telling).await;
}

/// The longest that is read on after a request was refused for its size, and the longest pause in between.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_PAUSE: Duration = Duration::from_secs(1);

/// Takes in what a client still sends that was refused: a connection that is closed with data unread is reset, and
/// the client may never see why. A piece at a time, so it costs no memory.
async fn discard(mut body: Incoming) {
    let rest = async { while let Ok(Some(Ok(_))) = timeout(LINGER_PAUSE, body.frame()).await {} };
    // A client that goes on for longer is cut off.
    let _ = timeout(LINGER, rest).await;
}

/// In the words that clients of Consul know, or on the Vault port in those of Vault's.
fn too_large(limits: &Limits) -> Reply {
    let refused = match limits.json_errors {
        true => json(
            StatusCode::PAYLOAD_TOO_LARGE,
            &serde_json::json!({"errors": ["http: request body too large"]}),
        ),
        false => text(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("request body too large, max size: {} bytes", limits.body),
        ),
    };
    closing(refused)
}

/// Part of the body may still be in flight, so the connection cannot carry another request.
fn closing(mut reply: Reply) -> Reply {
    let close = header::HeaderValue::from_static("close");
    reply.headers_mut().insert(header::CONNECTION, close);
    reply
}

#[cfg(test)]
mod tests;
