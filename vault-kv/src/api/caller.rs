//! Who calls: the holder of a token, or a verified SPIFFE ID.

use std::sync::Arc;

use super::Api;
use crate::audit::{AuthRecord, Hasher};
use crate::auth::{params::is_within, spiffe};
use crate::db::By;
use crate::http::ApiError;
use crate::identity::Memberships;
use crate::oidc::Subject;
use crate::policy::{Acl, Identity, PolicyName, Rights};
use crate::request::{Caller, ClientToken};
use crate::token::{Live, Token, TokenId, Tokens};

/// A caller with its rights.
pub(crate) struct Authenticated {
    pub who: Who,
    rights: Arc<Rights>,
}

pub(crate) enum Who {
    Token { id: TokenId, token: Arc<Live> },
    Spiffe(String),
}

impl Api {
    /// # Errors
    /// 403 when there is neither a live token nor a SPIFFE ID that a role matches. A token that is no good is not
    /// made up for by a certificate: whoever sends one means it. Nor is one that is bound to networks or to a
    /// certificate good from elsewhere, or where `caller` is not known.
    pub(super) fn authenticate(
        &self,
        token: Option<&ClientToken>,
        spiffe: Option<&str>,
        caller: Option<&Caller>,
    ) -> Result<Authenticated, ApiError> {
        match (token, spiffe) {
            (Some(secret), _) => {
                let (id, token) = self.tokens.find(secret)?.ok_or(ApiError::Unauthenticated)?;
                let here = match caller {
                    Some(caller) => is_within(&caller.remote, &token.bound_cidrs),
                    None => token.bound_cidrs.is_empty(),
                };
                let bound = token.certificate.as_ref();
                if !here || !bound.is_none_or(|bound| bound.allows_use(caller)) {
                    return Err(ApiError::Unauthenticated);
                }
                let rights = self.rights_of(&token)?;
                let who = Who::Token { id, token };
                Ok(Authenticated { who, rights })
            }
            (None, Some(id)) => {
                let names = self.spiffe.policies(id);
                if names.is_empty() {
                    return Err(ApiError::Unauthenticated);
                }
                let rights = self.rights(&names, &spiffe::identity(id), self.changes())?;
                let who = Who::Spiffe(id.into());
                Ok(Authenticated { who, rights })
            }
            (None, None) => Err(ApiError::Unauthenticated),
        }
    }

    /// The holder of a token for one request only.
    pub(super) fn passing(&self, token: Arc<Live>) -> Result<Authenticated, ApiError> {
        let rights = self.rights_of(&token)?;
        let id = TokenId::from("");
        let who = Who::Token { id, token };
        Ok(Authenticated { who, rights })
    }

    /// What a token may do: as it was last worked out, unless something has changed since.
    ///
    /// # Errors
    /// 403 when its entity is gone or disabled.
    pub(super) fn rights_of(&self, token: &Live) -> Result<Arc<Rights>, ApiError> {
        let now = self.changes();
        let known = token.rights.load();
        if let Some(known) = known.as_ref().filter(|known| known.as_of == now) {
            return Ok(Arc::clone(known));
        }
        let mut names = token.policies.clone();
        let mut identity = Identity::default();
        if let Some(linked) = &token.linked {
            let roles = linked.links.roles.iter();
            names.extend(roles.flat_map(|role| self.policies.of_role(role)));
            names.sort();
            names.dedup();
        }
        if !token.entity.is_empty() {
            let more = self.identities.policies(&token.entity);
            names.extend(more.ok_or(ApiError::Unauthenticated)?);
            names.sort();
            names.dedup();
            identity.entity = Some(token.entity.clone());
        }
        let rights = self.rights(&names, &identity, now)?;
        token.rights.store(Some(Arc::clone(&rights)));
        Ok(rights)
    }

    fn changes(&self) -> (u64, u64) {
        (self.policies.changes(), self.identities.changes())
    }

