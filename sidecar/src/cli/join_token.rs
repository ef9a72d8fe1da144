//! `mesh join-token`

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Failure, Global, input, output};
use crate::{config::parse_duration, http::query::encode};

/// Make, list and revoke the tokens with which new nodes join.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token. It is shown once.
    Create(Create),
    /// List tokens that can still be used.
    List,
    /// Make a token worthless. Nodes that joined with it stay.
    Revoke {
        /// The token's id, as `list` shows it.
        id: String,
    },
}

/// What the new token grants.
#[derive(Debug, Args)]
pub struct Create {
    /// Services the node may publish: names, or patterns such as `web-*`; repeatable. Without it none.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    publish: Vec<String>,
    /// How many nodes may join with it.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// How long it is good for.
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// Write the token to this new file (mode 0600) instead of the terminal.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    id: String,
    #[serde(default)]
    publish: Vec<String>,
    uses_left: u32,
    expires: String,
}

#[derive(Deserialize)]
struct Created {
    token: String,
}

const PATH: &str = "/v1/mesh/join-tokens";

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.agent()?;
        match self {
            Command::Create(create) => {
                let out = create.out.as_deref();
                input::check_deliverable("the join token", out)?;
                let body = json!({
                    "publish": create.publish,
                    "uses": create.uses,
                    "ttl": humantime::format_duration(create.ttl).to_string(),
                });
                let what = "cannot make a join token";
                let answer = client.call(what, Method::POST, PATH, Some(&body)).await?;
                let created: Created = answer.json(what)?;
                input::deliver("the join token", &created.token, out)
            }
            Command::List => {
                let list: Vec<Listed> = client.get("cannot list join tokens", PATH).await?;
                let rows = list.iter().map(|token| {
                    vec![
                        token.id.clone(),
                        token.publish.join(","),
                        token.uses_left.to_string(),
                        token.expires.clone(),
                    ]
                });
                let header = ["ID", "MAY PUBLISH", "USES LEFT", "EXPIRES"];
                output::rows(global.output, &header, rows.collect(), &list)
            }
            Command::Revoke { id } => {
                let what = format!("cannot revoke join token {id:?}");
                let path = format!("{PATH}/{}", encode(&id));
                let answer = client.send(Method::DELETE, &path, "").await?;
                answer
                    .ok(&what)
                    .map_err(|failure| failure.next("mesh join-token list"))?;
                output::line(&format!("revoked: {id}"))
            }
        }
    }
}
