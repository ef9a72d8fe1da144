//! `sys/leases/*`: look at, renew and end what was handed out for a time; tokens count among that.
//!
//! The lease of a token is its path and the name it is stored under, which nobody could log in with.

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::caller::{Authenticated, Who};
use crate::clock::rfc3339_unix;
use crate::db::By;
use crate::http::ApiError;
use crate::http::reply::{Answer, LeaseInfo};
use crate::lease::{Lease, Owner, Refused};
use crate::request::{Data, Operation, Request};
use crate::token::{Live, TokenId, TokenKind};

/// Irrevocable leases that an answer names when the request does not say how many.
const LISTED: usize = 10_000;

/// What a lease id stands for.
enum Leased {
    Secret(Lease),
    Token(TokenId, Arc<Live>),
}

impl Api {
    /// Make a lease on what an engine offers, and say so in the answer.
    pub(super) async fn lease(
        &self,
        by: &By,
        caller: Option<&Authenticated>,
        request: &Request,
        mut answer: Answer,
    ) -> Result<Answer, ApiError> {
        let Some(mut offer) = answer.offer.take() else {
            return Ok(answer);
        };
        let owner = match caller.map(|caller| &caller.who) {
            Some(Who::Token { token, .. }) if token.kind == TokenKind::Batch => {
                let left = token.ttl(self.clock.unix());
                offer.ttl = offer.ttl.min(left);
                offer.max_ttl = offer.max_ttl.min(left);
                Owner::Nobody
            }
            Some(Who::Token { id, .. }) => Owner::Token(id.clone()),
            Some(Who::Spiffe(id)) => Owner::Spiffe(id.clone()),
            None => return Err(ApiError::bad("a lease needs a caller who can be named")),
        };
        let path = request.path.as_str();
        self.tokens.admit(path).await?;
        let (id, lease) = self.leases.grant(by, path, owner, offer).await?;
        answer.lease_duration = lease.ttl;
        answer.lease = Some(LeaseInfo {
            id,
            renewable: lease.renewable,
        });
        Ok(answer)
    }

    /// `sys/leases` and what is below it, and the older paths; `None`: not one of these.
    pub(super) async fn sys_leases(
        &self,
        by: &By,
        request: &Request,
        path: &str,
    ) -> Option<Result<Answer, ApiError>> {
        use Operation::{List, Read, Write};
        let (operation, data) = (request.operation, &request.data);
        let (what, rest) = match path.strip_prefix("leases/") {
            Some(path) => path.split_once('/').unwrap_or((path, "")),
            None if matches!(path, "leases") => ("", ""),
            None => {
                let (what, rest) = path.split_once('/').unwrap_or((path, ""));
                if !matches!(what, "renew" | "revoke" | "revoke-prefix" | "revoke-force") {
                    return None;
                }
                (what, rest)
            }
        };
        Some(match (what, operation) {
            ("", Read) => self.irrevocable(data),
            ("count", Read) if rest.is_empty() => self.count_leases(data),
            ("lookup", Write) if rest.is_empty() => self.lookup_lease(data),
            ("lookup", List) => self.list_leases(rest),
            ("renew", Write) => self.renew_lease(by, rest, request).await,
            ("revoke", Write) => self.revoke_lease(by, rest, data).await,
            ("revoke-prefix", Write) => {
                let done = self.revoke_prefix(by, rest, false).await;
                done.and_then(|()| queued(data))
            }
            ("revoke-force", Write) => {
                let done = self.revoke_prefix(by, rest, true).await;
                done.map(|()| Answer::none())
            }
            ("revoke-identity", Write) if rest.is_empty() => self.revoke_identity(by, data).await,
            ("tidy", Write) if rest.is_empty() => Ok(Answer::none()
                .warn("Leases that are over end by themselves; there is nothing to tidy.")
                .status(StatusCode::ACCEPTED)),
            (
                "" | "count" | "lookup" | "renew" | "revoke" | "revoke-prefix" | "revoke-force"
                | "revoke-identity" | "tidy",
                _,
            ) => Err(ApiError::UnsupportedOperation),
            _ => Err(ApiError::UnsupportedPath),
        })
    }

