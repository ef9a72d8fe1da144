//! `mesh token`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Failure, Global, client::Client, input, output};
use crate::http::query::encode;

/// Make, look at, renew and revoke tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token. It is shown once.
    Create(Create),
    /// Look at a token: the caller's own unless another is named.
    Lookup(Which),
    /// Give a token a longer life, as far as it may have one.
    Renew {
        #[command(flatten)]
        which: Which,
        /// For how long from now, for example 30m; as the last time without it.
        #[arg(long, value_name = "DURATION")]
        increment: Option<String>,
    },
    /// Revoke a token and everything that it made. It must be named.
    Revoke {
        #[command(flatten)]
        which: Which,
        /// The caller's own.
        #[arg(long = "self", conflicts_with_all = ["accessor", "token"])]
        own: bool,
    },
    /// List the accessors of all tokens.
    List,
}

/// What the new token is.
#[derive(Debug, Args)]
pub struct Create {
    /// Policies that it has; repeatable. The caller's own without it.
    #[arg(long = "policy", value_name = "NAME", value_delimiter = ',')]
    policies: Vec<String>,
    /// How long it lives, for example 1h.
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// It can be renewed for ever, for this long each time.
    #[arg(long, value_name = "DURATION")]
    period: Option<String>,
    /// How often it can be used; unlimited without it.
    #[arg(long, value_name = "COUNT")]
    uses: Option<u64>,
    /// It outlives the caller's token.
    #[arg(long)]
    orphan: bool,
    /// It is kept nowhere: it cannot be renewed or revoked.
    #[arg(long)]
    batch: bool,
    /// A role of auth/token/roles that it is made by.
    #[arg(long, value_name = "NAME", conflicts_with = "orphan")]
    role: Option<String>,
    /// Shown in the audit log and in look-ups.
    #[arg(long, value_name = "NAME")]
    display_name: Option<String>,
    /// Write the token to this new file (mode 0600) instead of the terminal.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A token, by what may stand on a command line.
#[derive(Debug, Args)]
pub struct Which {
    /// Its accessor, which is no secret.
    #[arg(long, conflicts_with = "token")]
    accessor: Option<String>,
    /// The token itself: - for stdin or @FILE.
    #[arg(value_name = "SOURCE")]
    token: Option<String>,
}

const WHAT: &str = "the token";

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.vault()?;
        match self {
            Command::Create(create) => create.run(global, &client).await,
            Command::Lookup(which) => {
                let (body, way) = which.body()?;
                let what = "cannot look the token up";
                let answer = match way {
                    "-self" => client.get(what, "/v1/auth/token/lookup-self").await?,
                    way => post(&client, what, "lookup", way, body).await?,
                };
                show(global, &answer["data"])
            }
            Command::Renew { which, increment } => {
                let (mut body, way) = which.body()?;
                if let Some(increment) = increment {
                    body["increment"] = increment.into();
                }
                let what = "cannot renew the token";
                let answer = post(&client, what, "renew", way, body).await?;
                for warning in answer["warnings"].as_array().into_iter().flatten() {
                    eprintln!("warning: {}", warning.as_str().unwrap_or_default());
                }
                let seconds = &answer["auth"]["lease_duration"];
                let text = format!("renewed for {seconds} s");
                output::done(global.output, &text, &json!({ "lease_duration": seconds }))
            }
            Command::Revoke { which, own } => {
                let (body, way) = which.body()?;
                if way == "-self" && !own {
                    return Err(Failure::usage("which token is to be revoked?")
                        .next("--accessor ACCESSOR, - for stdin, @FILE, or --self"));
                }
                let what = "cannot revoke the token";
                let path = format!("/v1/auth/token/revoke{way}");
                client.call(what, Method::POST, &path, Some(&body)).await?;
                let accessor = &body["accessor"];
                output::done(global.output, "revoked", &json!({ "accessor": accessor }))
            }
            Command::List => {
                let what = "cannot list tokens";
                let path = "/v1/auth/token/accessors?list=true";
                let answer: Value = client.get(what, path).await?;
                let keys = answer["data"]["keys"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let rows = keys
                    .iter()
                    .filter_map(|key| Some(vec![key.as_str()?.to_owned()]));
                output::rows(global.output, &["ACCESSOR"], rows.collect(), &keys)
            }
        }
    }
}

impl Create {
    async fn run(self, global: &Global, client: &Client) -> Result<(), Failure> {
        let out = self.out.as_deref();
        input::check_deliverable(WHAT, out)?;
        let mut body = json!({});
        if !self.policies.is_empty() {
            body["policies"] = json!(self.policies);
        }
        for (name, value) in [
            ("ttl", self.ttl),
            ("period", self.period),
            ("display_name", self.display_name),
        ] {
            if let Some(value) = value {
                body[name] = value.into();
            }
        }
        if let Some(uses) = self.uses {
            body["num_uses"] = uses.into();
        }
        if self.batch {
            body["type"] = "batch".into();
        }
        let path = match (&self.role, self.orphan) {
            (Some(role), _) => format!("/v1/auth/token/create/{}", encode(role)),
            (None, true) => "/v1/auth/token/create-orphan".to_owned(),
            (None, false) => "/v1/auth/token/create".to_owned(),
        };
        let what = "cannot make a token";
        let answer = client.call(what, Method::POST, &path, Some(&body)).await?;
        let answer: Value = answer.json(what)?;
        for warning in answer["warnings"].as_array().into_iter().flatten() {
            eprintln!("warning: {}", warning.as_str().unwrap_or_default());
        }
        let auth = &answer["auth"];
        let token = Zeroizing::new(auth["client_token"].as_str().unwrap_or_default().to_owned());
        input::deliver(WHAT, &token, out)?;
        let accessor = auth["accessor"].as_str().unwrap_or_default();
        match (global.output, out) {
            (output::Format::Json, Some(_)) => about(auth),
            _ if accessor.is_empty() => Ok(()),
            _ => {
                eprintln!("accessor: {accessor}");
                Ok(())
            }
        }
    }
}

impl Which {
    /// What names the token to the server, and the end of the path for that.
    fn body(&self) -> Result<(Value, &'static str), Failure> {
        if let Some(accessor) = &self.accessor {
            return Ok((json!({ "accessor": accessor }), "-accessor"));
        }
        match &self.token {
            Some(source) => {
                let token = input::secret_line(WHAT, Some(source))?;
                Ok((json!({ "token": *token }), ""))
            }
            None => Ok((json!({}), "-self")),
        }
    }
}

async fn post(
    client: &Client,
    what: &str,
    verb: &str,
    way: &str,
    body: Value,
) -> Result<Value, Failure> {
    let path = format!("/v1/auth/token/{verb}{way}");
    let answer = client.call(what, Method::POST, &path, Some(&body)).await?;
    answer.json(what)
}

/// What there is to say of a new token, as JSON; it has been handed out already.
pub fn about(auth: &Value) -> Result<(), Failure> {
    let told = [
        "accessor",
        "policies",
        "lease_duration",
        "renewable",
        "token_type",
    ];
    let told = told.map(|name| (name.to_owned(), auth[name].clone()));
    output::json(&Value::Object(told.into_iter().collect()))
}

/// Without the token itself.
fn show(global: &Global, data: &Value) -> Result<(), Failure> {
    let mut data = data.clone();
    let Some(fields) = data.as_object_mut() else {
        return output::json(&data);
    };
    fields.remove("id");
    output::fields(global.output, &data)
}
