//! `mesh secret`

use std::collections::BTreeMap;

use clap::Subcommand;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Exit, Failure, Global, client::Client, input, output};
use crate::http::query::encode;

mod versions;
mod watch;

use versions::Metadata;

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
    /// Change some fields of a secret; the others stay. It becomes a new version.
    #[command(after_help = "As for put. --remove FIELD takes a field away.")]
    Patch {
        /// Where it is, for example secret/web/db
        path: String,
        /// FIELD=- (stdin), FIELD=@FILE, or FIELD (prompt)
        #[arg(value_name = "FIELD[=-|=@FILE]", required_unless_present = "remove")]
        fields: Vec<String>,
        /// A field to take away; repeatable.
        #[arg(long, value_name = "FIELD")]
        remove: Vec<String>,
        /// Only if the current version is this.
        #[arg(long, value_name = "VERSION")]
        cas: Option<u64>,
    },
    /// Hide the newest version, or others; undelete brings them back.
    Delete {
        /// Where it is.
        path: String,
        /// These versions.
        #[arg(long, value_name = "VERSION", value_delimiter = ',')]
        version: Vec<u64>,
    },
    /// Bring hidden versions back.
    Undelete {
        /// Where it is.
        path: String,
        /// These versions.
        #[arg(long, value_name = "VERSION", value_delimiter = ',', required = true)]
        version: Vec<u64>,
    },
    /// Remove versions for good.
    Destroy {
        /// Where it is.
        path: String,
        /// These versions.
        #[arg(long, value_name = "VERSION", value_delimiter = ',', required = true)]
        version: Vec<u64>,
    },
    /// Give a secret another name, with all its versions.
    Move {
        /// Where it is.
        from: String,
        /// Where it is to be, on the same mount.
        to: String,
    },
    /// Print a secret, and again whenever it changes.
    Watch {
        /// Where it is.
        path: String,
        /// Print only this field.
        #[arg(long)]
        field: Option<String>,
        /// Wait for the next change, print that and end.
        #[arg(long)]
        once: bool,
    },
    /// Versions and settings of a secret.
    #[command(subcommand)]
    Metadata(Metadata),
    /// List what is below a path.
    List {
        /// The folder.
        #[arg(default_value = "secret/")]
        path: String,
        /// Everything in it and in its folders.
        #[arg(short, long)]
        recursive: bool,
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
            Command::Patch {
                path,
                fields,
                remove,
                cas,
            } => patch(global, &path, &fields, &remove, cas).await,
            Command::Delete { path, version } => versions::delete(global, &path, &version).await,
            Command::Undelete { path, version } => {
                versions::change(global, &path, "undelete", &version).await
            }
            Command::Destroy { path, version } => {
                versions::change(global, &path, "destroy", &version).await
            }
            Command::Move { from, to } => versions::rename(global, &from, &to).await,
            Command::Watch { path, field, once } => {
                watch::watch(global, &path, field.as_deref(), once).await
            }
            Command::Metadata(command) => command.run(global).await,
            Command::List { path, recursive } => list(global, &path, recursive).await,
            Command::Grant {
                service,
                path,
                write,
            } => {
                let client = global.addresses.vault()?;
                grant(global, &client, &service, &path, write).await
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
        return Err(hidden(path, &answer.json(&what).unwrap_or_default()));
    }
    let value: Value = answer.ok(&what)?.json(&what)?;
    show(global, path, fields(&value, &what)?, field)
}

fn missing(path: &str) -> Failure {
    Failure::failed(format!("there is no secret at {path:?}"))
        .next(format!("mesh secret list {}", parent(path)))
}

/// Why there is nothing to show: it was deleted or destroyed, or never was there.
fn hidden(path: &str, answer: &Value) -> Failure {
    let about = &answer["data"]["metadata"];
    let Some(version) = about["version"].as_u64() else {
        return missing(path);
    };
    let failure = |how: &str| Failure::failed(format!("version {version} of {path:?} {how}"));
    match about["destroyed"] == true {
        true => failure("was destroyed").next(format!("mesh secret metadata get {path}")),
        false => {
            let since = plain(&about["deletion_time"]);
            failure(&format!("was deleted at {since}"))
                .next(format!("mesh secret undelete {path} --version {version}"))
        }
    }
}

/// The fields of a secret in the answer to a read.
fn fields<'a>(answer: &'a Value, what: &str) -> Result<&'a Map<String, Value>, Failure> {
    let fields = answer["data"]["data"].as_object();
    fields.ok_or_else(|| Failure::new(Exit::Remote, format!("{what}: the answer has no fields")))
}

/// Prints a secret, or one field's bare value.
fn show(
    global: &Global,
    path: &str,
    fields: &Map<String, Value>,
    field: Option<&str>,
) -> Result<(), Failure> {
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
    output::rows(global.output, &["FIELD", "VALUE"], rows.collect(), fields)
}

async fn put(
    global: &Global,
    path: &str,
    fields: &[String],
    cas: Option<u64>,
) -> Result<(), Failure> {
    let data = read_fields(fields)?;
    write(global, Method::POST, path, json!(data), cas).await
}

/// Changes some fields and takes some away.
async fn patch(
    global: &Global,
    path: &str,
    fields: &[String],
    remove: &[String],
    cas: Option<u64>,
) -> Result<(), Failure> {
    let mut data = json!(read_fields(fields)?);
    for name in remove {
        data[name] = Value::Null;
    }
    write(global, Method::PATCH, path, data, cas).await
}

/// The values that were named, each from where it is.
fn read_fields(fields: &[String]) -> Result<BTreeMap<String, String>, Failure> {
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
    Ok(data)
}

async fn write(
    global: &Global,
    method: Method,
    path: &str,
    data: Value,
    cas: Option<u64>,
) -> Result<(), Failure> {
    let what = format!("cannot write secret {path:?}");
    let at = api_path(path, "data")?;
    let client = global.addresses.secrets()?;
    let patches = method == Method::PATCH;
    let mut body = json!({"data": data});
    if let Some(version) = cas {
        body["options"] = json!({"cas": version});
    }
    let answer = client.send(method, &at, body.to_string()).await?;
    if patches && answer.status == StatusCode::NOT_FOUND {
        return Err(missing(path));
    }
    let answer: Value = answer.ok(&what)?.json(&what)?;
    let version = &answer["data"]["version"];
    let text = format!("written: {path}, version {version}");
    output::done(global.output, &text, &answer["data"])
}

async fn list(global: &Global, path: &str, recursive: bool) -> Result<(), Failure> {
    let client = global.addresses.secrets()?;
    let what = format!("cannot list secrets below {path:?}");
    let how = if recursive { "scan" } else { "list" };
    let at = format!("{}?{how}=true", api_path(path, "metadata")?);
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
async fn grant(
    global: &Global,
    client: &Client,
    service: &str,
    path: &str,
    write: bool,
) -> Result<(), Failure> {
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
    let text = format!("granted: {service} may {access} {path} (policy {policy})");
    let done = json!({"service": service.to_string(), "path": path, "policy": policy});
    output::done(global.output, &text, &done)
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
