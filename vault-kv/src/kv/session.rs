//! Sessions: what holds locks, and lets go of them when it ends.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    record::{self, Paths, Until},
    timers::{Due, Timers},
};
use crate::{
    core::{Core, Error, MAX_VALUE, Meta, Op, View},
    vault::Vault,
};

/// Keys that one entry lets go of at most.
const BATCH: usize = 4096;
/// Bytes of values that one entry writes anew at most.
const BATCH_BYTES: usize = MAX_VALUE / 2;
/// The longest lock-delay.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

/// What becomes of the keys that a session holds when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Behavior {
    /// They stay, held by nobody.
    #[default]
    Release,
    /// They are deleted.
    Delete,
}

/// What a new session is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SessionOptions {
    /// For people.
    pub name: String,
    /// What becomes of its keys.
    pub behavior: Behavior,
    /// How long nobody can take a key after a session that held it ended without releasing it, for the holder may not
    /// know yet. At most a day.
    pub lock_delay: Duration,
    /// It ends when it was not renewed for this long; `None`: it ends when it is destroyed.
    pub ttl: Option<Duration>,
    /// How long it lives on beyond its `ttl`. Consul gives one more TTL.
    pub grace: Duration,
    /// Whatever the caller wants to keep with it.
    pub data: Vec<u8>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its name to clients: a UUID.
    pub id: String,
    /// As it was made.
    pub options: SessionOptions,
    /// Ledger index of its creation.
    pub created: u64,
    /// Ledger index of its last change; renewals are none.
    pub modified: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    options: SessionOptions,
    /// It is ending: it takes nothing any more, and what it holds goes.
    ending: bool,
}

/// The sessions of one namespace. A session is an entry of the ledger when it is made and when it ends; renewals are in memory
/// only, and each lives for a whole TTL again when the store is unsealed.
#[derive(Clone)]
pub struct Sessions {
    vault: Vault,
    paths: Paths,
}

impl Sessions {
    pub(super) fn new(vault: Vault, paths: Paths) -> Self {
        Self { vault, paths }
    }

    fn core(&self) -> Result<Core, Error> {
        Ok(self.vault.unsealed()?.core.clone())
    }

    /// Makes a session. Durable when this returns.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn create(&self, meta: Meta, options: SessionOptions) -> Result<Session, Error> {
        let open = self.vault.unsealed()?;
        let id = uuid::Uuid::new_v4().to_string();
        let path = self.paths.session(&id);
        let options = SessionOptions {
            lock_delay: options.lock_delay.min(MAX_DELAY),
            ..options
        };
        let life = life(&options);
        let stored = Stored {
            options: options.clone(),
            ending: false,
        };
        // It does nothing if there is no such session.
        let due = Due::Session(self.paths.clone(), id.clone());
        if let Some(life) = life {
            open.timers.renew(due, life);
        }
        let write = move |_: &mut View<'_>| Ok(((), vec![record::put(path.clone(), &stored)]));
        let ((), index) = open.core.transact(meta, false, write).await?;
        let index = index.unwrap_or_default();
        Ok(Session {
            id,
            options,
            created: index,
            modified: index,
        })
    }

    /// One session.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn get(&self, id: &str) -> Result<Option<Session>, Error> {
        read(&self.core()?, &self.paths, id)
    }

    /// All sessions, by id.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn list(&self) -> Result<Vec<Session>, Error> {
        let core = self.core()?;
        let prefix = self.paths.session("");
        let names = core.scan(&prefix)?;
        names
            .iter()
            .filter_map(|path| read(&core, &self.paths, &path[prefix.len()..]).transpose())
            .collect()
    }

    /// The index of the last change of a session, its end included; with an empty `id`, of any session.
    ///
    /// # Errors
    /// Sealed.
    pub fn changed(&self, id: &str) -> Result<u64, Error> {
        let path = self.paths.session(id);
        match id {
            "" => self.core()?.changed_under(&path),
            _ => self.core()?.changed(&path),
        }
    }

    /// Waits until [`Sessions::changed`] is after `index`.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn wait(&self, id: &str, index: u64) -> Result<u64, Error> {
        let path = self.paths.session(id);
        match id {
            "" => self.core()?.wait_under(&path, index).await,
            _ => self.core()?.wait(&path, index).await,
        }
    }

    /// Lets a session live for its TTL from now. `None`: there is none, or it is ending.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub fn renew(&self, id: &str) -> Result<Option<Session>, Error> {
        let open = self.vault.unsealed()?;
        let Some(session) = read(&open.core, &self.paths, id)? else {
            return Ok(None);
        };
        let due = Due::Session(self.paths.clone(), id.to_owned());
        let lives = match life(&session.options) {
            Some(life) => open.timers.renew(due, life),
            None => true,
        };
        Ok(lives.then_some(session))
    }

    /// Ends a session: what it holds is released or deleted with it, in one entry (in several for more than 4,096 keys or
    /// 8 MiB; an end that was begun goes on by itself). `false`: there is none.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn destroy(&self, meta: Meta, id: &str) -> Result<bool, Error> {
        let open = self.vault.unsealed()?;
        let ended = end(&open.core, &open.timers, &self.paths, meta, id).await?;
        Ok(ended)
    }
}

