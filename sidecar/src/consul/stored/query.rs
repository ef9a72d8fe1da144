//! `/v1/query`: prepared queries, kept as pairs `query/<id>`. They reach every agent with the config bundle, and are
//! executed there. The right to one is that to its name (`consul/query/<name>`), without one to its id (`mesh/query/<id>`).

use std::collections::BTreeMap;

use dns::{PreparedQuery, queries::QueryTemplate};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use vault_kv::{Capability, KvOp};
use zeroize::Zeroizing;

use super::{Opener, Pair, Pairs, Scope, decorate, look_blocking, on};
use crate::{
    consul::{
        Refused,
        blocking::Blocking,
        decode::{Fields, go_duration, go_format},
        done,
        prepared::not_found,
        server_error,
    },
    http::{Call, Reply, Routes, json as json_reply},
};

/// Where queries are kept.
pub const PREFIX: &str = "query/";

pub(super) fn routes(open: &Opener) -> Routes {
    let (all, one) = ("/v1/query", "/v1/query/:id");
    Routes::new()
        .on(Method::POST, all, on(open, create))
        .on(Method::GET, all, on(open, list))
        .on(Method::GET, one, on(open, get))
        .on(Method::PUT, one, on(open, update))
        .on(Method::DELETE, one, on(open, delete))
}

/// The query that a pair keeps; `None` for a pair that keeps none.
pub fn from_pair(pair: &Pair) -> Option<PreparedQuery> {
    let query: PreparedQuery = serde_json::from_slice(&pair.value).ok()?;
    Some(PreparedQuery {
        indexes: (pair.created, pair.modified),
        ..query
    })
}

async fn create(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let query = parse(
        Fields::parse(call.body())?,
        &uuid::Uuid::new_v4().to_string(),
    )?;
    keep(&pairs, &query, 0).await?;
    Ok(json_reply(StatusCode::OK, &json!({"ID": query.id})))
}

async fn update(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    let query = parse(Fields::parse(call.body())?, id)?;
    let (found, _) = pairs.look(Scope::Key(&key(id)))?;
    let known = found.first().ok_or_else(|| unknown(id))?;
    if let Some(known) = from_pair(known) {
        // Whoever renames one needs the right to both names.
        pairs.asker.authorize(Capability::Update, &path(&known))?;
    }
    keep(&pairs, &query, known.modified).await?;
    Ok(done())
}

async fn delete(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let id = call.params.get("id");
    let (found, _) = pairs.look(Scope::Key(&key(id)))?;
    let known = found.first().and_then(from_pair);
    let known = known.ok_or_else(|| unknown(id))?;
    let op = KvOp::Delete {
        key: key(id),
        cas: None,
    };
    pairs.change_at(&path(&known), op).await?;
    Ok(done())
}

async fn list(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let (found, index) = look_blocking(&pairs, &call, &blocking, Scope::Prefix(PREFIX)).await?;
    let all: Vec<_> = found.iter().filter_map(from_pair).collect();
    let (nameless, named): (Vec<_>, Vec<_>) = all.into_iter().partition(is_nameless);
    let named = pairs.asker.readable("consul/query/", named, path);
    let nameless = pairs.asker.readable("mesh/query/", nameless, path);
    let all = match (named, nameless) {
        (Err(refused), Err(_)) => return Err(refused.into()),
        (named, nameless) => [named.unwrap_or_default(), nameless.unwrap_or_default()].concat(),
    };
    let all: Vec<_> = all.iter().map(show).collect();
    let mut reply = json_reply(StatusCode::OK, &all);
    blocking.decorate(index, &mut reply);
    decorate(&mut reply, index);
    Ok(reply)
}

