//! What happens by itself: sessions that are not renewed end, keys with a time go, delayed locks become free.
//!
//! Deadlines are on the monotone clock, so that setting the time of day moves none. What outlives the process is in records with the
//! time of day; unsealing reads it, and nothing is further away then than it was when it was made.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    record::{self, DELAYS, ENDINGS, Paths, SESSIONS, Until},
    session,
};
use crate::{
    core::{Core, Error, Meta, Op, View},
    vault::Open,
};

/// After storage failed.
const RETRY: Duration = Duration::from_secs(1);
/// Changes that are under way at once, so that they share the disk's work.
const TOGETHER: usize = 256;

/// What is due.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Due {
    /// A session was not renewed.
    Session(Paths, String),
    /// A key's lock-delay is over.
    Delay(Paths, String),
    /// A key ends.
    Key(Paths, String),
}

/// What will be due. One of each kind and name.
#[derive(Default)]
pub(crate) struct Timers {
    state: Mutex<State>,
    /// An earlier deadline than all others came, or the end.
    changed: Notify,
}

#[derive(Default)]
struct State {
    closed: bool,
    by_time: BTreeSet<(Instant, Due)>,
    by_due: HashMap<Due, Timer>,
}

/// What there is to do.
enum Next {
    /// Nothing, ever.
    Closed,
    /// Nothing before that time; `None`: before something is set.
    Later(Option<Instant>),
    /// This, set by the entries at these indexes.
    Now(Vec<(Due, u64)>),
}

struct Timer {
    at: Instant,
    /// Of the entry that set it: an older one does not replace it. 0 for sessions.
    index: u64,
    /// It was due and has begun: too late to renew.
    begun: bool,
}

impl State {
    fn insert(&mut self, due: Due, timer: Timer) {
        if let Some(before) = self.by_due.get(&due) {
            self.by_time.remove(&(before.at, due.clone()));
        }
        self.by_time.insert((timer.at, due.clone()));
        self.by_due.insert(due, timer);
    }
}

impl Timers {
    /// Sets when something is due, for the entry at `index`.
    pub(super) fn set(&self, due: Due, index: u64, at: Instant) {
        let mut state = self.state.lock();
        let newer = state
            .by_due
            .get(&due)
            .is_none_or(|timer| timer.index < index);
        if newer {
            state.insert(
                due,
                Timer {
                    at,
                    index,
                    begun: false,
                },
            );
            drop(state);
            self.changed.notify_one();
        }
    }

    /// A session lives from now. `false`: it is ending already.
    pub(super) fn renew(&self, due: Due, life: Duration) -> bool {
        let mut state = self.state.lock();
        if state.by_due.get(&due).is_some_and(|timer| timer.begun) {
            return false;
        }
        let at = Instant::now() + life;
        state.insert(
            due,
            Timer {
                at,
                index: 0,
                begun: false,
            },
        );
        drop(state);
        self.changed.notify_one();
        true
    }

    pub(super) fn forget(&self, due: &Due) {
        let mut state = self.state.lock();
        if let Some(timer) = state.by_due.remove(due) {
            state.by_time.remove(&(timer.at, due.clone()));
        }
    }

    /// Ends [`run`].
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    /// What is due now is marked as begun.
    fn next(&self) -> Next {
        let mut state = self.state.lock();
        if state.closed {
            return Next::Closed;
        }
        let now = Instant::now();
        let mut due = Vec::new();
        while due.len() < TOGETHER {
            match state.by_time.first() {
                Some((at, _)) if *at <= now => {}
                first if due.is_empty() => return Next::Later(first.map(|(at, _)| *at)),
                _ => break,
            }
            if let Some((_, what)) = state.by_time.pop_first()
                && let Some(timer) = state.by_due.get_mut(&what)
            {
                timer.begun = true;
                let index = timer.index;
                due.push((what, index));
            }
        }
        Next::Now(due)
    }

    /// Done, or to be tried again.
    fn finish(&self, due: &Due, index: u64, done: bool) {
        let mut state = self.state.lock();
        let same = |timer: &&Timer| timer.begun && timer.index == index;
        if state.by_due.get(due).filter(same).is_none() {
            return;
        }
        if done {
            state.by_due.remove(due);
        } else {
            let at = Instant::now() + RETRY;
            state.insert(
                due.clone(),
                Timer {
                    at,
                    index,
                    begun: true,
                },
            );
        }
    }

