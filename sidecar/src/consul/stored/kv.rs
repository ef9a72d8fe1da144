//! `/v1/kv/`

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use vault_kv::KvOp;

use super::{Opener, Pair, Pairs, Scope, conflicting, decorate, number, on, read_blocking};
use crate::{
    consul::{MAX_VALUE, Refused, bad_request, blocking::Blocking},
    http::{Call, Reply, Routes, empty, json},
};

/// A pair in Consul's shape.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
    create_index: u64,
    modify_index: u64,
}

impl<'a> Entry<'a> {
    pub fn of(pair: &'a Pair) -> Self {
        Self {
            lock_index: pair.lock_index,
            key: &pair.key,
            flags: pair.flags,
            value: (!pair.value.is_empty()).then(|| STANDARD.encode(&pair.value)),
            session: pair.session.as_deref(),
            create_index: pair.created,
            modify_index: pair.modified,
        }
    }
}

pub fn routes(open: &Opener) -> Routes {
    Routes::new()
        .on(Method::GET, "/v1/kv/*key", on(open, get))
        .on(Method::PUT, "/v1/kv/*key", on(open, put))
        .on(Method::DELETE, "/v1/kv/*key", on(open, delete))
}

fn key(call: &Call, whole_tree: bool) -> Result<&str, Refused> {
    match call.params.get("key") {
        "" if !whole_tree => Err(bad_request("Missing key name")),
        key => Ok(key),
    }
}

/// Parameters count by presence: `?recurse=false` recurses, as with Consul.
async fn get(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let (recurse, keys) = (call.query.has("recurse"), call.query.has("keys"));
    let key = key(&call, recurse || keys)?;
    let blocking = Blocking::of(&call)?;
    let scope = match recurse || keys {
        true => Scope::Prefix(key),
        false => Scope::Key(key),
    };
    let (found, index) = read_blocking(&pairs, &call, &blocking, scope).await?;
    let mut reply = match found.first() {
        None if keys && key.is_empty() => json(StatusCode::OK, &[(); 0]),
        None => empty(StatusCode::NOT_FOUND),
        Some(_) if keys => {
            let separator = call.query.get("separator").or(call.query.get("seperator"));
            json(StatusCode::OK, &fold(&found, key, separator.unwrap_or("")))
        }
        Some(first) if call.query.has("raw") && !recurse => raw(first.value.clone()),
        Some(_) => json(
            StatusCode::OK,
            &found.iter().map(Entry::of).collect::<Vec<_>>(),
        ),
    };
    decorate(&mut reply, index);
    Ok(reply)
}

/// Key names; what is deeper than the next separator becomes one name that ends with it.
fn fold<'a>(found: &'a [Pair], prefix: &str, separator: &str) -> BTreeSet<&'a str> {
    let name = |pair: &'a Pair| {
        let rest = &pair.key[prefix.len()..];
        match rest.find(separator) {
            Some(at) if !separator.is_empty() => &pair.key[..prefix.len() + at + separator.len()],
            _ => pair.key.as_str(),
        }
    };
    found.iter().map(name).collect()
}

/// A value as it is; the headers keep a browser from running it.
fn raw(value: Bytes) -> Reply {
    let mut reply = Reply::new(value.into());
    for (name, value) in [
        (header::CONTENT_TYPE, "text/plain"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "sandbox"),
    ] {
        reply
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    reply
}

async fn put(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let key = key(&call, false)?.to_owned();
    let query = &call.query;
    let given = |name: &str| query.get(name).map(|value| format!("{name}={value}"));
    let conditions: Vec<String> = ["acquire", "cas", "release"]
        .into_iter()
        .filter_map(given)
        .collect();
    if let [first, second, ..] = conditions.as_slice() {
        return Err(conflicting(first, second));
    }
    let value = call.body().clone();
    if value.len() > MAX_VALUE {
        let size = value.len();
        return Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Request body({size} bytes) too large, max size: {MAX_VALUE} bytes."),
        ));
    }
    let flags = number(&call, "flags")?.unwrap_or(0);
    let value = value.to_vec().into();
    let session = |name: &str| query.get(name).map(str::to_owned);
    let op = match (session("acquire"), session("release")) {
        (Some(session), _) => KvOp::Lock {
            key,
            value,
            flags,
            session,
        },
        (None, Some(session)) => KvOp::Unlock {
            key,
            value,
            flags,
            session,
        },
        (None, None) => KvOp::Set {
            key,
            value,
            flags,
            cas: number(&call, "cas")?,
            ttl: None,
        },
    };
    Ok(json(StatusCode::OK, &pairs.change(op).await?))
}

async fn delete(pairs: Pairs, call: Call) -> Result<Reply, Refused> {
    let (recurse, cas) = (call.query.get("recurse"), call.query.get("cas"));
    let key = key(&call, recurse.is_some())?.to_owned();
    if let (Some(recurse), Some(cas)) = (recurse, cas) {
        return Err(conflicting(
            &format!("cas={cas}"),
            &format!("recurse={recurse}"),
        ));
    }
    let op = match recurse {
        Some(_) => KvOp::DeleteTree { prefix: key },
        None => KvOp::Delete {
            key,
            cas: number(&call, "cas")?,
        },
    };
    Ok(json(StatusCode::OK, &pairs.change(op).await?))
}