    fn leased(&self, id: &str) -> Result<Option<Leased>, ApiError> {
        if let Some(lease) = self.leases.get(id)? {
            return Ok(Some(Leased::Secret(lease)));
        }
        // The token's path is part of the id: another one with the same name below it is none.
        let token = id
            .rsplit_once('/')
            .map(|(path, name)| (path, TokenId::from(name)));
        let Some((path, token_id)) = token.filter(|(path, _)| path.starts_with("auth/")) else {
            return Ok(None);
        };
        let token = self.tokens.by_id(&token_id)?;
        let token = token.filter(|token| token.path == path && token.expires.is_some());
        Ok(token.map(|token| Leased::Token(token_id, token)))
    }

    fn lookup_lease(&self, data: &Data) -> Result<Answer, ApiError> {
        let id = lease_id("", data)?;
        let now = self.clock.unix();
        let shown = match self
            .leased(&id)?
            .ok_or_else(|| ApiError::bad("invalid lease"))?
        {
            Leased::Secret(lease) => json!({
                "issue_time": rfc3339_unix(lease.issued), "expire_time": rfc3339_unix(lease.expires),
                "last_renewal": lease.renewed.map(rfc3339_unix), "renewable": lease.renewable,
                "ttl": lease.left(now),
            }),
            Leased::Token(_, token) => json!({
                "issue_time": rfc3339_unix(token.created), "expire_time": token.expires.map(rfc3339_unix),
                "last_renewal": token.last_renewal.map(rfc3339_unix), "renewable": token.renewable,
                "ttl": token.ttl(now),
            }),
        };
        let mut answer = Answer::data(shown);
        if let Some(Value::Object(data)) = &mut answer.data {
            let path = id.rsplit_once('/').map_or("", |(path, _)| path);
            data.insert("path".into(), path.into());
            data.insert("id".into(), id.into());
        }
        Ok(answer)
    }

    /// Names below a path, tokens' among them.
    fn list_leases(&self, path: &str) -> Result<Answer, ApiError> {
        match path.starts_with("auth/") {
            true => Answer::keys(self.tokens.below(path)?),
            false => Answer::keys(self.leases.list(path)?),
        }
    }

    async fn renew_lease(
        &self,
        by: &By,
        rest: &str,
        request: &Request,
    ) -> Result<Answer, ApiError> {
        let data = &request.data;
        let id = lease_id(rest, data)?;
        let increment = data.duration("increment")?.map(|d| d.as_secs());
        match self.leased(&id)? {
            Some(Leased::Secret(_)) => {
                let (lease, warnings) = self.leases.renew(by, &id, increment).await?;
                let mut answer = Answer::none();
                answer.lease_duration = lease.ttl;
                answer.lease = Some(LeaseInfo {
                    id,
                    renewable: lease.renewable,
                });
                answer.warnings = warnings;
                Ok(answer)
            }
            Some(Leased::Token(token, _)) => self.renew(by, &token, "", request).await,
            None => Err(ApiError::bad("lease not found")),
        }
    }

    async fn revoke_lease(&self, by: &By, rest: &str, data: &Data) -> Result<Answer, ApiError> {
        let id = lease_id(rest, data)?;
        match self.leased(&id)? {
            Some(Leased::Secret(_)) => {
                let refused = self
                    .leases
                    .end(by, std::slice::from_ref(&id), false)
                    .await?;
                none_refused(refused)?;
            }
            Some(Leased::Token(token, _)) => self.tokens.revoke(by, &token).await?,
            None => {}
        }
        queued(data)
    }

