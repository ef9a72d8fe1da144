//! Requests to others, which whoever embeds this crate makes: it has no HTTP client of its own.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

/// What comes of a request: the answer whatever its status, or why there is none.
pub type Sent<'a> =
    Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, String>> + Send + 'a>>;

/// Makes HTTPS requests: for key sets of login methods, and to the Kubernetes API.
///
/// An implementation follows no redirect, takes no answer over 1 MiB, and gives up after some seconds.
pub trait Outbound: Debug + Send + Sync {
    /// Sends one request. `roots`: PEM certificates of the authorities to trust instead of the system's.
    fn send(&self, request: http::Request<Bytes>, roots: Option<String>) -> Sent<'_>;
}
