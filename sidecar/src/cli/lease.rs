//! `mesh lease`

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Failure, Global, output};
use crate::http::query::encode;

/// Look at, renew and end what was handed out for a time. Leases of tokens are below auth/.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a lease.
    Lookup {
        /// Its id, for example ssh/creds/ops/qTm…
        id: String,
    },
    /// List leases directly below a path.
    List {
        /// For example ssh/creds/ops
        path: String,
    },
    /// Give a lease a longer life, as far as it may have one.
    Renew {
        /// Its id.
        id: String,
        /// For how long from now, for example 30m; as the last time without it.
        #[arg(long, value_name = "DURATION")]
        increment: Option<String>,
    },
    /// End a lease, or all below a path.
    Revoke {
        /// Its id, or with --prefix a path.
        id: String,
        /// All leases below the path.
        #[arg(long)]
        prefix: bool,
        /// Even those that cannot be taken back: they are forgotten, and what was handed out may go on working.
        #[arg(long, requires = "prefix")]
        force: bool,
    },
    /// List leases that could not be taken back, and why.
    Irrevocable,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.vault()?;
        match self {
            Command::Lookup { id } => {
                let what = "cannot look the lease up";
                let body = json!({ "lease_id": id });
                let path = "/v1/sys/leases/lookup";
                let answer = client.call(what, Method::POST, path, Some(&body)).await?;
                let answer: Value = answer.json(what)?;
                output::fields(global.output, &answer["data"])
            }
            Command::List { path } => {
                let what = "cannot list leases";
                let path = path.trim_matches('/');
                let at = format!("/v1/sys/leases/lookup/{}?list=true", encode(path));
                let answer = client.send(Method::GET, &at, "").await?;
                let keys = match answer.status {
                    StatusCode::NOT_FOUND => Vec::new(),
                    _ => {
                        let answer: Value = answer.ok(what)?.json(what)?;
                        let keys = answer["data"]["keys"].clone();
                        serde_json::from_value::<Vec<String>>(keys).unwrap_or_default()
                    }
                };
                let ids: Vec<_> = keys.iter().map(|key| format!("{path}/{key}")).collect();
                let rows = ids.iter().map(|id| vec![id.clone()]).collect();
                output::rows(global.output, &["LEASE"], rows, &ids)
            }
            Command::Renew { id, increment } => {
                let what = "cannot renew the lease";
                let mut body = json!({ "lease_id": id });
                if let Some(increment) = increment {
                    body["increment"] = increment.into();
                }
                let path = "/v1/sys/leases/renew";
                let answer = client.call(what, Method::POST, path, Some(&body)).await?;
                let answer: Value = answer.json(what)?;
                let life = match &answer["auth"] {
                    Value::Null => &answer["lease_duration"],
                    auth => &auth["lease_duration"],
                };
                let text = format!("renewed for {life} s");
                output::done(global.output, &text, &json!({ "lease_duration": life }))
            }
            Command::Revoke { id, prefix, force } => {
                let what = "cannot revoke the lease";
                let (path, body) = match (prefix, force) {
                    (false, _) => ("revoke".to_owned(), json!({"lease_id": id, "sync": true})),
                    (true, false) => {
                        let path = format!("revoke-prefix/{}", encode(id.trim_matches('/')));
                        (path, json!({"sync": true}))
                    }
                    (true, true) => {
                        let path = format!("revoke-force/{}", encode(id.trim_matches('/')));
                        (path, json!({}))
                    }
                };
                let path = format!("/v1/sys/leases/{path}");
                client.call(what, Method::POST, &path, Some(&body)).await?;
                let done = match prefix {
                    true => json!({ "prefix": id }),
                    false => json!({ "lease_id": id }),
                };
                output::done(global.output, "revoked", &done)
            }
            Command::Irrevocable => {
                let what = "cannot list leases";
                let path = "/v1/sys/leases?type=irrevocable&limit=none";
                let answer: Value = client.get(what, path).await?;
                let leases = answer["data"]["leases"].as_array().cloned();
                let leases = leases.unwrap_or_default();
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let rows = leases
                    .iter()
                    .map(|lease| vec![text(&lease["lease_id"]), text(&lease["error"])]);
                output::rows(global.output, &["LEASE", "WHY"], rows.collect(), &leases)
            }
        }
    }
}
