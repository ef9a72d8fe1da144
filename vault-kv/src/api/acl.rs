//! Tokens, policies and roles as Consul's clients manage them.
//!
//! Whoever gets here was allowed to: the embedding program has asked about its own path. That right is one to Consul's
//! resources, and must not become one to everything: what grants more than those (a policy with `path` rules, a token's
//! text of one's own choice) takes the rights that the Vault interface asks for the same ([`limits`]).

mod limits;
mod lists;

use std::time::Duration;

use zeroize::Zeroizing;

use super::{Api, Begun};
use crate::acl::{
    ANONYMOUS, ANONYMOUS_SECRET, AclError, Links, PolicyEntry, RoleEntry, TokenEntry, TokenSpec,
};
use crate::db::Batch;
use crate::http::ApiError;
use crate::policy::{Capability, Grants, Policy, PolicyName, builtin};
use crate::request::ClientToken;
use crate::token::{Linked, NewToken, Token};

/// What the API calls the place where such tokens are made.
const MADE_BY: &str = "consul/acl";
/// Says that the first token was made, and when.
const BOOTSTRAPPED: &str = "acl/bootstrapped";

impl Api {
    pub fn grants(&self, token: &str) -> Result<Grants, ApiError> {
        let secret = ClientToken::new(token);
        let caller = self.authenticate(Some(&secret), None, None)?;
        if caller.is_use_limited() {
            return Err(ApiError::Forbidden(
                "a token with a limited number of uses works on the Vault API only".into(),
            ));
        }
        let (_, token) = caller.token().ok_or(ApiError::Unauthenticated)?;
        Ok(Grants::new(
            &token.accessor,
            token.expires,
            caller.shared_acl(),
        ))
    }
}

impl Api {
    pub fn own_token(&self, token: &str) -> Result<TokenEntry, ApiError> {
        let secret = ClientToken::new(token);
        let caller = self.authenticate(Some(&secret), None, None)?;
        let (_, token) = caller.token().ok_or(ApiError::Unauthenticated)?;
        let linked = self.tokens.linked_by_accessor(&token.accessor)?;
        Ok(entry(token, linked.map_or((0, 0), |found| found.indexes)))
    }
}

/// Tokens, policies and roles in the name of one caller, whose request is on record. See [`crate::acl`].
pub struct Administration<'a> {
    api: &'a Api,
    begun: &'a Begun,
}

impl<'a> Administration<'a> {
    pub(crate) fn new(api: &'a Api, begun: &'a Begun) -> Self {
        Self { api, begun }
    }

