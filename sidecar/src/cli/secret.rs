//! `mesh secret`

use std::collections::BTreeMap;

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Exit, Failure, Global, client::Client, input, output};
use crate::http::query::encode;

/// Read and write secrets. The first part of a path is the mount: `secret/web/db`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print a secret's fields, or one field's bare value.
    Get {
        /// Where it is, for example secret/web/db
        path: String,
        /// Print only this field.
        #[arg(long)]
        field: Option<String>,
        /// An older version.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Write a new version of a secret.
    #[command(
        after_help = "For example: pass show db | mesh secret put secret/web/db password=-\n\
        A value never stands on the command line: FIELD=- reads stdin, FIELD=@FILE a file, FIELD alone asks."
    )]
    Put {
        /// Where to put it, for example secret/web/db
        path: String,
        /// FIELD=- (stdin), FIELD=@FILE, or FIELD (prompt)
        #[arg(required = true, value_name = "FIELD[=-|=@FILE]")]
        fields: Vec<String>,
        /// Only if the current version is this; 0 = only if there is none.
        #[arg(long, value_name = "VERSION")]
        cas: Option<u64>,
    },
    /// List what is below a path.
    List {
        /// The folder.
        #[arg(default_value = "secret/")]
        path: String,
    },
    /// Let a service read a path (and everything below it) with its mesh identity, without a token.
    Grant {
        /// The service.
        service: String,
        /// The path, for example secret/web
        path: String,
        /// Let it write, too.
        #[arg(long)]
        write: bool,
    },
}

impl Command {
    /// Runs the command.
    pub async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Command::Get {
                path,
                field,
                version,
            } => get(global, &path, field.as_deref(), version).await,
            Command::Put { path, fields, cas } => put(global, &path, &fields, cas).await,
            Command::List { path } => list(global, &path).await,
            Command::Grant {
                service,
                path,
                write,
            } => {
                let client = global.addresses.vault()?;
                grant(&client, &service, &path, write).await
            }
        }
    }
}

async fn get(
    global: &Global,
    path: &str,
    field: Option<&str>,
    version: Option<u64>,
) -> Result<(), Failure> {
    let client = global.addresses.secrets()?;
    let what = format!("cannot read secret {path:?}");
    let query = version.map_or(String::new(), |version| format!("?version={version}"));
    let at = format!("{}{query}", api_path(path, "data")?);
    let answer = client.send(Method::GET, &at, "").await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Err(Failure::failed(format!("there is no secret at {path:?}"))
            .next(format!("mesh secret list {}", parent(path))));
    }
    let value: Value = answer.ok(&what)?.json(&what)?;
    let data = &value["data"]["data"];
    let Some(fields) = data.as_object() else {
        return Err(Failure::new(
            Exit::Remote,
            format!("{what}: the answer has no fields"),
        ));
    };
    if let Some(field) = field {
        let Some(value) = fields.get(field) else {
            let known: Vec<_> = fields.keys().map(String::as_str).collect();
            let known = known.join(", ");
            return Err(Failure::failed(format!(
                "secret {path:?} has no field {field:?}; it has: {known}"
            )));
        };
        return output::line(&Zeroizing::new(plain(value)));
    }
    let rows = fields
        .iter()
        .map(|(name, value)| vec![name.clone(), plain(value)]);
    output::rows(global.output, &["FIELD", "VALUE"], rows.collect(), data)
}

async fn put(
    global: &Global,
    path: &str,
    fields: &[String],
    cas: Option<u64>,
) -> Result<(), Failure> {
    let what = format!("cannot write secret {path:?}");
    let at = api_path(path, "data")?;
    let mut data = BTreeMap::new();
    let from_stdin = fields.iter().filter(|field| field.ends_with("=-"));
    if from_stdin.count() > 1 {
        return Err(Failure::usage("only one field can be read from stdin")
            .next("use FIELD=@FILE for the others"));
    }
    for field in fields {
        let (name, source) = match field.split_once('=') {
            Some((name, source)) => (name, Some(source)),
            None => (field.as_str(), None),
        };
        if name.is_empty() {
            return Err(Failure::usage(
                "a field needs a name: FIELD=- or FIELD=@FILE",
            ));
        }
        let value = input::secret_line(&format!("the value of {name:?}"), source)?;
        data.insert(name.to_owned(), value.to_string());
    }
    let client = global.addresses.secrets()?;
    let mut body = json!({"data": data});
    if let Some(version) = cas {
        body["options"] = json!({"cas": version});
    }
    let answer = client.call(&what, Method::POST, &at, Some(&body)).await?;
    let answer: Value = answer.json(&what)?;
    let version = &answer["data"]["version"];
    output::line(&format!("written: {path}, version {version}"))
}

