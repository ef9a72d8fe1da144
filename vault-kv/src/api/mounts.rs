//! `sys/mounts`, `sys/auth`, `sys/remount` and what user interfaces ask about mounts.

use std::collections::VecDeque;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::Api;
use super::caller::Authenticated;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::{Kind, Mount, MountConfig, NewMount};
use crate::request::{Data, Operation};

/// Moves of mounts that are remembered.
const MOVES: usize = 256;

/// The last moves of mounts: id, from, to.
#[derive(Default)]
pub(super) struct Moves(Mutex<VecDeque<(String, String, String)>>);

impl Moves {
    /// The id of a move.
    fn note(&self, from: &str, to: &str) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        let mut moves = self.0.lock();
        if moves.len() >= MOVES {
            moves.pop_front();
        }
        moves.push_back((id.clone(), from.into(), to.into()));
        id
    }

    fn find(&self, id: &str) -> Option<(String, String)> {
        let moves = self.0.lock();
        let (_, from, to) = moves.iter().find(|(found, ..)| found == id)?;
        Some((from.clone(), to.clone()))
    }
}

fn no_mount() -> ApiError {
    ApiError::bad("No secret engine mount at this path")
}

/// The login method to enable.
fn auth_kind(data: &Data) -> Result<Kind, ApiError> {
    let mut kind = data.text("type")?.unwrap_or_default();
    if kind == "plugin" {
        kind = data.text("plugin_name")?.unwrap_or_default();
    }
    match kind.as_str() {
        "userpass" => Ok(Kind::Userpass),
        "approle" => Ok(Kind::Approle),
        "jwt" => Ok(Kind::Jwt),
        "cert" => Ok(Kind::Cert),
        "kubernetes" => Ok(Kind::Kubernetes),
        "" => Err(ApiError::bad("backend type must be specified as a string")),
        "token" | "spiffe" => Err(ApiError::bad(
            "this login method exists once and cannot be enabled again",
        )),
        _ => Err(ApiError::bad(
            "plugin not found in the catalog: the login methods are approle, cert, jwt and userpass",
        )),
    }
}