    /// End all leases below a path; of a login method, its tokens.
    pub(super) async fn revoke_prefix(
        &self,
        by: &By,
        path: &str,
        force: bool,
    ) -> Result<(), ApiError> {
        if path.trim_matches('/').is_empty() {
            return Err(ApiError::bad("missing the path of the leases to revoke"));
        }
        if path.starts_with("auth/") {
            return self.tokens.revoke_below(by, path).await;
        }
        none_refused(self.leases.end_below(by, path, force).await?)
    }

    /// End everything that was handed to a SPIFFE ID without a token.
    async fn revoke_identity(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let id = data
            .text("spiffe_id")?
            .filter(|id| id.starts_with("spiffe://"))
            .ok_or_else(|| ApiError::bad("field \"spiffe_id\": whose leases, as spiffe://…"))?;
        let refused = self.leases.end_owned(by, &Owner::Spiffe(id)).await?;
        none_refused(refused)?;
        Ok(Answer::none())
    }

    fn count_leases(&self, data: &Data) -> Result<Answer, ApiError> {
        only_irrevocable(data)?;
        let mut counts = serde_json::Map::new();
        let all = self.leases.irrevocable();
        for (id, _) in &all {
            let mount = self.mounts.find(id);
            let accessor = mount.map_or_else(String::new, |served| served.mount.accessor.clone());
            let count = counts.get(&accessor).and_then(Value::as_u64).unwrap_or(0);
            counts.insert(accessor, (count + 1).into());
        }
        Ok(Answer::data(
            json!({"lease_count": all.len(), "counts": counts}),
        ))
    }

    fn irrevocable(&self, data: &Data) -> Result<Answer, ApiError> {
        only_irrevocable(data)?;
        let most = match data.text("limit")?.as_deref() {
            None => LISTED,
            Some("none") => usize::MAX,
            Some(_) => data
                .int("limit")?
                .and_then(|limit| usize::try_from(limit).ok())
                .filter(|limit| *limit > 0)
                .ok_or_else(|| ApiError::bad("field \"limit\" is a positive number, or none"))?,
        };
        let all = self.leases.irrevocable();
        let shown: Vec<_> = all
            .iter()
            .take(most)
            .map(|(id, error)| json!({"lease_id": id, "error": error}))
            .collect();
        let mut answer = Answer::data(json!({"lease_count": shown.len(), "leases": shown}));
        if shown.len() < all.len() {
            answer = answer.warn(format!(
                "there are {} irrevocable leases; these are the first ones",
                all.len()
            ));
        }
        Ok(answer)
    }
}

/// In the body, or after the path.
fn lease_id(rest: &str, data: &Data) -> Result<String, ApiError> {
    let id = match data.text("lease_id")? {
        None => data.text("url_lease_id")?,
        given => given,
    };
    let id = id.filter(|id| !id.is_empty());
    match id.unwrap_or_else(|| rest.to_owned()) {
        id if id.is_empty() => Err(ApiError::bad("lease_id must be specified")),
        id => Ok(id),
    }
}

fn only_irrevocable(data: &Data) -> Result<(), ApiError> {
    match data.text("type")?.as_deref() {
        Some("irrevocable") => Ok(()),
        None | Some("") => Err(ApiError::bad("field \"type\" must be \"irrevocable\"")),
        Some(_) => Err(ApiError::bad(
            "invalid \"type\" provided: it is \"irrevocable\"",
        )),
    }
}

/// It is done when it is answered; who does not say `sync` expects to be told that it will be.
fn queued(data: &Data) -> Result<Answer, ApiError> {
    match data.flag("sync")?.unwrap_or(false) {
        true => Ok(Answer::none()),
        false => Ok(Answer::none().status(StatusCode::ACCEPTED)),
    }
}

fn none_refused(refused: Refused) -> Result<(), ApiError> {
    let count = refused.len();
    match refused.into_iter().next() {
        None => Ok(()),
        Some((id, error)) => Err(ApiError::bad(format!(
            "{count} leases could not be taken back; the first is {id:?}: {error}"
        ))),
    }
}
