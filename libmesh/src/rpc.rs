//! Calls between nodes: HTTP/2 over mutual TLS 1.3, ALPN `mesh/1`, bodies opaque to this module.
//!
//! What comes in on `mesh/1` carries a verified [`Peer`]. Callers without a certificate speak
//! `mesh-join/1` and reach exactly one route, the join. Every input is bounded: handshakes in time,
//! connections and streams in number, header lists and bodies in size. Connections end when the peer's
//! certificate expires or is revoked.
//!
//! An answer is one body, or goes on as a [`Stream`] of frames until either end has enough.
//!
//! This module knows nothing of what is called. Status codes are those of the crate `http` ([`http::StatusCode`]): they are
//! what travels, and every HTTP library of the embedding program speaks them.

mod client;
mod error;
mod router;
mod server;
mod stream;

pub use client::{Client, Target};
pub use error::RpcError;
pub use router::{JoinCall, Peer, Reply, Request, Router};
pub use server::{Limits, Server};
pub use stream::{Frames, ReaderGone, Stream};

pub(crate) use client::call_join;
#[cfg(test)]
pub(crate) use stream::channel;

/// The protocol of calls between nodes.
pub const ALPN: &[u8] = b"mesh/1";
/// The protocol of callers that have no certificate yet.
pub const ALPN_JOIN: &[u8] = b"mesh-join/1";
/// The one path that `mesh-join/1` reaches.
pub const JOIN_PATH: &str = "/join";
