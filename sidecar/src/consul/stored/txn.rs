//! `/v1/txn`: operations on keys that happen together. Those on nodes, services and checks belong to the catalog, which
//! is no part of the ledger: they are refused.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use vault_kv::{Applied, KvOp, Refusal};

use super::{Opener, Pair, Pairs, kv::Entry, on, pairs::TxnError};
use crate::{
    consul::{MAX_VALUE, Refused, bad_request},
    http::{Call, Reply, Routes, json},
};

/// Operations of a transaction at most.
const MAX_OPS: usize = 128;

pub fn routes(open: &Opener) -> Routes {
    Routes::new().on(Method::PUT, "/v1/txn", on(open, txn))
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    results: Option<Vec<Of<Entry<'a>>>>,
    errors: Option<Vec<Failed>>,
    #[serde(flatten)]
    read: Option<Read>,
}

#[derive(Serialize)]
struct Of<T> {
    #[serde(rename = "KV")]
    kv: T,
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

/// Why an operation does not come to be.
enum Wrong {
    /// The whole request is refused.
    Request(Refused),
    /// It is answered as a transaction that does not apply.
    Verb(String),
}

async fn txn(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
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
    let mut known = Vec::with_capacity(ops.len());
    let mut unknown = Vec::new();
    for (op_index, op) in ops.into_iter().enumerate() {
        match operation(op) {
            Ok(op) => known.push(op),
            Err(Wrong::Request(refused)) => return Err(refused),
            Err(Wrong::Verb(verb)) => unknown.push(Failed {
                op_index,
                what: format!("unknown KV operation: {verb}"),
            }),
        }
    }
    if !unknown.is_empty() {
        return Ok(refused(unknown, Some(Read::known(false))));
    }
    let read_only = known.iter().all(reads);
    let named: Vec<_> = known.iter().map(Named::of).collect();
    let read = || read_only.then(|| Read::known(true));
    match pairs.apply(known).await {
        Ok(applied) => {
            let pairs: Vec<_> = applied
                .into_iter()
                .zip(&named)
                .flat_map(|(applied, named)| shown(applied, named))
                .collect();
            let results = pairs.iter().map(|pair| Of {
                kv: Entry::of(pair),
            });
            let answer = Answer {
                results: Some(results.collect()),
                errors: None,
                read: read(),
            };
            Ok(decorated(json(StatusCode::OK, &answer), answer.read))
        }
        Err(TxnError::Refused(failed)) => {
            let failed = failed.into_iter().map(|one| Failed {
                op_index: one.op,
                what: named[one.op].says(&one.key, &one.why),
            });
            Ok(refused(failed.collect(), read()))
        }
        Err(TxnError::Store(error)) => Err(error.into()),
    }
}

fn refused(errors: Vec<Failed>, read: Option<Read>) -> Reply {
    let answer = Answer {
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

fn operation(op: Value) -> Result<KvOp, Wrong> {
    let request = |reason: &str| Wrong::Request(unreadable(reason));
    let Value::Object(kinds) = op else {
        return Err(request("an operation must be an object"));
    };
    let mut kinds = kinds.into_iter().filter(|(_, value)| !value.is_null());
    let (kind, fields) = match (kinds.next(), kinds.next()) {
        (Some(only), None) => only,
        _ => return Err(request("an operation must have exactly one kind")),
    };
    if !kind.eq_ignore_ascii_case("KV") {
        let message = format!("{kind} operations are not supported by this version of mesh");
        return Err(Wrong::Request(bad_request(message)));
    }
    let Value::Object(fields) = fields else {
        return Err(request("KV must be an object"));
    };
    let field = |name: &str| {
        let mut found = fields
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .next()
            .map(|(_, value)| value)
            .filter(|value| !value.is_null())
    };
    let text = |name: &str| match field(name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(request(&format!("KV.{name} must be a string"))),
    };
    let number = |name: &str| match field(name) {
        None => Ok(0),
        Some(value) => value
            .as_u64()
            .ok_or_else(|| request(&format!("KV.{name} must be a whole number"))),
    };
    let value = STANDARD.decode(text("Value")?).map_err(|error| {
        let at = match error {
            base64::DecodeError::InvalidByte(at, _)
            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            _ => 0,
        };
        request(&format!("illegal base64 data at input byte {at}"))
    })?;
    let value = value.into();
    let (key, verb) = (text("Key")?, text("Verb")?);
    let (flags, index) = (number("Flags")?, number("Index")?);
    let session = text("Session")?;
    Ok(match verb.as_str() {
        "set" => KvOp::Set {
            key,
            value,
            flags,
            cas: None,
            ttl: None,
        },
        "cas" => KvOp::Set {
            key,
            value,
            flags,
            cas: Some(index),
            ttl: None,
        },
        "delete" => KvOp::Delete { key, cas: None },
        "delete-cas" => KvOp::Delete {
            key,
            cas: Some(index),
        },
        "delete-tree" => KvOp::DeleteTree { prefix: key },
        "lock" => KvOp::Lock {
            key,
            value,
            flags,
            session,
        },
        "unlock" => KvOp::Unlock {
            key,
            value,
            flags,
            session,
        },
        "get" => KvOp::Get { key },
        "get-or-empty" => KvOp::GetOrEmpty { key },
        "get-tree" => KvOp::GetTree { prefix: key },
        "check-index" => KvOp::CheckIndex { key, index },
        "check-session" => KvOp::CheckSession { key, session },
        "check-not-exists" => KvOp::CheckAbsent { key },
        _ => return Err(Wrong::Verb(verb)),
    })
}

fn reads(op: &KvOp) -> bool {
    matches!(
        op,
        KvOp::Get { .. }
            | KvOp::GetOrEmpty { .. }
            | KvOp::GetTree { .. }
            | KvOp::CheckIndex { .. }
            | KvOp::CheckSession { .. }
            | KvOp::CheckAbsent { .. }
    )
}

/// What an answer needs to know of an operation.
enum Named {
    Set,
    Delete,
    Lock,
    Unlock,
    /// Shown even if there is no such key.
    GetOrEmpty(String),
    Index(u64),
    Session(String),
    Other,
}

impl Named {
    fn of(op: &KvOp) -> Self {
        match op {
            KvOp::Set { .. } => Self::Set,
            KvOp::Delete { .. } => Self::Delete,
            KvOp::Lock { .. } => Self::Lock,
            KvOp::Unlock { .. } => Self::Unlock,
            KvOp::GetOrEmpty { key } => Self::GetOrEmpty(key.clone()),
            KvOp::CheckIndex { index, .. } => Self::Index(*index),
            KvOp::CheckSession { session, .. } => Self::Session(session.clone()),
            _ => Self::Other,
        }
    }

    /// Consul's words.
    fn says(&self, key: &str, why: &Refusal) -> String {
        match (self, why) {
            (_, Refusal::NoSession(id)) => format!("invalid session {id:?}"),
            (_, Refusal::Delayed) => format!("failed to lock key {key:?} due to lock delay"),
            (Self::Set, _) => format!("failed to set key {key:?}, index is stale"),
            (Self::Delete, _) => format!("failed to delete key {key:?}, index is stale"),
            (Self::Lock, _) => format!("failed to lock key {key:?}, lock is already held"),
            (Self::Unlock, _) => format!(
                "failed to unlock key {key:?}, lock isn't held, or is held by another session"
            ),
            (Self::Index(wanted), Refusal::Stale(current)) => format!(
                "failed index check for key {key:?}, current modify index {current} != {wanted}"
            ),
            (Self::Session(wanted), Refusal::HeldBy(holder)) => format!(
                "failed session check for key {key:?}, current session {holder:?} != {wanted:?}"
            ),
            (_, Refusal::Exists) => format!("key {key:?} exists"),
            _ => format!("key {key:?} doesn't exist"),
        }
    }
}

fn shown(applied: Applied, named: &Named) -> Vec<Pair> {
    match (applied, named) {
        (Applied::Read(pairs), Named::GetOrEmpty(key)) if pairs.is_empty() => vec![Pair {
            key: key.clone(),
            value: bytes::Bytes::new(),
            flags: 0,
            session: None,
            lock_index: 0,
            created: 0,
            modified: 0,
        }],
        (Applied::Read(pairs), _) => pairs.into_iter().map(Pair::from).collect(),
        (Applied::Pair(pair), _) => vec![pair.into()],
        (Applied::Done, _) => Vec::new(),
    }
}
