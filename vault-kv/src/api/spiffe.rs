//! Roles of verified SPIFFE IDs: which policies a service or node has because of who it is.
//!
//! The connection's certificate is the credential, so there is nothing to log in with and nothing to keep. A role
//! names patterns of SPIFFE IDs; a caller has the policies of every role that matches it, and `default`.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Api;
use crate::db::{Batch, By, Db};
use crate::glob;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::policy::{Identity, PolicyName};
use crate::request::{Data, Operation, Request};

const PREFIX: &str = "auth/spiffe/role/";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Role {
    workload_id_patterns: Vec<String>,
    token_policies: Vec<String>,
}

/// All roles of an unsealed server.
pub(super) struct Roles {
    db: Db,
    all: RwLock<BTreeMap<String, Role>>,
}

impl Roles {
    pub fn load(db: Db) -> Result<Self, ApiError> {
        let mut all = BTreeMap::new();
        for path in db.names(PREFIX)? {
            if let Some((role, _)) = db.get::<Role>(&path)? {
                all.insert(path[PREFIX.len()..].to_string(), role);
            }
        }
        Ok(Self {
            db,
            all: RwLock::new(all),
        })
    }

    /// The policies of a verified SPIFFE ID, sorted; none when no role matches it.
    pub fn policies(&self, spiffe: &str) -> Vec<String> {
        let mut out = BTreeSet::new();
        for role in self.all.read().values() {
            if role.workload_id_patterns.iter().any(|p| matches(p, spiffe)) {
                out.insert("default".to_string());
                out.extend(role.token_policies.iter().cloned());
            }
        }
        out.into_iter().collect()
    }

    async fn put(&self, by: &By, name: &str, data: &Data) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{name}");
        let _order = self.db.lock(&path).await;
        let mut role = self.all.read().get(name).cloned().unwrap_or_default();
        if let Some(patterns) = data.list("workload_id_patterns")? {
            role.workload_id_patterns = patterns;
        }
        if let Some(policies) = data.list("token_policies")? {
            role.token_policies = policies
                .iter()
                .map(|p| Ok(PolicyName::parse(p)?.as_str().to_string()))
                .collect::<Result<_, ApiError>>()?;
        }
        check(&role)?;
        let mut batch = Batch::new(by, "spiffe-role/write");
        batch
            .put(&path, &role)?
            .key(format!("auth/spiffe/role/{name}"));
        self.db.commit(batch).await?;
        self.all.write().insert(name.into(), role);
        Ok(())
    }

    async fn delete(&self, by: &By, name: &str) -> Result<(), ApiError> {
        let path = format!("{PREFIX}{name}");
        let _order = self.db.lock(&path).await;
        if self.db.index(&path)?.is_some() {
            let mut batch = Batch::new(by, "spiffe-role/delete");
            batch.delete(&path).key(format!("auth/spiffe/role/{name}"));
            self.db.commit(batch).await?;
        }
        self.all.write().remove(name);
        Ok(())
    }
}

fn check(role: &Role) -> Result<(), ApiError> {
    if role.workload_id_patterns.is_empty() {
        return Err(ApiError::bad(
            "field \"workload_id_patterns\" needs at least one pattern, such as /ns/default/dc/*/svc/web",
        ));
    }
    let shaped = |p: &String| {
        let path = p.strip_prefix("spiffe://").unwrap_or(p);
        (p.starts_with('/') || p.starts_with("spiffe://"))
            && p.len() <= 2048
            && path.trim_start_matches('/').len() > 1
            && !p.contains(char::is_whitespace)
    };
    if !role.workload_id_patterns.iter().all(shaped) {
        return Err(ApiError::bad(
            "a workload id pattern is a SPIFFE ID (spiffe://…) or its path (/…); * stands for any part of one segment",
        ));
    }
    if role.token_policies.iter().any(|p| p == "root") {
        return Err(ApiError::bad("an identity cannot have the root policy"));
    }
    Ok(())
}

/// Whether a pattern (a SPIFFE ID or its path) matches; `*` stands for any characters within one segment.
fn matches(pattern: &str, spiffe: &str) -> bool {
    let text = if pattern.starts_with('/') {
        let Some(rest) = spiffe.strip_prefix("spiffe://") else {
            return false;
        };
        match rest.find('/') {
            Some(at) => &rest[at..],
            None => return false,
        }
    } else {
        spiffe
    };
    let (mut patterns, mut segments) = (pattern.split('/'), text.split('/'));
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return true,
            // A segment is never empty, so `*` alone does not match nothing.
            (Some(p), Some(s)) if glob::matches(p, s) && p.is_empty() == s.is_empty() => {}
            _ => return false,
        }
    }
}

/// What policy templates may say about a SPIFFE ID of the mesh.
pub(super) fn identity(spiffe: &str) -> Identity {
    let path: Vec<_> = spiffe
        .strip_prefix("spiffe://")
        .unwrap_or_default()
        .split('/')
        .skip(1)
        .collect();
    let mut identity = Identity::default();
    match path[..] {
        ["ns", "default", "dc", datacenter, "svc", service] => {
            identity.service = Some(service.into());
            identity.datacenter = Some(datacenter.into());
        }
        ["node", node] => identity.node = Some(node.into()),
        _ => {}
    }
    identity
}

impl Api {
    /// `auth/spiffe/…`
    pub(super) async fn auth_spiffe(
        &self,
        by: &By,
        request: &Request,
        path: &str,
    ) -> Result<Answer, ApiError> {
        let Some(name) = path.strip_prefix("role/") else {
            return Err(ApiError::UnsupportedPath);
        };
        let roles = &self.roles;
        if name.is_empty() {
            return match request.operation {
                Operation::List => Answer::keys(roles.all.read().keys().cloned().collect()),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.len() > 128 || !name.chars().all(fits) {
            return Err(ApiError::UnsupportedPath);
        }
        match request.operation {
            Operation::Read => {
                let role = roles
                    .all
                    .read()
                    .get(name)
                    .cloned()
                    .ok_or(ApiError::NotFound)?;
                Ok(Answer::data(json!({
                    "workload_id_patterns": role.workload_id_patterns, "token_policies": role.token_policies,
                })))
            }
            Operation::Write => {
                roles.put(by, name, &request.data).await?;
                Ok(Answer::none())
            }
            Operation::Delete => {
                roles.delete(by, name).await?;
                Ok(Answer::none())
            }
            Operation::Patch | Operation::List => Err(ApiError::UnsupportedOperation),
        }
    }
}