/// How long it lives without being renewed.
pub(super) fn life(options: &SessionOptions) -> Option<Duration> {
    options.ttl.map(|ttl| ttl.saturating_add(options.grace))
}

fn read(core: &Core, paths: &Paths, id: &str) -> Result<Option<Session>, Error> {
    let path = paths.session(id);
    let Some(value) = core.read(&path)? else {
        return Ok(None);
    };
    let stored: Stored = record::decode_plain(&value)?;
    Ok((!stored.ending).then(|| Session {
        id: id.to_owned(),
        options: stored.options,
        created: value.created,
        modified: value.modified,
    }))
}

/// Whether a session can take keys.
pub(super) fn lives(view: &mut View<'_>, paths: &Paths, id: &str) -> Result<bool, Error> {
    match view.read(&paths.session(id))? {
        Some(value) => Ok(!record::decode_plain::<Stored>(&value)?.ending),
        None => Ok(false),
    }
}

/// When a session of the store that is being unsealed ends, if it does by itself.
pub(super) fn ends_after(core: &Core, path: &str) -> Result<Option<Duration>, Error> {
    let Some(value) = core.read(path)? else {
        return Ok(None);
    };
    let stored: Stored = record::decode_plain(&value)?;
    Ok(match stored.ending {
        true => Some(Duration::ZERO),
        false => life(&stored.options),
    })
}

/// What one step of an ending did.
pub(super) struct Step {
    existed: bool,
    more: bool,
    delayed: Vec<(String, Duration)>,
}

/// Ends a session. Not cut off when the caller goes away: what follows the entry must follow.
pub(super) async fn end(
    core: &Core,
    timers: &std::sync::Arc<Timers>,
    paths: &Paths,
    meta: Meta,
    id: &str,
) -> Result<bool, Error> {
    let (core, timers) = (core.clone(), std::sync::Arc::clone(timers));
    let (paths, id) = (paths.clone(), id.to_owned());
    let ending = tokio::spawn(async move {
        let mut existed = false;
        loop {
            let (at, session) = (paths.clone(), id.clone());
            let decide = move |view: &mut View<'_>| end_step(view, &at, &session);
            let (step, index) = core.transact(meta.clone(), true, decide).await?;
            existed |= step.existed;
            for (key, delay) in step.delayed {
                let due = Due::Delay(paths.clone(), key);
                timers.set(due, index.unwrap_or_default(), Instant::now() + delay);
            }
            if !step.more {
                timers.forget(&Due::Session(paths, id));
                return Ok(existed);
            }
        }
    });
    ending.await.map_err(|_| Error::Sealed)?
}

pub(super) fn end_step(
    view: &mut View<'_>,
    paths: &Paths,
    id: &str,
) -> Result<(Step, Vec<Op>), Error> {
    let mut step = Step {
        existed: false,
        more: false,
        delayed: Vec::new(),
    };
    let path = paths.session(id);
    let Some(value) = view.read(&path)? else {
        return Ok((step, Vec::new()));
    };
    step.existed = true;
    let stored: Stored = record::decode_plain(&value)?;
    let options = &stored.options;
    let prefix = paths.held_by(id);
    let hints = view.scan(&prefix)?;
    let mut ops = Vec::new();
    let mut bytes = 0;
    for (done, hint) in hints.iter().enumerate() {
        if done == BATCH || bytes > BATCH_BYTES {
            step.more = true;
            break;
        }
        ops.push(Op::Delete { path: hint.clone() });
        let key = &hint[prefix.len()..];
        let path = paths.key(key);
        let Some(value) = view.read(&path)? else {
            continue;
        };
        let mut pair = record::decode(key, &value)?;
        if pair.session.as_deref() != Some(id) {
            continue;
        }
        bytes += pair.value.len();
        ops.push(match options.behavior {
            Behavior::Delete => Op::Delete { path },
            Behavior::Release => {
                pair.session = None;
                let value = record::encode(&pair);
                Op::Put { path, value }
            }
        });
        if !options.lock_delay.is_zero() {
            let until = Until::after(options.lock_delay);
            ops.push(record::put(paths.delay(key), &until));
            step.delayed.push((key.to_owned(), options.lock_delay));
        }
    }
    ops.push(match step.more {
        false => Op::Delete { path },
        true => record::put(
            path,
            &Stored {
                options: stored.options,
                ending: true,
            },
        ),
    });
    Ok((step, ops))
}
