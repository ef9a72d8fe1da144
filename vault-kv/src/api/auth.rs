//! `auth/token/*`: make, look at, renew and revoke tokens.

use serde_json::{Value, json};

use super::Api;
use super::caller::{Authenticated, Who};
use crate::clock::rfc3339_unix;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::{Answer, AuthInfo};
use crate::policy::{Capability, PolicyName};
use crate::request::{ClientToken, Data, Operation, Request};
use crate::token::{MAX_TTL, NewToken, Token, TokenId};

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
        match (path, request.operation) {
            ("create" | "create-orphan", Write) => {
                self.create_token(caller, by, data, path == "create-orphan")
                    .await
            }
            ("lookup-self", Read | Write) => self.lookup_self(caller, request),
            ("lookup", Read | Write) => {
                let secret = given(data)?;
                let (_, token) = self.tokens.find(&secret)?.ok_or_else(bad_token)?;
                Ok(Answer::data(self.describe(secret.expose(), &token)))
            }
            ("lookup-accessor", Write) => {
                let (_, token) = self.by_accessor(data)?;
                Ok(Answer::data(self.describe("", &token)))
            }
            ("renew-self", Write) => match (&caller.who, &request.token) {
                (Who::Token { id, .. }, Some(secret)) => {
                    self.renew(by, id, secret.expose(), data).await
                }
                _ => Err(no_token()),
            },
            ("renew", Write) => {
                let secret = given(data)?;
                let (id, _) = self.tokens.find(&secret)?.ok_or_else(bad_token)?;
                self.renew(by, &id, secret.expose(), data).await
            }
            ("revoke-self", Write) => {
                let (id, _) = caller.token().ok_or_else(no_token)?;
                self.tokens.revoke(by, id).await?;
                Ok(Answer::none())
            }
            ("revoke", Write) => {
                let id = self.tokens.id_of(&given(data)?);
                self.tokens.revoke(by, &id).await?;
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
                | "revoke-accessor" | "accessors/",
                _,
            ) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        }
    }

    fn by_accessor(&self, data: &Data) -> Result<(TokenId, Token), ApiError> {
        let accessor = data
            .text("accessor")?
            .ok_or_else(|| ApiError::bad("missing accessor"))?;
        self.tokens
            .by_accessor(&accessor)?
            .ok_or_else(|| ApiError::bad("invalid accessor"))
    }

    fn lookup_self(&self, caller: &Authenticated, request: &Request) -> Result<Answer, ApiError> {
        match (&caller.who, &request.token) {
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
    async fn create_token(
        &self,
        caller: &Authenticated,
        by: &By,
        data: &Data,
        orphan: bool,
    ) -> Result<Answer, ApiError> {
        let (parent_id, parent) = caller
            .token()
            .ok_or_else(|| ApiError::bad("only the holder of a token can create tokens"))?;
        let sudo = caller
            .acl
            .decide("auth/token/create", Capability::Sudo, None)
            .allowed;
        if parent.num_uses != 0 {
            return Err(ApiError::bad(
                "restricted use token cannot generate child tokens",
            ));
        }
        if data.raw("id").is_some() {
            return Err(ApiError::bad(
                "this server chooses token ids itself; leave out \"id\"",
            ));
        }
        if !matches!(
            data.text("type")?.as_deref(),
            None | Some("" | "service" | "default")
        ) {
            return Err(ApiError::bad(
                "only tokens of type \"service\" are available",
            ));
        }
        let no_parent = data.flag("no_parent")?.unwrap_or(false);
        if no_parent && !sudo {
            return Err(ApiError::bad(
                "root or sudo privileges required to create orphan token",
            ));
        }
        let period = seconds(data, "period")?;
        if period > 0 && !sudo {
            return Err(ApiError::bad(
                "root or sudo privileges required to create periodic token",
            ));
        }
        let policies = child_policies(caller, parent, data, sudo)?;
        let mut warnings = Vec::new();
        for name in &policies {
            if self.policies.get(&PolicyName::parse(name)?).is_none() {
                warnings.push(format!("Policy {name:?} does not exist"));
            }
        }
        let explicit_max_ttl = seconds(data, "explicit_max_ttl")?;
        let ttl = self.child_ttl(
            parent,
            data,
            &policies,
            period,
            explicit_max_ttl,
            &mut warnings,
        )?;
        let num_uses = data.int("num_uses")?.unwrap_or(0);
        if num_uses < 0 {
            return Err(ApiError::bad("number of uses cannot be negative"));
        }
        let new = NewToken {
            policies,
            path: format!(
                "auth/token/{}",
                if orphan { "create-orphan" } else { "create" }
            ),
            meta: data.text_map("meta")?,
            display_name: display_name(data.text("display_name")?.as_deref()),
            ttl,
            explicit_max_ttl,
            period,
            num_uses,
            renewable: ttl > 0 && data.flag("renewable")?.unwrap_or(true),
            parent: (!orphan && !no_parent).then(|| parent_id.clone()),
        };
        let (secret, token) = self.tokens.create(by, new).await?;
        let mut answer = Answer::auth(auth_info(secret.expose(), &token, token.creation_ttl));
        answer.warnings = warnings;
        Ok(answer)
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
    async fn renew(
        &self,
        by: &By,
        id: &TokenId,
        secret: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let increment = data.duration("increment")?.map(|d| d.as_secs());
        let (token, warnings) = self.tokens.renew(by, id, increment).await?;
        let left = token.ttl(self.clock.unix());
        let mut answer = Answer::auth(auth_info(secret, &token, left));
        answer.warnings = warnings;
        Ok(answer)
    }

    /// What a look-up shows. `secret` is what the asker sent, or nothing.
    fn describe(&self, secret: &str, token: &Token) -> Value {
        let mut out = json!({
            "id": secret, "accessor": token.accessor, "policies": token.policies, "path": token.path, "meta": token.meta,
            "display_name": token.display_name, "num_uses": token.num_uses.max(0), "orphan": token.orphan,
            "creation_time": token.created, "creation_ttl": token.creation_ttl, "issue_time": rfc3339_unix(token.created),
            "expire_time": token.expires.map(rfc3339_unix), "ttl": token.ttl(self.clock.unix()),
            "explicit_max_ttl": token.explicit_max_ttl, "entity_id": "", "type": "service", "renewable": token.renewable,
        });
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

/// The child's policies: the parent's unless named, never more than the parent's without sudo.
fn child_policies(
    caller: &Authenticated,
    parent: &Token,
    data: &Data,
    sudo: bool,
) -> Result<Vec<String>, ApiError> {
    let mut names: Vec<String> = match data.list("policies")? {
        Some(wished) if !wished.is_empty() => wished
            .iter()
            .map(|p| Ok(PolicyName::parse(p)?.as_str().to_string()))
            .collect::<Result<_, ApiError>>()?,
        _ => parent.policies.clone(),
    };
    let root = names.iter().any(|p| p == "root");
    if root && !caller.acl.is_root() {
        return Err(ApiError::bad(
            "root tokens may not be created without parent token being root",
        ));
    }
    if !sudo && !names.iter().all(|p| parent.policies.contains(p)) {
        return Err(ApiError::bad("child policies must be subset of parent"));
    }
    let has_default = sudo || parent.policies.iter().any(|p| p == "default");
    if !root && has_default && !data.flag("no_default_policy")?.unwrap_or(false) {
        names.push("default".into());
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn auth_info(secret: &str, token: &Token, lease_duration: u64) -> AuthInfo {
    AuthInfo {
        client_token: secret.into(),
        accessor: token.accessor.clone(),
        policies: token.policies.clone(),
        token_policies: token.policies.clone(),
        metadata: token.meta.clone(),
        lease_duration,
        renewable: token.renewable,
        entity_id: String::new(),
        token_type: "service",
        orphan: token.orphan,
        mfa_requirement: None,
        num_uses: token.num_uses,
    }
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
