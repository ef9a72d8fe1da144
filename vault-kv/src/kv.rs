//! Plain versioned keys: what the Consul KV interface needs, and where the mesh keeps its own state.
//!
//! A key has a value, a number of the client's (`flags`), and the ledger indexes of its creation and last
//! change. Every change is an entry of the ledger; a transaction is one. [`Sessions`] hold keys as locks, and keys may end by
//! themselves.
//!
//! Semantics are Consul's: check-and-set by `ModifyIndex` (0 = only if absent), and writing what is there
//! already changes no index and wakes nobody. Unlike there, a key may have a TTL, and a session's is as short as one
//! likes.
//!
//! Costs. A read is one [`Core`](crate::core) read a key. A change looks at its keys first and is decided again if they changed
//! meanwhile, in the end by the writing thread itself. What looks at a whole prefix (`DeleteTree`,
//! `GetTree` in a transaction, the end of a session) is always decided there, and holds up all writers for as long as
//! it takes to read those names. A lock writes one more record than a plain set.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::{
    core::{Core, Error, Meta, Op, View},
    vault::Vault,
};

mod record;
mod session;
#[cfg(test)]
mod tests;
pub(crate) mod timers;
mod transaction;

use record::Paths;
pub use session::{Behavior, Session, SessionOptions, Sessions};
use timers::Due;
use transaction::Effects;
pub use transaction::{Applied, KvOp, NotApplied, Refusal, Refused};

/// The greatest number of keys that one recursive deletion takes in one entry.
const DELETE_BATCH: usize = 100_000;

/// A key and its value.
#[derive(Clone)]
pub struct KvPair {
    /// The key, without its namespace.
    pub key: String,
    /// The value.
    pub value: Zeroizing<Vec<u8>>,
    /// A number of the client's.
    pub flags: u64,
    /// The session that holds it.
    pub session: Option<String>,
    /// How often it was taken by a session.
    pub lock_index: u64,
    /// When it goes by itself, in Unix microseconds.
    pub ends: Option<i64>,
    /// Ledger index of its creation.
    pub created: u64,
    /// Ledger index of its last change.
    pub modified: u64,
}

impl KvPair {
    fn new(key: &str, created: u64) -> Self {
        Self {
            key: key.to_owned(),
            value: Zeroizing::default(),
            flags: 0,
            session: None,
            lock_index: 0,
            ends: None,
            created,
            modified: 0,
        }
    }

    fn without_value(&self) -> Self {
        Self {
            key: self.key.clone(),
            session: self.session.clone(),
            value: Zeroizing::default(),
            ..*self
        }
    }

    /// Whether everything but the indexes is the same.
    fn says(&self, other: &Self) -> bool {
        (self.flags, self.lock_index, self.ends) == (other.flags, other.lock_index, other.ends)
            && self.session == other.session
            && self.value == other.value
    }

    /// What a transaction left open.
    fn number(&mut self, index: u64) {
        for open in [&mut self.created, &mut self.modified] {
            if *open == 0 {
                *open = index;
            }
        }
    }
}

/// The keys of one namespace. Cheap to clone. Sealing the store ends nothing: calls fail with
/// [`Error::Sealed`] until it is unsealed.
#[derive(Clone)]
pub struct Kv {
    vault: Vault,
    paths: Paths,
}

impl Kv {
    pub(crate) fn new(vault: Vault, namespace: &'static str) -> Self {
        Self {
            vault,
            paths: Paths::new(namespace),
        }
    }

    fn core(&self) -> Result<Core, Error> {
        Ok(self.vault.unsealed()?.core.clone())
    }

    /// The sessions that hold keys of this namespace.
    pub fn sessions(&self) -> Sessions {
        Sessions::new(self.vault.clone(), self.paths.clone())
    }

