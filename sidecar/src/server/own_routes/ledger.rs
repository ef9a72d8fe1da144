//! The ledger: reading it, checking it, taking out for good what nobody needs.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use serde_json::{Value, json};
use vault_kv::Capability;

use super::{Outcome, Refused, asker, audited, bad, blocking};
use crate::{
    http::{Call, json as json_reply},
    server::{Shared, records::hex},
};

/// Entries in one page of the history.
const MAX_HISTORY: usize = 1000;

pub(super) async fn history(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/ledger")?;
    let number = |name: &str| -> Result<Option<u64>, Refused> {
        let given = call.query.filled(name).map(str::parse);
        given
            .transpose()
            .map_err(|_| bad(format!("{name}: not a number")))
    };
    let limit = number("limit")?.unwrap_or(10).min(MAX_HISTORY as u64);
    let before = number("before")?;
    let ledger = shared.vault.ledger();
    let count = usize::try_from(limit).unwrap_or(MAX_HISTORY);
    let items = blocking(move || ledger.history(count, before)).await?;
    let items: Vec<Value> = items
        .into_iter()
        .map(|item| {
            json!({
                "index": item.index,
                "time": rfc3339(item.meta.time),
                "actor": item.meta.actor,
                "via": item.meta.via,
                "operation": item.meta.operation,
                "keys": item.meta.keys,
                "reason": item.meta.reason,
            })
        })
        .collect();
    Ok(json_reply(StatusCode::OK, &items))
}

pub(super) async fn verify(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/ledger")?;
    let ledger = shared.vault.ledger();
    let report = match blocking(move || ledger.verify()).await {
        Ok(verified) => json!({
            "ok": true,
            "entries": verified.entries,
            "head_index": verified.head.index,
            "head_hash": hex(&verified.head.hash),
            "redacted_parts": verified.redacted,
        }),
        Err(error) => json!({"ok": false, "error": error.to_string()}),
    };
    Ok(json_reply(StatusCode::OK, &report))
}

/// Goes on to its end, and to its line in the audit log, also when the client goes away.
pub(super) async fn compact(shared: Arc<Shared>, call: Call) -> Outcome {
    let asker = asker(&shared, &call);
    let attended = asker.attend(Capability::Update, "mesh/ledger").await?;
    let ledger = shared.vault.ledger();
    let compacting = tokio::spawn(async move {
        let compacted = blocking(move || ledger.compact()).await;
        let outcome = compacted.map_err(Refused::from).map(|compacted| {
            let report = json!({
                "head_index": compacted.head,
                "redacted_parts": compacted.redacted,
                "bytes_before": compacted.bytes_before,
                "bytes_after": compacted.bytes_after,
            });
            json_reply(StatusCode::OK, &report)
        });
        audited(attended, outcome).await
    });
    compacting.await.unwrap_or_else(|_| {
        let message = "the compaction was cut off; nothing is lost";
        Err(Refused(
            StatusCode::INTERNAL_SERVER_ERROR,
            message.to_owned(),
        ))
    })
}

fn rfc3339(micros: i64) -> String {
    let since = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
    let at: SystemTime = UNIX_EPOCH + since;
    humantime::format_rfc3339_millis(at).to_string()
}
