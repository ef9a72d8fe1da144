//! `auth/token/*`: make, look at, renew and revoke tokens.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::caller::{Authenticated, Who};
use crate::auth::params::TokenParams;
use crate::clock::rfc3339_unix;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::{Answer, AuthInfo};
use crate::identity::Metadata;
use crate::policy::builtin::WRAPPING_NAME;
use crate::policy::{Capability, PolicyName};
use crate::request::{ClientToken, Data, Operation, Request};
use crate::token::role::TokenRole;
use crate::token::{Live, MAX_TTL, NewToken, Token, TokenId, TokenKind};

impl Api {
    pub(super) async fn auth_token(
        &self,
        caller: &Authenticated,
        by: &By,
        request: &Request,
        path: &str,
    ) -> Result<Answer, ApiError> {
        use Operation::{List, Read, Write};
        let data = &request.data;
        if let Some(name) = path.strip_prefix("roles/") {
            return self
                .token_roles
                .handle(by, request.operation, name, data)
                .await;
        }
        if let Some(name) = path.strip_prefix("create/") {
            if request.operation != Write {
                return Err(ApiError::UnsupportedOperation);
            }
            let role = self
                .token_roles
                .get(name)?
                .ok_or_else(|| ApiError::bad(format!("unknown role {name}")))?;
            return self.create_token(caller, by, data, path, Some(role)).await;
        }
        match (path, request.operation) {
            ("create" | "create-orphan", Write) => {
                self.create_token(caller, by, data, path, None).await
            }
            ("lookup-self", Read | Write) => self.lookup_self(caller, request),
            ("lookup", Read | Write) => {
                let secret = given(data)?;
                let (_, token) = self.tokens.find(&secret)?.ok_or_else(bad_token)?;
                Ok(Answer::data(self.describe(secret.expose(), &token)))
            }
            ("tidy", Write) => Ok(Answer::none()
                .warn("Expired tokens are removed by themselves; there is nothing to tidy.")
                .status(StatusCode::ACCEPTED)),
            ("renew-accessor", Write) => {
                let (id, _) = self.by_accessor(data)?;
                self.renew(by, &id, "", request).await
            }
            ("lookup-accessor", Write) => {
                let (_, token) = self.by_accessor(data)?;
                Ok(Answer::data(self.describe("", &token)))
            }
            ("renew-self", Write) => match (&caller.who, &request.token) {
                (Who::Token { id, token }, Some(secret)) => {
                    not_batch(token, "renewed")?;
                    self.renew(by, id, secret.expose(), request).await
                }
                _ => Err(no_token()),
            },
            ("renew", Write) => {
                let secret = given(data)?;
                let (id, token) = self.tokens.find(&secret)?.ok_or_else(bad_token)?;
                not_batch(&token, "renewed")?;
                self.renew(by, &id, secret.expose(), request).await
            }
            ("revoke-self", Write) => {
                let (id, token) = caller.token().ok_or_else(no_token)?;
                not_batch(token, "revoked")?;
                self.tokens.revoke(by, id).await?;
                Ok(Answer::none())
            }
            ("revoke", Write) => {
                let secret = given(data)?;
                if let Some((_, token)) = self.tokens.find(&secret)? {
                    not_batch(&token, "revoked")?;
                }
                self.tokens.revoke(by, &self.tokens.id_of(&secret)).await?;
                Ok(Answer::none())
            }
            ("revoke-orphan", Write) => {
                let id = self.tokens.id_of(&given(data)?);
                self.tokens.revoke_orphan(by, &id).await?;
                Ok(Answer::none())
            }
            ("revoke-accessor", Write) => {
                let (id, _) = self.by_accessor(data)?;
                self.tokens.revoke(by, &id).await?;
                Ok(Answer::none())
            }
            ("accessors/", List) => Answer::keys(self.tokens.accessors()?),
            (
                "create" | "create-orphan" | "lookup-self" | "lookup" | "lookup-accessor"
                | "renew-self" | "renew" | "revoke-self" | "revoke" | "revoke-orphan"
                | "revoke-accessor" | "renew-accessor" | "tidy" | "accessors/",
                _,
            ) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    fn by_accessor(&self, data: &Data) -> Result<(TokenId, Arc<Live>), ApiError> {
        let accessor = data
            .text("accessor")?
            .ok_or_else(|| ApiError::bad("missing accessor"))?;
        self.tokens
            .by_accessor(&accessor)?
            .ok_or_else(|| ApiError::bad("invalid accessor"))
    }

    fn lookup_self(&self, caller: &Authenticated, request: &Request) -> Result<Answer, ApiError> {
        match (&caller.who, &request.token) {
            (Who::Token { token, .. }, Some(secret)) if token.kind == TokenKind::Batch => {
                Ok(Answer::data(self.describe(secret.expose(), token)))
            }
            (Who::Token { id, .. }, Some(secret)) => {
                // Read again: a use of a use-limited token was counted meanwhile.
                let token = self.tokens.by_id(id)?.ok_or(ApiError::Unauthenticated)?;
                Ok(Answer::data(self.describe(secret.expose(), &token)))
            }
            (Who::Spiffe(id), _) => Ok(Answer::data(json!({
                "id": "", "accessor": "", "policies": caller.policy_names(), "path": "auth/spiffe",
                "meta": {"spiffe_id": id}, "display_name": id, "num_uses": 0, "orphan": true,
                "creation_time": 0, "creation_ttl": 0, "expire_time": null, "ttl": 0, "explicit_max_ttl": 0,
                "entity_id": "", "type": "service", "renewable": false,
            }))),
            (Who::Token { .. }, None) => Err(no_token()),
        }
    }
}

impl Api {
    /// `path`: `create`, `create-orphan` or `create/:role`.
    async fn create_token(
        &self,
        caller: &Authenticated,
        by: &By,
        data: &Data,
        path: &str,
        role: Option<TokenRole>,
    ) -> Result<Answer, ApiError> {
        let (parent_id, parent) = caller
            .token()
            .ok_or_else(|| ApiError::bad("only the holder of a token can create tokens"))?;
        not_batch(parent, "used to create tokens")?;
        let sudo = caller
            .acl()
            .decide(&format!("auth/token/{path}"), Capability::Sudo, None)
            .allowed;
        if parent.num_uses != 0 {
            return Err(ApiError::bad(
                "restricted use token cannot generate child tokens",
            ));
        }
        let no_parent = data.flag("no_parent")?.unwrap_or(false);
        if no_parent && !sudo {
            return Err(ApiError::bad(
                "root or sudo privileges required to create orphan token",
            ));
        }
        let mut warnings = Vec::new();
        let id = own_id(data, sudo, &mut warnings)?;
        let params = role.as_ref().map(|role| &role.params);
        let period = match (params, seconds(data, "period")?) {
            (Some(params), _) if params.period > 0 => params.period,
            (_, 0) => 0,
            (_, period) if sudo => period,
            _ => {
                return Err(ApiError::bad(
                    "root or sudo privileges required to create periodic token",
                ));
            }
        };
        let policies = child_policies(caller, parent, data, sudo, role.as_ref())?;
        for name in &policies {
            if self.policies.get(&PolicyName::parse(name)?).is_none() {
                warnings.push(format!("Policy {name:?} does not exist"));
            }
        }
        let explicit_max_ttl = match (
            params.map_or(0, |params| params.explicit_max_ttl),
            seconds(data, "explicit_max_ttl")?,
        ) {
            (0, some) | (some, 0) => some,
            (roles, wished) => roles.min(wished),
        };
        let kind = kind_of(data, params)?;
        let ttl = self.child_ttl(
            parent,
            data,
            &policies,
            period,
            explicit_max_ttl,
            &mut warnings,
        )?;
        let num_uses = match data.int("num_uses")? {
            Some(uses) if uses < 0 => {
                return Err(ApiError::bad("number of uses cannot be negative"));
            }
            None | Some(0) => params.map_or(0, |params| params.num_uses),
            Some(uses) => uses,
        };
        if kind == TokenKind::Batch {
            batch_fits(&policies, period, explicit_max_ttl, num_uses, id.is_some())?;
        }
        let renewable = role.as_ref().is_none_or(|role| role.renewable);
        let orphan =
            path == "create-orphan" || no_parent || role.as_ref().is_some_and(|role| role.orphan);
        let entity = self
            .entity_of_child(by, parent, data, role.as_ref())
            .await?;
        let suffix = match &role {
            Some(role) if !role.path_suffix.is_empty() => format!("/{}", role.path_suffix),
            _ => String::new(),
        };
        let new = NewToken {
            policies,
            path: format!("auth/token/{path}{suffix}"),
            meta: data.text_map("meta")?,
            display_name: display_name(data.text("display_name")?.as_deref()),
            ttl,
            explicit_max_ttl,
            period,
            num_uses,
            renewable: ttl > 0 && renewable && data.flag("renewable")?.unwrap_or(true),
            parent: (!orphan).then(|| parent_id.clone()),
            role: path.strip_prefix("create/").unwrap_or_default().into(),
            bound_cidrs: params.map_or_else(Vec::new, |params| params.bound_cidrs.clone()),
            kind,
            id,
            entity,
            ..NewToken::default()
        };
        let (secret, token) = self.tokens.create(by, new).await?;
        let mut answer = self.auth_answer(secret.expose(), &token, token.creation_ttl);
        answer.warnings = warnings;
        Ok(answer)
    }

    /// The entity of a new token: its parent's, or the one that `entity_alias` names, where the role lets it.
    async fn entity_of_child(
        &self,
        by: &By,
        parent: &Token,
        data: &Data,
        role: Option<&TokenRole>,
    ) -> Result<String, ApiError> {
        let Some(alias) = data.text("entity_alias")?.filter(|alias| !alias.is_empty()) else {
            return Ok(parent.entity.clone());
        };
        let role = role.ok_or_else(|| {
            ApiError::bad("'entity_alias' is only allowed in combination with token role")
        })?;
        let alias = alias.to_lowercase();
        if !role.allows_alias(&alias) {
            return Err(ApiError::bad("invalid 'entity_alias' value"));
        }
        let served = self.mounts.find("auth/token/");
        let served = served.ok_or_else(|| ApiError::NoMount("auth/token/".into()))?;
        let accessor = &served.mount.accessor;
        let entity = self
            .identities
            .of_login(by, accessor, &alias, &Metadata::new())
            .await?;
        Ok(entity.id.clone())
    }

    /// Seconds to live; 0 = for ever, for root from root only.
    fn child_ttl(
        &self,
        parent: &Token,
        data: &Data,
        policies: &[String],
        period: u64,
        explicit_max: u64,
        warnings: &mut Vec<String>,
    ) -> Result<u64, ApiError> {
        let wished = match seconds(data, "ttl")? {
            0 => seconds(data, "lease")?,
            some => some,
        };
        if wished == 0 && period == 0 && explicit_max == 0 && policies.iter().any(|p| p == "root") {
            return match parent.expires {
                None => Ok(0),
                Some(_) => Err(ApiError::bad(
                    "expiring root tokens cannot create non-expiring root tokens",
                )),
            };
        }
        let ttl = match (period, wished) {
            (0, 0) => MAX_TTL,
            (0, wished) => wished,
            (period, _) => period,
        };
        let limit = match (explicit_max, period) {
            (0, 0) => MAX_TTL,
            (0, _) => u64::MAX,
            (max, _) => max.min(MAX_TTL),
        };
        if ttl > limit && wished > limit {
            warnings.push(format!(
                "TTL of \"{ttl}s\" exceeded the effective max_ttl of \"{limit}s\"; TTL value is capped accordingly"
            ));
        }
        Ok(ttl.min(limit))
    }
}

impl Api {
    pub(super) async fn renew(
        &self,
        by: &By,
        id: &TokenId,
        secret: &str,
        request: &Request,
    ) -> Result<Answer, ApiError> {
        // CVE-2026-39388: not over another certificate than the login's.
        let token = self.tokens.by_id(id)?;
        let bound = token.as_ref().and_then(|token| token.certificate.as_ref());
        if bound.is_some_and(|bound| !bound.allows_renewal(&request.caller)) {
            return Err(ApiError::bad(
                "this token renews over a connection with the certificate of its login only",
            ));
        }
        let data = &request.data;
        let increment = data.duration("increment")?.map(|d| d.as_secs());
        let (token, warnings) = self.tokens.renew(by, id, increment).await?;
        let left = token.ttl(self.clock.unix());
        let mut answer = self.auth_answer(secret, &token, left);
        answer.warnings = warnings;
        Ok(answer)
    }

    /// The policies that a token has through its entity.
    fn identity_policies(&self, token: &Token) -> Vec<String> {
        match token.entity.is_empty() {
            true => Vec::new(),
            false => self.identities.policies(&token.entity).unwrap_or_default(),
        }
    }

    /// The answer that hands out a token or its new life.
    pub(super) fn auth_answer(&self, secret: &str, token: &Token, lease_duration: u64) -> Answer {
        let identity_policies = self.identity_policies(token);
        let mut policies = [&token.policies[..], &identity_policies].concat();
        policies.sort();
        policies.dedup();
        Answer::auth(AuthInfo {
            client_token: secret.into(),
            accessor: token.accessor.clone(),
            policies,
            token_policies: token.policies.clone(),
            identity_policies,
            metadata: token.meta.clone(),
            lease_duration,
            renewable: token.renewable,
            entity_id: token.entity.clone(),
            token_type: token.kind.as_str(),
            orphan: token.orphan,
            mfa_requirement: None,
            num_uses: token.num_uses,
        })
    }

    /// What a look-up shows. `secret` is what the asker sent, or nothing.
    fn describe(&self, secret: &str, token: &Token) -> Value {
        let mut out = json!({
            "id": secret, "accessor": token.accessor, "policies": token.policies, "path": token.path, "meta": token.meta,
            "display_name": token.display_name, "num_uses": token.num_uses, "orphan": token.orphan,
            "creation_time": token.created, "creation_ttl": token.creation_ttl, "issue_time": rfc3339_unix(token.created),
            "expire_time": token.expires.map(rfc3339_unix), "ttl": token.ttl(self.clock.unix()),
            "explicit_max_ttl": token.explicit_max_ttl, "entity_id": token.entity, "type": token.kind.as_str(), "renewable": token.renewable,
        });
        let identity_policies = self.identity_policies(token);
        if !identity_policies.is_empty() {
            out["identity_policies"] = json!(identity_policies);
        }
        if !token.role.is_empty() {
            out["role"] = token.role.as_str().into();
        }
        if !token.bound_cidrs.is_empty() {
            out["bound_cidrs"] = json!(token.bound_cidrs);
        }
        if token.period > 0 {
            out["period"] = token.period.into();
        }
        if let Some(at) = token.last_renewal {
            out["last_renewal"] = rfc3339_unix(at).into();
            out["last_renewal_time"] = at.into();
        }
        out
    }
}

/// The child's policies: the parent's unless named, never more than the parent's without sudo. A role that says what
/// its tokens may have stands in for the parent.
fn child_policies(
    caller: &Authenticated,
    parent: &Token,
    data: &Data,
    sudo: bool,
    role: Option<&TokenRole>,
) -> Result<Vec<String>, ApiError> {
    let restricts = role.filter(|role| role.restricts());
    let mut names: Vec<String> = match (data.list("policies")?, restricts) {
        (Some(wished), _) if !wished.is_empty() => wished
            .iter()
            .map(|p| Ok(PolicyName::parse(p)?.as_str().to_string()))
            .collect::<Result<_, ApiError>>()?,
        (_, Some(role)) if !role.allowed_policies.is_empty() => role.allowed_policies.clone(),
        _ => parent.policies.clone(),
    };
    if names.iter().any(|name| name == WRAPPING_NAME) {
        return Err(ApiError::bad(format!(
            "cannot assign policy {WRAPPING_NAME:?}"
        )));
    }
    let root = names.iter().any(|p| p == "root");
    if root && !caller.acl().is_root() {
        return Err(ApiError::bad(
            "root tokens may not be created without parent token being root",
        ));
    }
    if !sudo && restricts.is_none() && !names.iter().all(|p| parent.policies.contains(p)) {
        return Err(ApiError::bad("child policies must be subset of parent"));
    }
    let has_default = sudo || restricts.is_some() || parent.policies.iter().any(|p| p == "default");
    let unwanted = data.flag("no_default_policy")?.unwrap_or(false)
        || role.is_some_and(|role| role.params.no_default_policy);
    if !root && has_default && !unwanted {
        names.push("default".into());
    }
    names.sort();
    names.dedup();
    if let Some(role) = restricts {
        role.permits(&names)?;
    }
    Ok(names)
}

/// The kind asked for, as far as the role leaves the choice.
fn kind_of(data: &Data, params: Option<&TokenParams>) -> Result<TokenKind, ApiError> {
    let roles = params.map_or("", |params| params.kind.as_str());
    let asked = data.text("type")?.unwrap_or_default();
    let kind = match (roles, asked.as_str()) {
        ("service" | "batch", _) => roles,
        (_, "" | "default") => roles,
        (_, asked) => asked,
    };
    match kind {
        "" | "service" | "default-service" => Ok(TokenKind::Service),
        "batch" | "default-batch" => Ok(TokenKind::Batch),
        _ => Err(ApiError::bad(
            "invalid 'type' value: it is service or batch",
        )),
    }
}

/// # Errors
/// 400: what a token that is kept nowhere cannot have.
fn batch_fits(
    policies: &[String],
    period: u64,
    explicit_max_ttl: u64,
    num_uses: i64,
    own_id: bool,
) -> Result<(), ApiError> {
    let cannot = if policies.iter().any(|policy| policy == "root") {
        "be root tokens"
    } else if period > 0 {
        "be periodic"
    } else if explicit_max_ttl > 0 {
        "have an explicit max TTL"
    } else if num_uses > 0 {
        "have a limited use count"
    } else if own_id {
        "have an id of one's own choice"
    } else {
        return Ok(());
    };
    Err(ApiError::bad(format!("batch tokens cannot {cannot}")))
}

/// # Errors
/// 400 for a batch token.
fn not_batch(token: &Token, what: &str) -> Result<(), ApiError> {
    match token.kind {
        TokenKind::Service => Ok(()),
        TokenKind::Batch => Err(ApiError::bad(format!("batch tokens cannot be {what}"))),
    }
}

/// The text that the new token is to be, which takes sudo.
fn own_id(
    data: &Data,
    sudo: bool,
    warnings: &mut Vec<String>,
) -> Result<Option<ClientToken>, ApiError> {
    let Some(id) = data.text("id")?.filter(|id| !id.is_empty()) else {
        return Ok(None);
    };
    if !sudo {
        return Err(ApiError::bad(
            "root or sudo privileges required to specify token id",
        ));
    }
    for prefix in ["s.", "b.", "r.", "hvs.", "hvb.", "hvr."] {
        if id.starts_with(prefix) {
            return Err(ApiError::bad(format!(
                "custom token ID cannot have the '{prefix}' prefix"
            )));
        }
    }
    warnings.push(
        "A token of your own choice is only as hard to guess as you made it; better let the server choose it.".into(),
    );
    Ok(Some(ClientToken::new(id)))
}

fn seconds(data: &Data, name: &str) -> Result<u64, ApiError> {
    Ok(data.duration(name)?.map_or(0, |d| d.as_secs()))
}

fn given(data: &Data) -> Result<ClientToken, ApiError> {
    match data.text("token")? {
        Some(text) if !text.is_empty() => Ok(ClientToken::new(text)),
        _ => Err(ApiError::bad("missing token ID")),
    }
}

/// `token`, or `token-` and the wish with everything but letters, digits and `-` made `-`.
fn display_name(wish: Option<&str>) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    match wish {
        Some(text) if !text.is_empty() => {
            let name: String = text.chars().take(128).map(clean).collect();
            format!("token-{name}")
        }
        _ => "token".into(),
    }
}

fn bad_token() -> ApiError {
    ApiError::Forbidden("bad token".into())
}

fn no_token() -> ApiError {
    ApiError::bad("the caller is known by its certificate and has no token of its own")
}
