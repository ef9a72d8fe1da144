//! What several share holders do together: `rekey` and `generate-root`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cli::{Failure, Global, client::Client, input, output};

const REKEY: &str = "/v1/sys/rekey/init";
const REKEY_SHARE: &str = "/v1/sys/rekey/update";
const REKEY_VERIFY: &str = "/v1/sys/rekey/verify";
const ROOT: &str = "/v1/sys/generate-root/attempt";
const ROOT_SHARE: &str = "/v1/sys/generate-root/update";

/// One share of the present unseal key.
#[derive(Debug, Args)]
pub struct Share {
    /// `-` reads stdin, `@FILE` a file; without it the share is asked for.
    share: Option<String>,
    /// The attempt that it is for, as `start` and `status` show it. Without it: whatever is under way.
    #[arg(long)]
    nonce: Option<String>,
    /// Write what the last share brings forth to this new file (mode 0600) instead of the terminal.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Who starts or cancels: by default the token.
#[derive(Debug, Args)]
pub struct With {
    /// Without a token: a threshold of shares, one a line. `-` reads stdin, `@FILE` a file, nothing asks.
    #[arg(long, value_name = "SOURCE", num_args = 0..=1, default_missing_value = "")]
    with_shares: Option<String>,
}

/// Make new unseal key shares. The old ones open nothing afterwards.
#[derive(Debug, Subcommand)]
pub enum Rekey {
    /// Start. With `--with-shares` it is finished at once.
    Start {
        /// How many new shares.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..))]
        shares: u8,
        /// How many of them will open the store.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
        threshold: u8,
        /// The new shares count only after enough of them were shown: `rekey verify`.
        #[arg(long)]
        require_verification: bool,
        /// Write the new shares to this new file (JSON, mode 0600); with `--with-shares`.
        #[arg(long, value_name = "FILE", requires = "with_shares")]
        out: Option<PathBuf>,
        #[command(flatten)]
        with: With,
    },
    /// Give one share of the present unseal key. The last one brings forth the new shares.
    Share(Share),
    /// Show one of the new shares, where that was required.
    Verify(Share),
    /// Show what is under way.
    Status,
    /// Give it up.
    Cancel(With),
}

/// Make a root token, by a threshold of shares.
#[derive(Debug, Subcommand)]
pub enum GenerateRoot {
    /// Start: gives the one-time password that the token will be read with. With `--with-shares` it is finished at
    /// once, and gives the token.
    Start {
        /// Write the password (or the token) to this new file (mode 0600) instead of the terminal.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        with: With,
    },
    /// Give one share of the unseal key. The last one brings forth the encoded token.
    Share(Share),
    /// Show what is under way.
    Status,
    /// Give it up.
    Cancel(With),
    /// Read an encoded token with its one-time password.
    Decode {
        /// What the last share brought forth.
        encoded: String,
        /// The password: `-` reads stdin, `@FILE` a file; without it, it is asked for.
        otp: Option<String>,
        /// Write the token to this new file (mode 0600) instead of the terminal.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

impl With {
    /// The shares, if that is what it is done with.
    async fn keys(&self, client: &Client) -> Result<Option<Vec<Zeroizing<String>>>, Failure> {
        let Some(source) = &self.with_shares else {
            return Ok(None);
        };
        let what = "unseal key share";
        let status: Value = client
            .get("cannot read the seal status", "/v1/sys/seal-status")
            .await?;
        let needed = usize::try_from(status["t"].as_u64().unwrap_or(1)).unwrap_or(1);
        let source = Some(source.as_str()).filter(|source| !source.is_empty());
        let keys = input::secret_lines(what, source, needed)?;
        if keys.len() < needed {
            return Err(Failure::usage(format!(
                "{} shares were given, and {needed} are needed",
                keys.len()
            ))
            .next("give one share a line"));
        }
        Ok(Some(keys))
    }
}

fn with_keys(mut body: Value, keys: Option<&Vec<Zeroizing<String>>>) -> Value {
    if let Some(keys) = keys {
        body["keys"] = keys
            .iter()
            .map(|key| key.as_str())
            .collect::<Vec<_>>()
            .into();
    }
    body
}

impl Rekey {
    pub async fn run(self, global: &Global, client: &Client) -> Result<(), Failure> {
        let what = "cannot rekey";
        match self {
            Rekey::Start {
                shares,
                threshold,
                require_verification,
                out,
                with,
            } => {
                let keys = with.keys(client).await?;
                if keys.is_some() {
                    input::check_deliverable("the new unseal key shares", out.as_deref())?;
                }
                let body = with_keys(
                    json!({"secret_shares": shares, "secret_threshold": threshold,
                        "require_verification": require_verification}),
                    keys.as_ref(),
                );
                let answer = client.call(what, Method::PUT, REKEY, Some(&body)).await?;
                let started: Value = answer.json(what)?;
                let Some(keys) = keys else {
                    show(global, &started)?;
                    eprintln!("next, each share holder: mesh operator rekey share");
                    return Ok(());
                };
                let last = give_all(client, what, REKEY_SHARE, &started, &keys).await?;
                new_shares(&last, out.as_deref())
            }
            Rekey::Share(share) => {
                // The one share that completes it is known only by the answer, which is too late to find out that
                // nothing can be delivered.
                input::check_deliverable("the new unseal key shares", share.out.as_deref())?;
                let answer = share.give(client, what, REKEY, REKEY_SHARE).await?;
                match answer["complete"].as_bool() {
                    Some(true) => new_shares(&answer, share.out.as_deref()),
                    _ => show(global, &answer),
                }
            }
            Rekey::Verify(share) => {
                let answer = share.give(client, what, REKEY_VERIFY, REKEY_VERIFY).await?;
                if answer["complete"] == true {
                    return output::line(
                        "verified: the new shares open the store, the old ones nothing more",
                    );
                }
                show(global, &answer)
            }
            Rekey::Status => show(global, &client.get(what, REKEY).await?),
            Rekey::Cancel(with) => cancel(client, what, REKEY, &with).await,
        }
    }
}

impl GenerateRoot {
    pub async fn run(self, global: &Global, client: &Client) -> Result<(), Failure> {
        let what = "cannot make a root token";
        match self {
            GenerateRoot::Start { out, with } => {
                let secret = "the one-time password";
                let keys = with.keys(client).await?;
                input::check_deliverable(secret, out.as_deref())?;
                let body = with_keys(json!({}), keys.as_ref());
                let answer = client.call(what, Method::PUT, ROOT, Some(&body)).await?;
                let mut started: Value = answer.json(what)?;
                let otp = Zeroizing::new(started["otp"].as_str().unwrap_or_default().to_owned());
                let Some(keys) = keys else {
                    input::deliver(secret, &otp, out.as_deref())?;
                    started["otp"] = "".into();
                    show(global, &started)?;
                    eprintln!("next, each share holder: mesh operator generate-root share");
                    return Ok(());
                };
                let last = give_all(client, what, ROOT_SHARE, &started, &keys).await?;
                let encoded = last["encoded_token"].as_str().unwrap_or_default();
                let token = decode(encoded, &otp)?;
                input::deliver("the root token", &token, out.as_deref())
            }
            GenerateRoot::Share(share) => {
                let answer = share.give(client, what, ROOT, ROOT_SHARE).await?;
                if answer["complete"] == true {
                    eprintln!(
                        "next, whoever has the password: mesh operator generate-root decode ENCODED-TOKEN"
                    );
                }
                show(global, &answer)
            }
            GenerateRoot::Status => show(global, &client.get(what, ROOT).await?),
            GenerateRoot::Cancel(with) => cancel(client, what, ROOT, &with).await,
            GenerateRoot::Decode { encoded, otp, out } => {
                let otp = input::secret_line("the one-time password", otp.as_deref())?;
                let token = decode(&encoded, &otp)?;
                input::deliver("the root token", &token, out.as_deref())
            }
        }
    }
}

impl Share {
    /// The answer to this share; `of` tells the nonce where none was given.
    async fn give(
        &self,
        client: &Client,
        what: &str,
        of: &str,
        path: &str,
    ) -> Result<Value, Failure> {
        let nonce = match &self.nonce {
            Some(nonce) => nonce.clone(),
            None => {
                let under_way: Value = client.get(what, of).await?;
                if under_way["started"] != true {
                    return Err(Failure::failed(format!("{what}: nothing is under way"))
                        .next("start it first"));
                }
                under_way["nonce"].as_str().unwrap_or_default().to_owned()
            }
        };
        let share = input::secret_line("unseal key share", self.share.as_deref())?;
        give(client, what, path, &nonce, &share).await
    }
}

async fn give(
    client: &Client,
    what: &str,
    path: &str,
    nonce: &str,
    share: &str,
) -> Result<Value, Failure> {
    let body = json!({"nonce": nonce, "key": share});
    let answer = client.call(what, Method::PUT, path, Some(&body)).await?;
    answer.json(what)
}

/// Every share in turn, until that is enough.
async fn give_all(
    client: &Client,
    what: &str,
    path: &str,
    started: &Value,
    keys: &[Zeroizing<String>],
) -> Result<Value, Failure> {
    let nonce = started["nonce"].as_str().unwrap_or_default();
    let mut last = Value::Null;
    for key in keys {
        last = give(client, what, path, nonce, key).await?;
        if last["complete"] == true {
            break;
        }
    }
    Ok(last)
}

async fn cancel(client: &Client, what: &str, path: &str, with: &With) -> Result<(), Failure> {
    let body = with
        .keys(client)
        .await?
        .map(|keys| with_keys(json!({}), Some(&keys)));
    client
        .call(what, Method::DELETE, path, body.as_ref())
        .await?;
    output::line("given up; nothing has changed")
}

fn new_shares(answer: &Value, out: Option<&Path>) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(answer).unwrap_or_default();
    input::deliver("the new unseal key shares", &Zeroizing::new(text), out)?;
    match answer["verification_required"].as_bool() {
        Some(true) => eprintln!(
            "the old shares count until enough of the new ones were shown\n  \
             next, each share holder: mesh operator rekey verify"
        ),
        _ => eprintln!("give each share to another person; the old ones open nothing more"),
    }
    Ok(())
}

/// What is under way, without what is empty.
fn show(global: &Global, status: &Value) -> Result<(), Failure> {
    let fields = status.as_object().into_iter().flatten();
    let rows = fields.filter_map(|(name, value)| {
        let text = match value {
            Value::String(text) if !text.is_empty() => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => return None,
        };
        Some(vec![name.replace('_', " "), text])
    });
    output::rows(global.output, &["UNDER WAY", ""], rows.collect(), status)
}

/// The token that was XORed with `otp`.
fn decode(encoded: &str, otp: &str) -> Result<Zeroizing<String>, Failure> {
    vault_kv::decode_root_token(encoded, otp).ok_or_else(|| {
        Failure::failed("the encoded token and the one-time password do not belong together")
            .next("check both: the password is the one that `generate-root start` gave")
    })
}
