//! Plain keys of the store as the Consul interface sees them: each look and each change is authorized.

use std::sync::Arc;

use http::HeaderMap;
use vault_kv::{Access, Attended, AuthorizeError, Caller, Capability, Error, Kv, Meta, Vault, Via};
use zeroize::Zeroizing;

use crate::{
    consul::stored::{BoxPairs, Change, Pair, Pairs, Scope, StoreError},
    http::{Call, Remote},
};

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
            caller: caller(&call.conn.remote),
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
            Err(_) if self.open => Ok(ANYBODY.to_owned()),
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
            AuthorizeError::Sealed => StoreError::Sealed,
            AuthorizeError::Denied(_) => match self.authorize(capability, path) {
                Err(denied) => denied,
                Ok(_) => StoreError::Denied(error.to_string()),
            },
            AuthorizeError::Unavailable(reason) => StoreError::Unavailable(reason),
            AuthorizeError::Failed(reason) => StoreError::Failed(reason),
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
    Caller {
        remote,
        spiffe: None,
        via,
    }
}

/// Writes what came of a change to the audit log; without that line nobody hears of it.
pub async fn finish<T>(
    attended: Attended,
    outcome: Result<T, StoreError>,
) -> Result<T, StoreError> {
    let failed = outcome.as_ref().err().map(ToString::to_string);
    match attended.finish(failed.as_deref()).await {
        Ok(()) => outcome,
        Err(error) => Err(StoreError::Unavailable(error.to_string())),
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

    async fn attend(
        &self,
        capability: Capability,
        verb: &str,
        key: &str,
    ) -> Result<(Attended, Meta), StoreError> {
        let path = self.of(key);
        let attended = self.asker.attend(capability, &path).await?;
        let operation = format!("{} {verb}", self.noun);
        let meta = self
            .asker
            .meta(attended.actor().to_owned(), &operation, path);
        Ok((attended, meta))
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
                    let (attended, meta) = self.attend(Capability::Update, "put", key).await?;
                    let value = Zeroizing::new(value.to_vec());
                    let put = self.kv.put(meta, key, value, flags, cas).await;
                    finish(attended, put.map_err(StoreError::from)).await
                }
                Change::Delete {
                    scope: Scope::Key(key),
                    cas,
                } => {
                    let (attended, meta) = self.attend(Capability::Delete, "delete", key).await?;
                    let deleted = self.kv.delete(meta, key, cas).await;
                    finish(attended, deleted.map_err(StoreError::from)).await
                }
                Change::Delete {
                    scope: Scope::Prefix(prefix),
                    ..
                } => {
                    let wanted = self.attend(Capability::Delete, "delete", prefix);
                    let (attended, meta) = wanted.await?;
                    let deleted = self.kv.delete_under(meta, prefix).await;
                    finish(attended, deleted.map(|_| true).map_err(StoreError::from)).await
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
