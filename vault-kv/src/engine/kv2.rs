//! KV version 2: secrets with versions, check-and-set, soft delete, real destruction and metadata.
//!
//! A key is one [`Record`] and one stored value per version. Every change is one batch of the record and the values it
//! adds or removes, so the two never disagree. Values are JSON in wiped buffers; no error repeats one.

use std::sync::Arc;

use crate::clock::Clock;
use crate::db::{Batch, By, Cached, Db};
use crate::engine::Watched;
use crate::http::{ApiError, reply::Answer};
use crate::request::{ApiPath, Data, Operation};

mod data;
mod expiry;
mod merge;
mod metadata;
mod moving;
mod record;
mod settings;
mod subkeys;
mod versions;

use record::{Record, Seen, Stamp};

/// One mount of the engine.
pub(crate) struct Kv2 {
    db: Db,
    /// Where its records are, e.g. `logical/<uuid>/`.
    prefix: String,
    /// Where it is mounted, e.g. `secret/`; names its keys in the ledger.
    mount: String,
    clock: Clock,
    known: Cached<Seen>,
}

impl Kv2 {
    pub fn new(db: Db, prefix: String, mount: String, clock: Clock) -> Self {
        Self {
            db,
            prefix,
            mount,
            clock,
            known: Cached::default(),
        }
    }

    /// Answer a request for a path below the mount. Takes the secret out of `data`.
    ///
    /// # Errors
    /// Vault's texts and statuses. Two failures are answers with a body instead: a deleted version (404 with its
    /// metadata) and a path that is not part of the engine (404 with a hint).
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &mut Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Patch, Read, Write};
        if path == "config" {
            return match operation {
                Read => self.read_config(),
                Write => Box::pin(self.write_config(by, data)).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let Some((part, key)) = path.split_once('/') else {
            return Ok(wrong_path(operation));
        };
        // A folder holds keys and is none.
        let folder = key.is_empty() || key.ends_with('/');
        match (part, operation) {
            ("metadata", List) => self.list(key, data),
            ("data" | "metadata" | "subkeys", Read) if folder => Err(ApiError::NotFound),
            ("data" | "metadata", Delete) if folder => Ok(Answer::none()),
            ("data" | "metadata" | "delete" | "undelete" | "destroy", Write | Patch) if folder => {
                Err(ApiError::bad("cannot write to a path ending in '/'"))
            }
            ("data", Read) => self.read(key, data),
            ("data", Write) => Box::pin(self.write(by, key, data)).await,
            ("data", Patch) => Box::pin(self.patch(by, key, data)).await,
            ("data", Delete) => Box::pin(self.delete_newest(by, key)).await,
            ("metadata", Read) => self.read_metadata(key),
            ("metadata", Write) => Box::pin(self.write_metadata(by, key, data)).await,
            ("metadata", Patch) => Box::pin(self.patch_metadata(by, key, data)).await,
            ("metadata", Delete) => Box::pin(self.remove(by, key)).await,
            ("subkeys", Read) => self.subkeys(key, data),
            ("delete", Write) => Box::pin(self.delete_versions(by, key, data)).await,
            ("undelete", Write) => Box::pin(self.undelete(by, key, data)).await,
            ("destroy", Write) => Box::pin(self.destroy(by, key, data)).await,
            ("move", Write) => Box::pin(self.rename(by, key, data)).await,
            ("move" | "data" | "subkeys" | "delete" | "undelete" | "destroy", _) => {
                Err(ApiError::UnsupportedOperation)
            }
            _ => Ok(wrong_path(operation)),
        }
    }

    /// Every key below a folder of `metadata/`, by its path from there.
    pub fn names(&self, path: &str) -> Result<Vec<String>, ApiError> {
        match path.strip_prefix("metadata/") {
            Some(folder) => self.db.names_from(&self.record_path(folder)),
            None => Err(ApiError::UnsupportedOperation),
        }
    }

    /// Whether a write to this path would be an *update*; if not, it needs the right to *create*.
    pub fn exists(&self, path: &str) -> Result<bool, ApiError> {
        match path.split_once('/') {
            Some(("data" | "metadata", key)) => {
                Ok(self.db.index(&self.record_path(key))?.is_some())
            }
            _ => Ok(true),
        }
    }

    fn record_path(&self, key: &str) -> String {
        format!("{}metadata/{key}", self.prefix)
    }

    /// The number comes first: a key may hold slashes, a number cannot.
    fn value_path(&self, key: &str, version: u64) -> String {
        format!("{}value/{version}/{key}", self.prefix)
    }

    /// Sorts by time: the first of them are due first.
    fn expiry_path(&self, at: Stamp, version: u64, key: &str) -> String {
        format!("{}expiry/{}/{version}/{key}", self.prefix, at.sortable())
    }

    /// Takes all that there is of a key but its record.
    fn delete_values(&self, batch: &mut Batch, key: &str, record: &Record) {
        for (number, version) in &record.versions {
            if !version.destroyed {
                batch.delete(&self.value_path(key, *number));
            }
            if let Some(at) = version.expires {
                batch.delete(&self.expiry_path(at, *number, key));
            }
        }
    }

    /// What a read or list of a path hangs on.
    pub fn watched(&self, operation: Operation, path: &str) -> Option<Watched> {
        match (path.split_once('/')?, operation) {
            (("metadata", folder), Operation::List) => {
                Some(Watched::Below(self.record_path(folder)))
            }
            (("data" | "metadata" | "subkeys", key), Operation::Read) => {
                Some(Watched::Name(self.record_path(key)))
            }
            _ => None,
        }
    }

    fn record(&self, key: &str) -> Result<Option<(Record, u64)>, ApiError> {
        self.db.get(&self.record_path(key))
    }

    /// The record for who only reads it.
    fn seen(&self, key: &str) -> Result<Option<Arc<Seen>>, ApiError> {
        self.known.get(&self.db, &self.record_path(key))
    }

    fn now(&self) -> Stamp {
        self.clock.now().into()
    }

    /// A change of a key: its record, if that is still as it was seen, and what the caller adds.
    fn change(
        &self,
        by: &By,
        operation: &str,
        api_path: &str,
        key: &str,
        record: &Record,
        seen: Option<u64>,
    ) -> Result<Batch, ApiError> {
        let path = self.record_path(key);
        let mut batch = Batch::new(by, operation);
        batch
            .key(format!("{}{api_path}/{key}", self.mount))
            .expect(&path, seen)
            .put(&path, record)?;
        Ok(batch)
    }
}

/// The key that the field `to` names, in its normal form.
pub(crate) fn data_key(data: &Data) -> Result<String, ApiError> {
    let to = data.text("to")?.unwrap_or_default();
    let path = ApiPath::checked(to.trim_matches('/').to_owned()).ok();
    path.map(|path| path.as_str().to_owned())
        .filter(|path| !path.is_empty())
        .ok_or_else(|| ApiError::bad("field \"to\": the path of a key below the mount"))
}

/// The hint for those who use the paths of version 1.
fn wrong_path(operation: Operation) -> Answer {
    let verb = match operation {
        Operation::Read => "get",
        Operation::Write => "put",
        Operation::Patch => "patch",
        Operation::Delete => "delete",
        Operation::List => "list",
    };
    Answer::none()
        .warn(format!("Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the Vault CLI, use 'vault kv {verb}' for this operation."))
        .status(http::StatusCode::NOT_FOUND)
}

#[cfg(test)]
mod tests;
