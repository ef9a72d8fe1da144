//! How local processes use the agent beside them: over its Unix socket.
//!
//! A sidecar attaches as an instance, gets certificates for the key it made, and follows endpoints and the
//! mesh's configuration. Knows the catalog and the identity of libmesh, and of the agent only what
//! [`host::AttachHost`] asks for.

pub mod callers;
pub mod client;
mod endpoints;
pub mod host;
pub mod leases;
pub mod pem;
pub mod server;
pub mod wire;

#[cfg(test)]
#[allow(missing_docs, reason = "not part of the crate's interface")]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
