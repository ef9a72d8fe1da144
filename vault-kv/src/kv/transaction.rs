//! Operations on keys that happen together or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use zeroize::Zeroizing;

use super::{
    KvPair,
    record::{self, Paths, Until},
    session,
};
use crate::core::{Error, Op, View};

/// One operation on keys.
pub enum KvOp {
    /// Sets a key; who holds it stays. The same again changes nothing, unless there is a `ttl`.
    Set {
        /// The key.
        key: String,
        /// The value.
        value: Zeroizing<Vec<u8>>,
        /// A number of the client's.
        flags: u64,
        /// Only if its `modified` is this; 0: only if it is not there.
        cas: Option<u64>,
        /// The key goes by itself after this long; `None`: it stays, also if it had an end before.
        ttl: Option<Duration>,
    },
    /// Takes a key away; one that is not there counts as taken away.
    Delete {
        /// The key.
        key: String,
        /// Only if its `modified` is this.
        cas: Option<u64>,
    },
    /// Takes every key away that starts so.
    DeleteTree {
        /// How they start.
        prefix: String,
    },
    /// Sets a key and takes it for a session: if nobody holds it, or this session does.
    Lock {
        /// The key.
        key: String,
        /// The value.
        value: Zeroizing<Vec<u8>>,
        /// A number of the client's.
        flags: u64,
        /// The session.
        session: String,
    },
    /// Sets a key and lets go of it, if this session holds it.
    Unlock {
        /// The key.
        key: String,
        /// The value.
        value: Zeroizing<Vec<u8>>,
        /// A number of the client's.
        flags: u64,
        /// The session.
        session: String,
    },
    /// Reads a key that is there.
    Get {
        /// The key.
        key: String,
    },
    /// Reads a key.
    GetOrEmpty {
        /// The key.
        key: String,
    },
    /// Reads every key that starts so.
    GetTree {
        /// How they start.
        prefix: String,
    },
    /// The key is there, and its `modified` is this.
    CheckIndex {
        /// The key.
        key: String,
        /// Its `modified`.
        index: u64,
    },
    /// The key is there, and this session holds it.
    CheckSession {
        /// The key.
        key: String,
        /// The session; empty: nobody.
        session: String,
    },
    /// The key is not there.
    CheckAbsent {
        /// The key.
        key: String,
    },
}

/// What came of one operation.
pub enum Applied {
    /// The key as it is now, without its value: of `Set`, `Lock`, `Unlock` and checks.
    Pair(KvPair),
    /// What was read.
    Read(Vec<KvPair>),
    /// There is nothing to say.
    Done,
}

/// An operation that does not apply, for which nothing of the transaction happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which, from 0.
    pub op: usize,
    /// The key.
    pub key: String,
    /// Why.
    pub why: Refusal,
}

/// Why an operation does not apply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such key.
    #[error("there is no such key")]
    Absent,
    /// There is such a key.
    #[error("there is such a key")]
    Exists,
    /// It was changed: its `modified` is this; 0: it is not there, or changed by this transaction.
    #[error("it was changed: its index is {0}")]
    Stale(u64),
    /// It is held by this session; empty: by none.
    #[error("it is held by the session {0:?}")]
    HeldBy(String),
    /// A session that held it ended a short while ago.
    #[error("a session that held it ended, and its lock-delay is not over")]
    Delayed,
    /// There is no such session.
    #[error("invalid session {0:?}")]
    NoSession(String),
}

