//! Routes of our own under `/v1/mesh/`: join tokens, the ledger, unattended unseal.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use libmesh::{
    identity::PublishRights,
    join::JoinToken,
    member::{
        Keyring,
        keyring::{KeyId, KeyringError},
    },
    mesh::{KeyringChange, Mesh, NodeKeys},
};
use serde::Deserialize;
use serde_json::{Value, json};
use vault_kv::{Attended, Capability};

use super::{
    Shared,
    pairs::Asker,
    records::{Token, hex},
};
use crate::{
    config::parse_duration,
    consul::stored::StoreError,
    http::{Call, Remote, Reply, Routes, json as json_reply, text},
};

/// The longest a token is good for, and how often at the most.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);
const MAX_USES: u32 = 100_000;
/// Entries in one page of the history.
const MAX_HISTORY: usize = 1000;

/// Forwarded by agents, and on the server itself.
pub fn routes(shared: &Arc<Shared>) -> Routes {
    Routes::new()
        .get("/v1/mesh/join-tokens", with(shared, list_tokens))
        .on(
            http::Method::POST,
            "/v1/mesh/join-tokens",
            with(shared, create_token),
        )
        .on(
            http::Method::DELETE,
            "/v1/mesh/join-tokens/:id",
            with(shared, revoke_token),
        )
        .get("/v1/mesh/keyring", with(shared, list_keys))
        .put("/v1/mesh/keyring", with(shared, change_keys))
        .get("/v1/mesh/ledger", with(shared, history))
        .get("/v1/mesh/ledger/verify", with(shared, verify))
}

/// Only on the Vault port of the server's own machine.
pub fn local_routes(shared: &Arc<Shared>) -> Routes {
    Routes::new().put("/v1/mesh/unseal-static", with(shared, unseal_static))
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
        let status = match error {
            StoreError::Sealed | StoreError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Denied(_) => StatusCode::FORBIDDEN,
            StoreError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, error.to_string())
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
    Asker::of(&shared.vault, call, shared.open)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[serde(default)]
    publish: Vec<String>,
    uses: u32,
    ttl: String,
}

async fn create_token(shared: Arc<Shared>, call: Call) -> Outcome {
    let asker = asker(&shared, &call);
    let attended = asker.attend(Capability::Update, "mesh/join-token").await?;
    let actor = attended.actor().to_owned();
    let made = make_token(&shared, &call, &asker, actor).await;
    audited(attended, made).await
}

async fn make_token(shared: &Shared, call: &Call, asker: &Asker, actor: String) -> Outcome {
    let new: NewToken = serde_json::from_slice(call.body())
        .map_err(|error| bad(format!("the body is not understood: {error}")))?;
    let ttl = parse_duration(&new.ttl).map_err(|error| bad(format!("ttl: {error}")))?;
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(bad("ttl: more than 0 and at most 30d"));
    }
    if new.uses == 0 || new.uses > MAX_USES {
        return Err(bad(format!("uses: 1 to {MAX_USES}")));
    }
    PublishRights::new(&new.publish).map_err(|error| bad(format!("publish: {error}")))?;
    let authority = shared.authority().ok_or(StoreError::Sealed)?;
    let bundle = authority
        .bundle()
        .map_err(|error| StoreError::Failed(error.to_string()))?;
    let root = bundle.hashes().next();
    let root = root.ok_or_else(|| StoreError::Failed("there is no root".to_owned()))?;
    let token = JoinToken::generate(root).map_err(|error| StoreError::Failed(error.to_string()))?;
    let id = hex(&token.id());
    let meta = asker.meta(actor, "join token created", format!("join-token/{id}"));
    shared
        .records
        .add_token(meta, &token, new.publish, new.uses, ttl)
        .await?;
    Ok(json_reply(
        StatusCode::OK,
        &json!({"id": id, "token": token.reveal().as_str()}),
    ))
}

async fn list_tokens(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::List, "mesh/join-token")?;
    let usable = shared.records.tokens()?.into_iter();
    let usable = usable.filter(|(_, token)| token.spent().is_none());
    let list: Vec<Value> = usable.map(|(id, token)| describe(&id, &token)).collect();
    Ok(json_reply(StatusCode::OK, &list))
}

fn describe(id: &str, token: &Token) -> Value {
    let expires = UNIX_EPOCH + Duration::from_secs(token.expires);
    json!({
        "id": id,
        "publish": token.publish,
        "uses_left": token.uses_left,
        "expires": humantime::format_rfc3339_seconds(expires).to_string(),
    })
}

async fn revoke_token(shared: Arc<Shared>, call: Call) -> Outcome {
    let id = call.params.get("id").to_owned();
    let asker = asker(&shared, &call);
    let attended = asker.attend(Capability::Delete, "mesh/join-token").await?;
    let actor = attended.actor().to_owned();
    let meta = asker.meta(actor, "join token revoked", format!("join-token/{id}"));
    let revoked = match shared.records.remove_token(meta, &id).await {
        Ok(true) => Ok(json_reply(StatusCode::OK, &json!({"id": id}))),
        Ok(false) => Err(Refused(
            StatusCode::NOT_FOUND,
            format!("there is no join token {id:?}"),
        )),
        Err(error) => Err(error.into()),
    };
    audited(attended, revoked).await
}

