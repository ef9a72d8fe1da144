//! `mesh operator init`, `unseal`, `seal`, `status` and `rotate`

use std::path::PathBuf;

use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{Exit, Failure, Global, client::Client, input, output};

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

impl Init {
    /// Runs the command.
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        if self.threshold > self.shares {
            return Err(Failure::usage("--threshold is larger than --shares"));
        }
        let (what, secrets) = ("cannot initialise the store", "the unseal key shares");
        input::check_deliverable(secrets, self.out.as_deref())?;
        let body = json!({
            "secret_shares": self.shares,
            "secret_threshold": self.threshold,
        });
        let path = "/v1/sys/init";
        let answer = client.call(what, Method::PUT, path, Some(&body)).await?;
        let value: Value = answer.json(what)?;
        let text = serde_json::to_string_pretty(&value).unwrap_or_default();
        let shares = value["keys"].as_array().map_or(0, Vec::len);
        let delivered = if shares == 0 {
            "the root token"
        } else {
            secrets
        };
        input::deliver(delivered, &text, self.out.as_deref())?;
        match shares {
            0 => eprintln!(
                "the store opens with the key file (server.seal); the root token can do everything"
            ),
            _ => eprintln!(
                "give each share to another person; the root token can do everything\n  \
                 next: mesh operator unseal ({} times)",
                self.threshold
            ),
        }
        Ok(())
    }
}

/// A share, or what else opens the store.
#[derive(Debug, Args)]
pub struct Unseal {
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
}

impl Unseal {
    /// Runs the command.
    pub async fn run(self, global: &Global, client: &Client) -> Result<(), Failure> {
        let what = "cannot unseal";
        if self.key_file {
            let path = match self.accept_rollback {
                true => "/v1/mesh/unseal-static?accept-rollback=true",
                false => "/v1/mesh/unseal-static",
            };
            client.call(what, Method::PUT, path, None).await?;
            let status = client.get(what, "/v1/sys/seal-status").await?;
            return print_status(global, &status);
        }
        let body = match self.reset {
            true => json!({"reset": true}),
            false => {
                let share = input::secret_line("unseal key share", self.share.as_deref())?;
                json!({"key": share.as_str(), "accept_rollback": self.accept_rollback})
            }
        };
        let path = "/v1/sys/unseal";
        let answer = client.call(what, Method::PUT, path, Some(&body)).await?;
        print_status(global, &answer.json(what)?)
    }
}

/// Runs `mesh operator seal`.
pub async fn seal(client: &Client) -> Result<(), Failure> {
    let what = "cannot seal";
    client.call(what, Method::PUT, "/v1/sys/seal", None).await?;
    output::line(&format!("sealed: {}", client.target()))
}

/// Runs `mesh operator status`.
pub async fn status(global: &Global, client: &Client) -> Result<(), Failure> {
    let what = "cannot read the seal status";
    let status: SealStatus = client.get(what, "/v1/sys/seal-status").await?;
    print_status(global, &status)?;
    match (status.initialized, status.sealed) {
        (_, false) => Ok(()),
        (false, true) => {
            Err(Failure::new(Exit::Remote, "the store is not initialised")
                .next("mesh operator init"))
        }
        (true, true) => {
            Err(Failure::new(Exit::Remote, "the store is sealed").next("mesh operator unseal"))
        }
    }
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

/// Runs `mesh operator rotate`.
pub async fn rotate(global: &Global, client: &Client, only_show: bool) -> Result<(), Failure> {
    let what = "cannot rotate the keyring";
    if !only_show {
        let path = "/v1/sys/rotate";
        client.call(what, Method::PUT, path, None).await?;
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

#[derive(Serialize, Deserialize)]
struct KeyStatus {
    term: u32,
    install_time: String,
    encryptions: u64,
}
