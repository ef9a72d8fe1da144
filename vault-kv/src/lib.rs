//! The sealed store, ledger, secrets, tokens, policies and Vault-compatible API of Mesh.
mod barrier;
mod core;
mod http;
mod policy;
mod request;
mod store;
mod sys;

pub use request::{Caller, Remote, Via};