    /// One key.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn get(&self, key: &str) -> Result<Option<KvPair>, Error> {
        read(&self.core()?, &self.paths, &self.paths.key(key))
    }

    /// Every key that starts with `prefix`, in order.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn list(&self, prefix: &str) -> Result<Vec<KvPair>, Error> {
        let core = self.core()?;
        let names = core.scan(&self.paths.key(prefix))?;
        names
            .iter()
            // A key may go away between the two looks.
            .filter_map(|path| read(&core, &self.paths, path).transpose())
            .collect()
    }

    /// Names that start with `prefix`, cut behind the first `separator` (empty: not cut), each once.
    ///
    /// # Errors
    /// Sealed.
    pub fn keys(&self, prefix: &str, separator: &str) -> Result<Vec<String>, Error> {
        let names = self.core()?.level(&self.paths.key(prefix), separator)?;
        Ok(names
            .into_iter()
            .map(|name| self.paths.key_of(&name).to_owned())
            .collect())
    }

    /// The index of the last change of a key, its deletion included; 0: never seen.
    ///
    /// # Errors
    /// Sealed.
    pub fn changed(&self, key: &str) -> Result<u64, Error> {
        self.core()?.changed(&self.paths.key(key))
    }

    /// The same for all keys that start with `prefix`.
    ///
    /// # Errors
    /// Sealed.
    pub fn changed_under(&self, prefix: &str) -> Result<u64, Error> {
        self.core()?.changed_under(&self.paths.key(prefix))
    }

    /// Waits until a key changed after `index`, and tells the index of its last change.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn wait(&self, key: &str, index: u64) -> Result<u64, Error> {
        self.core()?.wait(&self.paths.key(key), index).await
    }

    /// Waits until something that starts with `prefix` changed after `index`, and tells the index of its last change.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn wait_under(&self, prefix: &str, index: u64) -> Result<u64, Error> {
        self.core()?
            .wait_under(&self.paths.key(prefix), index)
            .await
    }

    /// Follows a key from after `index`; 0: from what is there.
    pub fn watch(&self, key: &str, index: u64) -> KvWatch {
        KvWatch {
            kv: self.clone(),
            name: key.to_owned(),
            tree: false,
            index,
        }
    }

    /// Follows every key that starts with `prefix`, from after `index`; 0: from what is there.
    pub fn watch_under(&self, prefix: &str, index: u64) -> KvWatch {
        KvWatch {
            tree: true,
            ..self.watch(prefix, index)
        }
    }

    /// Carries out operations together, as one entry of the ledger: all, or none. Each sees those before it. What
    /// came of each, in order. Durable when this returns.
    ///
    /// # Errors
    /// What does not apply, or why storage fails: nothing happened.
    pub async fn apply(&self, meta: Meta, ops: Vec<KvOp>) -> Result<Vec<Applied>, NotApplied> {
        let open = self.vault.unsealed()?;
        let alone = ops.iter().any(KvOp::is_tree);
        let timed = ops
            .iter()
            .any(|op| matches!(op, KvOp::Set { ttl: Some(_), .. }));
        let (paths, ops) = (self.paths.clone(), Arc::new(ops));
        let apply = async move {
            let at = paths.clone();
            let decide = move |view: &mut View<'_>| transaction::decide(view, &at, &ops);
            let (decided, index) = open.core.transact(meta, alone, decide).await?;
            let Effects {
                mut results,
                endings,
            } = decided.map_err(NotApplied::Refused)?;
            let index = index.unwrap_or_default();
            for (key, ttl) in endings {
                let due = Due::Key(paths.clone(), key);
                open.timers.set(due, index, Instant::now() + ttl);
            }
            for applied in &mut results {
                match applied {
                    Applied::Pair(pair) => pair.number(index),
                    Applied::Read(pairs) => pairs.iter_mut().for_each(|pair| pair.number(index)),
                    Applied::Done => {}
                }
            }
            Ok(results)
        };
        match timed {
            false => apply.await,
            // What follows the entry must follow, also when the caller goes away.
            true => tokio::spawn(apply).await.map_err(|_| Error::Sealed)?,
        }
    }

    /// Carries out one operation; `false`: it does not apply, and nothing happened. Durable when this returns.
    ///
    /// # Errors
    /// It is for a session that does not exist, sealed, or storage fails.
    pub async fn change(&self, meta: Meta, op: KvOp) -> Result<bool, Error> {
        match self.apply(meta, vec![op]).await {
            Ok(_) => Ok(true),
            Err(NotApplied::Failed(error)) => Err(error),
            Err(NotApplied::Refused(refused)) => match refused.into_iter().next() {
                Some(Refused {
                    why: Refusal::NoSession(id),
                    ..
                }) => Err(Error::NoSession(id)),
                _ => Ok(false),
            },
        }
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
        let op = KvOp::Set {
            key: key.to_owned(),
            value,
            flags,
            cas,
            ttl: None,
        };
        self.change(meta, op).await
    }

    /// Sets a key that goes by itself after `ttl`, also if the store is sealed or the process restarts meanwhile (then as
    /// soon as it is unsealed).
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn put_for(
        &self,
        meta: Meta,
        key: &str,
        value: Zeroizing<Vec<u8>>,
        ttl: Duration,
    ) -> Result<(), Error> {
        let op = KvOp::Set {
            key: key.to_owned(),
            value,
            flags: 0,
            cas: None,
            ttl: Some(ttl),
        };
        self.change(meta, op).await.map(|_| ())
    }

    /// Sets a key and takes it for a session. `false`: another session holds it, or its lock-delay is not over.
    ///
    /// # Errors
    /// There is no such session, sealed, or storage fails.
    pub async fn lock(
        &self,
        meta: Meta,
        key: &str,
        value: Zeroizing<Vec<u8>>,
        flags: u64,
        session: &str,
    ) -> Result<bool, Error> {
        let op = KvOp::Lock {
            key: key.to_owned(),
            value,
            flags,
            session: session.to_owned(),
        };
        self.change(meta, op).await
    }

    /// Sets a key and lets go of it. `false`: this session does not hold it.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn unlock(
        &self,
        meta: Meta,
        key: &str,
        value: Zeroizing<Vec<u8>>,
        flags: u64,
        session: &str,
    ) -> Result<bool, Error> {
        let op = KvOp::Unlock {
            key: key.to_owned(),
            value,
            flags,
            session: session.to_owned(),
        };
        self.change(meta, op).await
    }

    /// Takes a key away. `cas`: only if its `modified` is this; a key that is not there counts as taken
    /// away. `false`: the condition does not hold.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn delete(&self, meta: Meta, key: &str, cas: Option<u64>) -> Result<bool, Error> {
        let key = key.to_owned();
        self.change(meta, KvOp::Delete { key, cas }).await
    }

    /// Takes every key away that starts with `prefix`: in one entry, or in several when there are more than 100,000.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn delete_under(&self, meta: Meta, prefix: &str) -> Result<(), Error> {
        let core = self.core()?;
        let mut names = core.scan(&self.paths.key(prefix))?;
        while names.len() > DELETE_BATCH {
            let batch = names.split_off(names.len() - DELETE_BATCH);
            let delete = move |_: &mut View<'_>| {
                let delete = |path: &String| Op::Delete { path: path.clone() };
                Ok(((), batch.iter().map(delete).collect()))
            };
            core.transact(meta.clone(), true, delete).await?;
        }
        let prefix = prefix.to_owned();
        self.change(meta, KvOp::DeleteTree { prefix }).await?;
        Ok(())
    }
}

