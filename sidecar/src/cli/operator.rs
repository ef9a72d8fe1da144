//! `mesh operator`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Exit, Failure, Global, input, output};

mod shares;

/// Run the sealed store: keys, seal, history. Shares, keys and passwords come from stdin, files or a prompt.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed, or a damaged ledger; 2 sealed or not initialised (status), \
    unreachable, refused; 64 usage; 75 not now (sealed, no audit log takes it): try later; 77 not allowed."
)]
pub enum Command {
    /// Make the store, its unseal key shares and the root token. Once, on the server's own host.
    Init(Init),
    /// Give one share of the unseal key; when enough were given the store opens.
    Unseal {
        /// `-` reads stdin, `@FILE` a file; without it the share is asked for.
        share: Option<String>,
        /// Forget the shares given so far.
        #[arg(long, conflicts_with = "share")]
        reset: bool,
        /// Have the server read its key file again (seal type `static`); needs a token.
        #[arg(long = "static", conflicts_with_all = ["share", "reset"])]
        key_file: bool,
        /// The store was put back from a backup on purpose: go on although later entries are remembered.
        #[arg(long, conflicts_with = "reset")]
        accept_rollback: bool,
    },
    /// Close the store: keys leave memory, secrets and new certificates stop, discovery and calls go on.
    Seal,
    /// Show whether the store is initialised and open. Exit code 2: sealed.
    Status,
    /// Make new unseal key shares.
    #[command(subcommand)]
    Rekey(shares::Rekey),
    /// Seal with a new key from here on; old records stay readable.
    Rotate {
        /// Only show which key seals, since when and how often.
        #[arg(long)]
        status: bool,
    },
    /// Make a root token, by a threshold of shares.
    #[command(subcommand)]
    GenerateRoot(shares::GenerateRoot),
    /// Check the hash chain of the whole ledger.
    Verify {
        /// Of the store in this directory, without a server and without any key.
        #[arg(long, value_name = "STORE")]
        dir: Option<PathBuf>,
    },
    /// Rotate the keys that seal membership datagrams: install a new one, use it, remove the old one.
    #[command(subcommand)]
    Keyring(Keyring),
    /// List changes, the latest first: who, what, when.
    History {
        /// How many.
        #[arg(long, default_value_t = 10)]
        last: u32,
        /// Only entries before this index.
        #[arg(long)]
        before: Option<u64>,
    },
}

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
    async fn run(self, global: &Global) -> Result<(), Failure> {
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

/// How the unseal key is split.
#[derive(Debug, Args)]
pub struct Init {
    /// How many shares the unseal key is split into.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
    shares: u8,
    /// How many of them open the store.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    threshold: u8,
    /// Write shares and root token to this new file (JSON, mode 0600) instead of the terminal.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct SealStatus {
    initialized: bool,
    sealed: bool,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    t: u32,
    #[serde(default)]
    n: u32,
    #[serde(default)]
    progress: u32,
    #[serde(default)]
    version: String,
}

#[derive(Serialize, Deserialize)]
struct KeyStatus {
    term: u32,
    install_time: String,
    encryptions: u64,
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

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        vault_kv::clear_freed_memory();
        if let Command::Verify { dir: Some(dir) } = self {
            return verify_offline(&dir);
        }
        let client = global.addresses.vault()?;
        match self {
            Command::Init(init) => {
                if init.threshold > init.shares {
                    return Err(Failure::usage("--threshold is larger than --shares"));
                }
                let (what, secrets) = ("cannot initialise the store", "the unseal key shares");
                input::check_deliverable(secrets, init.out.as_deref())?;
                let body = json!({
                    "secret_shares": init.shares,
                    "secret_threshold": init.threshold,
                });
                let path = "/v1/sys/init";
                let answer = client.call(what, Method::PUT, path, Some(&body)).await?;
                let value: Value = answer.json(what)?;
                let text = serde_json::to_string_pretty(&value).unwrap_or_default();
                input::deliver(secrets, &text, init.out.as_deref())?;
                eprintln!(
                    "give each share to another person; the root token can do everything\n  \
                     next: mesh operator unseal ({} times)",
                    init.threshold
                );
                Ok(())
            }
            Command::Unseal {
                share,
                reset,
                key_file,
                accept_rollback,
            } => {
                let what = "cannot unseal";
                if key_file {
                    let path = match accept_rollback {
                        true => "/v1/mesh/unseal-static?accept-rollback=true",
                        false => "/v1/mesh/unseal-static",
                    };
                    client.call(what, Method::PUT, path, None).await?;
                    let status = client.get(what, "/v1/sys/seal-status").await?;
                    return print_status(global, &status);
                }
                let body = match reset {
                    true => json!({"reset": true}),
                    false => {
                        let share = input::secret_line("unseal key share", share.as_deref())?;
                        json!({"key": share.as_str(), "accept_rollback": accept_rollback})
                    }
                };
                let path = "/v1/sys/unseal";
                let answer = client.call(what, Method::PUT, path, Some(&body)).await?;
                print_status(global, &answer.json(what)?)
            }
            Command::Seal => {
                let what = "cannot seal";
                client.call(what, Method::PUT, "/v1/sys/seal", None).await?;
                output::line(&format!("sealed: {}", client.target()))
            }
            Command::Status => {
                let what = "cannot read the seal status";
                let status: SealStatus = client.get(what, "/v1/sys/seal-status").await?;
                print_status(global, &status)?;
                match (status.initialized, status.sealed) {
                    (_, false) => Ok(()),
                    (false, true) => {
                        Err(Failure::new(Exit::Remote, "the store is not initialised")
                            .next("mesh operator init"))
                    }
                    (true, true) => Err(Failure::new(Exit::Remote, "the store is sealed")
                        .next("mesh operator unseal")),
                }
            }
            Command::Keyring(step) => step.run(global).await,
            Command::Rekey(rekey) => rekey.run(global, &client).await,
            Command::GenerateRoot(root) => root.run(global, &client).await,
            Command::Rotate { status } => {
                let what = "cannot rotate the keyring";
                if !status {
                    client
                        .call(what, Method::PUT, "/v1/sys/rotate", None)
                        .await?;
                }
                let answer: Value = client.get(what, "/v1/sys/key-status").await?;
                let status: KeyStatus = serde_json::from_value(answer["data"].clone())
                    .map_err(|error| Failure::new(Exit::Remote, format!("{what}: {error}")))?;
                let rows = [
                    ("term", status.term.to_string()),
                    ("installed", status.install_time.clone()),
                    ("records sealed", status.encryptions.to_string()),
                ];
                let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
                output::rows(global.output, &["KEYRING", ""], rows.into(), &status)
            }
            Command::Verify { dir: _ } => {
                let what = "cannot verify the ledger";
                let path = "/v1/mesh/ledger/verify";
                let report: Value = client.get(what, path).await?;
                output::json(&report)?;
                match report["ok"].as_bool() {
                    Some(true) => Ok(()),
                    _ => Err(Failure::failed("the ledger does not verify")),
                }
            }
            Command::History { last, before } => {
                let before = before.map_or(String::new(), |index| format!("&before={index}"));
                let path = format!("/v1/mesh/ledger?limit={last}{before}");
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
    }
}

/// Walks the log of a store in a directory; whether a server runs on it does not matter.
fn verify_offline(dir: &std::path::Path) -> Result<(), Failure> {
    match vault_kv::verify(dir) {
        Ok(verified) => {
            let hash = verified.head.hash.iter().map(|byte| format!("{byte:02x}"));
            output::json(&json!({
                "ok": true, "entries": verified.entries, "head_index": verified.head.index,
                "head_hash": hash.collect::<String>(), "redacted_parts": verified.redacted,
            }))
        }
        Err(error) => {
            output::json(&json!({"ok": false, "error": error.to_string()}))?;
            Err(Failure::failed("the ledger does not verify"))
        }
    }
}

fn print_status(global: &Global, status: &SealStatus) -> Result<(), Failure> {
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let mut rows = vec![
        ("initialised", yes_no(status.initialized).to_owned()),
        ("sealed", yes_no(status.sealed).to_owned()),
        ("seal type", status.kind.clone()),
        ("shares", format!("{} of {} needed", status.t, status.n)),
    ];
    if status.sealed {
        rows.push(("given so far", status.progress.to_string()));
    }
    rows.push(("version", status.version.clone()));
    let rows = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value]);
    output::rows(global.output, &["STORE", ""], rows.collect(), status)
}
