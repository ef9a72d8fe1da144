//! KV version 1: one value per key, replaced as a whole.

use serde_json::Value;

use super::{Watched, decode, encode, page};
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, Operation, duration};

/// One mount of the engine.
pub(crate) struct Kv1 {
    db: Db,
    /// Where its values are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `kv1/`; names its keys in the ledger.
    mount: String,
}

impl Kv1 {
    pub fn new(db: Db, prefix: String, mount: String) -> Self {
        Self { db, prefix, mount }
    }

    /// Answer a request for a path below the mount. `lease` is what a secret that names no `ttl` or `lease` gets, in
    /// seconds (the mount's default).
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
        lease: u64,
    ) -> Result<Answer, ApiError> {
        match operation {
            Operation::List => page(self.db.list(&format!("{}{path}", self.prefix))?, data),
            Operation::Read => {
                let bytes = self.db.bytes(&self.name(path))?;
                let mut secret = decode(&bytes.ok_or(ApiError::NotFound)?)?;
                let lease = asked_lease(&secret).unwrap_or(lease);
                let mut answer = Answer::data(secret.take_all());
                answer.lease_duration = lease;
                Ok(answer)
            }
            Operation::Write => {
                check_key(path)?;
                if data.is_empty() {
                    return Err(ApiError::bad("missing data fields"));
                }
                let mut batch = Batch::new(by, "kv1 write");
                batch
                    .key(format!("{}{path}", self.mount))
                    .put_bytes(&self.name(path), encode(data.map())?);
                self.db.commit(batch).await?;
                Ok(Answer::none())
            }
            Operation::Delete => {
                let name = self.name(path);
                if self.db.index(&name)?.is_some() {
                    let mut batch = Batch::new(by, "kv1 delete");
                    batch.key(format!("{}{path}", self.mount)).delete(&name);
                    self.db.commit(batch).await?;
                }
                Ok(Answer::none())
            }
            Operation::Patch => Err(ApiError::UnsupportedOperation),
        }
    }

    /// What a read or list of a path hangs on.
    pub fn watched(&self, operation: Operation, path: &str) -> Option<Watched> {
        match operation {
            Operation::List => Some(Watched::Below(self.name(path))),
            Operation::Read => Some(Watched::Name(self.name(path))),
            _ => None,
        }
    }

    /// Every key below a folder, by its path from there.
    pub fn names(&self, folder: &str) -> Result<Vec<String>, ApiError> {
        self.db.names_from(&format!("{}{folder}", self.prefix))
    }

    /// Whether a write would be an *update*; if not, it needs the right to *create*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        Ok(self.db.index(&self.name(path))?.is_some())
    }

    fn name(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

/// A key is not empty and no folder: it could not be listed or reached again.
pub(super) fn check_key(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.ends_with('/') {
        return Err(ApiError::bad("cannot write to a path ending in '/'"));
    }
    Ok(())
}

/// The secret's own `ttl`, else `lease`.
fn asked_lease(secret: &Data) -> Option<u64> {
    ["ttl", "lease"]
        .iter()
        .find_map(|name| match secret.raw(name)? {
            Value::Number(number) => number.as_u64(),
            Value::String(text) => duration::parse(text).map(|ttl| ttl.as_secs()),
            _ => None,
        })
}