    /// Reads what the store has.
    pub(crate) fn load(&self, core: &Core) -> Result<(), Error> {
        let now = Instant::now();
        for path in core.scan(SESSIONS)? {
            if let Some((paths, id)) = split(&path, SESSIONS)
                && let Some(life) = session::ends_after(core, &path)?
            {
                self.renew(Due::Session(paths, id), life);
            }
        }
        for top in [DELAYS, ENDINGS] {
            for path in core.scan(top)? {
                if let Some((paths, key)) = split(&path, top)
                    && let Some(value) = core.read(&path)?
                {
                    let left = record::decode_plain::<Until>(&value)?.left();
                    let due = match top {
                        DELAYS => Due::Delay(paths, key),
                        _ => Due::Key(paths, key),
                    };
                    self.set(due, value.modified, now + left);
                }
            }
        }
        Ok(())
    }
}

fn split(path: &str, top: &str) -> Option<(Paths, String)> {
    let (namespace, rest) = path.strip_prefix(top)?.split_once('/')?;
    Some((Paths::new(namespace), rest.to_owned()))
}

/// Carries out what is due until the store is sealed.
pub(crate) async fn run(timers: Arc<Timers>, open: Weak<Open>) {
    loop {
        let changed = timers.changed.notified();
        match timers.next() {
            Next::Closed => return,
            Next::Later(None) => changed.await,
            Next::Later(Some(at)) => tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(at) => {}
            },
            Next::Now(due) => {
                let Some(core) = open.upgrade().map(|open| open.core.clone()) else {
                    return;
                };
                let mut tasks = tokio::task::JoinSet::new();
                for (due, index) in due {
                    let (core, timers) = (core.clone(), Arc::clone(&timers));
                    tasks.spawn(async move {
                        let done = carry_out(&core, &timers, &due, index).await;
                        if let Err(error) = &done
                            && !matches!(error, Error::Sealed)
                        {
                            tracing::warn!(%error, "what is due in the store waits a second more");
                        }
                        timers.finish(&due, index, done.is_ok());
                    });
                }
                while tasks.join_next().await.is_some() {}
            }
        }
    }
}

async fn carry_out(core: &Core, timers: &Arc<Timers>, due: &Due, index: u64) -> Result<(), Error> {
    match due {
        Due::Session(paths, id) => {
            let meta = by_itself("session expired", id);
            session::end(core, timers, paths, meta, id)
                .await
                .map(|_| ())
        }
        Due::Delay(paths, key) => {
            let path = paths.delay(key);
            let free = move |view: &mut View<'_>| {
                let there = view
                    .read(&path)?
                    .is_some_and(|value| value.modified == index);
                let path = path.clone();
                Ok((
                    (),
                    there.then_some(Op::Delete { path }).into_iter().collect(),
                ))
            };
            let meta = by_itself("lock-delay over", key);
            core.transact(meta, false, free).await.map(|_| ())
        }
        Due::Key(paths, key) => {
            let (paths, name) = (paths.clone(), key.clone());
            let decide = move |view: &mut View<'_>| end_key(view, &paths, &name, index);
            let meta = by_itself("key expired", key);
            core.transact(meta, false, decide).await.map(|_| ())
        }
    }
}

fn end_key(
    view: &mut View<'_>,
    paths: &Paths,
    key: &str,
    index: u64,
) -> Result<((), Vec<Op>), Error> {
    let hint = paths.ending(key);
    if view
        .read(&hint)?
        .is_none_or(|value| value.modified != index)
    {
        return Ok(((), Vec::new()));
    }
    let mut ops = vec![Op::Delete { path: hint }];
    let path = paths.key(key);
    if let Some(value) = view.read(&path)? {
        let pair = record::decode(key, &value)?;
        if pair.ends.is_some() {
            ops.push(Op::Delete { path });
            if let Some(session) = &pair.session {
                ops.push(Op::Delete {
                    path: paths.held(session, key),
                });
            }
        }
    }
    Ok(((), ops))
}

fn by_itself(operation: &str, key: &str) -> Meta {
    Meta {
        actor: "system: time".to_owned(),
        via: "internal".to_owned(),
        operation: operation.to_owned(),
        keys: vec![key.to_owned()],
        ..Meta::default()
    }
}
