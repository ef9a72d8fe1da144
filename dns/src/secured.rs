//! The seam to TLS: whoever has a certificate speaks it.

use std::{fmt, io};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection on which TLS is spoken.
pub trait Secured: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Secured for S {}

/// What comes of an accepted connection.
pub type Accepted<'a> =
    std::pin::Pin<Box<dyn Future<Output = io::Result<Box<dyn Secured>>> + Send + 'a>>;

/// Speaks TLS on accepted connections (RFC 7858). It needs no time limit of its own.
pub trait Accept: fmt::Debug + Send + Sync + 'static {
    /// Shakes hands.
    fn accept(&self, stream: TcpStream) -> Accepted<'_>;
}