    /// Whom an identity token of this caller would be about; `None`: nobody's entity.
    pub(super) fn subject(&self, caller: &Authenticated) -> Option<Subject> {
        let (_, token) = caller.token()?;
        let entity = self.identities.entity(&token.entity)?;
        let Memberships { direct, inherited } = self.identities.memberships(&entity.id);
        let groups = direct.iter().chain(&inherited).filter_map(|id| {
            let group = self.identities.group(id)?;
            Some((group.id.clone(), group.name.clone()))
        });
        Some(Subject {
            groups: groups.collect(),
            facts: self.identities.facts(&entity.id),
            entity: entity.id.clone(),
        })
    }

    /// What these policies grant.
    fn rights(
        &self,
        names: &[String],
        identity: &Identity,
        as_of: (u64, u64),
    ) -> Result<Arc<Rights>, ApiError> {
        let policies: Vec<_> = names
            .iter()
            .map(|n| PolicyName::parse(n))
            .collect::<Result<_, _>>()?;
        let facts = |id: &str| self.identities.facts(id);
        let acl = self.policies.acl(&policies, identity, &facts);
        Ok(Arc::new(Rights {
            policies,
            acl,
            as_of,
        }))
    }
}

impl Authenticated {
    pub fn acl(&self) -> &Acl {
        &self.rights.acl
    }

    pub fn shared_acl(&self) -> Arc<Acl> {
        Arc::clone(&self.rights.acl)
    }

    /// The name in the ledger.
    pub fn actor(&self) -> Arc<str> {
        match &self.who {
            Who::Token { token, .. } => Arc::clone(&token.actor),
            Who::Spiffe(id) => id.as_str().into(),
        }
    }

    /// What the log says of it.
    pub fn record<'a>(&'a self, hasher: &Hasher, sent: Option<&ClientToken>) -> AuthRecord<'a> {
        let policies = &self.rights.policies[..];
        match &self.who {
            Who::Token { token, .. } => AuthRecord {
                display_name: &token.display_name,
                policies,
                token_type: token.kind.as_str(),
                spiffe: None,
                issued: Some(token.created),
                ttl: token.creation_ttl,
                remaining_uses: token.num_uses,
                metadata: token.meta.as_ref(),
                entity_id: &token.entity,
                token: sent.map(|sent| token.hashes(hasher, sent.expose())),
            },
            Who::Spiffe(id) => AuthRecord {
                display_name: id,
                policies,
                token_type: "spiffe",
                spiffe: Some(id),
                ..AuthRecord::default()
            },
        }
    }

    pub fn policy_names(&self) -> Vec<String> {
        self.rights
            .policies
            .iter()
            .map(|p| p.as_str().to_string())
            .collect()
    }

    /// The token this request came with.
    pub fn token(&self) -> Option<(&TokenId, &Token)> {
        match &self.who {
            Who::Token { id, token } => Some((id, token)),
            Who::Spiffe(_) => None,
        }
    }

    pub fn is_use_limited(&self) -> bool {
        self.token().is_some_and(|(_, t)| t.num_uses != 0)
    }

    /// Count one use of a use-limited token, before anything happens.
    pub async fn spend(&self, tokens: &Tokens, by: &By) -> Result<(), ApiError> {
        match self.token() {
            Some((id, token)) if token.num_uses != 0 => Box::pin(tokens.spend(by, id)).await,
            _ => Ok(()),
        }
    }

    /// Revoke a token whose last use this was.
    pub async fn finish(&self, tokens: &Tokens, by: &By) -> Result<(), ApiError> {
        let Some((id, token)) = self.token() else {
            return Ok(());
        };
        let used_up = token.num_uses != 0 && tokens.by_id(id)?.is_some_and(|t| t.num_uses < 0);
        if used_up {
            Box::pin(tokens.revoke(by, id)).await?;
        }
        Ok(())
    }
}
