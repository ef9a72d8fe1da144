//! The sealed store, ledger, secrets, tokens, policies and Vault-compatible API of Mesh.
//!
//! The [`manual`] says what is promised and what is not, how keys hang together and how a store is opened unattended.
pub mod acl;
mod api;
mod audit;
mod auth;
mod barrier;
#[doc(hidden)]
pub mod bench;
mod ca;
mod clock;
mod core;
mod db;
mod engine;
#[doc(hidden)]
pub mod fuzz;
mod glob;
pub mod hcl;
mod http;
mod identity;
mod kv;
#[cfg(test)]
mod leaks;
mod lease;
mod ledger;
pub mod manual;
mod mount;
mod oidc;
mod outbound;
mod policy;
mod quota;
mod request;
mod rotation;
#[doc(hidden)]
#[cfg(target_os = "linux")]
pub mod scan;
mod seal;
mod snapshot;
mod store;
mod sys;
mod token;
mod vault;

pub use crate::core::{Error, Meta};
pub use api::acl::Administration;
pub use audit::{AuditError, AuditSink};
pub use auth::jwt::check::{JwtCheck, Said as JwtSaid};
pub use ca::{Ca, CaError, INTERMEDIATE_LIFE, IssuedCert, Profile, ROOT_LIFE};
pub use http::{Access, Attended, AuthorizeError};
pub use kv::{
    Applied, Behavior, Kv, KvOp, KvPair, KvWatch, NotApplied, Refusal, Refused, Session,
    SessionOptions, Sessions,
};
pub use ledger::{HistoryItem, Ledger, LedgerWatch, Verified, verify};
pub use outbound::{Outbound, Sent};
pub use policy::{Capability, Grant, Grants};
pub use request::{Caller, Remote, Via};
pub use snapshot::{Inspected, inspect_snapshot, restore_snapshot};
pub use store::{Compacted, Head, SnapshotError, SnapshotInfo, StoreError};
pub use sys::{ClearingAllocator, clear_freed_memory, harden_process};
pub use vault::ceremony::reveal as decode_root_token;
pub use vault::{
    DEFAULT_RETENTION, InitOptions, InitOutcome, SealStatus, SeenHead, StaticKeyError, StoreConfig,
    Vault, VaultConfig, VaultError,
};
