//! The part of the interface that needs the store: KV and intentions, answered where the store is.
//!
//! Agents reach it through [`Forward`](crate::forward::Forward); a server mounts [`routes`] behind its own.
//! The seam to the store is [`Pairs`]: plain versioned pairs with one index, which is the ledger's.

mod intentions;
mod kv;

#[cfg(test)]
mod memory;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use thiserror::Error;
use tokio::time::timeout;

use super::{Refused, bad_request, blocking::Blocking, server_error};
use crate::http::{BoxFuture, Call, Reply, Routes};

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// A number of the client's.
    pub flags: u64,
    /// When the key was made: ledger index.
    pub created: u64,
    /// When it last changed: ledger index.
    pub modified: u64,
}

/// A key, or every key that begins so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope<'a> {
    /// This key only.
    Key(&'a str),
    /// Every key with this prefix.
    Prefix(&'a str),
}

/// A change, and when it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<'a> {
    /// Sets a key. The same value and flags again change nothing.
    Put {
        /// The key.
        key: &'a str,
        /// The value.
        value: Bytes,
        /// A number of the client's.
        flags: u64,
        /// Only if the key's `modified` is this; 0 = only if there is no such key.
        cas: Option<u64>,
    },
    /// Deletes what is there.
    Delete {
        /// What.
        scope: Scope<'a>,
        /// Only if the key's `modified` is this.
        cas: Option<u64>,
    },
}

/// Why the store does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Nobody has unsealed it.
    #[error("the store is sealed; next: mesh operator unseal")]
    Sealed,
    /// The caller may not.
    #[error("Permission denied: {0}")]
    Denied(String),
    /// No audit log takes the request.
    #[error("{0}")]
    Unavailable(String),
    /// It failed.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// Plain versioned pairs, as a caller may see and change them.
pub trait Pairs: Send + Sync + 'static {
    /// What is in `scope`, by key, and the index of its last change (also of a deletion); for a scope that
    /// never had anything, the index of the last change of all.
    fn read<'a>(&'a self, scope: Scope<'a>) -> BoxPairs<'a, Result<(Vec<Pair>, u64), StoreError>>;

    /// Makes a change durable; `false` when its condition does not hold.
    fn change<'a>(&'a self, change: Change<'a>) -> BoxPairs<'a, Result<bool, StoreError>>;

    /// Ends when the last change of `scope` is after `index`.
    fn changed_after<'a>(&'a self, scope: Scope<'a>, index: u64) -> BoxPairs<'a, ()>;
}

/// A boxed future that borrows the store.
pub type BoxPairs<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whose pairs a request sees: decides about its token and identity.
pub type Opener = Arc<dyn Fn(&Call) -> BoxFuture<Result<Arc<dyn Pairs>, StoreError>> + Send + Sync>;

/// The routes. `kv` opens the pairs of `/v1/kv`, `mesh` those in which intentions are kept (under
/// `intention/<destination>/<source>`).
pub fn routes(kv: &Opener, mesh: &Opener) -> Routes {
    kv::routes(kv).merge(intentions::routes(mesh))
}

pub use intentions::{PREFIX as INTENTIONS, from_pair as intention_from_pair};

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        let status = match error {
            StoreError::Sealed | StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Denied(_) => StatusCode::FORBIDDEN,
            StoreError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused::new(status, error.to_string())
    }
}

/// Reads `scope`, waiting for a change beyond the index asked for.
async fn read_blocking(
    pairs: &dyn Pairs,
    call: &Call,
    blocking: &Blocking,
    scope: Scope<'_>,
) -> Result<(Vec<Pair>, u64), Refused> {
    let (found, index) = pairs.read(scope).await?;
    let Some(wait) = blocking.wait_beyond(index) else {
        return Ok((found, index));
    };
    let changed = pairs.changed_after(scope, blocking.index);
    tokio::select! {
        _ = timeout(wait, changed) => {}
        () = call.conn.shutdown.cancelled() => {}
    }
    Ok(pairs.read(scope).await?)
}

/// A whole number in the query, in Go's words when it is none.
fn number(call: &Call, name: &str) -> Result<Option<u64>, Refused> {
    let Some(given) = call.query.filled(name) else {
        return Ok(None);
    };
    let parsed = given.parse().map(Some);
    parsed.map_err(|_| {
        server_error(format!(
            "strconv.ParseUint: parsing {given:?}: invalid syntax"
        ))
    })
}

/// The headers of a read from the store: as those of the catalog, without the consistency.
fn decorate(reply: &mut Reply, index: u64) {
    let headers = reply.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(index.max(1)));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
}

fn conflicting(first: &str, second: &str) -> Refused {
    bad_request(format!("Conflicting flags: {first}&{second}\n"))
}
