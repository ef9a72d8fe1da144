//! Routes of our own, most under `/v1/mesh/`: join tokens, the gossip keyring, the ledger, snapshots, unattended unseal.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use vault_kv::{Attended, Capability};

use super::Shared;
use crate::{
    consul::stored::{Asker, StoreError},
    http::{Call, Remote, Reply, Routes, json as json_reply, text},
};

mod ca;
mod join_tokens;
mod keyring;
mod ledger;
mod operator;
pub(crate) mod snapshot;

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
        .get(
            "/v1/connect/ca/configuration",
            with(shared, ca::configuration),
        )
        .put("/v1/connect/ca/configuration", with(shared, ca::configure))
        .get("/v1/mesh/keyring", with(shared, keyring::list))
        .put("/v1/mesh/keyring", with(shared, keyring::change))
        .get("/v1/mesh/ledger", with(shared, ledger::history))
        .get("/v1/mesh/ledger/verify", with(shared, ledger::verify))
        .get("/v1/mesh/may", with(shared, may))
        .merge(operator::routes(shared))
}

/// On the server's own Consul port: a snapshot is larger than what agents pass on.
pub fn consul_routes(shared: &Arc<Shared>) -> Routes {
    Routes::new()
        .get("/v1/snapshot", with(shared, snapshot::save_archive))
        .put("/v1/snapshot", with(shared, snapshot::check_archive))
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

/// Whether the caller has a right over a path of the Consul interface. An agent asks in a client's name before it does
/// something itself.
async fn may(shared: Arc<Shared>, call: Call) -> Outcome {
    let path = call.query.get("path").unwrap_or_default();
    if !path.starts_with("consul/") {
        return Err(bad("path: only what begins with consul/ is asked about"));
    }
    let capability = match call.query.get("right") {
        Some("read") => Capability::Read,
        Some("update") => Capability::Update,
        _ => return Err(bad("right: read or update")),
    };
    let attended = asker(&shared, &call).attend(capability, path).await?;
    audited(attended, Ok(json_reply(StatusCode::OK, &true))).await
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
