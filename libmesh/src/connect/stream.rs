//! The stream that both ends get, with both identities, and a gate that can be shut from outside.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker},
    time::SystemTime,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

use super::{balancer::Pick, watched::Watched};
use crate::identity::{Leaf, SpiffeId};

/// One end of a connection: who, with which certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The identity.
    pub spiffe: SpiffeId,
    /// The serial number of its certificate at the handshake, in lower-case hexadecimal.
    pub serial: String,
    /// When that certificate expires.
    pub not_after: SystemTime,
}

impl From<Leaf> for End {
    fn from(leaf: Leaf) -> Self {
        Self {
            spiffe: leaf.spiffe,
            serial: leaf.serial,
            not_after: leaf.not_after,
        }
    }
}

/// A connection between two services.
///
/// When it is no longer allowed (an intention changed, the peer was revoked), reads and writes end with
/// [`io::ErrorKind::PermissionDenied`] and the reason.
pub struct MeshStream {
    tls: TlsStream<TcpStream>,
    local: End,
    peer: End,
    gate: Arc<Gate>,
    // Held for what their drop does: the load count of the endpoint, the entry among open connections.
    _pick: Option<Pick>,
    _watched: Watched,
}

/// Shut once, from outside; wakes whoever waits on the stream.
#[derive(Default)]
pub(super) struct Gate {
    reason: OnceLock<String>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Clone, Copy)]
enum Side {
    Read,
    Write,
}

impl MeshStream {
    pub(super) fn new(
        tls: TlsStream<TcpStream>,
        local: End,
        peer: End,
        gate: Arc<Gate>,
        pick: Option<Pick>,
        watched: Watched,
    ) -> Self {
        Self {
            tls,
            local,
            peer,
            gate,
            _pick: pick,
            _watched: watched,
        }
    }

    /// The other end.
    pub fn peer(&self) -> &SpiffeId {
        &self.peer.spiffe
    }

    /// The other end, with the serial number of its certificate.
    pub fn peer_end(&self) -> &End {
        &self.peer
    }

    /// Our end, with the serial number of the certificate that was shown.
    pub fn local_end(&self) -> &End {
        &self.local
    }

    /// Where the other end is.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tls.get_ref().0.peer_addr()
    }

    fn through<T>(
        &mut self,
        side: Side,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TlsStream<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.gate.check()?;
        let polled = poll(Pin::new(&mut self.tls), cx);
        if polled.is_pending() {
            self.gate.wait(side, cx);
            self.gate.check()?;
        }
        polled
    }
}

impl Gate {
    pub(super) fn shut(&self, reason: String) {
        if self.reason.set(reason).is_ok() {
            let Waiting { reader, writer } = std::mem::take(&mut *self.waiting.lock());
            reader.into_iter().chain(writer).for_each(Waker::wake);
        }
    }

    fn check(&self) -> io::Result<()> {
        match self.reason.get() {
            Some(reason) => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                reason.clone(),
            )),
            None => Ok(()),
        }
    }

    fn wait(&self, side: Side, cx: &Context<'_>) {
        let mut waiting = self.waiting.lock();
        let slot = match side {
            Side::Read => &mut waiting.reader,
            Side::Write => &mut waiting.writer,
        };
        if !slot
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *slot = Some(cx.waker().clone());
        }
    }
}

impl AsyncRead for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.through(Side::Read, cx, |tls, cx| tls.poll_read(cx, buf))
    }
}

impl AsyncWrite for MeshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.through(Side::Write, cx, |tls, cx| tls.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.through(Side::Write, cx, |tls, cx| tls.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.through(Side::Write, cx, |tls, cx| tls.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.through(Side::Write, cx, |tls, cx| tls.poll_shutdown(cx))
    }
}

impl std::fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "MeshStream({} - {})",
            self.local.spiffe, self.peer.spiffe
        )
    }
}
