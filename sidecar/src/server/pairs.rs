//! Plain keys of the store as the Consul interface sees them: each look and each change is authorized.

use std::sync::Arc;

use http::HeaderMap;
use vault_kv::{Capability, Error, Kv, Meta, Vault};
use zeroize::Zeroizing;

use crate::{
    consul::stored::{BoxPairs, Change, Pair, Pairs, Scope, StoreError},
    http::Call,
};

/// Who asks, and what may be asked without saying so.
#[derive(Clone)]
pub struct Asker {
    vault: Vault,
    token: Option<Zeroizing<String>>,
    /// Nobody needs a right: `mesh dev`.
    open: bool,
}

impl Asker {
    /// The one behind `headers` and `query`: the token in the places where Consul's clients and Vault's
    /// put it.
    pub fn of(vault: &Vault, call: &Call, open: bool) -> Self {
        let token = call
            .query
            .filled("token")
            .map(str::to_owned)
            .or_else(|| token(call.request.headers()));
        Self {
            vault: vault.clone(),
            token: token.map(Zeroizing::new),
            open,
        }
    }

    /// The actor for the ledger, if the path may be used so.
    pub fn authorize(&self, capability: Capability, path: &str) -> Result<String, StoreError> {
        if self.vault.is_sealed() {
            return Err(StoreError::Sealed);
        }
        let token = self.token.as_ref().map(|token| token.as_str());
        match self.vault.authorize(token, None, capability, path) {
            Ok(actor) => Ok(actor),
            Err(_) if self.open => Ok("anonymous".to_owned()),
            Err(error) if token.is_some() => Err(StoreError::Denied(format!(
                "the token does not allow {} on {path} ({error})",
                capability.as_str()
            ))),
            Err(_) => Err(StoreError::Denied(format!(
                "{} on {path} needs a token (MESH_TOKEN or X-Consul-Token)",
                capability.as_str()
            ))),
        }
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

fn token(headers: &HeaderMap) -> Option<String> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    header("x-consul-token")
        .or_else(|| header("x-vault-token"))
        .or_else(|| header("authorization").and_then(|value| value.strip_prefix("Bearer ")))
        .filter(|token| !token.is_empty())
        .map(str::to_owned)
}

/// The keys of one namespace for one asker.
pub struct Granted {
    /// The keys.
    pub kv: Kv,
    /// Who asks.
    pub asker: Asker,
    /// Policy paths are this and the key.
    pub path: &'static str,
    /// What a change is called in the ledger.
    pub noun: &'static str,
}

impl Granted {
    /// As the routes want it.
    pub fn shared(self) -> Arc<dyn Pairs> {
        Arc::new(self)
    }

    fn read_now(&self, scope: Scope<'_>) -> Result<(Vec<Pair>, u64), StoreError> {
        let (found, index) = match scope {
            Scope::Key(key) => {
                self.asker.authorize(Capability::Read, &self.of(key))?;
                (Vec::from_iter(self.kv.get(key)?), self.kv.changed(key)?)
            }
            Scope::Prefix(prefix) => {
                self.asker.authorize(Capability::Read, &self.of(prefix))?;
                (self.kv.list(prefix)?, self.kv.changed_under(prefix)?)
            }
        };
        let index = match index {
            0 => self.kv.changed_under("")?,
            index => index,
        };
        let pairs = found.into_iter().map(|pair| Pair {
            key: pair.key,
            value: pair.value.to_vec().into(),
            flags: pair.flags,
            created: pair.created,
            modified: pair.modified,
        });
        Ok((pairs.collect(), index))
    }

    fn of(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    fn meta(&self, capability: Capability, verb: &str, key: &str) -> Result<Meta, StoreError> {
        let path = self.of(key);
        let actor = self.asker.authorize(capability, &path)?;
        let operation = format!("{} {verb}", self.noun);
        Ok(self.asker.meta(actor, &operation, path))
    }
}

impl Pairs for Granted {
    fn read<'a>(&'a self, scope: Scope<'a>) -> BoxPairs<'a, Result<(Vec<Pair>, u64), StoreError>> {
        Box::pin(async move { self.read_now(scope) })
    }

    fn change<'a>(&'a self, change: Change<'a>) -> BoxPairs<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            match change {
                Change::Put {
                    key,
                    value,
                    flags,
                    cas,
                } => {
                    let meta = self.meta(Capability::Update, "put", key)?;
                    let value = Zeroizing::new(value.to_vec());
                    Ok(self.kv.put(meta, key, value, flags, cas).await?)
                }
                Change::Delete {
                    scope: Scope::Key(key),
                    cas,
                } => {
                    let meta = self.meta(Capability::Delete, "delete", key)?;
                    Ok(self.kv.delete(meta, key, cas).await?)
                }
                Change::Delete {
                    scope: Scope::Prefix(prefix),
                    ..
                } => {
                    let meta = self.meta(Capability::Delete, "delete", prefix)?;
                    self.kv.delete_under(meta, prefix).await?;
                    Ok(true)
                }
            }
        })
    }

    fn changed_after<'a>(&'a self, scope: Scope<'a>, index: u64) -> BoxPairs<'a, ()> {
        Box::pin(async move {
            // Sealed while waiting: the next look says so.
            let _ = match scope {
                Scope::Key(key) => self.kv.wait(key, index).await,
                Scope::Prefix(prefix) => self.kv.wait_under(prefix, index).await,
            };
        })
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> Self {
        match error {
            Error::Sealed => Self::Sealed,
            error => Self::Failed(error.to_string()),
        }
    }
}
