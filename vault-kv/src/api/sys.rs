//! `sys/*` of an unsealed store: policies, capabilities, mounts, the audit list and the ledger.

use serde_json::{Map, Value, json};

use super::Api;
use super::caller::Authenticated;
use crate::audit::describe;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::Kind;
use crate::policy::{Capability, PolicyName};
use crate::request::{Data, Operation, Request};

/// Ledger entries shown when the request does not say how many.
const HISTORY: i64 = 100;
/// Most ledger entries in one answer.
const MOST_HISTORY: i64 = 10_000;

impl Api {
    pub(super) async fn sys(
        &self,
        caller: &Authenticated,
        by: &By,
        request: &Request,
        path: &str,
    ) -> Result<Answer, ApiError> {
        use Operation::{List, Read, Write};
        let (operation, data) = (request.operation, &request.data);
        if let Some(name) = path.strip_prefix("policies/acl/") {
            return self.policy(by, operation, name, data, false).await;
        }
        if let Some(name) = path.strip_prefix("policy/") {
            return self.policy(by, operation, name, data, true).await;
        }
        if let Some(path) = path.strip_prefix("mounts/") {
            return self.mount(by, operation, path, data).await;
        }
        if let Some(rest) = path.strip_prefix("internal/ui/mounts") {
            return match operation {
                Read => self.ui_mounts(caller, rest.trim_matches('/')),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(answer) = self.keys(by, operation, path, data).await {
            return answer;
        }
        match (path, operation) {
            ("policy" | "policies/acl", Read) => Ok(self.policy_names()),
            ("capabilities-self", Write) => {
                let ask = |path: &str| caller.acl.capabilities(path);
                Ok(capabilities(data, ask)?.top_level())
            }
            // Permission is all there is to it here; whoever owns the keys drops them when this succeeds.
            ("seal", Write) => Ok(Answer::none()),
            ("explain", Write) => explain(caller, data),
            ("mounts", Read) => Ok(Answer::data(self.mounts.describe(false, |_| true)).top_level()),
            ("auth", Read) => Ok(Answer::data(self.mounts.describe(true, |_| true)).top_level()),
            ("audit", Read) => Ok(Answer::data(describe(&self.audit)).top_level()),
            ("mesh/ledger/verify", Read) => self
                .ledger(|ledger| ledger.verify())
                .await
                .map(Answer::data),
            ("mesh/ledger/history", Read) => {
                let last = data.int("last")?.unwrap_or(HISTORY).clamp(1, MOST_HISTORY);
                let last = usize::try_from(last).unwrap_or(1);
                let entries = self.ledger(move |ledger| ledger.history(last)).await?;
                Ok(Answer::data(json!({ "entries": entries })))
            }
            (
                "policy"
                | "policies/acl"
                | "capabilities-self"
                | "explain"
                | "mounts"
                | "auth"
                | "audit"
                | "mesh/ledger/verify"
                | "mesh/ledger/history",
                Write | Read | List | Operation::Patch | Operation::Delete,
            ) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    fn policy_names(&self) -> Answer {
        let names = self.policies.names();
        Answer::data(json!({"keys": names, "policies": names})).top_level()
    }

    /// `sys/policies/acl/:name`, or the older `sys/policy/:name` with its older field.
    async fn policy(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
        old: bool,
    ) -> Result<Answer, ApiError> {
        if name.is_empty() {
            return match operation {
                Operation::List | Operation::Read if old => Ok(self.policy_names()),
                Operation::List => Answer::keys(self.policies.names()),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let parsed = PolicyName::parse(name)?;
        let lowered = (parsed.as_str() != name)
            .then(|| format!("policy name was converted to {}", parsed.as_str()));
        match operation {
            Operation::Read => {
                let policy = self.policies.get(&parsed).ok_or(ApiError::NotFound)?;
                let field = if old { "rules" } else { "policy" };
                let answer = Answer::data(json!({"name": parsed.as_str(), field: policy.source}));
                Ok(if old { answer.top_level() } else { answer })
            }
            Operation::Write => {
                let text = match data.text("policy")? {
                    None if old => data.text("rules")?,
                    some => some,
                };
                let text = text
                    .filter(|t| !t.is_empty())
                    .ok_or_else(|| ApiError::bad("'policy' parameter not supplied or empty"))?;
                self.policies.put(by, parsed, &plain(&text)).await?;
                let mut answer = Answer::none();
                answer.warnings.extend(lowered);
                Ok(answer)
            }
            Operation::Delete => {
                self.policies.delete(by, &parsed).await?;
                Ok(Answer::none())
            }
            Operation::List | Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }
}

/// A policy document, which may come in base64.
fn plain(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_else(|| text.to_string())
}

/// What a caller may do on each of the paths asked for.
fn capabilities(data: &Data, ask: impl Fn(&str) -> Vec<&'static str>) -> Result<Answer, ApiError> {
    let paths = match data.list("paths")? {
        Some(paths) if !paths.is_empty() => paths,
        _ => data.list("path")?.unwrap_or_default(),
    };
    if paths.is_empty() {
        return Err(ApiError::bad("paths must be supplied"));
    }
    let mut out = Map::new();
    for path in &paths {
        let names: Value = ask(path.trim_start_matches('/')).into();
        if paths.len() == 1 {
            out.insert("capabilities".into(), names.clone());
        }
        out.insert(path.clone(), names);
    }
    Ok(Answer::data(out))
}

/// Why the caller may or may not do something: `path` and `capability`.
fn explain(caller: &Authenticated, data: &Data) -> Result<Answer, ApiError> {
    let (Some(path), Some(name)) = (data.text("path")?, data.text("capability")?) else {
        return Err(ApiError::bad("'path' and 'capability' must be supplied"));
    };
    let capability = [
        Capability::Create,
        Capability::Read,
        Capability::Update,
        Capability::Patch,
        Capability::Delete,
        Capability::List,
        Capability::Sudo,
    ]
    .into_iter()
    .find(|c| c.as_str() == name)
    .ok_or_else(|| {
        ApiError::bad("capability: create, read, update, patch, delete, list or sudo")
    })?;
    let decision = caller.acl.decide(&path, capability, None);
    Ok(Answer::data(json!({
        "allowed": decision.allowed, "reason": decision.explain(capability, &path), "policies": caller.policy_names(),
    })))
}

impl Api {
    async fn mount(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        if let Some(point) = path.strip_suffix("/tune") {
            if operation != Operation::Read {
                return Err(ApiError::UnsupportedOperation);
            }
            return self
                .mount_at(point)
                .map(|m| Answer::data(m.tune()).top_level());
        }
        match operation {
            Operation::Read => self
                .mount_at(path)
                .map(|m| Answer::data(m.describe()).top_level()),
            Operation::Write => {
                let kind = kind_of(data)?;
                let description = data.text("description")?.unwrap_or_default();
                self.mounts.add(by, path, kind, &description).await?;
                Ok(Answer::none())
            }
            Operation::Delete => {
                self.mounts.remove(by, path).await?;
                Ok(Answer::none())
            }
            Operation::List | Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }

    fn mount_at(&self, path: &str) -> Result<crate::mount::Mount, ApiError> {
        let point = format!("{}/", path.trim_end_matches('/'));
        self.mounts
            .find(&point)
            .filter(|s| s.mount.path == point)
            .map(|s| s.mount.clone())
            .ok_or_else(|| ApiError::bad("No secret engine mount at this path"))
    }

    /// What the CLI asks before it builds a KV path: which mount is this, and which version?
    fn ui_mounts(&self, caller: &Authenticated, path: &str) -> Result<Answer, ApiError> {
        if path.is_empty() {
            let seen = |p: &str| caller.acl.touches(p);
            return Ok(Answer::data(json!({
                "secret": self.mounts.describe(false, seen), "auth": self.mounts.describe(true, seen),
            })));
        }
        // One text for "no such mount" and "no rights there": it tells nothing about what exists.
        let served = self
            .mounts
            .find(&format!("{path}/"))
            .filter(|s| caller.acl.touches(&s.mount.path))
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
            "plugin not found in the catalog: only kv can be mounted",
        )),
    }
}
