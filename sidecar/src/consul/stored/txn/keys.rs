//! Operations on keys.
//!
//! As with Consul, an operation that the asker has no right to is one that does not apply, and a read shows what of the
//! result may be read, even if that is nothing.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Map, Value};
use vault_kv::{Applied, KvOp, Refusal};

use super::{
    super::{Pair, Pairs, StoreError, kv::Entry, pairs::TxnError},
    Failed, Op, Read, applied, refused, unreadable,
};
use crate::{consul::Refused, http::Reply};

#[derive(Serialize)]
struct Of<T> {
    #[serde(rename = "KV")]
    kv: T,
}

/// Why an operation does not come to be.
enum Wrong {
    /// The whole request is refused.
    Request(Refused),
    /// It is answered as a transaction that does not apply.
    Verb(String),
}

pub async fn txn(pairs: &Pairs, ops: Vec<Op>) -> Result<Reply, Refused> {
    let sees = pairs.sees()?;
    let mut allowed = Vec::with_capacity(ops.len());
    let mut failed = Vec::new();
    let mut read_only = true;
    for (op_index, (_, fields)) in ops.into_iter().enumerate() {
        let what = match operation(&fields) {
            Ok(op) => {
                read_only &= reads(&op);
                let of_all = matches!(op, KvOp::DeleteTree { .. } | KvOp::GetTree { .. });
                match pairs.permits(&op) {
                    Ok(()) if op.key().is_empty() && !of_all => "Must provide key".to_owned(),
                    Ok(()) => {
                        allowed.push(op);
                        continue;
                    }
                    Err(denied @ StoreError::Denied(_)) => denied.to_string(),
                    Err(error) => return Err(error.into()),
                }
            }
            Err(Wrong::Request(refused)) => return Err(refused),
            Err(Wrong::Verb(verb)) => format!("unknown KV operation: {verb}"),
        };
        failed.push(Failed { op_index, what });
    }
    if !failed.is_empty() {
        return Ok(refused(failed, read_only.then(|| Read::known(false))));
    }
    // Whether there is a key is not told either: one that may not be read is not missed.
    let hidden = |op: KvOp| match op {
        KvOp::Get { key } if !sees(&key) => KvOp::GetOrEmpty { key },
        op => op,
    };
    let ops: Vec<_> = allowed.into_iter().map(hidden).collect();
    let named: Vec<_> = ops.iter().map(Named::of).collect();
    let read = read_only.then(|| Read::known(true));
    match pairs.apply(ops).await {
        Ok(done) => {
            let done = done.into_iter().zip(&named);
            let all: Vec<_> = done.flat_map(|(done, named)| shown(done, named)).collect();
            let seen: Vec<_> = all.iter().filter(|pair| sees(&pair.key)).collect();
            let read = read.map(|read| Read {
                results_filtered: seen.len() < all.len(),
                ..read
            });
            let results = seen.into_iter().map(|pair| Of {
                kv: Entry::of(pair),
            });
            Ok(applied(results.collect(), read))
        }
        Err(TxnError::Refused(failed)) => {
            let failed = failed.into_iter().map(|one| Failed {
                op_index: one.op,
                what: named[one.op].says(&one.key, &one.why),
            });
            Ok(refused(failed.collect(), read))
        }
        Err(TxnError::Store(error)) => Err(error.into()),
    }
}

fn operation(fields: &Map<String, Value>) -> Result<KvOp, Wrong> {
    let request = |reason: &str| Wrong::Request(unreadable(reason));
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
