//! Versions of a secret and what is set for all of them.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{api_path, missing, plain, split};
use crate::cli::{Failure, Global, output};

/// What is kept of a key besides its secrets.
#[derive(Debug, Subcommand)]
pub enum Metadata {
    /// Show versions and settings.
    Get {
        /// Where it is, for example secret/web/db
        path: String,
    },
    /// Change settings; what is not named stays.
    Set(Set),
    /// Remove the key with all its versions, for good.
    Delete {
        /// Where it is.
        path: String,
    },
}

/// Settings of a key.
#[derive(Debug, Args)]
pub struct Set {
    /// Where it is.
    path: String,
    /// Versions that are kept; 0 = as many as the mount says.
    #[arg(long, value_name = "COUNT")]
    max_versions: Option<u64>,
    /// Versions go for good after this long, for example 30d; 0 = never.
    #[arg(long, value_name = "DURATION")]
    delete_after: Option<String>,
    /// Whether writing takes --cas.
    #[arg(long, value_name = "BOOL")]
    cas_required: Option<bool>,
    /// A note, NAME=TEXT; repeatable. No secret: it is shown with the key.
    #[arg(long, value_name = "NAME=TEXT")]
    custom: Vec<String>,
}

/// Hides the newest version, or these.
pub async fn delete(global: &Global, path: &str, versions: &[u64]) -> Result<(), Failure> {
    if versions.is_empty() {
        let what = format!("cannot delete secret {path:?}");
        let client = global.addresses.secrets()?;
        let at = api_path(path, "data")?;
        client.call(&what, Method::DELETE, &at, None).await?;
        let text = format!("deleted: {path}, newest version; mesh secret undelete brings it back");
        return output::done(global.output, &text, &json!({ "path": path }));
    }
    change(global, path, "delete", versions).await
}

/// `delete`, `undelete` or `destroy` of these versions.
pub async fn change(
    global: &Global,
    path: &str,
    verb: &str,
    versions: &[u64],
) -> Result<(), Failure> {
    let what = format!("cannot {verb} versions of secret {path:?}");
    let client = global.addresses.secrets()?;
    let at = api_path(path, verb)?;
    let body = json!({ "versions": versions });
    client.call(&what, Method::POST, &at, Some(&body)).await?;
    let numbers: Vec<_> = versions.iter().map(u64::to_string).collect();
    let did = match verb {
        "destroy" => "destroyed",
        "undelete" => "undeleted",
        _ => "deleted",
    };
    let text = format!("{did}: {path}, version {}", numbers.join(", "));
    let done = json!({"path": path, "versions": versions});
    output::done(global.output, &text, &done)
}

/// Gives a key another name on its mount.
pub async fn rename(global: &Global, from: &str, to: &str) -> Result<(), Failure> {
    let what = format!("cannot move secret {from:?}");
    let ((mount, _), (other, key)) = (split(from)?, split(to)?);
    if mount != other {
        return Err(
            Failure::usage(format!("{from:?} and {to:?} are on two mounts"))
                .next("a secret moves within its mount; put it there anew"),
        );
    }
    let client = global.addresses.secrets()?;
    let at = api_path(from, "move")?;
    let body = json!({ "to": key });
    client.call(&what, Method::POST, &at, Some(&body)).await?;
    let text = format!("moved: {from} is {to} now");
    output::done(global.output, &text, &json!({"from": from, "to": to}))
}

impl Metadata {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Get { path } => get(global, &path).await,
            Self::Set(set) => set.run(global).await,
            Self::Delete { path } => {
                let what = format!("cannot remove {path:?}");
                let client = global.addresses.secrets()?;
                let at = api_path(&path, "metadata")?;
                client.call(&what, Method::DELETE, &at, None).await?;
                let text = format!("removed: {path}, all versions");
                output::done(global.output, &text, &json!({ "path": path }))
            }
        }
    }
}

async fn get(global: &Global, path: &str) -> Result<(), Failure> {
    let what = format!("cannot read the metadata of {path:?}");
    let client = global.addresses.secrets()?;
    let at = api_path(path, "metadata")?;
    let answer = client.send(Method::GET, &at, "").await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(missing(path));
    }
    let value: Value = answer.ok(&what)?.json(&what)?;
    let data = &value["data"];
    let versions: BTreeMap<u64, &Value> = data["versions"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(number, version)| Some((number.parse().ok()?, version)))
        .collect();
    let rows = versions.iter().map(|(number, version)| {
        let deleted = plain(&version["deletion_time"]);
        let state = match version["destroyed"] == true {
            true => "destroyed".to_owned(),
            false if deleted.is_empty() => String::new(),
            false => format!("until {deleted}"),
        };
        vec![number.to_string(), plain(&version["created_time"]), state]
    });
    output::rows(
        global.output,
        &["VERSION", "CREATED", "STATE"],
        rows.collect(),
        data,
    )
}

impl Set {
    async fn run(self, global: &Global) -> Result<(), Failure> {
        let what = format!("cannot change the settings of {:?}", self.path);
        let mut body = Map::new();
        if let Some(count) = self.max_versions {
            body.insert("max_versions".into(), count.into());
        }
        if let Some(after) = self.delete_after {
            body.insert("delete_version_after".into(), after.into());
        }
        if let Some(required) = self.cas_required {
            body.insert("cas_required".into(), required.into());
        }
        let mut custom = Map::new();
        for pair in &self.custom {
            let (name, text) = pair.split_once('=').ok_or_else(|| {
                Failure::usage(format!("{pair:?} is no note")).next("write NAME=TEXT")
            })?;
            custom.insert(name.to_owned(), text.into());
        }
        if !custom.is_empty() {
            body.insert("custom_metadata".into(), custom.into());
        }
        if body.is_empty() {
            return Err(Failure::usage("nothing is to be changed")
                .next("name a setting, for example --max-versions 5"));
        }
        let client = global.addresses.secrets()?;
        let at = api_path(&self.path, "metadata")?;
        let body = Value::Object(body);
        // What is there already stays; a key without any is made.
        let patched = client.send(Method::PATCH, &at, body.to_string()).await?;
        if patched.status == StatusCode::NOT_FOUND {
            client.call(&what, Method::POST, &at, Some(&body)).await?;
        } else {
            patched.ok(&what)?;
        }
        let text = format!("changed: {}", self.path);
        output::done(global.output, &text, &json!({ "path": self.path }))
    }
}
