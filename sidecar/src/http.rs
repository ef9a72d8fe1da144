//! The HTTP server and client that all our HTTP interfaces share.
//!
//! One accept loop ([`serve`]) speaks HTTP/1.1 over TCP, TLS or a Unix socket and hands a handler a
//! request whose body is already collected within a limit, so that no handler ever meets an unbounded
//! stream. [`Routes`] maps method and path to handlers and answers 404, 405 and `OPTIONS` by itself.
//! [`client`] is the other direction, for the command line.
//!
//! Knows nothing of Consul, Vault or the mesh.

mod response;
mod routes;
mod server;

pub mod client;
pub mod query;

pub use response::{Body, Reply, empty, json, text};
pub use routes::{BoxFuture, Call, Params, Routes};
pub use server::{
    AnyClient, ConnInfo, Limits, Listener, PerClient, Proof, Remote, bind, bind_unix, serve,
};
