//! What happens by itself behind the writer's back. The index of names is written down after many changes. The
//! store is compacted when it says that enough was written, and once a day for the sake of what
//! was destroyed.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{Error, META, Meta, Shared, now_micros};
use crate::store::{Compacted, Pace};

/// Between two looks.
const LOOK: Duration = Duration::from_secs(60);
/// The longest that a destroyed value stays on the disk of a server that runs.
const AT_LEAST_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Changes of names that make it look at once.
const NAMES: u64 = 65_536;

/// A disk that is full is not read through every minute.
const AFTER_FAILURE: Duration = Duration::from_secs(3600);

/// The thread that compacts.
#[derive(Default)]
pub(super) struct Keeper {
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Stop {
    /// For those who work.
    flag: AtomicBool,
    /// For those who wait.
    stopped: Mutex<bool>,
    changed: Condvar,
    /// Changes of names since the last look.
    names: AtomicU64,
}

impl Keeper {
    pub(super) fn start(&self, shared: &Arc<Shared>, retention: Duration) {
        let (shared, stop) = (Arc::downgrade(shared), Arc::clone(&self.stop));
        let started = thread::Builder::new()
            .name("vault-kv-keep".to_owned())
            .spawn(move || keep(&shared, &stop, retention));
        match started {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(error) => tracing::warn!(%error, "the store is not compacted by itself"),
        }
    }

    /// So many names have changed; after many there is a look out of turn.
    pub(super) fn look_soon(&self, names: u64) {
        let before = self.stop.names.fetch_add(names, Ordering::Relaxed);
        if before < NAMES && before + names >= NAMES {
            self.stop.changed.notify_all();
        }
    }

    /// Returns when the thread has ended: at most as long as a megabyte takes.
    pub(super) fn stop(&self) {
        self.stop.flag.store(true, Ordering::Relaxed);
        *self.stop.stopped.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != thread::current().id()
        {
            // It has nothing to report.
            let _ = thread.join();
        }
    }
}

fn keep(shared: &Weak<Shared>, stop: &Stop, retention: Duration) {
    let mut last = (Instant::now(), 0);
    let mut not_before = Instant::now();
    loop {
        {
            let mut stopped = stop.stopped.lock();
            if !*stopped {
                stop.changed.wait_for(&mut stopped, LOOK);
            }
            if *stopped {
                return;
            }
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        stop.names.store(0, Ordering::Relaxed);
        if shared.names_are_worth_keeping() {
            shared.keep_names();
        }
        let head = shared.store.head().index;
        let now = Instant::now();
        let due = now - last.0 >= AT_LEAST_EVERY && head > last.1;
        if now < not_before || !(due || shared.store.wants_compaction()) {
            continue;
        }
        match shared.compact(retention, Pace::Background) {
            Ok(_) => last = (now, head),
            Err(error) => {
                not_before = now + AFTER_FAILURE;
                if !stop.flag.load(Ordering::Relaxed) {
                    tracing::warn!(%error, "the store was not compacted; nothing is lost");
                }
            }
        }
    }
}

impl Shared {
    pub(super) fn compact(&self, retention: Duration, pace: Pace) -> Result<Compacted, Error> {
        let keep_from = self.keep_from(retention)?;
        let stop = &self.keeper.stop.flag;
        let compacted = self.store.compact(keep_from, pace, stop)?;
        // The one that was kept may have names of what was taken out.
        self.keep_names();
        Ok(compacted)
    }

    /// The first entry that is not older than `retention`, by bisection: times are sealed in the metas.
    pub(super) fn keep_from(&self, retention: Duration) -> Result<u64, Error> {
        let retention = i64::try_from(retention.as_micros()).unwrap_or(i64::MAX);
        let oldest = now_micros().saturating_sub(retention);
        let (mut from, mut to) = (1, self.store.head().index + 1);
        while from < to {
            let middle = from + (to - from) / 2;
            if self.time_of(middle)? < oldest {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        Ok(from)
    }

    fn time_of(&self, index: u64) -> Result<i64, Error> {
        let barrier = {
            let state = self.state.read();
            Arc::clone(&state.as_ref().ok_or(Error::Sealed)?.barrier)
        };
        let mut sealed = None;
        self.store.log(index, &mut |entry| {
            sealed = entry.meta();
            ControlFlow::Break(())
        })?;
        let meta = sealed
            .and_then(|sealed| barrier.open(META, sealed.to_vec()).ok())
            .and_then(|plain| postcard::from_bytes::<Meta>(&plain).ok());
        Ok(meta.ok_or(Error::Unreadable)?.time)
    }
}
