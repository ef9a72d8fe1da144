//! The Vault-compatible HTTP API.

mod attend;
mod ceremony;
pub(crate) mod error;
pub(crate) mod reply;
mod route;

pub use attend::{Access, Attended};
pub(crate) use error::ApiError;
pub use route::AuthorizeError;
pub(crate) use route::{failure, hex, push_hex, share};
