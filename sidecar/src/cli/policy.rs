//! `mesh policy`

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Exit, Failure, Global, input, output};
use crate::http::query::encode;

/// Read and write policies: what tokens and identities may do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the names of all policies.
    List,
    /// Print a policy.
    Show {
        /// Its name.
        name: String,
    },
    /// Write a policy, in HCL or JSON.
    #[command(after_help = "For example: mesh policy put readers @readers.hcl")]
    Put {
        /// Its name.
        name: String,
        /// @FILE, or - for stdin.
        source: String,
    },
    /// Delete a policy. Who has it has nothing by it from then on.
    Delete {
        /// Its name.
        name: String,
    },
    /// Say why the caller may or may not do something; exit code 77 when not.
    Explain {
        /// Path of the API, for example secret/data/web/db
        path: String,
        /// create, read, update, patch, delete, list or sudo
        #[arg(default_value = "read")]
        capability: String,
    },
}

const PATH: &str = "/v1/sys/policies/acl";

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.secrets()?;
        match self {
            Command::List => {
                let what = "cannot list policies";
                let answer: Value = client.get(what, &format!("{PATH}?list=true")).await?;
                let names = answer["data"]["keys"].as_array().cloned();
                let names = names.unwrap_or_default();
                let rows = names
                    .iter()
                    .filter_map(|name| Some(vec![name.as_str()?.to_owned()]));
                output::rows(global.output, &["NAME"], rows.collect(), &names)
            }
            Command::Show { name } => {
                let what = format!("cannot read policy {name:?}");
                let answer = client.send(Method::GET, &at(&name), "").await?;
                if answer.status == StatusCode::NOT_FOUND {
                    return Err(Failure::failed(format!("there is no policy {name:?}"))
                        .next("mesh policy list"));
                }
                let answer: Value = answer.ok(&what)?.json(&what)?;
                match global.output {
                    output::Format::Json => output::json(&answer["data"]),
                    output::Format::Table => {
                        let text = answer["data"]["policy"].as_str().unwrap_or_default();
                        output::line(text.trim_end())
                    }
                }
            }
            Command::Put { name, source } => {
                let what = format!("cannot write policy {name:?}");
                let bytes = match (source.as_str(), source.strip_prefix('@')) {
                    ("-", _) => input::stdin("the policy")?,
                    (_, Some(file)) => input::file("the policy", file.as_ref())?,
                    _ => {
                        return Err(Failure::usage(format!(
                            "{source:?} is neither `-` for stdin nor `@FILE`"
                        )));
                    }
                };
                let text = std::str::from_utf8(&bytes)
                    .map_err(|_| Failure::usage("the policy is not UTF-8 text"))?;
                let body = json!({ "policy": text });
                client
                    .call(&what, Method::PUT, &at(&name), Some(&body))
                    .await?;
                let name = name.to_lowercase();
                let text = format!("written: policy {name}");
                output::done(global.output, &text, &json!({ "name": name }))
            }
            Command::Delete { name } => {
                let what = format!("cannot delete policy {name:?}");
                client.call(&what, Method::DELETE, &at(&name), None).await?;
                let text = format!("deleted: policy {name}");
                output::done(global.output, &text, &json!({ "name": name }))
            }
            Command::Explain { path, capability } => {
                let what = format!("cannot explain {path:?}");
                let body = json!({"path": path, "capability": capability});
                let at = "/v1/sys/explain";
                let answer = client.call(&what, Method::POST, at, Some(&body)).await?;
                let answer: Value = answer.json(&what)?;
                let data = &answer["data"];
                match global.output {
                    output::Format::Json => output::json(data)?,
                    output::Format::Table => {
                        output::line(data["reason"].as_str().unwrap_or_default())?;
                    }
                }
                match data["allowed"].as_bool() {
                    Some(true) => Ok(()),
                    _ => Err(Failure::silent(Exit::Denied)),
                }
            }
        }
    }
}

fn at(name: &str) -> String {
    format!("{PATH}/{}", encode(name))
}
