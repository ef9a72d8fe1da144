//! The parts behind the `mesh` binary: command line, configuration, agent, and the HTTP interfaces.
//!
//! This crate wires [`libmesh`], [`vault_kv`] and [`dns`] together. It holds no protocol logic that
//! belongs in one of them; what is here is what needs more than one of them, or what only a process
//! (rather than an embedding program) needs: files, signals, listeners, exit codes.

pub mod agent;
pub mod attach;
pub mod checks;
pub mod cli;
pub mod config;
pub mod consul;
mod demo;
pub mod forward;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
mod ports;
pub mod proxy;
pub mod routing;
pub mod server;
pub mod sidecar_role;
#[allow(missing_docs, reason = "not part of the crate's interface")]
#[cfg(test)]
mod testing;
