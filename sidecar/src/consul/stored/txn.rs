//! `/v1/txn`: operations that happen together, on keys ([`keys`]) or on nodes without an agent, their services and checks
//! ([`nodes`]). Both at once are refused: keys and nodes are kept apart, and would not change together.

mod keys;
mod nodes;

use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    Opener, Pairs,
    external::{self, Publisher},
};
use crate::{
    consul::{MAX_VALUE, Refused, bad_request},
    http::{BoxFuture, Call, Reply, Routes, json},
};

/// Operations of a transaction at most.
const MAX_OPS: usize = 128;

/// The routes: `kv` opens the keys, `nodes` the pairs in which the nodes are kept.
pub fn routes(kv: &Opener, nodes: &Opener, publisher: &Arc<dyn Publisher>) -> Routes {
    let (kv, nodes) = (Arc::clone(kv), Arc::clone(nodes));
    let publisher = Arc::clone(publisher);
    Routes::new().on(
        Method::PUT,
        "/v1/txn",
        move |call: Call| -> BoxFuture<Reply> {
            let (keys, nodes) = (kv(&call), nodes(&call));
            let publisher = Arc::clone(&publisher);
            Box::pin(async move {
                let answer = txn(keys, nodes, publisher, &call).await;
                answer.unwrap_or_else(Reply::from)
            })
        },
    )
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<T> {
    results: Option<Vec<T>>,
    errors: Option<Vec<Failed>>,
    #[serde(flatten)]
    read: Option<Read>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failed {
    op_index: usize,
    what: String,
}

/// What the answer to a transaction that only reads has besides.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Read {
    index: u64,
    last_contact: u64,
    known_leader: bool,
    consistency_level: &'static str,
    not_modified: bool,
    backend: u8,
    #[serde(rename = "ResultsFilteredByACLs")]
    results_filtered: bool,
}

impl Read {
    fn known(known_leader: bool) -> Self {
        Self {
            index: known_leader.into(),
            last_contact: 0,
            known_leader,
            consistency_level: "",
            not_modified: false,
            backend: 0,
            results_filtered: false,
        }
    }
}

/// An operation: of which kind, and its fields.
type Op = (Kind, Map<String, Value>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Key,
    Node,
    Service,
    Check,
}

async fn txn(
    keys: Pairs,
    nodes: Pairs,
    publisher: Arc<dyn Publisher>,
    call: &Call,
) -> Result<Reply, Refused> {
    let body = call.body();
    if body.len() > MAX_VALUE {
        return Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "Request body({} bytes) too large, max size: {MAX_VALUE} bytes.",
                body.len()
            ),
        ));
    }
    let ops = parse(body)?;
    if ops.len() > MAX_OPS {
        return Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "Transaction contains too many operations ({} > {MAX_OPS})",
                ops.len()
            ),
        ));
    }
    let ops: Vec<Op> = ops.into_iter().map(kind).collect::<Result<_, _>>()?;
    let of_keys = ops.iter().filter(|(kind, _)| *kind == Kind::Key).count();
    if of_keys == ops.len() {
        keys::txn(&keys, ops).await
    } else if of_keys == 0 {
        external::to_its_end(async move { nodes::txn(&nodes, &*publisher, ops).await }).await
    } else {
        Err(bad_request(
            "KV operations and those on nodes, services and checks do not go into one transaction: they are kept apart, \
             and would not change together",
        ))
    }
}

/// All of them happened.
fn applied<T: Serialize>(results: Vec<T>, read: Option<Read>) -> Reply {
    let answer = Answer {
        results: Some(results),
        errors: None,
        read,
    };
    decorated(json(StatusCode::OK, &answer), answer.read)
}

/// None of them happened.
fn refused(errors: Vec<Failed>, read: Option<Read>) -> Reply {
    let answer = Answer::<Value> {
        results: None,
        errors: Some(errors),
        read,
    };
    decorated(json(StatusCode::CONFLICT, &answer), answer.read)
}

fn decorated(mut reply: Reply, read: Option<Read>) -> Reply {
    if let Some(read) = read {
        let known = if read.known_leader { "true" } else { "false" };
        let headers = reply.headers_mut();
        headers.insert("x-consul-knownleader", HeaderValue::from_static(known));
        headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    }
    reply
}

fn unreadable(reason: &str) -> Refused {
    bad_request(format!("Failed to parse body: {reason}"))
}

fn parse(body: &[u8]) -> Result<Vec<Value>, Refused> {
    match serde_json::from_slice(body) {
        Ok(Value::Array(ops)) => Ok(ops),
        Ok(Value::Null) => Ok(Vec::new()),
        Ok(_) => Err(unreadable(
            "json: cannot unmarshal into Go value of type api.TxnOps",
        )),
        Err(error) if error.is_eof() => Err(unreadable("unexpected EOF")),
        Err(error) => Err(unreadable(&error.to_string())),
    }
}

fn kind(op: Value) -> Result<Op, Refused> {
    let Value::Object(kinds) = op else {
        return Err(unreadable("an operation must be an object"));
    };
    let mut kinds = kinds.into_iter().filter(|(_, value)| !value.is_null());
    let (Some((name, fields)), None) = (kinds.next(), kinds.next()) else {
        return Err(unreadable("an operation must have exactly one kind"));
    };
    let kind = match name.to_ascii_lowercase().as_str() {
        "kv" => Kind::Key,
        "node" => Kind::Node,
        "service" => Kind::Service,
        "check" => Kind::Check,
        _ => {
            let message = format!("{name} operations are not supported by this version of mesh");
            return Err(bad_request(message));
        }
    };
    match fields {
        Value::Object(fields) => Ok((kind, fields)),
        _ => Err(unreadable(&format!("{name} must be an object"))),
    }
}
