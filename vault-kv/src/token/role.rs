//! Roles of `auth/token/roles/`: what those may make who may only use the role.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::auth::params::TokenParams;
use crate::db::{Batch, By, Db};
use crate::glob;
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation};

const PREFIX: &str = "token/role/";

/// One role.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TokenRole {
    pub allowed_policies: Vec<String>,
    pub disallowed_policies: Vec<String>,
    pub allowed_policies_glob: Vec<String>,
    pub disallowed_policies_glob: Vec<String>,
    pub allowed_entity_aliases: Vec<String>,
    pub orphan: bool,
    pub renewable: bool,
    pub path_suffix: String,
    pub params: TokenParams,
}

impl Default for TokenRole {
    fn default() -> Self {
        Self {
            allowed_policies: Vec::new(),
            disallowed_policies: Vec::new(),
            allowed_policies_glob: Vec::new(),
            disallowed_policies_glob: Vec::new(),
            allowed_entity_aliases: Vec::new(),
            orphan: false,
            renewable: true,
            path_suffix: String::new(),
            params: TokenParams::default(),
        }
    }
}

impl TokenRole {
    fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        for (name, list) in [
            ("allowed_policies", &mut self.allowed_policies),
            ("disallowed_policies", &mut self.disallowed_policies),
            ("allowed_policies_glob", &mut self.allowed_policies_glob),
            (
                "disallowed_policies_glob",
                &mut self.disallowed_policies_glob,
            ),
            ("allowed_entity_aliases", &mut self.allowed_entity_aliases),
        ] {
            if let Some(given) = data.list(name)? {
                *list = given.iter().map(|name| name.to_lowercase()).collect();
            }
        }
        if let Some(orphan) = data.flag("orphan")? {
            self.orphan = orphan;
        }
        if let Some(renewable) = data.flag("renewable")? {
            self.renewable = renewable;
        }
        if let Some(suffix) = data.text("path_suffix")? {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if suffix.len() > 128 || !suffix.chars().all(fits) {
                return Err(ApiError::bad(
                    "field \"path_suffix\": only letters, digits, _, - and . are allowed",
                ));
            }
            self.path_suffix = suffix;
        }
        self.params.update(data)?;
        if let Some(max) = data.duration("explicit_max_ttl")?
            && data.raw("token_explicit_max_ttl").is_none()
        {
            self.params.explicit_max_ttl = max.as_secs();
        }
        Ok(())
    }

    /// Whether tokens may be made for whoever is called so, in lower case.
    pub fn allows_alias(&self, alias: &str) -> bool {
        let mut allowed = self.allowed_entity_aliases.iter();
        allowed.any(|allowed| glob::matches(allowed, alias))
    }

    fn describe(&self, name: &str) -> Map<String, Value> {
        let aliases = match self.allowed_entity_aliases.is_empty() {
            true => Value::Null,
            false => json!(self.allowed_entity_aliases),
        };
        let kind = match self.params.kind.as_str() {
            "" => "default-service",
            some => some,
        };
        let mut out = Map::new();
        for (key, value) in [
            ("name", json!(name)),
            ("allowed_policies", json!(self.allowed_policies)),
            ("disallowed_policies", json!(self.disallowed_policies)),
            ("allowed_policies_glob", json!(self.allowed_policies_glob)),
            (
                "disallowed_policies_glob",
                json!(self.disallowed_policies_glob),
            ),
            ("allowed_entity_aliases", aliases),
            ("orphan", json!(self.orphan)),
            ("renewable", json!(self.renewable)),
            ("path_suffix", json!(self.path_suffix)),
            ("explicit_max_ttl", json!(0)),
            ("period", json!(0)),
            (
                "token_explicit_max_ttl",
                json!(self.params.explicit_max_ttl),
            ),
            (
                "token_no_default_policy",
                json!(self.params.no_default_policy),
            ),
            ("token_period", json!(self.params.period)),
            ("token_type", json!(kind)),
        ] {
            out.insert(key.into(), value);
        }
        for (key, set, value) in [
            (
                "token_bound_cidrs",
                !self.params.bound_cidrs.is_empty(),
                json!(self.params.bound_cidrs),
            ),
            (
                "token_num_uses",
                self.params.num_uses > 0,
                json!(self.params.num_uses),
            ),
        ] {
            if set {
                out.insert(key.into(), value);
            }
        }
        out
    }

    /// Whether the role restricts what policies its tokens have.
    pub fn restricts(&self) -> bool {
        !self.allowed_policies.is_empty()
            || !self.allowed_policies_glob.is_empty()
            || !self.disallowed_policies.is_empty()
            || !self.disallowed_policies_glob.is_empty()
    }

    /// # Errors
    /// 400 with the policies, when a token with them may not be made.
    pub fn permits(&self, policies: &[String]) -> Result<(), ApiError> {
        let quoted = |names: &[String]| {
            let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
            names.join(" ")
        };
        let listed = |names: &[String], globs: &[String], policy: &str| {
            names.iter().any(|name| name == policy)
                || globs.iter().any(|glob| glob::matches(glob, policy))
        };
        let only = !self.allowed_policies.is_empty() || !self.allowed_policies_glob.is_empty();
        let mut allowed = self.allowed_policies.clone();
        if only && !self.params.no_default_policy {
            allowed.push("default".into());
            allowed.sort();
        }
        let outside = |policy: &String| !listed(&allowed, &self.allowed_policies_glob, policy);
        if only && policies.iter().any(outside) {
            return Err(ApiError::bad(format!(
                "token policies ([{}]) must be subset of the role's allowed policies ([{}]) or glob policies ([{}])",
                quoted(policies),
                quoted(&allowed),
                quoted(&self.allowed_policies_glob),
            )));
        }
        let refused = policies.iter().find(|policy| {
            listed(
                &self.disallowed_policies,
                &self.disallowed_policies_glob,
                policy,
            )
        });
        match refused {
            Some(policy) => Err(ApiError::bad(format!(
                "token policy {policy:?} is disallowed by this role"
            ))),
            None => Ok(()),
        }
    }
}

/// The roles in the store.
pub(crate) struct TokenRoles(Db);

impl TokenRoles {
    pub fn new(db: Db) -> Self {
        Self(db)
    }

    pub fn get(&self, name: &str) -> Result<Option<TokenRole>, ApiError> {
        let path = format!("{PREFIX}{}", name.to_lowercase());
        Ok(self.0.get(&path)?.map(|(role, _)| role))
    }

    /// `roles/…`; `name` is empty for the folder.
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.0.list(PREFIX)?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = crate::auth::item_name(name)?;
        let path = format!("{PREFIX}{name}");
        match operation {
            Read => {
                let role = self.get(&name)?.ok_or(ApiError::NotFound)?;
                Ok(Answer::data(role.describe(&name)))
            }
            Write => {
                let _order = self.0.lock(&path).await;
                let mut role = self.get(&name)?.unwrap_or_default();
                role.update(data)?;
                let mut batch = Batch::new(by, "token-role/write");
                batch
                    .put(&path, &role)?
                    .key(format!("auth/token/roles/{name}"));
                self.0.commit(batch).await?;
                Ok(Answer::none())
            }
            Delete => {
                let _order = self.0.lock(&path).await;
                if self.0.index(&path)?.is_some() {
                    let mut batch = Batch::new(by, "token-role/delete");
                    batch.delete(&path).key(format!("auth/token/roles/{name}"));
                    self.0.commit(batch).await?;
                }
                Ok(Answer::none())
            }
            List | Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }
}
