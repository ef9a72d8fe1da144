//! Who asks the store, and what they may: the token in the places where clients put it, decided about by the store.

use http::HeaderMap;
use vault_kv::{
    Access, Attended, AuthorizeError, Caller, Capability, Grants, Meta, Vault, Via,
    acl::{ANONYMOUS, ANONYMOUS_SECRET, TokenEntry},
};
use zeroize::Zeroizing;

use super::StoreError;
use crate::http::{Call, Remote, query::Query};

/// The actor of a change that needed no right.
const ANYBODY: &str = "anonymous";

/// Who asks, and what may be asked without saying so.
#[derive(Clone)]
pub struct Asker {
    vault: Vault,
    token: Option<Zeroizing<String>>,
    caller: Caller,
    /// Nobody needs a right: `mesh dev`.
    open: bool,
}

/// What holds for whoever shows no token.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokenless {
    /// Nobody needs a right: `mesh dev`.
    pub open: bool,
    /// They have what the anonymous token has.
    pub anonymous: bool,
}

impl Asker {
    /// The one behind `headers` and `query`: the token in the places where Consul's clients and Vault's
    /// put it.
    pub fn of(vault: &Vault, call: &Call, tokenless: Tokenless) -> Self {
        let anonymous = || {
            let there = tokenless.anonymous && vault.grants(ANONYMOUS_SECRET).is_ok();
            there.then(|| Zeroizing::new(ANONYMOUS_SECRET.to_owned()))
        };
        Self {
            vault: vault.clone(),
            token: token(&call.query, call.request.headers()).or_else(anonymous),
            caller: caller(&call.conn.remote),
            open: tokenless.open,
        }
    }

    /// What is asked.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The token that came with the request.
    pub fn secret(&self) -> Option<&str> {
        let token = self.token.as_ref().map(|token| token.as_str());
        token.filter(|token| *token != ANONYMOUS_SECRET)
    }

