//! Routes of our own under `/v1/mesh/`: join tokens, the gossip keyring, the ledger, snapshots, unattended unseal.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use vault_kv::Attended;

use super::Shared;
use crate::{
    consul::stored::{Asker, StoreError},
    http::{Call, Remote, Reply, Routes, json as json_reply, text},
};

mod join_tokens;
mod keyring;
mod ledger;
mod snapshot;

/// Forwarded by agents, and on the server itself.
pub fn routes(shared: &Arc<Shared>) -> Routes {
    let tokens = "/v1/mesh/join-tokens";
    Routes::new()
        .get(tokens, with(shared, join_tokens::list))
        .on(
            http::Method::POST,
            tokens,
            with(shared, join_tokens::create),
        )
        .on(
            http::Method::DELETE,
            "/v1/mesh/join-tokens/:id",
            with(shared, join_tokens::revoke),
        )
        .get("/v1/mesh/keyring", with(shared, keyring::list))
        .put("/v1/mesh/keyring", with(shared, keyring::change))
        .get("/v1/mesh/ledger", with(shared, ledger::history))
        .get("/v1/mesh/ledger/verify", with(shared, ledger::verify))
}

/// On the Vault port only: they take longer than an agent waits for an answer, are larger than what it passes on, or are
/// for the server's own machine.
pub fn local_routes(shared: &Arc<Shared>) -> Routes {
    Routes::new()
        .put("/v1/mesh/ledger/compact", with(shared, ledger::compact))
        .get("/v1/mesh/snapshot", with(shared, snapshot::save))
        .put("/v1/mesh/unseal-static", with(shared, unseal_static))
}

type Outcome = Result<Reply, Refused>;

struct Refused(StatusCode, String);

fn with<F, R>(
    shared: &Arc<Shared>,
    handler: F,
) -> impl Fn(Call) -> crate::http::BoxFuture<Reply> + Send + Sync + use<F, R>
where
    F: Fn(Arc<Shared>, Call) -> R + Copy + Send + Sync + 'static,
    R: Future<Output = Outcome> + Send + 'static,
{
    let shared = Arc::clone(shared);
    move |call| {
        let outcome = handler(Arc::clone(&shared), call);
        Box::pin(async move {
            match outcome.await {
                Ok(reply) => reply,
                Err(Refused(status, message)) => text(status, message),
            }
        })
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self(error.status(), error.to_string())
    }
}

impl From<super::ServerError> for Refused {
    fn from(error: super::ServerError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<vault_kv::Error> for Refused {
    fn from(error: vault_kv::Error) -> Self {
        StoreError::from(error).into()
    }
}

fn bad(message: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, message.into())
}

fn asker(shared: &Shared, call: &Call) -> Asker {
    Asker::of(&shared.vault, call, shared.tokenless())
}

/// Writes what came of a change to the audit log; without that line nobody hears of it.
async fn audited(attended: Attended, outcome: Outcome) -> Outcome {
    let failed = outcome.as_ref().err().map(|Refused(_, why)| why.clone());
    match attended.finish(failed.as_deref()).await {
        Ok(()) => outcome,
        Err(error) => Err(Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, vault_kv::Error> + Send + 'static,
) -> Result<T, vault_kv::Error> {
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(_) => Err(vault_kv::Error::Sealed),
    }
}

/// Only from this machine: whoever can restart the server here unseals it as well.
async fn unseal_static(shared: Arc<Shared>, call: Call) -> Outcome {
    let local = match &call.conn.remote {
        Remote::Unix { .. } => true,
        Remote::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
    };
    if !local {
        let message = "unsealing with the key file works from the server's own machine only";
        return Err(Refused(StatusCode::FORBIDDEN, message.to_owned()));
    }
    let accept = call.query.filled("accept-rollback") == Some("true");
    shared.vault.accept_rollback(accept);
    match shared.vault.unseal_static().await {
        Ok(()) => Ok(json_reply(StatusCode::OK, &json!({"sealed": false}))),
        Err(error) => Err(bad(error.to_string())),
    }
}
