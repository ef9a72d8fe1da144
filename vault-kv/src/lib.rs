//! The sealed store, ledger, secrets, tokens, policies and Vault-compatible API of Mesh.
mod http;
mod policy;
mod request;

pub use request::{Caller, Remote, Via};