/// Why nothing happened.
#[derive(Debug, thiserror::Error)]
pub enum NotApplied {
    /// Operations do not apply.
    #[error("{}", refusals(.0))]
    Refused(Vec<Refused>),
    /// Sealed, or storage fails.
    #[error(transparent)]
    Failed(#[from] Error),
}

fn refusals(refused: &[Refused]) -> String {
    let one = |refused: &Refused| format!("{:?}: {}", refused.key, refused.why);
    refused.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl KvOp {
    /// Whether it looks at more than one key.
    pub(super) fn is_tree(&self) -> bool {
        matches!(self, Self::DeleteTree { .. } | Self::GetTree { .. })
    }

    /// The key, or the prefix.
    pub fn key(&self) -> &str {
        match self {
            Self::Set { key, .. }
            | Self::Delete { key, .. }
            | Self::Lock { key, .. }
            | Self::Unlock { key, .. }
            | Self::Get { key }
            | Self::GetOrEmpty { key }
            | Self::CheckIndex { key, .. }
            | Self::CheckSession { key, .. }
            | Self::CheckAbsent { key } => key,
            Self::DeleteTree { prefix } | Self::GetTree { prefix } => prefix,
        }
    }
}

/// What a transaction decided.
pub(super) type Decided = Result<Effects, Vec<Refused>>;

/// What follows when it is written.
#[derive(Default)]
pub(super) struct Effects {
    /// An index of 0 stands for that of the entry.
    pub(super) results: Vec<Applied>,
    /// Keys that end, and after how long.
    pub(super) endings: Vec<(String, Duration)>,
}

/// Decides about all operations, each on top of those before it.
pub(super) fn decide(
    view: &mut View<'_>,
    paths: &Paths,
    ops: &[KvOp],
) -> Result<(Decided, Vec<Op>), Error> {
    let mut work = Work {
        view,
        paths,
        pairs: BTreeMap::new(),
        written: BTreeSet::new(),
        beside: BTreeMap::new(),
        endings: Vec::new(),
    };
    let mut results = Vec::with_capacity(ops.len());
    let mut refused = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        match work.one(op)? {
            Ok(applied) => results.push(applied),
            Err(why) => refused.push(Refused {
                op: at,
                key: op.key().to_owned(),
                why,
            }),
        }
    }
    if !refused.is_empty() {
        return Ok((Err(refused), Vec::new()));
    }
    let effects = Effects {
        results,
        endings: std::mem::take(&mut work.endings),
    };
    Ok((Ok(effects), work.into_ops()))
}

struct Work<'a, 'v> {
    view: &'a mut View<'v>,
    paths: &'a Paths,
    /// Keys that were looked at, as they are now.
    pairs: BTreeMap<String, Option<KvPair>>,
    /// Those that change.
    written: BTreeSet<String>,
    /// Records that are no keys, by path; `None`: taken away.
    beside: BTreeMap<String, Option<Zeroizing<Vec<u8>>>>,
    endings: Vec<(String, Duration)>,
}

type Outcome = Result<Applied, Refusal>;

impl Work<'_, '_> {
    fn one(&mut self, op: &KvOp) -> Result<Outcome, Error> {
        Ok(match op {
            KvOp::Set {
                key,
                value,
                flags,
                cas,
                ttl,
            } => {
                let before = self.pair(key)?;
                if let Err(stale) = unchanged(before, *cas) {
                    return Ok(Err(stale));
                }
                let (lock_index, session) = match before {
                    Some(before) => (before.lock_index, before.session.clone()),
                    None => (0, None),
                };
                let until = ttl.map(Until::after);
                if let (Some(until), Some(ttl)) = (&until, ttl) {
                    let record = record::encode_plain(until);
                    self.beside.insert(self.paths.ending(key), Some(record));
                    self.endings.push((key.clone(), *ttl));
                }
                Ok(self.write(key, |pair| KvPair {
                    value: value.clone(),
                    flags: *flags,
                    lock_index,
                    session,
                    ends: until.map(|until| until.at),
                    ..pair
                })?)
            }
            KvOp::Delete { key, cas } => {
                let before = self.pair(key)?;
                if before.is_some()
                    && let Err(stale) = unchanged(before, *cas)
                {
                    return Ok(Err(stale));
                }
                self.remove(key);
                Ok(Applied::Done)
            }
            KvOp::DeleteTree { prefix } => {
                self.remove_tree(prefix)?;
                Ok(Applied::Done)
            }
            KvOp::Lock {
                key,
                value,
                flags,
                session,
            } => self.lock(key, value, *flags, session)?,
            KvOp::Unlock {
                key,
                value,
                flags,
                session,
            } => {
                let before = self.pair(key)?;
                let holder = before.and_then(|pair| pair.session.clone());
                if holder.as_ref() != Some(session) {
                    return Ok(Err(Refusal::HeldBy(holder.unwrap_or_default())));
                }
                self.beside.insert(self.paths.held(session, key), None);
                Ok(self.write(key, |pair| KvPair {
                    value: value.clone(),
                    flags: *flags,
                    session: None,
                    ..pair
                })?)
            }
            KvOp::Get { key } => match self.pair(key)? {
                Some(pair) => Ok(Applied::Read(vec![pair.clone()])),
                None => Err(Refusal::Absent),
            },
            KvOp::GetOrEmpty { key } => {
                let pair = self.pair(key)?;
                Ok(Applied::Read(pair.cloned().into_iter().collect()))
            }
            KvOp::GetTree { prefix } => Ok(Applied::Read(self.tree(prefix)?)),
            KvOp::CheckIndex { key, index } => match self.pair(key)? {
                None => Err(Refusal::Absent),
                // 0 is that of a key which this transaction changes: nobody knows it yet.
                Some(pair) if *index == 0 || pair.modified != *index => {
                    Err(Refusal::Stale(pair.modified))
                }
                Some(pair) => Ok(Applied::Pair(pair.without_value())),
            },
            KvOp::CheckSession { key, session } => match self.pair(key)? {
                None => Err(Refusal::Absent),
                Some(pair) => match pair.session.as_deref().unwrap_or_default() {
                    holder if holder != session => Err(Refusal::HeldBy(holder.to_owned())),
                    _ => Ok(Applied::Pair(pair.without_value())),
                },
            },
            KvOp::CheckAbsent { key } => match self.pair(key)? {
                Some(_) => Err(Refusal::Exists),
                None => Ok(Applied::Done),
            },
        })
    }

