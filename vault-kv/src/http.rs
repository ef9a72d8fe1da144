//! The Vault-compatible HTTP API.

pub(crate) mod error;
pub(crate) mod reply;
mod route;

pub(crate) use error::ApiError;
pub use route::AuthorizeError;
