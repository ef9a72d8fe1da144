//! Service mesh as a crate: membership, catalog, health checks, identity, mTLS connections.

pub mod bundle;
pub mod catalog;
pub mod config;
pub mod connect;
pub mod health;
pub mod identity;
pub mod join;
pub mod member;
pub mod mesh;
pub mod model;
pub mod rpc;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod sync;

mod files;
