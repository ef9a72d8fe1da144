//! Join tokens: what lets a new node in.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use http::StatusCode;
use libmesh::{identity::PublishRights, join::JoinToken};
use serde::Deserialize;
use serde_json::{Value, json};
use vault_kv::Capability;

use super::{Outcome, Refused, asker, audited, bad};
use crate::{
    config::parse_duration,
    consul::stored::{Asker, StoreError},
    http::{Call, json as json_reply},
    server::{
        Shared,
        records::{Token, hex},
    },
};

/// The longest a token is good for, and how often at the most.
const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);
const MAX_USES: u32 = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewToken {
    #[serde(default)]
    publish: Vec<String>,
    uses: u32,
    ttl: String,
}

pub(super) async fn create(shared: Arc<Shared>, call: Call) -> Outcome {
    let asker = asker(&shared, &call);
    let attended = asker.attend(Capability::Update, "mesh/join-token").await?;
    let actor = attended.actor().to_owned();
    let made = make(&shared, &call, &asker, actor).await;
    audited(attended, made).await
}

async fn make(shared: &Shared, call: &Call, asker: &Asker, actor: String) -> Outcome {
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

pub(super) async fn list(shared: Arc<Shared>, call: Call) -> Outcome {
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

pub(super) async fn revoke(shared: Arc<Shared>, call: Call) -> Outcome {
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