impl Api {
    pub(super) async fn mount(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
        auth: bool,
    ) -> Result<Answer, ApiError> {
        let (path, tunes) = match path.strip_suffix("/tune") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let path = match auth {
            true => &format!("auth/{path}"),
            false => path,
        };
        if tunes {
            return match operation {
                Operation::Read => {
                    let mount = self.mount_at(path)?;
                    Ok(Answer::data(mount.tune()).top_level())
                }
                Operation::Write => {
                    let tuned = self.mounts.tune(by, path, data).await?;
                    tuned.map(|()| Answer::none()).ok_or_else(no_mount)
                }
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        match operation {
            Operation::Read => self
                .mount_at(path)
                .map(|m| Answer::data(m.describe()).top_level()),
            Operation::Write => {
                let kind = if auth {
                    auth_kind(data)?
                } else {
                    kind_of(data)?
                };
                let mut config = MountConfig::default();
                if let Some(Value::Object(given)) = data.raw("config") {
                    config.update(&Data::from(given.clone()), auth)?;
                }
                let description = data.text("description")?.unwrap_or_default();
                let new = NewMount {
                    kind,
                    description,
                    config,
                };
                self.mounts.add(by, path, new).await?;
                Ok(Answer::none())
            }
            Operation::Delete if matches!(path.trim_end_matches('/'), "auth/token") => {
                Err(ApiError::bad("token credential backend cannot be disabled"))
            }
            Operation::Delete => {
                if let Some(served) = self.mounts.at(path).filter(|_| auth) {
                    // First nobody can log in any more, and then those who did are out.
                    self.mounts.remove(by, path).await?;
                    self.tokens.revoke_below(by, &served.mount.path).await?;
                    return Ok(Answer::none());
                }
                // While there still is somebody to take back what was handed out.
                self.revoke_prefix(by, path, false).await?;
                self.mounts.remove(by, path).await?;
                Ok(Answer::none())
            }
            Operation::List | Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }

    fn mount_at(&self, path: &str) -> Result<Mount, ApiError> {
        let served = self.mounts.at(path).ok_or_else(no_mount)?;
        Ok(served.mount.clone())
    }

    /// `sys/remount`: done when it is answered; what clients poll for says so.
    pub(super) async fn remount(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let (Some(from), Some(to)) = (data.text("from")?, data.text("to")?) else {
            return Err(ApiError::bad("both from and to mount paths are needed"));
        };
        let (from, to) = (from.trim_matches('/'), to.trim_matches('/'));
        self.mounts.rename(by, from, to).await?;
        // As Vault does: what was given at the old path ends with it.
        self.revoke_prefix(by, &format!("{from}/"), true).await?;
        let id = self.moves.note(from, to);
        Ok(Answer::data(json!({ "migration_id": id }))
            .top_level()
            .warn("The mount has been moved."))
    }

    /// `sys/remount/status/:id`
    pub(super) fn moved(&self, id: &str) -> Result<Answer, ApiError> {
        let (from, to) = self.moves.find(id).ok_or(ApiError::NotFound)?;
        Ok(Answer::data(json!({
            "migration_id": id,
            "migration_info": {"source_mount": format!("{from}/"), "target_mount": format!("{to}/"), "status": "success"},
        })))
    }

    /// What anybody may see: what is mounted to be seen.
    pub(super) fn public_mounts(&self, operation: Operation) -> Result<Answer, ApiError> {
        match operation {
            Operation::Read => Ok(Answer::data(json!({
                "secret": self.mounts.public(false), "auth": self.mounts.public(true),
            }))),
            _ => Err(ApiError::UnsupportedOperation),
        }
    }

    /// What the CLI asks before it builds a KV path: which mount is this, and which version?
    pub(super) fn ui_mounts(&self, caller: &Authenticated, path: &str) -> Result<Answer, ApiError> {
        if path.is_empty() {
            let seen = |p: &str| caller.acl().touches(p);
            return Ok(Answer::data(json!({
                "secret": self.mounts.describe(false, seen), "auth": self.mounts.describe(true, seen),
            })));
        }
        // One text for "no such mount" and "no rights there": it tells nothing about what exists.
        let served = self
            .mounts
            .find(&format!("{path}/"))
            .filter(|s| caller.acl().touches(&s.mount.path))
            .ok_or_else(|| {
                ApiError::Forbidden(format!(
                    "preflight capability check returned 403, please ensure client's policies grant access to path \"{path}/\""
                ))
            })?;
        let mut info = served.mount.describe();
        info["path"] = served.mount.path.clone().into();
        Ok(Answer::data(info))
    }
}

/// What to mount; kv without a version is version 1, as in Vault.
fn kind_of(data: &Data) -> Result<Kind, ApiError> {
    let mut kind = data.text("type")?.unwrap_or_default();
    if kind == "plugin" {
        kind = data.text("plugin_name")?.unwrap_or_default();
    }
    let version = match data.raw("options") {
        Some(Value::Object(options)) => match options.get("version") {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        },
        _ => None,
    };
    match (kind.as_str(), version.as_deref()) {
        ("kv-v2", None | Some("2")) | ("kv", Some("2")) => Ok(Kind::Kv),
        ("kv-v1" | "generic", None | Some("1")) | ("kv", None | Some("1")) => Ok(Kind::Kv1),
        ("ssh", None) => Ok(Kind::Ssh),
        ("kv" | "kv-v1" | "kv-v2" | "generic", _) => Err(ApiError::bad(
            "the version of kv is \"1\" or \"2\", and kv-v1 and kv-v2 have their own",
        )),
        ("", _) => Err(ApiError::bad("backend type must be specified as a string")),
        ("cubbyhole" | "system" | "identity" | "token" | "ns_system" | "ns_identity", _) => {
            Err(ApiError::Forbidden(
                "this kind of mount exists once and cannot be mounted again".into(),
            ))
        }
        _ => Err(ApiError::bad(
            "plugin not found in the catalog: kv and ssh can be mounted",
        )),
    }
}
