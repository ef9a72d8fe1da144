//! `/v1/mesh/openapi`: the route table of this agent as an OpenAPI document. The manual's list of endpoints is made from the same
//! table.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::http::{Routes, json as json_reply};

/// The route, for what `table` has.
pub fn routes(table: &Routes) -> Routes {
    let document = Arc::new(document(table));
    Routes::new().get("/v1/mesh/openapi", move |_| {
        let document = Arc::clone(&document);
        async move { json_reply(StatusCode::OK, &*document) }
    })
}

fn document(table: &Routes) -> Value {
    let mut paths = Map::new();
    for (pattern, methods) in table.table() {
        let operations = methods.iter().map(|method| {
            let operation = operation(&pattern, method);
            (method.as_str().to_ascii_lowercase(), operation)
        });
        paths.insert(path(&pattern), Value::Object(operations.collect()));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Consul-compatible interface of mesh",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": paths,
        "security": [{}, {"token": []}, {"bearer": []}],
        "components": {"securitySchemes": {
            "token": {"type": "apiKey", "in": "header", "name": "X-Consul-Token"},
            "bearer": {"type": "http", "scheme": "bearer"},
        }},
    })
}

/// `/v1/kv/*key` as `/v1/kv/{key}`.
fn path(pattern: &str) -> String {
    let segments = pattern.split('/').map(|segment| match name(segment) {
        Some(name) => format!("{{{name}}}"),
        None => segment.to_owned(),
    });
    segments.collect::<Vec<_>>().join("/")
}

fn name(segment: &str) -> Option<&str> {
    segment.strip_prefix([':', '*'])
}

fn operation(pattern: &str, method: &Method) -> Value {
    let names = pattern.split('/').filter_map(name);
    let mut parameters: Vec<_> = names
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    let optional =
        |name: &str, kind: &str| json!({"name": name, "in": "query", "schema": {"type": kind}});
    let group = group(pattern);
    if *method == Method::GET && WAITING.contains(&group) {
        parameters.push(optional("index", "integer"));
        parameters.push(optional("wait", "string"));
    }
    if *method == Method::GET && FILTERED.contains(&group) {
        parameters.push(optional("filter", "string"));
    }
    parameters.push(optional("pretty", "boolean"));
    let text = json!({"text/plain": {"schema": {"type": "string"}}});
    json!({
        "tags": [group],
        "operationId": format!("{method} {pattern}"),
        "parameters": parameters,
        "responses": {
            "200": {"description": "done"},
            "default": {"description": "refused; why, as plain text", "content": text},
        },
    })
}

/// Groups whose reads wait with `index`.
const WAITING: [&str; 9] = [
    "acl", "catalog", "config", "connect", "event", "health", "kv", "query", "session",
];
/// Groups whose reads take `filter`.
const FILTERED: [&str; 3] = ["agent", "catalog", "health"];

/// `kv` of `/v1/kv/*key`.
fn group(pattern: &str) -> &str {
    let rest = pattern.strip_prefix("/v1/").unwrap_or(pattern);
    rest.split('/').find(|part| !part.is_empty()).unwrap_or("")
}

#[cfg(test)]
mod tests;
