//! `mesh auth`

use std::path::PathBuf;

use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Failure, Global, input, output, token};
use crate::http::query::encode;

/// Login methods: list, enable and disable them, and log in.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the methods that are enabled.
    List,
    /// Enable a method.
    Enable {
        /// userpass, approle, jwt, cert or kubernetes
        kind: String,
        /// Below auth/; the kind's name without it.
        path: Option<String>,
        /// For those who read the list.
        #[arg(long)]
        description: Option<String>,
    },
    /// Disable a method. Whoever logged in by it is out; batch tokens last until they expire.
    Disable {
        /// Below auth/.
        path: String,
    },
    /// Log in with a password and hand out the token.
    #[command(after_help = "For example: mesh auth login ann --out ~/.vault-token")]
    Login {
        /// Who logs in.
        name: String,
        /// The password: - for stdin or @FILE; asked for without it.
        #[arg(long, value_name = "SOURCE")]
        password: Option<String>,
        /// The method's path below auth/.
        #[arg(long, default_value = "userpass")]
        path: String,
        /// Write the token to this new file (mode 0600) instead of the terminal.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

const PATH: &str = "/v1/sys/auth";

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        let client = global.addresses.vault()?;
        match self {
            Command::List => {
                let answer: Value = client.get("cannot list login methods", PATH).await?;
                let data = &answer["data"];
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let rows = data
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(path, method)| {
                        vec![
                            path.clone(),
                            text(&method["type"]),
                            text(&method["accessor"]),
                            text(&method["description"]),
                        ]
                    });
                let header = ["PATH", "TYPE", "ACCESSOR", "DESCRIPTION"];
                output::rows(global.output, &header, rows.collect(), data)
            }
            Command::Enable {
                kind,
                path,
                description,
            } => {
                let path = path.unwrap_or_else(|| kind.clone());
                let path = path.trim_matches('/');
                let what = format!("cannot enable {kind} at {path}/");
                let body = json!({"type": kind, "description": description.unwrap_or_default()});
                let at = format!("{PATH}/{}", encode(path));
                client.call(&what, Method::POST, &at, Some(&body)).await?;
                let text = format!("enabled: {kind} at auth/{path}/");
                let done = json!({"type": kind, "path": format!("{path}/")});
                output::done(global.output, &text, &done)
            }
            Command::Disable { path } => {
                let path = path.trim_matches('/');
                let what = format!("cannot disable the login method at {path}/");
                let at = format!("{PATH}/{}", encode(path));
                client.call(&what, Method::DELETE, &at, None).await?;
                let text = format!("disabled: auth/{path}/");
                output::done(global.output, &text, &json!({"path": format!("{path}/")}))
            }
            Command::Login {
                name,
                password,
                path,
                out,
            } => {
                let out = out.as_deref();
                input::check_deliverable("the token", out)?;
                let what = format!("cannot log in as {name:?}");
                let secret = input::secret_line("the password", password.as_deref())?;
                let body = json!({ "password": *secret });
                let path = path.trim_matches('/');
                let at = format!("/v1/auth/{}/login/{}", encode(path), encode(&name));
                let answer = client.call(&what, Method::POST, &at, Some(&body)).await?;
                let answer: Value = answer.json(&what)?;
                let token = answer["auth"]["client_token"].as_str().unwrap_or_default();
                let token = Zeroizing::new(token.to_owned());
                input::deliver("the token", &token, out)?;
                if (global.output, out.is_some()) == (output::Format::Json, true) {
                    return token::about(&answer["auth"]);
                }
                let seconds = &answer["auth"]["lease_duration"];
                eprintln!("good for {seconds} s");
                Ok(())
            }
        }
    }
}
