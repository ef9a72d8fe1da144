//! DNS over TCP (RFC 7766) and TLS (RFC 7858): frames of a two-octet length, many queries on a connection, answered as they are ready.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::TcpLimits;
use crate::forward::Forwarder;
use crate::responder::{Outcome, Responder, Shared, Via};
use crate::secured::Accept;
use crate::wire::TCP_MAX;

/// Questions of one connection that may wait for an upstream at the same time.
const WAITING: usize = 32;
/// Pause after a failed accept (usually: no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Service {
    pub(super) shared: Arc<Shared>,
    pub(super) forwarder: Option<Arc<Forwarder>>,
    pub(super) limits: TcpLimits,
    /// With it: DNS over TLS.
    pub(super) tls: Option<Arc<dyn Accept>>,
    pub(super) tasks: TaskTracker,
    pub(super) cancel: CancellationToken,
}

impl Service {
    pub(super) async fn run(self, listener: TcpListener) {
        let connection = Arc::new(Connection {
            responder: Mutex::new(Responder::new(Arc::clone(&self.shared))),
            shared: self.shared,
            forwarder: self.forwarder,
            idle: self.limits.idle,
            tls: self.tls,
        });
        let open = Arc::new(AtomicUsize::new(0));
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a DNS connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = Slot::take(&open, self.limits.connections) else {
                continue;
            };
            let connection = Arc::clone(&connection);
            let cancel = self.cancel.clone();
            self.tasks.spawn(async move {
                let _slot = slot;
                tokio::select! {
                    () = cancel.cancelled() => {}
                    // Ends by the peer's close, by silence, or by a broken frame: nothing to report in any case.
                    _ = connection.run(stream) => {}
                }
            });
        }
    }
}

/// One of the connections that may be open.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(open: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        if open.fetch_add(1, Ordering::AcqRel) >= most {
            open.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(Arc::clone(open)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What all connections of a listener share.
struct Connection {
    responder: Mutex<Responder>,
    shared: Arc<Shared>,
    forwarder: Option<Arc<Forwarder>>,
    idle: Duration,
    tls: Option<Arc<dyn Accept>>,
}

/// Answers that wait for an upstream are written beside the others.
type Writer<W> = Arc<tokio::sync::Mutex<W>>;

impl Connection {
    async fn run(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        if let Some(acceptor) = &self.tls {
            let shaken = timeout(self.idle, acceptor.accept(stream)).await;
            let stream = shaken.map_err(|_| io::ErrorKind::TimedOut)??;
            let (reader, writer) = tokio::io::split(stream);
            let writer = Arc::new(tokio::sync::Mutex::new(writer));
            return self.converse(reader, writer).await;
        }
        let (reader, writer) = stream.into_split();
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        self.converse(reader, writer).await
    }

    /// Answers until the peer has asked all it wants to.
    async fn converse<W>(&self, reader: impl AsyncRead + Unpin, writer: Writer<W>) -> io::Result<()>
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut reader = BufReader::with_capacity(4096, reader);
        let mut waiting = JoinSet::new();
        let mut request = Vec::new();
        loop {
            let read = timeout(self.idle, read_frame(&mut reader, &mut request));
            match read.await.map_err(|_| io::ErrorKind::TimedOut)? {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                read => read?,
            }
            let (outcome, reply) = self.respond(&request);
            match (outcome, &self.forwarder) {
                (Outcome::Reply(_), _) => send(&writer, &reply, self.idle).await?,
                (Outcome::Forward, Some(forwarder)) => {
                    while waiting.len() >= WAITING {
                        waiting.join_next().await;
                    }
                    let (forwarder, shared) = (Arc::clone(forwarder), Arc::clone(&self.shared));
                    let (writer, request, idle) = (Arc::clone(&writer), request.clone(), self.idle);
                    waiting.spawn(async move {
                        let reply = forwarder.ask(&shared, &request, Via::Tcp).await;
                        // The reader notices a connection that is gone.
                        let _ = send(&writer, &reply, idle).await;
                    });
                }
                (Outcome::Forward | Outcome::Ignore, _) => {}
            }
        }
        // The peer asked all it wants to; it still gets what is under way.
        while waiting.join_next().await.is_some() {}
        Ok(())
    }

    fn respond(&self, request: &[u8]) -> (Outcome, Vec<u8>) {
        // Most replies are small: the large buffer stays here, only what was written goes out.
        thread_local! {
            static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; TCP_MAX]);
        }
        BUFFER.with_borrow_mut(|buffer| {
            let outcome = self.responder.lock().respond(request, Via::Tcp, buffer);
            let reply = match outcome {
                Outcome::Reply(len) => buffer[..len].to_vec(),
                Outcome::Ignore | Outcome::Forward => Vec::new(),
            };
            (outcome, reply)
        })
    }
}

async fn read_frame(reader: &mut (impl AsyncRead + Unpin), frame: &mut Vec<u8>) -> io::Result<()> {
    let len = reader.read_u16().await?;
    frame.resize(usize::from(len), 0);
    reader.read_exact(frame).await?;
    Ok(())
}

async fn send(
    writer: &Writer<impl AsyncWrite + Unpin>,
    reply: &[u8],
    limit: Duration,
) -> io::Result<()> {
    let len = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let frame = [&len.to_be_bytes()[..], reply].concat();
    // A peer that asks but never reads is let go.
    let mut writer = writer.lock().await;
    let written = async {
        writer.write_all(&frame).await?;
        // Over TLS it may wait in a buffer.
        writer.flush().await
    };
    timeout(limit, written)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// What a peer that sends `octets` and closes gets, for fuzzing.
pub(crate) async fn fuzz_stream(shared: Arc<Shared>, octets: &[u8]) -> Vec<u8> {
    let connection = Connection {
        responder: Mutex::new(Responder::seeded(Arc::clone(&shared), 1)),
        shared,
        forwarder: None,
        idle: TcpLimits::default().idle,
        tls: None,
    };
    let written = Writer::new(tokio::sync::Mutex::new(Vec::new()));
    // A frame that is cut off ends the connection with an error, as it should.
    let _ = connection.converse(octets, Arc::clone(&written)).await;
    let written = written.lock().await;
    written.clone()
}
