//! `/v1/config`: config entries, kept as pairs `config/<kind>/<name>`. They reach every agent with the config bundle, and are
//! followed there ([`crate::routing`]). `service-intentions` is another view of the intentions.

mod intentions;
mod kinds;

use http::{Method, StatusCode};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use vault_kv::KvOp;
use zeroize::Zeroizing;

use super::{Opener, Pair, Pairs, Scope, decorate, number, on, read_blocking};
use crate::{
    consul::{Refused, blocking::Blocking, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply, text},
    routing::{Entry, Routing},
};

/// Where entries are kept.
pub const PREFIX: &str = "config/";
/// The kind that is kept elsewhere.
const INTENTIONS: &str = "service-intentions";

pub(super) fn routes(open: &Opener) -> Routes {
    let one = "/v1/config/:kind/*name";
    Routes::new()
        .on(Method::PUT, "/v1/config", on(open, put))
        .on(Method::GET, "/v1/config/:kind", on(open, list))
        .on(Method::GET, one, on(open, get))
        .on(Method::DELETE, one, on(open, delete))
}

/// The entry that a pair keeps; `None` for a pair that keeps none.
pub fn from_pair(pair: &Pair) -> Option<Entry> {
    serde_json::from_slice(&pair.value).ok()
}

fn key(kind: &str, name: &str) -> String {
    format!("{PREFIX}{kind}/{name}")
}

async fn put(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let cas = number(&call, "cas")?;
    let fields = Fields::parse(call.body())?;
    let entry = match kinds::parse(fields)? {
        kinds::Asked::Entry(entry) => entry,
        kinds::Asked::Intentions(asked) => {
            let written = intentions::put(&pairs, &asked, cas).await?;
            return Ok(json_reply(StatusCode::OK, &written));
        }
    };
    fits(&pairs, |table| table.put(entry.clone()))?;
    let change = KvOp::Set {
        key: key(entry.kind(), entry.name()),
        value: Zeroizing::new(serde_json::to_vec(&entry).expect("plain data encodes")),
        flags: 0,
        cas,
        ttl: None,
    };
    Ok(json_reply(StatusCode::OK, &pairs.change(change).await?))
}

/// Whether all entries fit together after a change.
fn fits(pairs: &Pairs, change: impl FnOnce(&mut Routing)) -> Result<(), Refused> {
    let kept = pairs.kv.list(PREFIX).map_err(super::StoreError::from)?;
    let kept = kept.into_iter().map(Pair::from);
    let mut table: Routing = kept.filter_map(|pair| from_pair(&pair)).collect();
    change(&mut table);
    table.check().map_err(server_error)
}

async fn list(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let kind = kinds::known(call.params.get("kind")).map_err(server_error)?;
    let blocking = Blocking::of(&call)?;
    let scope = match kind {
        INTENTIONS => super::INTENTIONS.to_owned(),
        kind => key(kind, ""),
    };
    let (found, index) = read_blocking(&pairs, &call, &blocking, Scope::Prefix(&scope)).await?;
    let all: Vec<Value> = match kind {
        INTENTIONS => intentions::all(&found),
        _ => found.iter().filter_map(show).collect(),
    };
    let mut reply = json_reply(StatusCode::OK, &all);
    decorate(&mut reply, index);
    Ok(reply)
}

async fn get(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let kind = kinds::known(call.params.get("kind")).map_err(server_error)?;
    let name = call.params.get("name").to_ascii_lowercase();
    let blocking = Blocking::of(&call)?;
    let (found, index) = match kind {
        INTENTIONS => {
            let scope = intentions::scope(&name);
            read_blocking(&pairs, &call, &blocking, Scope::Prefix(&scope)).await?
        }
        kind => {
            let key = key(kind, &name);
            read_blocking(&pairs, &call, &blocking, Scope::Key(&key)).await?
        }
    };
    let shown = match kind {
        INTENTIONS => intentions::all(&found).pop(),
        _ => found.first().and_then(show),
    };
    let mut reply = match shown {
        Some(shown) => json_reply(StatusCode::OK, &shown),
        None => text(
            StatusCode::NOT_FOUND,
            format!("Config entry not found for {kind:?} / {name:?}"),
        ),
    };
    decorate(&mut reply, index);
    Ok(reply)
}

/// Deleting what is not there is no error.
async fn delete(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let kind = kinds::known(call.params.get("kind")).map_err(server_error)?;
    let name = call.params.get("name").to_ascii_lowercase();
    let cas = number(&call, "cas")?;
    let deleted = match kind {
        INTENTIONS => intentions::delete(&pairs, &name, cas).await?,
        kind => {
            fits(&pairs, |table| table.remove(kind, &name))?;
            let key = key(kind, &name);
            pairs.change(KvOp::Delete { key, cas }).await?
        }
    };
    let value = match cas {
        Some(_) => json!(deleted),
        None => json!({}),
    };
    Ok(json_reply(StatusCode::OK, &value))
}

fn show(pair: &Pair) -> Option<Value> {
    let entry = serde_json::to_value(from_pair(pair)?).ok()?;
    Some(with_indexes(entry, pair.created, pair.modified))
}

fn with_indexes(mut entry: Value, created: u64, modified: u64) -> Value {
    let hash = digest(&SHA256, entry.to_string().as_bytes());
    let hash = hash.as_ref()[..8].iter();
    // A number that clients only compare; small enough for those that read it as a float.
    let hash = hash.fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) >> 11;
    entry["Hash"] = json!(hash);
    entry["CreateIndex"] = json!(created);
    entry["ModifyIndex"] = json!(modified);
    entry
}
