//! The sealed store, ledger, secrets, tokens, policies and Vault-compatible API of Mesh.
mod audit;
mod barrier;
mod clock;
mod core;
mod db;
mod http;
mod policy;
mod request;
mod store;
mod sys;
mod token;

pub use request::{Caller, Remote, Via};
