//! Connecting, in clear or over TLS.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::tls::{Alpn, ProbeTls};
use crate::model::InvalidField;

/// A connection.
pub(super) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Where to connect: `host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Address {
    /// Reads `host:port`, `[v6]:port`.
    pub(super) fn parse(field: &'static str, text: &str) -> Result<Self, InvalidField> {
        let parts = text.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let port = port.parse().ok()?;
            (!host.is_empty() && port != 0).then(|| (host.to_owned(), port))
        });
        let (host, port) =
            parts.ok_or_else(|| InvalidField::new(field, format!("{text:?} is not host:port")))?;
        Ok(Self { host, port })
    }

    pub(super) async fn resolve(&self) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.map_err(|error| format!("lookup {}: {error}", self.host))?;
        Ok(found.collect())
    }

    /// Connects to the first of its addresses that answers.
    pub(super) async fn connect(&self) -> Result<TcpStream, String> {
        let found = self.resolve().await?;
        TcpStream::connect(&*found)
            .await
            .map_err(|error| error.to_string())
    }

    /// Connects, and over TLS if that is given.
    pub(super) async fn open(
        &self,
        tls: Option<&ProbeTls>,
        alpn: Alpn,
    ) -> Result<Box<dyn Io>, String> {
        let stream = self.connect().await?;
        match tls {
            None => Ok(Box::new(stream)),
            Some(tls) => Ok(Box::new(tls.connect(stream, &self.host, alpn).await?)),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}
