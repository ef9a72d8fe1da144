//! `service-intentions`: the intentions towards one service as one entry.

use std::collections::BTreeMap;

use libmesh::bundle::ServiceMatch;
use serde_json::{Value, json};
use vault_kv::KvOp;
use zeroize::Zeroizing;

use super::{kinds::Intentions, with_indexes};
use crate::consul::{
    Refused, server_error,
    stored::{
        INTENTIONS, Pair, Pairs, Scope, intention_from_pair,
        intentions::{description, kept_value},
        pairs::TxnError,
    },
};

/// Where the intentions towards a service are.
pub fn scope(destination: &str) -> String {
    format!("{INTENTIONS}{destination}/")
}

/// One entry for each destination.
pub fn all(found: &[Pair]) -> Vec<Value> {
    let mut by_destination: BTreeMap<String, Vec<&Pair>> = BTreeMap::new();
    for pair in found {
        if let Some(intention) = intention_from_pair(pair) {
            let destination = intention.destination.to_string();
            by_destination.entry(destination).or_default().push(pair);
        }
    }
    let entries = by_destination.into_iter();
    entries.map(|(name, pairs)| entry(&name, &pairs)).collect()
}

fn entry(destination: &str, pairs: &[&Pair]) -> Value {
    let mut sources: Vec<_> = pairs
        .iter()
        .filter_map(|pair| Some((intention_from_pair(pair)?, description(pair))))
        .collect();
    sources.sort_by_key(|(intention, _)| {
        (
            std::cmp::Reverse(intention.precedence()),
            intention.source.to_string(),
        )
    });
    let sources: Vec<Value> = sources
        .iter()
        .map(|(intention, description)| {
            let mut source = json!({
                "Name": intention.source,
                "Action": intention.action,
                "Precedence": intention.precedence(),
                "Type": "consul",
            });
            if !description.is_empty() {
                source["Description"] = json!(description);
            }
            source
        })
        .collect();
    let entry = json!({"Kind": "service-intentions", "Name": destination, "Sources": sources});
    let created = pairs.iter().map(|pair| pair.created).min();
    let modified = pairs.iter().map(|pair| pair.modified).max();
    with_indexes(
        entry,
        created.unwrap_or_default(),
        modified.unwrap_or_default(),
    )
}

/// Makes the intentions towards a service exactly these, all at once.
pub async fn put(pairs: &Pairs, asked: &Intentions, cas: Option<u64>) -> Result<bool, Refused> {
    let name = |text: &str, field: &str| {
        let parsed: Result<ServiceMatch, _> = text.parse();
        parsed.map_err(|error| server_error(format!("{field}: {error}")))
    };
    let destination = name(&asked.destination, "Name")?;
    let scope = scope(&destination.to_string());
    let (found, _) = pairs.read(Scope::Prefix(&scope))?;
    let mut wanted = BTreeMap::new();
    for source in &asked.sources {
        let parsed = name(&source.name, "Sources.Name")?;
        let key = format!("{scope}{parsed}");
        let value = kept_value(source.action, &source.description);
        if wanted.insert(key, value).is_some() {
            return Err(server_error(format!(
                "Sources: {parsed} is there more than once"
            )));
        }
    }
    let gone = found.iter().filter(|pair| !wanted.contains_key(&pair.key));
    let gone = gone.map(|pair| KvOp::Delete {
        key: pair.key.clone(),
        cas: None,
    });
    let Some(mut ops) = unchanged(&found, cas) else {
        return Ok(false);
    };
    ops.extend(gone);
    ops.extend(wanted.into_iter().map(|(key, value)| KvOp::Set {
        key,
        value: Zeroizing::new(value.into_bytes()),
        flags: 0,
        cas: None,
        ttl: None,
    }));
    apply(pairs, ops).await
}

/// Takes away every intention towards a service.
pub async fn delete(pairs: &Pairs, name: &str, cas: Option<u64>) -> Result<bool, Refused> {
    let (found, _) = pairs.read(Scope::Prefix(&scope(name)))?;
    let Some(mut ops) = unchanged(&found, cas) else {
        return Ok(false);
    };
    ops.extend(found.into_iter().map(|pair| KvOp::Delete {
        key: pair.key,
        cas: None,
    }));
    if ops.is_empty() {
        return Ok(true);
    }
    apply(pairs, ops).await
}

/// That nobody changes them before it is written, if they are those of `cas`.
fn unchanged(found: &[Pair], cas: Option<u64>) -> Option<Vec<KvOp>> {
    let Some(cas) = cas else {
        return Some(Vec::new());
    };
    let modified = found.iter().map(|pair| pair.modified).max();
    (modified.unwrap_or(0) == cas).then(|| {
        let same = found.iter().map(|pair| KvOp::CheckIndex {
            key: pair.key.clone(),
            index: pair.modified,
        });
        same.collect()
    })
}

/// `false`: somebody changed them meanwhile.
async fn apply(pairs: &Pairs, ops: Vec<KvOp>) -> Result<bool, Refused> {
    match pairs.apply(ops).await {
        Ok(_) => Ok(true),
        Err(TxnError::Refused(_)) => Ok(false),
        Err(TxnError::Store(error)) => Err(error.into()),
    }
}