    /// Every policy but `root`, by name.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn policies(&self) -> Result<Vec<PolicyEntry>, AclError> {
        let mut names = self.api.policies.names();
        names.extend([builtin::MANAGEMENT, builtin::READ_ONLY].map(str::to_owned));
        names.sort();
        let found = names.iter().filter(|name| *name != "root");
        found
            .filter_map(|name| self.policy(name).transpose())
            .collect()
    }

    /// One policy; the document of one that grants more than Consul's resources is empty for who may not read it on the
    /// Vault interface.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn policy(&self, name: &str) -> Result<Option<PolicyEntry>, AclError> {
        let Ok(name) = PolicyName::parse(name) else {
            return Ok(None);
        };
        if name.is_root() || name.as_str() == builtin::WRAPPING_NAME {
            return Ok(None);
        }
        let Some(policy) = self.api.policies.get(&name) else {
            return Ok(None);
        };
        let readable = policy.is_consuls() || self.may(Capability::Read, &limits::document(&name));
        Ok(Some(PolicyEntry {
            name: name.as_str().into(),
            description: policy.description.clone(),
            source: if readable {
                policy.source.clone()
            } else {
                String::new()
            },
            is_consuls: policy.is_consuls(),
            builtin: builtin::is_fixed(name.as_str()),
            indexes: self.api.policies.indexes(&name)?,
        }))
    }

    /// Makes or changes a policy.
    ///
    /// # Errors
    /// See [`AclError`]; a document that is no good with the position in it.
    pub async fn put_policy(
        &self,
        name: &str,
        source: &str,
        description: &str,
    ) -> Result<(), AclError> {
        let name = PolicyName::parse(name)?;
        let new = Policy::parse(name.clone(), source)?;
        let known = self.api.policies.get(&name);
        self.touches(&name, known.as_deref(), Some(&new), Capability::Update)?;
        let policies = &self.api.policies;
        Ok(policies
            .put(&self.begun.by, name, source, Some(description))
            .await?)
    }

    /// Takes a policy away.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn delete_policy(&self, name: &str) -> Result<(), AclError> {
        let name = PolicyName::parse(name)?;
        let known = self.api.policies.get(&name);
        self.touches(&name, known.as_deref(), None, Capability::Delete)?;
        Ok(self.api.policies.delete(&self.begun.by, &name).await?)
    }

    /// Every role.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn roles(&self) -> Result<Vec<RoleEntry>, AclError> {
        Ok(self.api.policies.roles()?)
    }

    /// One role.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn role(&self, id: &str) -> Result<Option<RoleEntry>, AclError> {
        Ok(self.api.policies.role(id)?)
    }

    /// Makes or changes a role.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn put_role(&self, role: &RoleEntry) -> Result<(), AclError> {
        let known = self.role(&role.id)?.map(|known| known.links);
        self.may_give(&role.links, &known.unwrap_or_default())?;
        Ok(self.api.policies.put_role(&self.begun.by, role).await?)
    }

    /// Takes a role away, and with it what tokens have through it.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn delete_role(&self, id: &str) -> Result<(), AclError> {
        Ok(self.api.policies.delete_role(&self.begun.by, id).await?)
    }

    /// Every token that was made here, without those whose time is over.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn tokens(&self) -> Result<Vec<TokenEntry>, AclError> {
        let accessors = self.api.tokens.linked()?;
        let found = accessors.iter().map(|accessor| self.token(accessor));
        found.filter_map(Result::transpose).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// See [`AclError`].
    pub fn token(&self, accessor: &str) -> Result<Option<TokenEntry>, AclError> {
        let found = self.api.tokens.linked_by_accessor(accessor)?;
        Ok(found.map(|found| entry(&found.token, found.indexes)))
    }

    /// Makes a token; its text.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn create_token(
        &self,
        spec: TokenSpec,
    ) -> Result<(Zeroizing<String>, TokenEntry), AclError> {
        self.may_give(&spec.links, &Links::default())?;
        if spec.secret.is_some() && !self.may(Capability::Sudo, "auth/token/create") {
            return Err(AclError::Denied(
                "Permission denied: a SecretID of one's own choice takes \"sudo\" on \"auth/token/create\"".into(),
            ));
        }
        self.make(spec, Batch::new(&self.begun.by, "token/create"))
            .await
    }

    /// Makes a token for somebody whose login was checked. What it grants was decided by whoever said what such a login
    /// gives; `doubtful` is the part of it that somebody decided who may give rights to Consul's resources only.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn create_token_for_login(
        &self,
        spec: TokenSpec,
        doubtful: &Links,
    ) -> Result<(Zeroizing<String>, TokenEntry), AclError> {
        if let Some(name) = self.beyond_consul(doubtful)? {
            return Err(AclError::Denied(format!(
                "Permission denied: the policy {name:?} grants more than Consul's resources; a binding rule that gives it takes \"sudo\" on \"auth/token/create\""
            )));
        }
        self.make(spec, Batch::new(&self.begun.by, "login")).await
    }

    /// Whether the caller may give every policy.
    pub fn may_give_all(&self) -> bool {
        self.may(Capability::Sudo, "auth/token/create")
    }

    /// Makes the first token, once.
    ///
    /// # Errors
    /// [`AclError::Bootstrapped`] and others.
    pub async fn bootstrap(
        &self,
        secret: Option<Zeroizing<String>>,
    ) -> Result<(Zeroizing<String>, TokenEntry), AclError> {
        if let Some(at) = self.api.db.index(BOOTSTRAPPED)? {
            return Err(AclError::Bootstrapped(at));
        }
        let mut batch = Batch::new(&self.begun.by, "acl bootstrap");
        batch.put(BOOTSTRAPPED, &())?.expect(BOOTSTRAPPED, None);
        let spec = TokenSpec {
            secret,
            description: "Bootstrap Token (Global Management)".into(),
            links: Links {
                policies: vec![builtin::MANAGEMENT.into()],
                ..Links::default()
            },
            ..TokenSpec::default()
        };
        self.make(spec, batch).await
    }

    /// Changes a token. Its text and its time stay.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn update_token(
        &self,
        accessor: &str,
        spec: TokenSpec,
    ) -> Result<TokenEntry, AclError> {
        if accessor == ANONYMOUS
            && let Some(name) = self.beyond_consul(&spec.links)?
        {
            return Err(AclError::Invalid(format!(
                "the policy {name:?} grants more than Consul's resources; the anonymous token is everybody's"
            )));
        }
        let Some(found) = self.api.tokens.linked_by_accessor(accessor)? else {
            return self.update_anonymous(accessor, spec).await;
        };
        let old = found.token.linked.clone().unwrap_or_default();
        self.may_give(&spec.links, &old.links)?;
        let linked = Linked {
            description: spec.description,
            local: old.local,
            auth_method: old.auth_method,
            links: spec.links,
        };
        let policies = linked.links.names();
        let tokens = &self.api.tokens;
        tokens
            .relink(&self.begun.by, &found.id, policies, linked)
            .await?;
        self.token(accessor)?.ok_or_else(not_found)
    }

    /// The token of those who show none is made when it is first given something.
    async fn update_anonymous(
        &self,
        accessor: &str,
        spec: TokenSpec,
    ) -> Result<TokenEntry, AclError> {
        if accessor != ANONYMOUS {
            return Err(not_found());
        }
        self.may_give(&spec.links, &Links::default())?;
        let spec = TokenSpec {
            accessor: Some(ANONYMOUS.into()),
            secret: Some(Zeroizing::new(ANONYMOUS_SECRET.into())),
            ttl: None,
            ..spec
        };
        let batch = Batch::new(&self.begun.by, "token/create");
        Ok(self.make(spec, batch).await?.1)
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// See [`AclError`].
    pub async fn delete_token(&self, accessor: &str) -> Result<(), AclError> {
        let found = self.api.tokens.linked_by_accessor(accessor)?;
        let found = found.ok_or_else(not_found)?;
        Ok(self.api.tokens.revoke(&self.begun.by, &found.id).await?)
    }

    async fn make(
        &self,
        spec: TokenSpec,
        batch: Batch,
    ) -> Result<(Zeroizing<String>, TokenEntry), AclError> {
        let accessor = match spec.accessor {
            Some(accessor) => accessor,
            None => uuid::Uuid::new_v4().to_string(),
        };
        let new = NewToken {
            policies: spec.links.names(),
            path: MADE_BY.into(),
            display_name: "consul".into(),
            // 0: for ever. Less than a second would be that.
            ttl: spec.ttl.map_or(0, |ttl: Duration| ttl.as_secs().max(1)),
            id: spec.secret.map(|secret| ClientToken::new(secret.as_str())),
            accessor: Some(accessor.clone()),
            linked: Some(Box::new(Linked {
                description: spec.description,
                links: spec.links,
                local: spec.local,
                auth_method: spec.auth_method,
            })),
            ..NewToken::default()
        };
        let (secret, _) = self.api.tokens.create_with(batch, new).await?;
        let made = self.token(&accessor)?.ok_or_else(not_found)?;
        Ok((secret.into_text(), made))
    }
}

fn not_found() -> AclError {
    AclError::Invalid("token does not exist".into())
}

fn entry(token: &Token, indexes: (u64, u64)) -> TokenEntry {
    let linked = token.linked.as_deref().cloned().unwrap_or_else(|| Linked {
        description: token.display_name.clone(),
        links: Links {
            policies: token.policies.clone(),
            ..Links::default()
        },
        ..Linked::default()
    });
    TokenEntry {
        accessor: token.accessor.clone(),
        description: linked.description,
        links: linked.links,
        local: linked.local,
        auth_method: linked.auth_method,
        created: token.created,
        expires: token.expires,
        indexes,
    }
}
