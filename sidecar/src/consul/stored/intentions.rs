//! `/v1/connect/intentions`: kept as pairs `intention/<destination>/<source>` whose value is the JSON of
//! action and description.

use std::str::FromStr;

use http::{HeaderValue, Method, StatusCode};
use libmesh::bundle::{Action, Intention, ServiceMatch};
use serde::{Deserialize, Serialize};
use serde_json::json;
use vault_kv::KvOp;

use super::{Opener, Pair, Pairs, Scope, decorate, on, read_blocking};
use crate::{
    consul::{Refused, blocking::Blocking, decode::Fields, server_error},
    http::{Call, Reply, Routes, json as json_reply},
};

/// Where intentions are kept.
pub const PREFIX: &str = "intention/";

/// An intention's value in the store.
#[derive(Serialize, Deserialize)]
struct Kept {
    action: Action,
    #[serde(default)]
    description: String,
}

/// An intention in Consul's shape.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
    #[serde(rename = "SourceNS")]
    source_ns: &'static str,
    source_name: String,
    #[serde(rename = "DestinationNS")]
    destination_ns: &'static str,
    destination_name: String,
    source_type: &'static str,
    action: Action,
    precedence: u8,
    create_index: u64,
    modify_index: u64,
}

/// The intention that a pair keeps; `None` for a pair that keeps none. For whoever builds config bundles.
pub fn from_pair(pair: &Pair) -> Option<Intention> {
    let (source, destination) = names(&pair.key)?;
    let kept: Kept = serde_json::from_slice(&pair.value).ok()?;
    Some(Intention {
        source,
        destination,
        action: kept.action,
    })
}

/// What an administrator wrote about it.
pub fn description(pair: &Pair) -> String {
    let kept: Option<Kept> = serde_json::from_slice(&pair.value).ok();
    kept.map(|kept| kept.description).unwrap_or_default()
}

/// The value of a pair that keeps an intention.
pub fn kept_value(action: Action, description: &str) -> String {
    let description = description.to_owned();
    json!(Kept {
        action,
        description
    })
    .to_string()
}

fn names(key: &str) -> Option<(ServiceMatch, ServiceMatch)> {
    let (destination, source) = key.strip_prefix(PREFIX)?.split_once('/')?;
    let parse = |name| ServiceMatch::from_str(name).ok();
    Some((parse(source)?, parse(destination)?))
}

pub fn routes(open: &Opener) -> Routes {
    let exact = "/v1/connect/intentions/exact";
    Routes::new()
        .on(Method::GET, exact, on(open, get))
        .on(Method::PUT, exact, on(open, put))
        .on(Method::DELETE, exact, on(open, delete))
        .on(Method::GET, "/v1/connect/intentions", on(open, list))
        .on(
            Method::GET,
            "/v1/connect/intentions/match",
            on(open, matching),
        )
}

/// The store's key for the pair of services that the query names.
fn key(call: &Call) -> Result<String, Refused> {
    let source = service(call, "source")?;
    let destination = service(call, "destination")?;
    Ok(format!("{PREFIX}{destination}/{source}"))
}

fn service(call: &Call, parameter: &str) -> Result<ServiceMatch, Refused> {
    let given = call
        .query
        .filled(parameter)
        .ok_or_else(|| server_error(format!("required query parameter '{parameter}' not set")))?;
    // Consul's paths may carry the namespace that everything is in.
    let name = given.strip_prefix("default/").unwrap_or(given);
    name.parse()
        .map_err(|error| server_error(format!("{parameter}: {error}")))
}

async fn get(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let key = key(&call)?;
    let (found, _) = pairs.read(Scope::Key(&key))?;
    match found.first().and_then(show) {
        Some(shown) => Ok(json_reply(StatusCode::OK, &shown)),
        None => Err(Refused::new(StatusCode::NOT_FOUND, "Intention not found")),
    }
}

async fn put(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let key = key(&call)?;
    let mut fields = Fields::parse(call.body())?;
    let (action, description) = (fields.text("Action")?, fields.text("Description")?);
    fields.unsupported(&["Permissions", "Meta"])?;
    fields.ignore(&[
        "ID",
        "SourceName",
        "SourceNS",
        "SourceType",
        "DestinationName",
        "DestinationNS",
        "Precedence",
        "CreateIndex",
        "ModifyIndex",
        "CreatedAt",
        "UpdatedAt",
        "Hash",
    ]);
    fields.finish()?;
    let action = match action.as_str() {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        _ => {
            return Err(server_error(
                "Sources[0].Action must be set to 'allow' or 'deny'",
            ));
        }
    };
    let change = KvOp::Set {
        key,
        value: kept_value(action, &description).into_bytes().into(),
        flags: 0,
        cas: None,
        ttl: None,
    };
    pairs.change(change).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

/// Deleting what is not there is no error.
async fn delete(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let key = key(&call)?;
    pairs.change(KvOp::Delete { key, cas: None }).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

async fn list(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let (found, index) = read_blocking(&pairs, &call, &blocking, Scope::Prefix(PREFIX)).await?;
    let mut reply = json_reply(StatusCode::OK, &in_order(&found, |_| true));
    decorate(&mut reply, index);
    Ok(reply)
}

async fn matching(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let by = call.query.filled("by");
    let by = by.ok_or_else(|| server_error("required query parameter 'by' not set"))?;
    let source = match by {
        "source" => true,
        "destination" => false,
        _ => {
            return Err(server_error(
                "'by' parameter must be one of 'source' or 'destination'",
            ));
        }
    };
    let name = service(&call, "name")?;
    let blocking = Blocking::of(&call)?;
    let (found, index) = read_blocking(&pairs, &call, &blocking, Scope::Prefix(PREFIX)).await?;
    let wanted = |pair: &Pair| {
        let Some((from, to)) = names(&pair.key) else {
            return false;
        };
        let own = if source { from } else { to };
        own == name || own == ServiceMatch::Any
    };
    let value = json!({call.query.get("name").unwrap_or_default(): in_order(&found, wanted)});
    let mut reply = json_reply(StatusCode::OK, &value);
    decorate(&mut reply, index);
    let leader = HeaderValue::from_static("leader");
    reply
        .headers_mut()
        .insert("x-consul-effective-consistency", leader);
    Ok(reply)
}

/// The ones that win first.
fn in_order(found: &[Pair], wanted: impl Fn(&Pair) -> bool) -> Vec<Shown> {
    let mut list: Vec<Shown> = found
        .iter()
        .filter(|pair| wanted(pair))
        .filter_map(show)
        .collect();
    list.sort_by(|a, b| {
        let place = |s: &Shown| (s.destination_name.clone(), s.source_name.clone());
        b.precedence
            .cmp(&a.precedence)
            .then_with(|| place(a).cmp(&place(b)))
    });
    list
}

fn show(pair: &Pair) -> Option<Shown> {
    let kept: Kept = serde_json::from_slice(&pair.value).ok()?;
    let intention = from_pair(pair)?;
    Some(Shown {
        description: kept.description,
        source_ns: "default",
        source_name: intention.source.to_string(),
        destination_ns: "default",
        destination_name: intention.destination.to_string(),
        source_type: "consul",
        action: kept.action,
        precedence: intention.precedence(),
        create_index: pair.created,
        modify_index: pair.modified,
    })
}
