//! Connections between services: picked, dialled and accepted over mutual TLS, and closed when they are
//! no longer allowed.
//!
//! A connection is one TLS 1.3 session (ALPN `mesh-tcp/1`) between two service identities; what flows in
//! it is the applications' own. The dialler makes sure that it talks to the service it wanted, the
//! acceptor that the caller may call; both ask the intentions, so that the caller learns at once why it
//! is refused and the callee never depends on the caller's word.
//!
//! This module knows nothing of the catalog: endpoints are put into the [`Balancer`].

mod acceptor;
mod balancer;
mod connector;
mod stream;
mod watched;

pub use acceptor::{AcceptError, Acceptor};
pub use balancer::{Balancer, Endpoint, Pick, Split};
pub use connector::{ConnectError, Connector};
pub use stream::{End, MeshStream};

/// The protocol of connections between services.
pub const ALPN: &[u8] = b"mesh-tcp/1";
