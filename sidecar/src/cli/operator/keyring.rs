//! `mesh operator keyring`

use clap::Subcommand;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::cli::{Failure, Global, output};

/// A step of a rotation; each goes to every node before it is answered.
#[derive(Debug, Subcommand)]
pub enum Keyring {
    /// Show every node's keys, the one in use first.
    List,
    /// Make a new key and give it to every node: from then on it opens datagrams.
    Install,
    /// Have every node seal with a key; refused while one of them does not have it.
    Use {
        /// Its id.
        key: String,
        /// Even if nodes are cut off until they have fetched it.
        #[arg(long)]
        force: bool,
    },
    /// Take a key from every node; refused while one of them uses it.
    Remove {
        /// Its id.
        key: String,
        /// Even if nodes are cut off until they have fetched another.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Serialize, Deserialize)]
struct NodeKeys {
    node: String,
    #[serde(default)]
    keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Keyring {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.vault()?;
        let path = "/v1/mesh/keyring";
        let what = "cannot change the gossip keyring";
        let body = match self {
            Keyring::List => None,
            Keyring::Install => Some(json!({"step": "install"})),
            Keyring::Use { key, force } => Some(json!({"step": "use", "key": key, "force": force})),
            Keyring::Remove { key, force } => {
                Some(json!({"step": "remove", "key": key, "force": force}))
            }
        };
        let nodes: Vec<NodeKeys> = match &body {
            None => client.get("cannot list the gossip keys", path).await?,
            Some(_) => {
                let answer = client.call(what, Method::PUT, path, body.as_ref()).await?;
                answer.json(what)?
            }
        };
        let rows = nodes.iter().map(|node| {
            let error = node.error.clone().unwrap_or_default();
            vec![node.node.clone(), node.keys.join(" "), error]
        });
        output::rows(
            global.output,
            &["NODE", "KEYS", "ERROR"],
            rows.collect(),
            &nodes,
        )
    }
}
