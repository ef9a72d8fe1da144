//! The data plane of a sidecar: TCP in and out over mutual TLS.

pub mod connections;
pub mod drain;
pub mod relay;
pub mod workers;
