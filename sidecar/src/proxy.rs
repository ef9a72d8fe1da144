//! The data plane of a sidecar: TCP in and out over mutual TLS.

pub mod relay;
