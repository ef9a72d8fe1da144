//! Typed records over the store: what the API half reads and how it changes things.
//!
//! Every change is a [`Batch`]: one ledger entry with who ([`By`]), what and on which keys. Records are JSON, so that a
//! field can be added later; values that hold secrets stay in wiped buffers.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use parking_lot::RwLock;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, MutexGuard};
use zeroize::Zeroizing;

use crate::core::{Change, Core, Error, Meta, Op};
use crate::http::ApiError;

/// Who makes a change and through which door.
#[derive(Debug, Clone)]
pub(crate) struct By {
    pub actor: Arc<str>,
    pub via: &'static str,
}

impl By {
    /// The server itself.
    pub fn system(part: &str) -> Self {
        Self {
            actor: format!("system: {part}").into(),
            via: "internal",
        }
    }
}

/// Changes that become durable together, as one ledger entry.
pub(crate) struct Batch {
    meta: Meta,
    ops: Vec<Op>,
    expect: Vec<(String, Option<u64>)>,
}

impl Batch {
    pub fn new(by: &By, operation: &str) -> Self {
        let meta = Meta {
            actor: (*by.actor).to_owned(),
            via: by.via.into(),
            operation: operation.into(),
            ..Meta::default()
        };
        Self {
            meta,
            ops: Vec::new(),
            expect: Vec::new(),
        }
    }

    /// Name something that the change touches, as people know it (an API path, an accessor).
    pub fn key(&mut self, name: impl Into<String>) -> &mut Self {
        self.meta.keys.push(name.into());
        self
    }

    pub fn put(&mut self, path: &str, value: &impl Serialize) -> Result<&mut Self, ApiError> {
        let bytes = serde_json::to_vec(value)
            .map_err(|_| ApiError::Internal("a record cannot be written as JSON".into()))?;
        Ok(self.put_bytes(path, Zeroizing::new(bytes)))
    }

    pub fn put_bytes(&mut self, path: &str, value: Zeroizing<Vec<u8>>) -> &mut Self {
        self.ops.push(Op::Put {
            path: path.into(),
            value,
        });
        self
    }

    pub fn delete(&mut self, path: &str) -> &mut Self {
        self.ops.push(Op::Delete { path: path.into() });
        self
    }

    /// Write a record that is readable while sealed.
    pub fn control(&mut self, name: &'static str, value: Vec<u8>) -> &mut Self {
        self.ops.push(Op::Control { name, value });
        self
    }

    /// The change that this batch is.
    pub fn into_change(mut self) -> Change {
        self.meta.keys.sort();
        self.meta.keys.dedup();
        Change {
            meta: self.meta,
            ops: self.ops,
            expect: self.expect,
        }
    }

    /// Only if this record is still the one seen (`None`: still absent).
    pub fn expect(&mut self, path: &str, index: Option<u64>) -> &mut Self {
        self.expect.push((path.into(), index));
        self
    }
}

/// Names share these, which are held while a change becomes durable: so many that writers who have nothing to do with each
/// other seldom wait for each other, and go together in one group.
const LOCKS: usize = 4096;

/// The unsealed store.
#[derive(Clone)]
pub(crate) struct Db {
    core: Core,
    locks: Arc<[Mutex<()>]>,
}

impl Db {
    pub fn new(core: Core) -> Self {
        Self {
            core,
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
        }
    }

    /// A record and its index.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<(T, u64)>, ApiError> {
        // The index first: if the record changes in between, a commit that expects the index fails and is tried again.
        let Some(index) = self.index(path)? else {
            return Ok(None);
        };
        let Some(bytes) = self.bytes(path)? else {
            return Ok(None);
        };
        // The parser's message could quote the record.
        let value = serde_json::from_slice(&bytes).map_err(|_| {
            ApiError::Internal(format!(
                "the record {path:?} is not readable by this version"
            ))
        })?;
        Ok(Some((value, index)))
    }

    /// What the records are in.
    pub fn core(&self) -> &Core {
        &self.core
    }

    pub fn bytes(&self, path: &str) -> Result<Option<Zeroizing<Vec<u8>>>, ApiError> {
        self.core.get(path).map_err(failure)
    }

    pub fn index(&self, path: &str) -> Result<Option<u64>, ApiError> {
        self.core.index_of(path).map_err(failure)
    }

    /// Names directly below a prefix; folders end in `/`.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, ApiError> {
        self.core.list(prefix).map_err(failure)
    }

    /// Every full name below a prefix.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>, ApiError> {
        Ok(self
            .core
            .scan(prefix)
            .map_err(failure)?
            .into_iter()
            .collect())
    }

    /// At most `most` names below a prefix that sort after `last`.
    pub fn names_after(
        &self,
        prefix: &str,
        last: &str,
        most: usize,
    ) -> Result<Vec<String>, ApiError> {
        self.core.scan_after(prefix, last, most).map_err(failure)
    }

    /// Every full name without the prefix.
    pub fn names_from(&self, prefix: &str) -> Result<Vec<String>, ApiError> {
        let mut names = self.names(prefix)?;
        for name in &mut names {
            name.drain(..prefix.len());
        }
        Ok(names)
    }

    /// Make a change durable.
    ///
    /// # Errors
    /// 503 when something it expects has changed meanwhile.
    pub async fn commit(&self, batch: Batch) -> Result<(), ApiError> {
        if self.try_commit(batch).await? {
            Ok(())
        } else {
            Err(ApiError::Unavailable(
                "the record was changed by another request at the same time; try again".into(),
            ))
        }
    }

    /// The same; `false` when something it expects has changed meanwhile.
    pub async fn try_commit(&self, batch: Batch) -> Result<bool, ApiError> {
        if batch.ops.is_empty() {
            return Ok(true);
        }
        match self.core.commit(batch.into_change()).await {
            Ok(_) => Ok(true),
            Err(Error::CasMismatch) => Ok(false),
            Err(error) => Err(failure(error)),
        }
    }

    /// Hold while reading and rewriting a record, so that requests on one key queue up instead of failing.
    pub async fn lock(&self, path: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let slot = usize::try_from(hasher.finish() % self.locks.len() as u64).unwrap_or(0);
        self.locks[slot].lock().await
    }
}

/// Records that are read often, as they were at a mark: an entry counts while that is the same, so nobody has to take
/// anything out. What it saves is looking the record up by name and in the store, opening and parsing it.
pub(crate) struct Cached<T> {
    known: RwLock<HashMap<Box<str>, Known<T>>>,
}

/// A record and its mark before it was read.
type Known<T> = (u64, Arc<T>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
        }
    }
}

impl<T: DeserializeOwned> Cached<T> {
    /// Records that are kept.
    const MOST: usize = 4096;

    pub fn get(&self, db: &Db, path: &str) -> Result<Option<Arc<T>>, ApiError> {
        let mark = db.core.mark_of(path).map_err(failure)?;
        if let Some((at, value)) = self.known.read().get(path)
            && *at == mark
        {
            return Ok(Some(Arc::clone(value)));
        }
        // What is read may be newer than the mark, never older.
        let Some((value, _)) = db.get::<T>(path)? else {
            return Ok(None);
        };
        let value = Arc::new(value);
        let mut known = self.known.write();
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(path.into(), (mark, Arc::clone(&value)));
        Ok(Some(value))
    }
}

pub(crate) fn failure(error: Error) -> ApiError {
    match error {
        Error::Sealed => ApiError::Sealed,
        Error::TooLarge(_) => ApiError::TooLarge,
        other => ApiError::Internal(format!("the store failed: {other}")),
    }
}