async fn get(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let key = key(call.params.get("id"));
    let (found, index) = look_blocking(&pairs, &call, &blocking, Scope::Key(&key)).await?;
    let Some(query) = found.first().and_then(from_pair) else {
        return Ok(not_found(index));
    };
    pairs.asker.authorize(Capability::Read, &path(&query))?;
    let mut reply = json_reply(StatusCode::OK, &[show(&query)]);
    blocking.decorate(index, &mut reply);
    decorate(&mut reply, index);
    Ok(reply)
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn is_nameless(query: &PreparedQuery) -> bool {
    query.name.is_empty() && query.template.is_none()
}

/// What policies call a query.
pub fn path(query: &PreparedQuery) -> String {
    match is_nameless(query) {
        true => format!("mesh/query/{}", query.id),
        false => format!("consul/query/{}", query.name.to_ascii_lowercase()),
    }
}

fn unknown(id: &str) -> Refused {
    server_error(format!("Cannot modify non-existent prepared query: '{id}'"))
}

/// Keeps a query, if its name is nobody else's.
async fn keep(pairs: &Pairs, query: &PreparedQuery, cas: u64) -> Result<(), Refused> {
    pairs.asker.authorize(Capability::Update, &path(query))?;
    let (all, _) = pairs.look(Scope::Prefix(PREFIX))?;
    let mut others = all
        .iter()
        .filter_map(from_pair)
        .filter(|other| other.id != query.id);
    let same = |other: &PreparedQuery| {
        let named = !query.name.is_empty() || query.template.is_some();
        named
            && other.name.eq_ignore_ascii_case(&query.name)
            && other.template.is_some() == query.template.is_some()
    };
    if others.any(|other| same(&other)) {
        return Err(server_error(format!(
            "raft apply failed: name '{}' aliases an existing query name",
            query.name
        )));
    }
    let value = serde_json::to_vec(query).expect("plain data encodes");
    let op = KvOp::Set {
        key: key(&query.id),
        value: Zeroizing::new(value),
        flags: 0,
        cas: Some(cas),
        ttl: None,
    };
    match pairs.change_at(&path(query), op).await? {
        true => Ok(()),
        false => Err(server_error("the query was changed meanwhile")),
    }
}

fn parse(mut fields: Fields, id: &str) -> Result<PreparedQuery, Refused> {
    let invalid = |reason: String| server_error(format!("Invalid prepared query: {reason}"));
    let name = fields.text("Name")?;
    let template = fields.take("Template").map(Fields::of).transpose()?;
    let service = fields.take("Service").map(Fields::of).transpose()?;
    let ttl = match fields.take("DNS").map(Fields::of).transpose()? {
        Some(mut dns) => dns.text("TTL")?,
        None => String::new(),
    };
    fields.unsupported(&["Session", "Token"])?;
    fields.ignore(&["ID", "CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    let mut query = PreparedQuery {
        id: id.to_owned(),
        name,
        ..PreparedQuery::default()
    };
    if let Some(mut template) = template {
        let kind = template.text("Type")?;
        let (regexp, remove_empty_tags) =
            (template.text("Regexp")?, template.flag("RemoveEmptyTags")?);
        template.finish()?;
        query.template = match kind.as_str() {
            "" => None,
            "name_prefix_match" => Some(QueryTemplate {
                regexp,
                remove_empty_tags,
            }),
            kind => return Err(invalid(format!("Bad Template: unknown type '{kind}'"))),
        };
    }
    if let Some(mut service) = service {
        query.service = service.text("Service")?;
        query.only_passing = service.flag("OnlyPassing")?;
        query.ignore_checks = service.texts("IgnoreCheckIDs")?;
        query.near = service.text("Near")?;
        query.tags = service.texts("Tags")?;
        query.node_meta = service.pairs("NodeMeta")?;
        query.service_meta = service.pairs("ServiceMeta")?;
        // There is one datacenter: where it has nobody, others have nobody either.
        service.ignore(&["Failover"]);
        service.unsupported(&["Connect", "Peer", "SamenessGroup"])?;
        service.finish()?;
    }
    if query.service.is_empty() {
        return Err(invalid("Must provide a Service name to query".to_owned()));
    }
    if !ttl.is_empty() {
        let parsed = go_duration(&ttl);
        let parsed = parsed.map_err(|error| invalid(format!("Bad DNS TTL '{ttl}': {error}")))?;
        query.ttl = Some(parsed);
    }
    query
        .validate()
        .map_err(|error| invalid(format!("Bad Template: {error}")))?;
    Ok(query)
}

/// In Consul's shape.
pub fn show(query: &PreparedQuery) -> Value {
    let texts = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let pairs = |pairs: &BTreeMap<String, String>| (!pairs.is_empty()).then(|| pairs.clone());
    let template = query.template.clone().unwrap_or_default();
    json!({
        "ID": query.id,
        "Name": query.name,
        "Session": "",
        "Token": "",
        "Template": {
            "Type": if query.template.is_some() { "name_prefix_match" } else { "" },
            "Regexp": template.regexp,
            "RemoveEmptyTags": template.remove_empty_tags,
        },
        "Service": {
            "Service": query.service,
            "SamenessGroup": "",
            "Failover": {"NearestN": 0, "Datacenters": null, "Targets": null},
            "OnlyPassing": query.only_passing,
            "IgnoreCheckIDs": texts(&query.ignore_checks),
            "Near": query.near,
            "Tags": texts(&query.tags),
            "NodeMeta": pairs(&query.node_meta),
            "ServiceMeta": pairs(&query.service_meta),
            "Connect": false,
            "Peer": "",
        },
        "DNS": {"TTL": query.ttl.map(go_format).unwrap_or_default()},
        "CreateIndex": query.indexes.0,
        "ModifyIndex": query.indexes.1,
    })
}
