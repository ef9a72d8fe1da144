//! Plain versioned keys: what the Consul KV interface needs, and where the mesh keeps its own state.
//!
//! A key has a value, a number of the client's (`flags`), and the ledger indexes of its creation and last
//! change. Every change is an entry of the ledger. Reads cost one [`Core`](crate::core) read a key.
//!
//! Semantics are Consul's: check-and-set by `ModifyIndex` (0 = only if absent), and writing what is there
//! already changes no index and wakes nobody.

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    core::{Change, Core, Error, Meta, Op},
    vault::Vault,
};

/// The greatest number of keys that one recursive deletion takes in one entry.
const DELETE_BATCH: usize = 4096;

/// A key and its value.
#[derive(Clone)]
pub struct KvPair {
    /// The key, without its namespace.
    pub key: String,
    /// The value.
    pub value: Zeroizing<Vec<u8>>,
    /// A number of the client's.
    pub flags: u64,
    /// Ledger index of its creation.
    pub created: u64,
    /// Ledger index of its last change.
    pub modified: u64,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Stored {
    flags: u64,
    value: Vec<u8>,
}

/// The keys of one namespace. Cheap to clone. Sealing the store ends nothing: calls fail with
/// [`Error::Sealed`] until it is unsealed.
#[derive(Clone)]
pub struct Kv {
    vault: Vault,
    prefix: String,
}

impl Kv {
    pub(crate) fn new(vault: Vault, namespace: &'static str) -> Self {
        Self {
            vault,
            prefix: format!("kv/{namespace}/"),
        }
    }

    fn core(&self) -> Result<Core, Error> {
        Ok(self.vault.unsealed()?.core.clone())
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// One key.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn get(&self, key: &str) -> Result<Option<KvPair>, Error> {
        read(&self.core()?, &self.prefix, &self.path(key))
    }

    /// Every key that starts with `prefix`, in order.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn list(&self, prefix: &str) -> Result<Vec<KvPair>, Error> {
        let core = self.core()?;
        let names = core.scan(&self.path(prefix))?;
        names
            .iter()
            // A key may go away between the two looks.
            .filter_map(|path| read(&core, &self.prefix, path).transpose())
            .collect()
    }

    /// Names that start with `prefix`, cut behind the first `separator` (empty: not cut), each once.
    ///
    /// # Errors
    /// Sealed.
    pub fn keys(&self, prefix: &str, separator: &str) -> Result<Vec<String>, Error> {
        let names = self.core()?.level(&self.path(prefix), separator)?;
        Ok(names
            .into_iter()
            .map(|name| name[self.prefix.len()..].to_owned())
            .collect())
    }

    /// The index of the last change of a key, its deletion included; 0: never seen.
    ///
    /// # Errors
    /// Sealed.
    pub fn changed(&self, key: &str) -> Result<u64, Error> {
        self.core()?.changed(&self.path(key))
    }

    /// The same for all keys that start with `prefix`.
    ///
    /// # Errors
    /// Sealed.
    pub fn changed_under(&self, prefix: &str) -> Result<u64, Error> {
        self.core()?.changed_under(&self.path(prefix))
    }

    /// Waits until a key changed after `index`.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn wait(&self, key: &str, index: u64) -> Result<u64, Error> {
        self.core()?.wait(&self.path(key), index).await
    }

    /// Waits until something that starts with `prefix` changed after `index`.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn wait_under(&self, prefix: &str, index: u64) -> Result<u64, Error> {
        self.core()?.wait_under(&self.path(prefix), index).await
    }

    /// Sets a key. `cas`: only if its `modified` is this (0: only if it is not there). `false`: the
    /// condition does not hold and nothing happened. Durable when this returns.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn put(
        &self,
        meta: Meta,
        key: &str,
        value: Zeroizing<Vec<u8>>,
        flags: u64,
        cas: Option<u64>,
    ) -> Result<bool, Error> {
        let core = self.core()?;
        let path = self.path(key);
        let mut stored = Stored {
            flags,
            value: value.to_vec(),
        };
        let encoded =
            Zeroizing::new(postcard::to_stdvec(&stored).expect("plain data always encodes"));
        stored.zeroize();
        loop {
            let before = core.read(&path)?;
            let modified = before.as_ref().map(|value| value.modified);
            if cas.is_some_and(|cas| modified.unwrap_or(0) != cas) {
                return Ok(false);
            }
            if before.is_some_and(|before| before.bytes == encoded) {
                return Ok(true);
            }
            let change = Change {
                meta: meta.clone(),
                ops: vec![Op::Put {
                    path: path.clone(),
                    value: encoded.clone(),
                }],
                expect: vec![(path.clone(), modified)],
            };
            match core.commit(change).await {
                Ok(_) => return Ok(true),
                // Somebody was faster: look again.
                Err(Error::CasMismatch) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a key away. `cas`: only if its `modified` is this; a key that is not there counts as taken
    /// away. `false`: the condition does not hold.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn delete(&self, meta: Meta, key: &str, cas: Option<u64>) -> Result<bool, Error> {
        let core = self.core()?;
        let path = self.path(key);
        let Some(modified) = core.index_of(&path)? else {
            return Ok(true);
        };
        if cas.is_some_and(|cas| cas != modified) {
            return Ok(false);
        }
        let change = Change {
            meta,
            ops: vec![Op::Delete { path: path.clone() }],
            expect: cas.map(|cas| (path, Some(cas))).into_iter().collect(),
        };
        match core.commit(change).await {
            Ok(_) => Ok(true),
            Err(Error::CasMismatch) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes every key away that starts with `prefix`; 4,096 keys an entry.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn delete_under(&self, meta: Meta, prefix: &str) -> Result<(), Error> {
        let core = self.core()?;
        let names = core.scan(&self.path(prefix))?;
        for names in names.chunks(DELETE_BATCH) {
            let ops = names
                .iter()
                .map(|path| Op::Delete { path: path.clone() })
                .collect();
            let change = Change {
                meta: meta.clone(),
                ops,
                expect: Vec::new(),
            };
            core.commit(change).await?;
        }
        Ok(())
    }
}

fn read(core: &Core, prefix: &str, path: &str) -> Result<Option<KvPair>, Error> {
    let Some(value) = core.read(path)? else {
        return Ok(None);
    };
    let mut stored: Stored = postcard::from_bytes(&value.bytes).map_err(|_| Error::Unreadable)?;
    Ok(Some(KvPair {
        key: path[prefix.len()..].to_owned(),
        value: Zeroizing::new(std::mem::take(&mut stored.value)),
        flags: stored.flags,
        created: value.created,
        modified: value.modified,
    }))
}
