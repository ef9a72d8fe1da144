//! `mesh kv`

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Subcommand;
use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Exit, Failure, Global, input, output};
use crate::http::query::encode;

/// Read and write plain key-value pairs (not for secrets: see `mesh secret`).
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a key's value.
    Get {
        /// The key.
        key: String,
    },
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// The value; `-` reads stdin, `@FILE` a file.
        value: String,
        /// Only if the key's ModifyIndex is this; 0 = only if there is no such key.
        #[arg(long, value_name = "INDEX")]
        cas: Option<u64>,
        /// A number kept with the value.
        #[arg(long, default_value_t = 0)]
        flags: u64,
    },
    /// Delete a key.
    Delete {
        /// The key, or the prefix with --recurse.
        key: String,
        /// Delete every key that begins so.
        #[arg(long)]
        recurse: bool,
        /// Only if the key's ModifyIndex is this.
        #[arg(long, value_name = "INDEX", conflicts_with = "recurse")]
        cas: Option<u64>,
    },
    /// List keys.
    List {
        /// Only keys that begin so.
        #[arg(default_value = "")]
        prefix: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    value: Option<String>,
    flags: u64,
    create_index: u64,
    modify_index: u64,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        let path = |key: &str, query: &str| format!("/v1/kv/{}{query}", encode(key));
        match self {
            Command::Get { key } => {
                let what = format!("cannot read key {key:?}");
                let answer = client.send(Method::GET, &path(&key, ""), "").await?;
                if answer.status == StatusCode::NOT_FOUND {
                    return Err(
                        Failure::failed(format!("there is no key {key:?}")).next("mesh kv list")
                    );
                }
                let entries: Vec<Entry> = answer.ok(&what)?.json(&what)?;
                let Some(entry) = entries.first() else {
                    return Err(Failure::failed(format!("there is no key {key:?}")));
                };
                if global.output == output::Format::Json {
                    return output::json(entry);
                }
                let value = STANDARD.decode(entry.value.as_deref().unwrap_or_default());
                let mut value = value
                    .map_err(|error| Failure::new(Exit::Remote, format!("{what}: {error}")))?;
                value.push(b'\n');
                output::bytes(&value)
            }
            Command::Put {
                key,
                value,
                cas,
                flags,
            } => {
                let what = format!("cannot write key {key:?}");
                let value = match value.strip_prefix('@') {
                    Some(file) => {
                        Bytes::copy_from_slice(&input::file("the value", Path::new(file))?)
                    }
                    None if value == "-" => Bytes::copy_from_slice(&input::stdin("the value")?),
                    None => value.into(),
                };
                let cas = cas.map_or(String::new(), |index| format!("&cas={index}"));
                let path = path(&key, &format!("?flags={flags}{cas}"));
                let answer = client.send(Method::PUT, &path, value).await?.ok(&what)?;
                match answer.json(&what)? {
                    true => output::line(&format!("written: {key}")),
                    false => Err(changed(&what, &key)),
                }
            }
            Command::Delete { key, recurse, cas } => {
                let what = format!("cannot delete key {key:?}");
                let query = match (recurse, cas) {
                    (true, _) => "?recurse".to_owned(),
                    (false, Some(index)) => format!("?cas={index}"),
                    (false, None) => String::new(),
                };
                let answer = client
                    .call(&what, Method::DELETE, &path(&key, &query), None)
                    .await?;
                match answer.json(&what)? {
                    true => output::line(&format!("deleted: {key}")),
                    false => Err(changed(&what, &key)),
                }
            }
            Command::List { prefix } => {
                let what = format!("cannot list keys under {prefix:?}");
                let answer = client
                    .send(Method::GET, &path(&prefix, "?keys"), "")
                    .await?;
                let keys: Vec<String> = match answer.status {
                    StatusCode::NOT_FOUND => Vec::new(),
                    _ => answer.ok(&what)?.json(&what)?,
                };
                let rows = keys.iter().map(|key| vec![key.clone()]).collect();
                output::rows(global.output, &["KEY"], rows, &keys)
            }
        }
    }
}

fn changed(what: &str, key: &str) -> Failure {
    Failure::failed(format!("{what}: it changed in between"))
        .next(format!("mesh kv get -o json {key}"))
}
