//! `/v1/connect/intentions`: kept as pairs `intention/<destination>/<source>` whose value is the JSON of
//! action and description; also of an id, when they were made in the manner of before Consul 1.9, which its command line
//! still has ([`create`], [`of_id`]).

use std::str::FromStr;

use http::{HeaderValue, Method, StatusCode};
use libmesh::bundle::{Action, Intention, ServiceMatch};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;
use vault_kv::KvOp;

use super::{Opener, Pair, Pairs, Scope, decorate, on, pairs::TxnError, read_blocking};
use crate::{
    consul::{Refused, bad_request, blocking::Blocking, decode::Fields, server_error},
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
}

/// An intention in Consul's shape.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown {
    #[serde(rename = "ID", skip_serializing_if = "Option::is_none")]
    id: Option<Uuid>,
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
    Some(Intention {
        source,
        destination,
        action: Kept::of(pair)?.action,
    })
}

/// What an administrator wrote about it.
pub fn description(pair: &Pair) -> String {
    Kept::of(pair)
        .map(|kept| kept.description)
        .unwrap_or_default()
}

/// The value of a pair that keeps an intention.
pub fn kept_value(action: Action, description: &str) -> String {
    let kept = Kept {
        action,
        description: description.to_owned(),
        id: None,
    };
    kept.value()
}

impl Kept {
    fn of(pair: &Pair) -> Option<Self> {
        serde_json::from_slice(&pair.value).ok()
    }

    fn value(&self) -> String {
        json!(self).to_string()
    }
}

fn names(key: &str) -> Option<(ServiceMatch, ServiceMatch)> {
    let (destination, source) = key.strip_prefix(PREFIX)?.split_once('/')?;
    let parse = |name| ServiceMatch::from_str(name).ok();
    Some((parse(source)?, parse(destination)?))
}

pub fn routes(open: &Opener) -> Routes {
    let exact = "/v1/connect/intentions/exact";
    let of_id = "/v1/connect/intentions/:id";
    Routes::new()
        .on(Method::POST, "/v1/connect/intentions", on(open, create))
        .on(Method::GET, of_id, on(open, get_of_id))
        .on(Method::PUT, of_id, on(open, put_of_id))
        .on(Method::DELETE, of_id, on(open, delete_of_id))
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
    shown(&pairs.read(Scope::Key(&key))?.0)
}

fn shown(found: &[Pair]) -> Result<Reply, Refused> {
    match found.first().and_then(show) {
        Some(shown) => Ok(json_reply(StatusCode::OK, &shown)),
        None => Err(Refused::new(StatusCode::NOT_FOUND, "Intention not found")),
    }
}

async fn put(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let key = key(&call)?;
    let mut asked = Asked::parse(Fields::parse(call.body())?)?;
    asked.kept.id = None;
    pairs.change(to_set(key, &asked.kept, None)).await?;
    Ok(json_reply(StatusCode::OK, &true))
}

/// An intention as a body says it.
struct Asked {
    source: String,
    destination: String,
    kept: Kept,
}

impl Asked {
    fn parse(mut fields: Fields) -> Result<Self, Refused> {
        let (source, destination) = (fields.text("SourceName")?, fields.text("DestinationName")?);
        let (action, description) = (fields.text("Action")?, fields.text("Description")?);
        fields.unsupported(&["Permissions", "Meta"])?;
        fields.ignore(&[
            "ID",
            "SourceNS",
            "SourceType",
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
        let kept = Kept {
            action,
            description,
            id: None,
        };
        Ok(Self {
            source,
            destination,
            kept,
        })
    }

    /// The key, by the names in the body.
    fn key(&self) -> Result<String, Refused> {
        let parse = |field: &str, name: &str| match name {
            "" => Err(server_error(format!("{field} must be set"))),
            name => name
                .parse::<ServiceMatch>()
                .map_err(|error| server_error(format!("{field}: {error}"))),
        };
        let source = parse("SourceName", &self.source)?;
        let destination = parse("DestinationName", &self.destination)?;
        Ok(format!("{PREFIX}{destination}/{source}"))
    }
}

fn to_set(key: String, kept: &Kept, cas: Option<u64>) -> KvOp {
    KvOp::Set {
        key,
        value: kept.value().into_bytes().into(),
        flags: 0,
        cas,
        ttl: None,
    }
}

#[derive(Serialize)]
struct Made {
    #[serde(rename = "ID")]
    id: Uuid,
}

/// `POST`: it must not be there yet, and gets an id.
async fn create(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    if !fields.text("ID")?.is_empty() {
        return Err(server_error(
            "ID must be empty when creating a new intention",
        ));
    }
    let mut asked = Asked::parse(fields)?;
    let id = Uuid::new_v4();
    asked.kept.id = Some(id);
    if !pairs
        .change(to_set(asked.key()?, &asked.kept, Some(0)))
        .await?
    {
        return Err(server_error(format!(
            "Sources[1] defines {:?} more than once",
            asked.source
        )));
    }
    Ok(json_reply(StatusCode::OK, &Made { id }))
}

/// The intention of the id in the path, for who may read it; or the id.
fn of_id(pairs: &Pairs, call: &Call) -> Result<Result<Pair, String>, Refused> {
    let given = call.params.get("id");
    let id = Uuid::parse_str(given).map_err(|_| {
        bad_request("failed config entry lookup: index error: UUID must be 36 characters")
    })?;
    let (found, _) = pairs.look(Scope::Prefix(PREFIX))?;
    let mut found = found.into_iter();
    let found = found.find(|pair| Kept::of(pair).is_some_and(|kept| kept.id == Some(id)));
    Ok(found.ok_or_else(|| given.to_owned()))
}

async fn get_of_id(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let found = match of_id(&pairs, &call)? {
        Ok(found) => pairs.read(Scope::Key(&found.key))?.0,
        Err(_) => Vec::new(),
    };
    shown(&found)
}

/// Its source may become another, its destination may not.
async fn put_of_id(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let mut asked = Asked::parse(Fields::parse(call.body())?)?;
    let key = asked.key()?;
    let before = of_id(&pairs, &call)?
        .map_err(|id| server_error(format!("Cannot modify non-existent intention: '{id}'")))?;
    let id = Kept::of(&before)
        .and_then(|kept| kept.id)
        .unwrap_or_default();
    asked.kept.id = Some(id);
    let destination = |key: &str| names(key).map(|(_, destination)| destination);
    if destination(&before.key) != destination(&key) {
        return Err(server_error(
            "Cannot modify Destination partition/namespace/name for an intention once it exists.",
        ));
    }
    let index = Some(before.modified);
    let ops = if before.key == key {
        vec![to_set(key, &asked.kept, index)]
    } else {
        let delete = KvOp::Delete {
            key: before.key,
            cas: index,
        };
        vec![delete, to_set(key, &asked.kept, Some(0))]
    };
    match pairs.apply(ops).await {
        Ok(_) => Ok(json_reply(StatusCode::OK, &Made { id })),
        Err(TxnError::Refused(_)) => Err(server_error(format!(
            "an intention of {:?} exists, or this one is being changed by somebody else",
            asked.source
        ))),
        Err(TxnError::Store(error)) => Err(error.into()),
    }
}

async fn delete_of_id(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let found = of_id(&pairs, &call)?
        .map_err(|id| server_error(format!("Cannot delete non-existent intention: '{id}'")))?;
    let (key, cas) = (found.key, None);
    pairs.change(KvOp::Delete { key, cas }).await?;
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
    let kept = Kept::of(pair)?;
    let intention = from_pair(pair)?;
    Some(Shown {
        id: kept.id,
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