/// What became of a key, or of all under a prefix. Changes that come faster than they are asked for are seen as one; none is
/// missed. As many as one likes: a watch costs something only while it waits, and is woken only for its own.
pub struct KvWatch {
    kv: Kv,
    name: String,
    tree: bool,
    index: u64,
}

impl KvWatch {
    /// What is there after the next change, and the index of that change. At the first call with index 0: what is there
    /// now. Nothing is lost if this is dropped while it waits.
    ///
    /// # Errors
    /// Sealed, or storage fails. The next call goes on from where this one was.
    pub async fn next(&mut self) -> Result<(Vec<KvPair>, u64), Error> {
        let index = match (self.index, self.tree) {
            (0, false) => self.kv.changed(&self.name)?,
            (0, true) => self.kv.changed_under(&self.name)?,
            (index, false) => self.kv.wait(&self.name, index).await?,
            (index, true) => self.kv.wait_under(&self.name, index).await?,
        };
        // Read after the index: what changes between the two is told again.
        let pairs = match self.tree {
            false => Vec::from_iter(self.kv.get(&self.name)?),
            true => self.kv.list(&self.name)?,
        };
        self.index = index.max(1);
        Ok((pairs, index))
    }
}

fn read(core: &Core, paths: &Paths, path: &str) -> Result<Option<KvPair>, Error> {
    match core.read(path)? {
        Some(value) => record::decode(paths.key_of(path), &value).map(Some),
        None => Ok(None),
    }
}
