//! The data plane of a sidecar: TCP in and out over mutual TLS.

pub mod admin;
pub mod connections;
pub mod drain;
pub mod listen;
pub mod readiness;
pub mod relay;
pub mod tcp;
pub mod workers;