    fn lock(
        &mut self,
        key: &str,
        value: &Zeroizing<Vec<u8>>,
        flags: u64,
        session: &str,
    ) -> Result<Outcome, Error> {
        if !session::lives(self.view, self.paths, session)? {
            return Ok(Err(Refusal::NoSession(session.to_owned())));
        }
        let before = self.pair(key)?;
        let holder = before.and_then(|pair| pair.session.clone());
        let taken_before = holder.as_deref() == Some(session);
        if !taken_before {
            if let Some(holder) = holder {
                return Ok(Err(Refusal::HeldBy(holder)));
            }
            if self.view.read(&self.paths.delay(key))?.is_some() {
                return Ok(Err(Refusal::Delayed));
            }
            let hint = self.paths.held(session, key);
            self.beside.insert(hint, Some(Zeroizing::default()));
        }
        Ok(Ok(self.write(key, |pair| KvPair {
            value: value.clone(),
            flags,
            session: Some(session.to_owned()),
            lock_index: pair.lock_index + u64::from(!taken_before),
            ..pair
        })?))
    }

    /// A key as it is after the operations so far.
    fn pair(&mut self, key: &str) -> Result<Option<&KvPair>, Error> {
        if !self.pairs.contains_key(key) {
            let value = self.view.read(&self.paths.key(key))?;
            let pair = value.map(|value| record::decode(key, &value)).transpose()?;
            self.pairs.insert(key.to_owned(), pair);
        }
        Ok(self.pairs[key].as_ref())
    }

    /// Changes a key that was looked at.
    fn write(
        &mut self,
        key: &str,
        change: impl FnOnce(KvPair) -> KvPair,
    ) -> Result<Applied, Error> {
        let slot = self.pairs.entry(key.to_owned()).or_default();
        let before = match slot {
            Some(before) => before.clone(),
            // One that this transaction took away and makes again was changed, in the end.
            None => {
                let created = self.view.created(&self.paths.key(key))?;
                KvPair::new(key, created.unwrap_or_default())
            }
        };
        let mut pair = change(before);
        let same = slot.as_ref().is_some_and(|before| before.says(&pair));
        if !same {
            pair.modified = 0;
            self.written.insert(key.to_owned());
        }
        let applied = Applied::Pair(pair.without_value());
        *slot = Some(pair);
        Ok(applied)
    }

    /// Takes a key away that was looked at.
    fn remove(&mut self, key: &str) {
        let pair = self.pairs.insert(key.to_owned(), None).flatten();
        let Some(pair) = pair else { return };
        self.written.insert(key.to_owned());
        if let Some(session) = pair.session {
            self.beside.insert(self.paths.held(&session, key), None);
        }
    }

    fn remove_tree(&mut self, prefix: &str) -> Result<(), Error> {
        let looked_at = self.pairs.range(prefix.to_owned()..);
        let looked_at = looked_at.map(|(key, _)| key.clone());
        let looked_at: Vec<_> = looked_at
            .take_while(|key| key.starts_with(prefix))
            .collect();
        looked_at.iter().for_each(|key| self.remove(key));
        for path in self.view.scan(&self.paths.key(prefix))? {
            let key = self.paths.key_of(&path);
            if !self.pairs.contains_key(key) {
                self.pairs.insert(key.to_owned(), None);
                self.written.insert(key.to_owned());
            }
        }
        let held = self.paths.held_by("");
        for hint in self.view.scan(&held)? {
            let key = hint[held.len()..].split_once('/').map(|(_, key)| key);
            if key.is_some_and(|key| key.starts_with(prefix)) {
                self.beside.insert(hint, None);
            }
        }
        Ok(())
    }

    fn tree(&mut self, prefix: &str) -> Result<Vec<KvPair>, Error> {
        for path in self.view.scan(&self.paths.key(prefix))? {
            self.pair(self.paths.key_of(&path))?;
        }
        let under = self.pairs.range(prefix.to_owned()..);
        let under = under.take_while(|(key, _)| key.starts_with(prefix));
        Ok(under.filter_map(|(_, pair)| pair.clone()).collect())
    }

    fn into_ops(self) -> Vec<Op> {
        let keys = self.written.iter().map(|key| {
            let path = self.paths.key(key);
            match self.pairs.get(key).and_then(Option::as_ref) {
                Some(pair) => Op::Put {
                    path,
                    value: record::encode(pair),
                },
                None => Op::Delete { path },
            }
        });
        let beside = self.beside.iter().map(|(path, value)| {
            let path = path.clone();
            match value.clone() {
                Some(value) => Op::Put { path, value },
                None => Op::Delete { path },
            }
        });
        keys.chain(beside).collect()
    }
}

/// Whether a key's index is still the expected one.
fn unchanged(pair: Option<&KvPair>, cas: Option<u64>) -> Result<(), Refusal> {
    match (pair, cas) {
        (_, None) | (None, Some(0)) => Ok(()),
        (Some(pair), Some(cas)) if cas != 0 && pair.modified == cas => Ok(()),
        (pair, Some(_)) => Err(Refusal::Stale(pair.map_or(0, |pair| pair.modified))),
    }
}
