//! TLS for callers that have no identity.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server};

use super::Identity;

/// A connection over TLS whose other end has shown no certificate.
pub struct OpenStream {
    tls: server::TlsStream<TcpStream>,
}

impl Identity {
    /// Speaks TLS 1.3 on an accepted connection, with the newest certificate and its chain; the caller is asked for none.
    /// For protocols whose clients have no identity, such as DNS over TLS: nothing that is said proves who says it. A
    /// client that offers protocols (ALPN) has to offer `alpn`.
    ///
    /// # Errors
    /// The handshake failed. It has no time limit of its own.
    pub async fn accept_open(&self, alpn: &[u8], stream: TcpStream) -> io::Result<OpenStream> {
        let acceptor = TlsAcceptor::from(self.join_server_config(alpn));
        let tls = acceptor.accept(stream).await?;
        Ok(OpenStream { tls })
    }
}

impl fmt::Debug for OpenStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStream").finish_non_exhaustive()
    }
}

impl AsyncRead for OpenStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl AsyncWrite for OpenStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
