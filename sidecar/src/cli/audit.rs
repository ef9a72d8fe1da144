//! `mesh audit`

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::{Failure, Global, input, output};
use crate::http::query::encode;

/// Find things in the audit log. Sinks are configured on the server's host: server.audit.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the sinks.
    List,
    /// Print how a text appears in the log: values are written as keyed hashes.
    Hash {
        /// The text: - for stdin or @FILE; a prompt without it.
        #[arg(value_name = "SOURCE")]
        text: Option<String>,
        /// The sink.
        #[arg(long, default_value = "file")]
        sink: String,
    },
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.vault()?;
        match self {
            Command::List => {
                let answer: Value = client.get("cannot list sinks", "/v1/sys/audit").await?;
                let sinks = answer["data"].as_object().cloned().unwrap_or_default();
                let rows = sinks.iter().map(|(name, sink)| {
                    let file = &sink["options"]["file_path"];
                    let name = name.trim_end_matches('/').to_owned();
                    vec![name, file.as_str().unwrap_or_default().to_owned()]
                });
                output::rows(global.output, &["SINK", "FILE"], rows.collect(), &sinks)
            }
            Command::Hash { text, sink } => {
                let what = "cannot hash the text";
                let text = input::secret_line("the text", text.as_deref())?;
                let path = format!("/v1/sys/audit-hash/{}", encode(&sink));
                let body = json!({ "input": *text });
                let answer = client.call(what, Method::POST, &path, Some(&body)).await?;
                let answer: Value = answer.json(what)?;
                let hash = answer["data"]["hash"].as_str().unwrap_or_default();
                output::done(global.output, hash, &json!({ "hash": hash }))
            }
        }
    }
}