async fn list(global: &Global, path: &str) -> Result<(), Failure> {
    let client = global.addresses.secrets()?;
    let what = format!("cannot list secrets below {path:?}");
    let at = format!("{}?list=true", api_path(path, "metadata")?);
    let answer = client.send(Method::GET, &at, "").await?;
    let keys: Vec<String> = match answer.status {
        StatusCode::NOT_FOUND => Vec::new(),
        _ => {
            let value: Value = answer.ok(&what)?.json(&what)?;
            serde_json::from_value(value["data"]["keys"].clone()).unwrap_or_default()
        }
    };
    let rows = keys.iter().map(|key| vec![key.clone()]).collect();
    output::rows(global.output, &["NAME"], rows, &keys)
}

/// A policy with the rule, and a role that gives it to the service's SPIFFE ID. Earlier grants stay: the
/// policy's name says what it grants, and the role's list of policies is extended.
async fn grant(client: &Client, service: &str, path: &str, write: bool) -> Result<(), Failure> {
    let service = libmesh::model::ServiceName::parse(service)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let (mount, rest) = split(path)?;
    let access = if write { "write" } else { "read" };
    let policy = format!("{access}-{}", format!("{mount}/{rest}").replace('/', "-"));
    let policy = policy.trim_end_matches('-').to_lowercase();
    let verbs = match write {
        true => r#"["create", "read", "update", "delete", "list"]"#,
        false => r#"["read", "list"]"#,
    };
    let mut rules = String::new();
    for kind in ["data", "metadata"] {
        for end in ["", "/*"] {
            let at = match rest {
                "" => format!("{mount}/{kind}{end}"),
                rest => format!("{mount}/{kind}/{rest}{end}"),
            };
            rules.push_str(&format!("path \"{at}\" {{ capabilities = {verbs} }}\n"));
        }
    }
    let what = format!("cannot grant {path:?} to service {service}");
    let at = format!("/v1/sys/policies/acl/{}", encode(&policy));
    let body = json!({"policy": rules});
    client.call(&what, Method::PUT, &at, Some(&body)).await?;

    let at = format!("/v1/auth/spiffe/role/{service}");
    let known = client.send(Method::GET, &at, "").await?;
    let mut policies: Vec<String> = match known.status {
        StatusCode::NOT_FOUND => Vec::new(),
        _ => {
            let value: Value = known.ok(&what)?.json(&what)?;
            serde_json::from_value(value["data"]["token_policies"].clone()).unwrap_or_default()
        }
    };
    if !policies.contains(&policy) {
        policies.push(policy.clone());
    }
    let body = json!({
        "workload_id_patterns": [format!("/ns/default/dc/*/svc/{service}")],
        "token_policies": policies,
    });
    client.call(&what, Method::POST, &at, Some(&body)).await?;
    output::line(&format!(
        "granted: {service} may {access} {path} (policy {policy})"
    ))
}

/// `secret/web/db` → `/v1/secret/<kind>/web/db`
fn api_path(path: &str, kind: &str) -> Result<String, Failure> {
    let (mount, rest) = split(path)?;
    Ok(format!("/v1/{}/{kind}/{}", encode(mount), encode(rest)))
}

fn split(path: &str) -> Result<(&str, &str), Failure> {
    let (mount, rest) = path.split_once('/').unwrap_or((path, ""));
    let quotes = path.contains(['"', '\\']) || path.chars().any(char::is_control);
    if mount.is_empty() || rest.starts_with('/') || quotes {
        return Err(Failure::usage(format!("{path:?} is no path of a secret"))
            .next("write mount and name, for example secret/web/db"));
    }
    Ok((mount, rest.trim_end_matches('/')))
}

fn parent(path: &str) -> &str {
    path.rfind('/').map_or("secret/", |at| &path[..=at])
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let api = |path| api_path(path, "data");
        assert_eq!(api("secret/web/db").unwrap(), "/v1/secret/data/web/db");
        assert_eq!(api("secret/a b/").unwrap(), "/v1/secret/data/a%20b");
        for bad in ["", "/x", "secret//x", "secret/a\"b"] {
            assert_eq!(api(bad).unwrap_err().exit, Exit::Usage, "{bad:?}");
        }
        assert_eq!(parent("secret/web/db"), "secret/web/");
    }
}
