//! What only a server can answer, and what is said without asking anybody.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, StatusCode};
use libmesh::model::ServiceName;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::{Inner, MAX_VALUE, Refused, acl, connect::decide, handler, prepared, server_error};
use crate::{
    forward::CONFIG_INDEX,
    http::{Call, Reply, Routes, json as json_reply, text},
};

/// How long an answer waits for the configuration that it changed.
const HEAR: Duration = Duration::from_secs(2);

pub fn routes(inner: &Arc<Inner>) -> Routes {
    let mut routes = Routes::new()
        .get("/v1/status/leader", handler(inner, leader))
        .get("/v1/status/peers", handler(inner, peers))
        .get(
            "/v1/connect/intentions/check",
            handler(inner, intention_check),
        );
    for (methods, path) in [
        ("GET PUT DELETE", "/v1/kv/*key"),
        ("PUT", "/v1/txn"),
        ("PUT", "/v1/catalog/register"),
        ("PUT", "/v1/catalog/deregister"),
        ("PUT", "/v1/session/destroy/*id"),
        ("PUT", "/v1/session/renew/*id"),
        ("GET", "/v1/session/info/*id"),
        ("GET", "/v1/session/node/*node"),
        ("GET", "/v1/session/list"),
        ("GET PUT DELETE", "/v1/connect/intentions/exact"),
        ("GET", "/v1/connect/intentions/match"),
        ("GET POST", "/v1/connect/intentions"),
        ("GET PUT DELETE", "/v1/connect/intentions/:id"),
        ("PUT", "/v1/config"),
        ("GET", "/v1/config/:kind"),
        ("GET DELETE", "/v1/config/:kind/*name"),
        ("GET POST", "/v1/mesh/join-tokens"),
        ("DELETE", "/v1/mesh/join-tokens/:id"),
        ("GET PUT", "/v1/mesh/keyring"),
        ("GET", "/v1/mesh/ledger"),
        ("GET", "/v1/mesh/ledger/verify"),
    ] {
        for method in methods.split(' ') {
            let method = Method::from_bytes(method.as_bytes()).expect("the names are tokens");
            routes = routes.on(method, path, handler(inner, forward));
        }
    }
    let disabled = |_| async { text(StatusCode::UNAUTHORIZED, "ACL support disabled") };
    for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
        routes = routes.on(method, "/v1/acl/*path", disabled);
    }
    routes
}

pub async fn forward(inner: Arc<Inner>, mut call: Call) -> Result<Reply, Refused> {
    let size = call.body().len();
    if call.request.uri().path().starts_with("/v1/kv/") && size > MAX_VALUE {
        let message = format!(
            "Request body({size} bytes) too large, max size: {MAX_VALUE} bytes. See \
             https://developer.hashicorp.com/docs/agent/config/config-files#kv_max_value_size."
        );
        return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let waits = call.query.filled("index").is_some();
    if call.request.uri().path() != acl::LOGIN {
        inner.tokens.lend(&mut call.request);
    }
    let began = Instant::now();
    // Callers over TCP have no identity, and this interface asks for none over the socket either.
    let shutdown = call.conn.shutdown.clone();
    let mut answer = tokio::select! {
        answer = inner.forward.forward_call(call) => answer,
        () = shutdown.cancelled() => {
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "the agent is shutting down"));
        }
    };
    if !waits {
        let took = Instant::now().duration_since(began);
        inner.figures.forwarded(answer.status(), took);
    }
    if let Some(index) = answer.headers_mut().remove(CONFIG_INDEX) {
        hear(&inner, &index).await;
    }
    Ok(answer)
}

/// Waits until this agent has the configuration of that index, so that who changed it sees the change here. It is answered
/// after [`HEAR`] in any case.
async fn hear(inner: &Inner, index: &HeaderValue) {
    let index = index.to_str().ok().and_then(|index| index.parse().ok());
    let (Some(index), Some(bundles)) = (index, &inner.bundles) else {
        return;
    };
    let index: u64 = index;
    let mut changes = bundles.watch();
    let heard = changes.wait_for(|_| bundles.index() >= index);
    let _ = timeout(HEAR, heard).await;
    if let Some(bundle) = bundles.current() {
        let all = || prepared::of_bundle(&bundle);
        inner.queries.advance(bundle.index, all);
    }
}

async fn leader(inner: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    let servers = servers(&inner);
    let first = servers.first().map_or("", |server| server);
    Ok(json_reply(StatusCode::OK, first))
}

async fn peers(inner: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    Ok(json_reply(StatusCode::OK, &servers(&inner)))
}

/// Addresses of the servers that are present.
fn servers(inner: &Inner) -> Vec<String> {
    let nodes = inner.catalog.nodes();
    nodes
        .iter()
        .filter(|node| node.record.roles.server && node.liveness.is_present())
        .map(|node| node.record.socket_addr().to_string())
        .collect()
}

/// Answered from the config bundle that this agent enforces, so it also answers while no server does.
async fn intention_check(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let name = |parameter: &str| {
        let given = call.query.filled(parameter).ok_or_else(|| {
            server_error(format!("required query parameter '{parameter}' not set"))
        })?;
        ServiceName::parse(given).map_err(|error| server_error(error.to_string()))
    };
    let (source, destination) = (name("source")?, name("destination")?);
    let allowed = decide(&inner, &source, &destination).is_allowed();
    Ok(json_reply(StatusCode::OK, &json!({"Allowed": allowed})))
}
