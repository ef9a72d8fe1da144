//! `mesh intention`

use clap::{Args, Subcommand};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Failure, Global, output};
use crate::http::query::encode;

/// Say which service may call which. `*` stands for every service.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Let SOURCE call DESTINATION.
    Allow(Pair),
    /// Refuse calls of SOURCE to DESTINATION; open connections are closed.
    Deny(Pair),
    /// List all intentions, the ones that win first.
    List,
    /// Remove the intention for SOURCE and DESTINATION; what remains, or the default, decides.
    Remove {
        /// The calling service, or `*`.
        source: String,
        /// The called service, or `*`.
        destination: String,
    },
}

/// Caller and called, and why.
#[derive(Debug, Args)]
pub struct Pair {
    /// The calling service, or `*`.
    source: String,
    /// The called service, or `*`.
    destination: String,
    /// Why, for the history.
    #[arg(long, default_value = "")]
    description: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Intention {
    source_name: String,
    destination_name: String,
    action: String,
    precedence: u32,
    #[serde(default)]
    description: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        let (pair, action) = match self {
            Command::Allow(pair) => (pair, "allow"),
            Command::Deny(pair) => (pair, "deny"),
            Command::List => {
                let list: Vec<Intention> = client
                    .get("cannot list intentions", "/v1/connect/intentions")
                    .await?;
                let rows = list.iter().map(|i| {
                    vec![
                        i.source_name.clone(),
                        i.destination_name.clone(),
                        i.action.clone(),
                        i.precedence.to_string(),
                        i.description.clone(),
                    ]
                });
                let header = [
                    "SOURCE",
                    "DESTINATION",
                    "ACTION",
                    "PRECEDENCE",
                    "DESCRIPTION",
                ];
                return output::rows(global.output, &header, rows.collect(), &list);
            }
            Command::Remove {
                source,
                destination,
            } => {
                let what = format!("cannot remove the intention {source} -> {destination}");
                let path = path(&source, &destination);
                let known = client.send(Method::GET, &path, "").await?;
                known
                    .ok(&what)
                    .map_err(|failure| failure.next("mesh intention list"))?;
                client.call(&what, Method::DELETE, &path, None).await?;
                return output::line(&format!("removed: {source} -> {destination}"));
            }
        };
        let (source, destination) = (&pair.source, &pair.destination);
        let what = format!("cannot {action} {source} -> {destination}");
        let body = json!({"Action": action, "Description": pair.description});
        client
            .call(&what, Method::PUT, &path(source, destination), Some(&body))
            .await?;
        output::line(&format!("{action}: {source} -> {destination}"))
    }
}

fn path(source: &str, destination: &str) -> String {
    format!(
        "/v1/connect/intentions/exact?source={}&destination={}",
        encode(source),
        encode(destination)
    )
}