/// Writes what came of a change to the audit log; without that line nobody hears of it.
async fn audited(attended: Attended, outcome: Outcome) -> Outcome {
    let failed = outcome.as_ref().err().map(|Refused(_, why)| why.clone());
    match attended.finish(failed.as_deref()).await {
        Ok(()) => outcome,
        Err(error) => Err(Refused(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

fn node(shared: &Shared) -> Result<Mesh, Refused> {
    let none = || {
        let message = "this server is not a node of its mesh yet";
        Refused(StatusCode::SERVICE_UNAVAILABLE, message.to_owned())
    };
    shared.mesh().ok_or_else(none)
}

fn describe_keys(nodes: Vec<NodeKeys>) -> Value {
    let nodes = nodes.into_iter().map(|NodeKeys { node, keys }| match keys {
        Ok(keys) => {
            let keys: Vec<String> = keys.iter().map(KeyId::to_string).collect();
            json!({"node": node.as_str(), "keys": keys})
        }
        Err(reason) => json!({"node": node.as_str(), "error": reason}),
    });
    nodes.collect()
}

async fn list_keys(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/keyring")?;
    let nodes = node(&shared)?.keyrings().await;
    Ok(json_reply(StatusCode::OK, &describe_keys(nodes)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// `install`, `use` or `remove`.
    step: String,
    /// Which key; a new one is made for `install`.
    #[serde(default)]
    key: Option<String>,
    /// Even if nodes would be cut off.
    #[serde(default)]
    force: bool,
}

async fn change_keys(shared: Arc<Shared>, call: Call) -> Outcome {
    let asker = asker(&shared, &call);
    let actor = asker.authorize(Capability::Update, "mesh/keyring")?;
    let step: Step = serde_json::from_slice(call.body())
        .map_err(|error| bad(format!("the body is not understood: {error}")))?;
    let named = || -> Result<KeyId, Refused> {
        let key = step.key.as_deref().unwrap_or_default();
        key.parse::<KeyId>()
            .map_err(|error| bad(format!("key: {error}")))
    };
    let failed = |error: KeyringError| Refused(StatusCode::CONFLICT, error.to_string());
    let change = match step.step.as_str() {
        "install" => KeyringChange::Install(Keyring::new_key().map_err(failed)?),
        "use" => KeyringChange::Use(named()?),
        "remove" => KeyringChange::Remove(named()?),
        other => {
            return Err(bad(format!(
                "step: {other:?} is none of install, use, remove"
            )));
        }
    };
    let mesh = node(&shared)?;
    if !step.force {
        let ready = mesh.check_keyring(&change).await;
        ready.map_err(|error| Refused(StatusCode::CONFLICT, error.to_string()))?;
    }
    // In the ledger first: a server that starts again begins with what is there.
    let changed = Keyring::from_bytes(&mesh.keyring().to_bytes()).map_err(failed)?;
    change.apply(&changed).map_err(failed)?;
    let operation = format!("gossip key {}", step.step);
    let meta = asker.meta(actor, &operation, "keyring".to_owned());
    shared.records.set_keyring(meta, &changed).await?;
    let nodes = mesh.change_keyring(&change, true).await;
    let nodes = nodes.map_err(|error| Refused(StatusCode::CONFLICT, error.to_string()))?;
    Ok(json_reply(StatusCode::OK, &describe_keys(nodes)))
}

async fn history(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/ledger")?;
    let number = |name: &str| -> Result<Option<u64>, Refused> {
        let given = call.query.filled(name).map(str::parse);
        given
            .transpose()
            .map_err(|_| bad(format!("{name}: not a number")))
    };
    let limit = number("limit")?.unwrap_or(10).min(MAX_HISTORY as u64);
    let before = number("before")?;
    let ledger = shared.vault.ledger();
    let count = usize::try_from(limit).unwrap_or(MAX_HISTORY);
    let items = blocking(move || ledger.history(count, before)).await?;
    let items: Vec<Value> = items
        .into_iter()
        .map(|item| {
            json!({
                "index": item.index,
                "time": rfc3339(item.meta.time),
                "actor": item.meta.actor,
                "via": item.meta.via,
                "operation": item.meta.operation,
                "keys": item.meta.keys,
                "reason": item.meta.reason,
            })
        })
        .collect();
    Ok(json_reply(StatusCode::OK, &items))
}

async fn verify(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/ledger")?;
    let ledger = shared.vault.ledger();
    let report = match blocking(move || ledger.verify()).await {
        Ok(verified) => json!({
            "ok": true,
            "entries": verified.entries,
            "head_index": verified.head.index,
            "head_hash": hex(&verified.head.hash),
            "redacted_parts": verified.redacted,
        }),
        Err(error) => json!({"ok": false, "error": error.to_string()}),
    };
    Ok(json_reply(StatusCode::OK, &report))
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

fn rfc3339(micros: i64) -> String {
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    let at: SystemTime = UNIX_EPOCH + since;
    humantime::format_rfc3339_millis(at).to_string()
}
