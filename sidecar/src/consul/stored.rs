//! The part of the interface that needs the store: KV, sessions, transactions and intentions, answered where the
//! store is.
//!
//! Agents reach it through [`Forward`](crate::forward::Forward); a server mounts [`routes`] behind its own.
//! [`Pairs`] are the plain keys of one namespace as one caller may see and change them; their index is the ledger's.

pub mod acl;
mod asker;
pub mod config;
pub mod external;
mod intentions;
mod kv;
mod pairs;
pub mod query;
mod sessions;
mod txn;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use thiserror::Error;
use tokio::time::timeout;

use super::{Refused, bad_request, blocking::Blocking, server_error};
use crate::http::{Call, Reply, Routes};

pub use asker::{Asker, Tokenless, lacks, token};
pub use pairs::Pairs;
pub use sessions::{Kept, SessionRequest};

/// A key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// A number of the client's.
    pub flags: u64,
    /// The session that holds it.
    pub session: Option<String>,
    /// How often it was taken by one.
    pub lock_index: u64,
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

/// Why the store does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StoreError {
    /// Nobody has unsealed it.
    #[error("the store is sealed; next: mesh operator unseal")]
    Sealed,
    /// No such session takes keys; Consul's words, which clients look for.
    #[error("invalid session {0:?}")]
    NoSession(String),
    /// The caller shows a token that there is not; Consul's words.
    #[error("ACL not found")]
    NoToken,
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

/// Whose pairs a request sees: decides about its token and identity.
pub type Opener = Arc<dyn Fn(&Call) -> Pairs + Send + Sync>;

/// The routes. `kv` opens the pairs of `/v1/kv`, which sessions hold, `mesh` those in which intentions are kept (under
/// `intention/<destination>/<source>`), `nodes` those of nodes without an agent, which `publisher` makes known.
pub fn routes(
    kv: &Opener,
    mesh: &Opener,
    nodes: &Opener,
    publisher: &Arc<dyn external::Publisher>,
) -> Routes {
    kv::routes(kv)
        .merge(sessions::routes(kv))
        .merge(txn::routes(kv, nodes, publisher))
        .merge(intentions::routes(mesh))
        .merge(query::routes(mesh))
        .merge(config::routes(mesh))
        .merge(external::routes(nodes, publisher))
}

pub use intentions::{PREFIX as INTENTIONS, from_pair as intention_from_pair};

impl StoreError {
    /// The status that says so.
    pub fn status(&self) -> StatusCode {
        match self {
            StoreError::Sealed | StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Denied(_) | StoreError::NoToken => StatusCode::FORBIDDEN,
            StoreError::NoSession(_) | StoreError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::new(error.status(), error.to_string())
    }
}

/// Reads `scope`, waiting for a change beyond the index asked for.
async fn read_blocking(
    pairs: &Pairs,
    call: &Call,
    blocking: &Blocking,
    scope: Scope<'_>,
) -> Result<(Vec<Pair>, u64), Refused> {
    let (found, index) = pairs.read(scope)?;
    let Some(wait) = blocking.wait_beyond(index) else {
        return Ok((found, index));
    };
    let changed = pairs.changed_after(scope, blocking.index);
    changed_or_over(call, wait, changed).await;
    Ok(pairs.read(scope)?)
}

/// The same without a look at rights: who asks decides what of it is told.
async fn look_blocking(
    pairs: &Pairs,
    call: &Call,
    blocking: &Blocking,
    scope: Scope<'_>,
) -> Result<(Vec<Pair>, u64), Refused> {
    let (found, index) = pairs.look(scope)?;
    let Some(wait) = blocking.wait_beyond(index) else {
        return Ok((found, index));
    };
    let changed = pairs.changed_after(scope, blocking.index);
    changed_or_over(call, wait, changed).await;
    Ok(pairs.look(scope)?)
}

/// Waits for a change; no longer than `wait`, or the listener lives.
async fn changed_or_over(call: &Call, wait: std::time::Duration, changed: impl Future) {
    tokio::select! {
        _ = timeout(wait, changed) => {}
        () = call.conn.shutdown.cancelled() => {}
    }
}

/// A handler that sees the caller's pairs.
fn on<F, R>(
    open: &Opener,
    run: F,
) -> impl Fn(Call) -> crate::http::BoxFuture<Reply> + Send + Sync + 'static
where
    F: Fn(Pairs, Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Refused>> + Send + 'static,
{
    let open = Arc::clone(open);
    move |call| {
        let answer = run(open(&call), call);
        Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
    }
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
pub(super) fn decorate(reply: &mut Reply, index: u64) {
    let headers = reply.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(index.max(1)));
    headers.insert("x-consul-knownleader", HeaderValue::from_static("true"));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    headers.insert(
        "x-consul-query-backend",
        HeaderValue::from_static("blocking-query"),
    );
}

fn conflicting(first: &str, second: &str) -> Refused {
    bad_request(format!("Conflicting flags: {first}&{second}\n"))
}