    /// What the asker may do; `None`: nobody known asks.
    pub fn grants(&self) -> Result<Option<Grants>, StoreError> {
        let Some(token) = &self.token else {
            return match self.vault.is_sealed() {
                true => Err(StoreError::Sealed),
                false => Ok(None),
            };
        };
        match self.vault.grants(token) {
            Ok(grants) => Ok(Some(grants)),
            Err(_) if self.open => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The token itself.
    pub fn own_token(&self) -> Result<TokenEntry, StoreError> {
        let token = self.token.as_ref().ok_or(StoreError::NoToken)?;
        Ok(self.vault.own_token(token)?)
    }

    /// The accessor of a token.
    pub fn accessor_of(&self, secret: &str) -> Option<String> {
        let grants = self.vault.grants(secret).ok()?;
        Some(grants.accessor().to_owned())
    }

    /// The actor for the ledger, if the path may be used so.
    pub fn authorize(&self, capability: Capability, path: &str) -> Result<String, StoreError> {
        if self.vault.is_sealed() {
            return Err(StoreError::Sealed);
        }
        let token = self.token.as_ref().map(|token| token.as_str());
        match self.vault.authorize(token, None, capability, path) {
            Ok(actor) => Ok(actor),
            Err(_) if self.open => Ok(ANYBODY.to_owned()),
            Err(AuthorizeError::Unknown) if token.is_some() => Err(StoreError::NoToken),
            Err(AuthorizeError::Denied(_)) if token.is_some() => {
                let accessor = token.and_then(|token| self.accessor_of(token));
                let what = lacks(accessor.as_deref().unwrap_or_default(), capability, path);
                Err(StoreError::Denied(what))
            }
            Err(error @ AuthorizeError::Failed(_)) => Err(error.into()),
            Err(_) => Err(StoreError::Denied(format!(
                "{} on {path} needs a token (MESH_TOKEN or X-Consul-Token)",
                capability.as_str()
            ))),
        }
    }

    /// The same for everything that begins with `path`: no exception below it.
    pub fn authorize_below(&self, capability: Capability, path: &str) -> Result<(), StoreError> {
        match self.grants()? {
            None => self.authorize(capability, path).map(|_| ()),
            Some(grants) if self.open || grants.allows_below(path, capability, false) => Ok(()),
            Some(grants) => Err(StoreError::Denied(lacks(
                grants.accessor(),
                capability,
                path,
            ))),
        }
    }

    /// Tells of paths whether the asker may read there.
    pub fn reads(&self) -> Result<impl Fn(&str) -> bool + use<>, StoreError> {
        let (grants, open) = (self.grants()?, self.open);
        Ok(move |path: &str| {
            let says = |grants: &Grants| grants.says(path, Capability::Read) == Some(true);
            open || grants.as_ref().is_some_and(says)
        })
    }

    /// Of what was found below `prefix`, that which the asker may read.
    ///
    /// # Errors
    /// Nothing is left, and there is no right to the prefix itself.
    pub fn readable<T>(
        &self,
        prefix: &str,
        mut found: Vec<T>,
        path: impl Fn(&T) -> String,
    ) -> Result<Vec<T>, StoreError> {
        let whole = self.authorize(Capability::Read, prefix);
        let grants = self.grants()?.filter(|_| !self.open);
        if let Some(grants) = grants
            && !grants.allows_below(prefix, Capability::Read, false)
        {
            found.retain(|it| grants.says(&path(it), Capability::Read) == Some(true));
            if !found.is_empty() {
                return Ok(found);
            }
        }
        whole.map(|_| found)
    }

    /// A request that needs no right, on record.
    pub async fn attend_anybody(
        &self,
        capability: Capability,
        path: &str,
    ) -> Result<Attended, StoreError> {
        let access = Access {
            token: None,
            caller: self.caller.clone(),
            capability,
            path,
        };
        Ok(self.vault.attend_anybody(access).await?)
    }

    /// For a change: authorized, and its line in the audit log, before anything happens.
    pub async fn attend(&self, capability: Capability, path: &str) -> Result<Attended, StoreError> {
        let access = || Access {
            token: self.token.as_ref().map(|token| token.as_str()),
            caller: self.caller.clone(),
            capability,
            path,
        };
        let known = !self.open || self.authorize(capability, path)? != ANYBODY;
        let attended = match known {
            true => self.vault.attend(access()).await,
            false => self.vault.attend_anybody(access()).await,
        };
        attended.map_err(|error| match error {
            AuthorizeError::Denied(_) | AuthorizeError::Unknown => {
                match self.authorize(capability, path) {
                    Err(denied) => denied,
                    Ok(_) => StoreError::Denied(error.to_string()),
                }
            }
            error => error.into(),
        })
    }

    /// What the ledger says of a change by this asker.
    pub fn meta(&self, actor: String, operation: &str, key: String) -> Meta {
        Meta {
            actor,
            via: "consul".to_owned(),
            operation: operation.to_owned(),
            keys: vec![key],
            ..Meta::default()
        }
    }
}

/// Where a connection comes from, in the words of the audit log.
fn caller(remote: &Remote) -> Caller {
    let (remote, via) = match remote {
        Remote::Unix { .. } => (vault_kv::Remote::Unix, Via::Socket),
        // Forwarded by an agent, which told who asks, not from where.
        Remote::Tcp(addr) if addr.ip().is_unspecified() => {
            (vault_kv::Remote::Ip(addr.ip()), Via::Mesh)
        }
        Remote::Tcp(addr) => (vault_kv::Remote::Ip(addr.ip()), Via::Http),
    };
    Caller::anonymous(remote, via)
}

/// The token that a request brings, in the places where Consul's clients and Vault's put it.
pub fn token(query: &Query, headers: &HeaderMap) -> Option<Zeroizing<String>> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    query
        .filled("token")
        .or_else(|| header("x-consul-token"))
        .or_else(|| header("x-vault-token"))
        .or_else(|| header("authorization").and_then(|value| value.strip_prefix("Bearer ")))
        .filter(|token| !token.is_empty())
        .map(|token| Zeroizing::new(token.to_owned()))
}

/// What a token may not do, in Consul's words, which clients look for; an empty accessor is that of who shows none.
pub fn lacks(accessor: &str, capability: Capability, path: &str) -> String {
    let access = match capability {
        Capability::Read => "read",
        Capability::List => "list",
        _ => "write",
    };
    let named = |kind: &str, name: &str| format!("'{kind}:{access}' on {name:?}");
    let what = match path.split('/').collect::<Vec<_>>()[..] {
        ["consul", "kv", ..] => named("key", &path["consul/kv/".len()..]),
        ["consul", kind @ ("acl" | "operator" | "mesh" | "peering")] => {
            format!("'{kind}:{access}'")
        }
        ["consul", kind, name] => named(kind, name),
        ["mesh", "intention", destination, ..] => named("intention", destination),
        ["mesh", "external", node] => named("node", node),
        ["mesh", "query", id] => named("query", id),
        ["mesh", "keyring"] => format!("'keyring:{access}'"),
        _ => format!("'{}' on {path:?}", capability.as_str()),
    };
    match accessor {
        "" | ANONYMOUS => format!(
            "anonymous token lacks permission {what}. The anonymous token is used implicitly when a request does not specify a token."
        ),
        accessor => format!("token with AccessorID '{accessor}' lacks permission {what}"),
    }
}

impl From<AuthorizeError> for StoreError {
    fn from(error: AuthorizeError) -> Self {
        match error {
            AuthorizeError::Sealed => Self::Sealed,
            AuthorizeError::Unknown => Self::NoToken,
            AuthorizeError::Denied(reason) => Self::Denied(reason),
            AuthorizeError::Unavailable(reason) => Self::Unavailable(reason),
            AuthorizeError::Failed(reason) => Self::Failed(reason),
        }
    }
}
