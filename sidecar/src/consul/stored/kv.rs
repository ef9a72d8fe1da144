//! `/v1/kv/`

use std::{collections::BTreeSet, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;

use super::{Change, Opener, Pair, Scope, conflicting, decorate, number, read_blocking};
use crate::{
    consul::{MAX_VALUE, Refused, bad_request, blocking::Blocking, server_error},
    http::{Call, Reply, Routes, empty, json},
};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    lock_index: u64,
    key: &'a str,
    flags: u64,
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
}

pub fn routes(open: &Opener) -> Routes {
    let on = |run: Kind| {
        let open = Arc::clone(open);
        move |call: Call| {
            let open = Arc::clone(&open);
            async move { answer(run, &open, &call).await.unwrap_or_else(Reply::from) }
        }
    };
    Routes::new()
        .on(Method::GET, "/v1/kv/*key", on(Kind::Get))
        .on(Method::PUT, "/v1/kv/*key", on(Kind::Put))
        .on(Method::DELETE, "/v1/kv/*key", on(Kind::Delete))
}

#[derive(Clone, Copy)]
enum Kind {
    Get,
    Put,
    Delete,
}

async fn answer(kind: Kind, open: &Opener, call: &Call) -> Result<Reply, Refused> {
    let key = call.params.get("key");
    let whole_tree = match kind {
        Kind::Get => call.query.has("recurse") || call.query.has("keys"),
        Kind::Put => false,
        Kind::Delete => call.query.has("recurse"),
    };
    if key.is_empty() && !whole_tree {
        return Err(bad_request("Missing key name"));
    }
    match kind {
        Kind::Get => get(open, call, key).await,
        Kind::Put => put(open, call, key).await,
        Kind::Delete => delete(open, call, key).await,
    }
}

/// Parameters count by presence: `?recurse=false` recurses, as with Consul.
async fn get(open: &Opener, call: &Call, key: &str) -> Result<Reply, Refused> {
    let blocking = Blocking::of(call)?;
    let (recurse, keys) = (call.query.has("recurse"), call.query.has("keys"));
    let scope = match recurse || keys {
        true => Scope::Prefix(key),
        false => Scope::Key(key),
    };
    let pairs = open(call).await?;
    let (found, index) = read_blocking(&*pairs, call, &blocking, scope).await?;
    let mut reply = match found.first() {
        None if keys && key.is_empty() => json(StatusCode::OK, &[(); 0]),
        None => empty(StatusCode::NOT_FOUND),
        Some(_) if keys => {
            let separator = call.query.get("separator").or(call.query.get("seperator"));
            json(StatusCode::OK, &fold(&found, key, separator.unwrap_or("")))
        }
        Some(first) if call.query.has("raw") && !recurse => raw(first.value.clone()),
        Some(_) => json(StatusCode::OK, &found.iter().map(entry).collect::<Vec<_>>()),
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

fn entry(pair: &Pair) -> Entry<'_> {
    Entry {
        lock_index: 0,
        key: &pair.key,
        flags: pair.flags,
        value: (!pair.value.is_empty()).then(|| STANDARD.encode(&pair.value)),
        create_index: pair.created,
        modify_index: pair.modified,
    }
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

async fn put(open: &Opener, call: &Call, key: &str) -> Result<Reply, Refused> {
    let query = &call.query;
    let given = |name: &str| query.get(name).map(|value| format!("{name}={value}"));
    let conditions: Vec<String> = ["acquire", "cas", "release"]
        .into_iter()
        .filter_map(given)
        .collect();
    if let [first, second, ..] = conditions.as_slice() {
        return Err(conflicting(first, second));
    }
    if query.has("acquire") || query.has("release") {
        return Err(server_error(
            "locks are not supported by this version of mesh: there are no sessions",
        ));
    }
    let value = call.body().clone();
    if value.len() > MAX_VALUE {
        let size = value.len();
        return Err(Refused::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Request body({size} bytes) too large, max size: {MAX_VALUE} bytes."),
        ));
    }
    let change = Change::Put {
        key,
        value,
        flags: number(call, "flags")?.unwrap_or(0),
        cas: number(call, "cas")?,
    };
    let pairs = open(call).await?;
    Ok(json(StatusCode::OK, &pairs.change(change).await?))
}

async fn delete(open: &Opener, call: &Call, key: &str) -> Result<Reply, Refused> {
    let (recurse, cas) = (call.query.get("recurse"), call.query.get("cas"));
    if let (Some(recurse), Some(cas)) = (recurse, cas) {
        return Err(conflicting(
            &format!("cas={cas}"),
            &format!("recurse={recurse}"),
        ));
    }
    let change = Change::Delete {
        scope: match recurse {
            Some(_) => Scope::Prefix(key),
            None => Scope::Key(key),
        },
        cas: number(call, "cas")?,
    };
    let pairs = open(call).await?;
    Ok(json(StatusCode::OK, &pairs.change(change).await?))
}
