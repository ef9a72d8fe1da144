//! The keyring that seals membership datagrams, on every node.

use std::sync::Arc;

use http::StatusCode;
use libmesh::{
    member::{
        Keyring,
        keyring::{KeyId, KeyringError},
    },
    mesh::{KeyringChange, Mesh, NodeKeys},
};
use serde::Deserialize;
use serde_json::{Value, json};
use vault_kv::Capability;

use super::{Outcome, Refused, asker, audited, bad};
use crate::{
    consul::stored::Asker,
    http::{Call, json as json_reply},
    server::Shared,
};

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

pub(super) async fn list(shared: Arc<Shared>, call: Call) -> Outcome {
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

pub(super) async fn change(shared: Arc<Shared>, call: Call) -> Outcome {
    let asker = asker(&shared, &call);
    let attended = asker.attend(Capability::Update, "mesh/keyring").await?;
    let actor = attended.actor().to_owned();
    let changed = take_step(&shared, &call, &asker, actor).await;
    audited(attended, changed).await
}

async fn take_step(shared: &Shared, call: &Call, asker: &Asker, actor: String) -> Outcome {
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
    let mesh = node(shared)?;
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
