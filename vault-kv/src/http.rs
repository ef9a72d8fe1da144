//! The Vault-compatible HTTP API.

pub(crate) mod error;
pub(crate) mod reply;

pub(crate) use error::ApiError;
