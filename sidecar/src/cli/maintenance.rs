//! `mesh maintenance`

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use http::Method;
use libmesh::health::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use serde::{Deserialize, Serialize};

use super::{Failure, Global, output};
use crate::http::query::encode;

/// Take this node, or one of its services, out of use for a while, and put it back.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take out of use at once: nobody sends new requests there. Survives a restart of the agent.
    On(On),
    /// Put back into use.
    Off(Target),
    /// List what is in maintenance on this node.
    List,
}

/// What.
#[derive(Debug, Args)]
pub struct Target {
    /// The instance's id, as `mesh services NAME` shows it; without it the whole node.
    #[arg(long, value_name = "ID")]
    service: Option<String>,
}

/// `on`
#[derive(Debug, Args)]
pub struct On {
    #[command(flatten)]
    target: Target,
    /// Why; shown to everybody who looks at the node.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    #[serde(rename = "ServiceID")]
    service: String,
    notes: String,
}

#[derive(Serialize)]
struct Row {
    /// Empty for the node.
    service: String,
    reason: String,
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        let set = async |target: &Target, query: String| {
            let (what, path) = match &target.service {
                Some(id) => (
                    format!("cannot change the maintenance of {id:?}"),
                    format!("/v1/agent/service/maintenance/{}", encode(id)),
                ),
                None => (
                    "cannot change the maintenance of the node".to_owned(),
                    "/v1/agent/maintenance".to_owned(),
                ),
            };
            let path = format!("{path}?{query}");
            client.call(&what, Method::PUT, &path, None).await.map(drop)
        };
        match self {
            Command::On(on) => {
                let query = format!("enable=true&reason={}", encode(&on.reason));
                set(&on.target, query).await
            }
            Command::Off(target) => set(&target, "enable=false".to_owned()).await,
            Command::List => {
                let what = "cannot list the checks of this node";
                let checks: BTreeMap<String, Check> = client.get(what, "/v1/agent/checks").await?;
                let reserved = |check: &Check| {
                    check.id == NODE_MAINTENANCE || check.id.starts_with(SERVICE_MAINTENANCE)
                };
                let list: Vec<Row> = checks
                    .into_values()
                    .filter(reserved)
                    .map(|check| Row {
                        service: check.service,
                        reason: check.notes,
                    })
                    .collect();
                let rows = list.iter().map(|row| {
                    let what = match row.service.as_str() {
                        "" => "(node)".to_owned(),
                        id => id.to_owned(),
                    };
                    vec![what, row.reason.clone()]
                });
                output::rows(global.output, &["SERVICE", "REASON"], rows.collect(), &list)
            }
        }
    }
}
