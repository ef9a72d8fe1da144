//! `sys/*` of an unsealed store: policies, capabilities, mounts, the audit list and the ledger.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::Api;
use super::caller::Authenticated;
use super::host::{catalog, host_info, listed, plugin};
use super::tools::tools;
use crate::audit::describe;
use crate::db::By;
use crate::http::ApiError;
use crate::http::error::multi;
use crate::http::reply::Answer;
use crate::policy::{Capability, PolicyName};
use crate::request::{ClientToken, Data, Operation, Request};

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
        if let Some(path) = path.strip_prefix("policies/password/") {
            return self.password_policy(by, operation, path, data).await;
        }
        if let Some(name) = path.strip_prefix("policy/") {
            return self.policy(by, operation, name, data, true).await;
        }
        if let Some(path) = path.strip_prefix("mounts/") {
            return self.mount(by, operation, path, data, false).await;
        }
        if let Some(path) = path.strip_prefix("auth/") {
            return self.mount(by, operation, path, data, true).await;
        }
        if let Some(what) = path.strip_prefix("tools/") {
            return tools(operation, what, data);
        }
        if let Some(path) = path.strip_prefix("quotas/") {
            return self.quotas.handle(by, operation, path, data).await;
        }
        if let Some(what) = path.strip_prefix("wrapping/") {
            return self.wrapping(caller, by, request, what).await;
        }
        if let Some(name) = path.strip_prefix("audit-hash/") {
            return match operation {
                Write => self.audit_hash(name, data),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(path) = path.strip_prefix("locked-users/") {
            return match operation {
                Write => self.unlock_user(path),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(what) = path.strip_prefix("plugins/catalog/") {
            return match operation {
                List => listed(what.trim_end_matches('/')),
                Read => plugin(what),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(id) = path.strip_prefix("remount/status/") {
            return match operation {
                Read => self.moved(id),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(rest) = path.strip_prefix("internal/ui/mounts") {
            return match operation {
                Read => self.ui_mounts(caller, rest.trim_matches('/')),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(answer) = self.sys_leases(by, request, path).await {
            return answer;
        }
        if let Some(answer) = self.keys(by, operation, path, data).await {
            return answer;
        }
        match (path, operation) {
            ("policy" | "policies/acl", Read) => Ok(self.policy_names()),
            ("capabilities-self", Write) => {
                let ask = |path: &str| caller.acl().capabilities(path);
                Ok(capabilities(data, ask)?.top_level())
            }
            ("capabilities" | "capabilities-accessor", Write) => {
                let token = match path {
                    "capabilities" => {
                        let secret = data.text("token")?.unwrap_or_default();
                        let found = self.tokens.find(&ClientToken::new(secret))?;
                        found.ok_or_else(|| ApiError::bad(multi("invalid token")))?
                    }
                    _ => {
                        let accessor = data.text("accessor")?.unwrap_or_default();
                        let found = self.tokens.by_accessor(&accessor)?;
                        found.ok_or_else(|| ApiError::bad(multi("invalid accessor")))?
                    }
                };
                let acl = &self.rights_of(&token.1)?.acl;
                Ok(capabilities(data, |path| acl.capabilities(path))?.top_level())
            }
            ("remount", Write) => self.remount(by, data).await,
            ("metrics", Read) => self.metrics(data),
            ("in-flight-req", Read) => Ok(self.in_flight()),
            ("version-history" | "version-history/", List) => self.version_history(),
            ("internal/specs/openapi", Read | Write) => Ok(self.openapi(caller)),
            // There is one server, which nobody could take over from.
            ("step-down", Write) => Ok(Answer::none()),
            ("host-info", Read) => Ok(Answer::data(host_info(&self.clock))),
            ("locked-users", Read) => Ok(self.locked_users()),
            ("plugins/catalog", Read) => Ok(Answer::data(catalog())),
            ("config/cors", Read) => Ok(Answer::data(json!({"enabled": false})).top_level()),
            ("config/auditing/request-headers", Read) => {
                Ok(Answer::data(json!({"headers": {}})).top_level())
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
                | "capabilities"
                | "capabilities-accessor"
                | "remount"
                | "step-down"
                | "metrics"
                | "in-flight-req"
                | "version-history"
                | "version-history/"
                | "internal/specs/openapi"
                | "host-info"
                | "locked-users"
                | "plugins/catalog"
                | "config/cors"
                | "config/auditing/request-headers"
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

    /// How a text appears in the audit log.
    fn audit_hash(&self, name: &str, data: &Data) -> Result<Answer, ApiError> {
        let name = name.trim_end_matches('/');
        if !self.audit.names().any(|sink| sink.name == name) {
            return Err(ApiError::bad(format!("unknown audit backend \"{name}/\"")));
        }
        let input = Zeroizing::new(
            data.text("input")?
                .ok_or_else(|| ApiError::bad("the \"input\" parameter is empty"))?,
        );
        Ok(Answer::data(json!({"hash": self.hasher.text(&input)})).top_level())
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
                self.policies.put(by, parsed, &plain(&text), None).await?;
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
pub(super) fn plain(text: &str) -> String {
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
    let decision = caller.acl().decide(&path, capability, None);
    Ok(Answer::data(json!({
        "allowed": decision.allowed, "reason": decision.explain(capability, &path), "policies": caller.policy_names(),
    })))
}
