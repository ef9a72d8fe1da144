//! `mesh operator verify`, `history` and `compact`

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{facts, hex};
use crate::cli::{Failure, Global, output};

/// The longest wait for what goes through the whole ledger. It goes on in the server when nobody waits any more.
const WHOLE_LEDGER: Duration = Duration::from_secs(6 * 3600);

/// Which ledger.
#[derive(Debug, Args)]
pub struct Verify {
    /// Of the store in this directory, without a server and without any key.
    #[arg(long, value_name = "STORE")]
    dir: Option<PathBuf>,
}

impl Verify {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let report: Value = match self.dir {
            Some(dir) => offline(&dir),
            None => {
                let client = global.addresses.vault()?.patient(WHOLE_LEDGER);
                let what = "cannot verify the ledger";
                client.get(what, "/v1/mesh/ledger/verify").await?
            }
        };
        output::json(&report)?;
        match report["ok"].as_bool() {
            Some(true) => Ok(()),
            _ => Err(Failure::failed("the ledger does not verify")),
        }
    }
}

/// Walks the log of a store in a directory; whether a server runs on it does not matter.
fn offline(dir: &Path) -> Value {
    match vault_kv::verify(dir) {
        Ok(verified) => json!({
            "ok": true, "entries": verified.entries, "head_index": verified.head.index,
            "head_hash": hex(&verified.head.hash), "redacted_parts": verified.redacted,
        }),
        Err(error) => json!({"ok": false, "error": error.to_string()}),
    }
}

/// Which entries.
#[derive(Debug, Args)]
pub struct History {
    /// How many.
    #[arg(long, default_value_t = 10)]
    last: u32,
    /// Only entries before this index.
    #[arg(long)]
    before: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct HistoryItem {
    index: u64,
    time: String,
    actor: String,
    #[serde(default)]
    via: String,
    operation: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default)]
    reason: String,
}

impl History {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let Self { last, before } = self;
        let before = before.map_or(String::new(), |index| format!("&before={index}"));
        let path = format!("/v1/mesh/ledger?limit={last}{before}");
        let client = global.addresses.vault()?;
        let items: Vec<HistoryItem> = client.get("cannot read the history", &path).await?;
        let rows = items.iter().map(|item| {
            vec![
                item.index.to_string(),
                item.time.clone(),
                item.actor.clone(),
                item.via.clone(),
                item.operation.clone(),
                item.keys.join(","),
            ]
        });
        let header = ["INDEX", "TIME", "WHO", "VIA", "WHAT", "KEYS"];
        output::rows(global.output, &header, rows.collect(), &items)
    }
}

#[derive(Deserialize)]
struct Compacted {
    head_index: u64,
    redacted_parts: u64,
    bytes_before: u64,
    bytes_after: u64,
}

/// Runs `mesh operator compact`.
pub async fn compact(global: &Global) -> Result<(), Failure> {
    let what = "cannot compact the store";
    let client = global.addresses.vault()?.patient(WHOLE_LEDGER);
    let path = "/v1/mesh/ledger/compact";
    let answer = client.call(what, Method::PUT, path, None).await?;
    let Compacted {
        head_index,
        redacted_parts,
        bytes_before,
        bytes_after,
    } = answer.json(what)?;
    let shown = vec![
        ("head_index", json!(head_index)),
        ("redacted_parts", json!(redacted_parts)),
        ("bytes_before", json!(bytes_before)),
        ("bytes_after", json!(bytes_after)),
    ];
    facts(global, "COMPACTED", shown)
}
