//! Service mesh as a crate: membership, catalog, health checks, identity, mTLS connections.

pub mod catalog;
pub mod model;
