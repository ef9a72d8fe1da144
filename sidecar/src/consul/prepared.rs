//! `/v1/query/…/execute` and `explain`: prepared queries, from the config bundle that this agent has and its own catalog; so
//! they are answered while no server is.

use std::sync::Arc;

use dns::{PreparedQuery, Queries};
use http::{HeaderValue, Method, StatusCode};
use libmesh::bundle::ConfigBundle;
use rand::seq::SliceRandom;
use serde_json::{Value, json};

use super::{
    Inner, Refused, blocking::Blocking, catalog::Way, forwarded::forward, handler, render,
    stored::query,
};
use crate::http::{Call, Reply, Routes, text};

/// The entry of the config bundle that holds the queries.
const ENTRY: &str = "prepared-queries";

pub(super) fn routes(inner: &Arc<Inner>) -> Routes {
    let (all, one) = ("/v1/query", "/v1/query/:id");
    let mut routes = Routes::new()
        .get("/v1/query/:id/execute", handler(inner, execute))
        .get("/v1/query/:id/explain", handler(inner, explain));
    for (method, path) in [
        (Method::GET, all),
        (Method::POST, all),
        (Method::GET, one),
        (Method::PUT, one),
        (Method::DELETE, one),
    ] {
        routes = routes.on(method, path, handler(inner, forward));
    }
    routes
}

/// Puts queries into a config bundle.
pub fn into_bundle(all: &[PreparedQuery], bundle: &mut ConfigBundle) {
    if all.is_empty() {
        bundle.entries.remove(ENTRY);
        return;
    }
    let entry = postcard::to_stdvec(all).expect("plain data always encodes");
    bundle.entries.insert(ENTRY.to_owned(), entry);
}

/// The queries of a config bundle. An entry that this version cannot read counts as none.
pub fn of_bundle(bundle: &ConfigBundle) -> Vec<PreparedQuery> {
    let Some(entry) = bundle.entries.get(ENTRY) else {
        return Vec::new();
    };
    postcard::from_bytes(entry).unwrap_or_else(|error| {
        tracing::error!(%error, "the prepared queries of the config bundle are not readable");
        Vec::new()
    })
}

fn find(queries: &Queries, call: &Call) -> Option<(PreparedQuery, Arc<PreparedQuery>)> {
    queries.find(call.params.get("id"))
}

async fn execute(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let Some((query, _)) = find(&inner.queries, &call) else {
        return Ok(not_found(inner.floor(0)));
    };
    let limit = match call.query.filled("limit") {
        Some(limit) => limit
            .parse()
            .map_err(|_| super::bad_request("Error parsing limit"))?,
        None => 0,
    };
    let view = inner.catalog.service(&query.service);
    let chosen = view.as_ref().map(|view| query.choose(view));
    let mut chosen = chosen.unwrap_or_default();
    chosen.shuffle(&mut rand::rng());
    if call.query.filled("near").unwrap_or(&query.near) == "_agent"
        && let Some(own) = inner.catalog.node_by_id(&inner.about.id)
    {
        chosen.sort_by_key(|instance| instance.distance(&own.record));
    }
    if limit > 0 {
        chosen.truncate(limit);
    }
    let nodes = chosen
        .iter()
        .map(|instance| render::health_entry(&inner, instance, Way::Plain));
    let nodes: Vec<_> = nodes.collect();
    let answer = with_meta(json!({
        "Service": query.service,
        "Nodes": nodes,
        "DNS": query::show(&query)["DNS"],
        "Datacenter": inner.about.datacenter.as_str(),
        "PeerName": "",
        "Failovers": 0,
    }));
    let index = inner.floor(inner.catalog.service_revision(&query.service));
    Ok(read(&blocking, index, &answer))
}

async fn explain(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let Some((query, _)) = find(&inner.queries, &call) else {
        return Ok(not_found(inner.floor(0)));
    };
    let answer = with_meta(json!({"Query": query::show(&query)}));
    Ok(read(&blocking, inner.floor(0), &answer))
}

fn read(blocking: &Blocking, index: u64, value: &Value) -> Reply {
    let mut reply = blocking.reply(index, value);
    let backend = HeaderValue::from_static("blocking-query");
    reply
        .headers_mut()
        .insert("x-consul-query-backend", backend);
    reply
}

/// What Consul shows of its own workings in these answers.
fn with_meta(mut answer: Value) -> Value {
    for (key, value) in [
        ("Index", json!(1)),
        ("LastContact", json!(0)),
        ("KnownLeader", json!(true)),
        ("ConsistencyLevel", json!("leader")),
        ("NotModified", json!(false)),
        ("Backend", json!(0)),
        ("ResultsFilteredByACLs", json!(false)),
    ] {
        answer[key] = value;
    }
    answer
}

/// There is no such query; with the headers of a read.
pub fn not_found(index: u64) -> Reply {
    let mut reply = text(StatusCode::NOT_FOUND, "Query not found");
    let headers = reply.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(index.max(1)));
    for (name, value) in [
        ("x-consul-knownleader", "false"),
        ("x-consul-lastcontact", "0"),
        ("x-consul-query-backend", "blocking-query"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    reply
}
