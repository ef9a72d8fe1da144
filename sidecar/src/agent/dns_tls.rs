//! DNS over TLS with the certificates that an agent has.

use std::{fmt, sync::Arc};

use dns::{Accept, Accepted};
use libmesh::identity::Identity;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// The protocol's name (RFC 7858, ALPN registry).
const ALPN: &[u8] = b"dot";

/// What is shown to clients.
pub enum Certified {
    /// The certificate of `[tls]`.
    Files(Arc<ServerConfig>),
    /// The node's own.
    Mesh(Identity),
}

impl fmt::Debug for Certified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Certified::Files(_) => "Certified::Files",
            Certified::Mesh(_) => "Certified::Mesh",
        })
    }
}

impl Accept for Certified {
    fn accept(&self, stream: TcpStream) -> Accepted<'_> {
        Box::pin(async move {
            Ok(match self {
                Certified::Files(config) => {
                    let acceptor = TlsAcceptor::from(Arc::clone(config));
                    Box::new(acceptor.accept(stream).await?) as _
                }
                Certified::Mesh(identity) => {
                    Box::new(identity.accept_open(ALPN, stream).await?) as _
                }
            })
        })
    }
}
