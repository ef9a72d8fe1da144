//! What a node that runs knows to be wrong with itself.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::member::{Counters, Membership};

/// How often it is looked whether datagrams open.
const LOOK: Duration = Duration::from_secs(2);

/// Something that does not end a node and that somebody should mend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Datagrams come, and hardly any opens: the gossip keyring is not that of the others. Streams carry membership
    /// meanwhile, slower and at a cost.
    #[error(
        "the gossip keyring{} does not open what other nodes send: it is of another mesh, or was changed there while \
         this node was away; empty the directory and join again with a new token (on a server: mesh join-token create)",
        path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default()
    )]
    GossipKey {
        /// The keyring's file.
        path: Option<PathBuf>,
    },
}

/// The problems of a node. Cheap to clone; all clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Problems(Arc<Mutex<BTreeSet<Problem>>>);

impl Problems {
    pub(super) fn all(&self) -> Vec<Problem> {
        self.0.lock().iter().cloned().collect()
    }

    /// Notes whether `problem` is there, and says so when that changes.
    fn set(&self, problem: &Problem, is_there: bool) {
        let mut problems = self.0.lock();
        if is_there && problems.insert(problem.clone()) {
            tracing::error!("{problem}");
        } else if !is_there && problems.remove(problem) {
            tracing::info!(?problem, "over");
        }
    }
}

/// Datagrams, counted since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Opened {
    received: u64,
    closed: u64,
}

impl Opened {
    fn of(counters: &Counters) -> Self {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            received: read(&counters.datagrams_received),
            closed: read(&counters.dropped_unknown_key) + read(&counters.dropped_not_authentic),
        }
    }

    /// Whether most of what came since `before` did not open; `None` when too little came to tell.
    fn is_locked_out(self, before: Self) -> Option<bool> {
        let (received, closed) = (
            self.received.saturating_sub(before.received),
            self.closed.saturating_sub(before.closed),
        );
        (received >= 2).then_some(closed * 2 > received)
    }
}

/// Notices a keyring that does not fit.
pub(super) async fn follow_keys(
    membership: Membership,
    path: Option<PathBuf>,
    problems: Problems,
    stop: CancellationToken,
) {
    let problem = Problem::GossipKey { path };
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Opened::of(membership.counters());
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let now = Opened::of(membership.counters());
        if let Some(locked_out) = now.is_locked_out(before) {
            problems.set(&problem, locked_out);
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_that_opens_little_is_a_problem_and_a_stray_datagram_is_none() {
        let opened = |received, closed| Opened { received, closed };
        let before = opened(100, 40);
        assert_eq!(opened(110, 50).is_locked_out(before), Some(true));
        assert_eq!(opened(110, 41).is_locked_out(before), Some(false));
        assert_eq!(
            opened(101, 41).is_locked_out(before),
            None,
            "one says nothing"
        );
        assert_eq!(before.is_locked_out(before), None);
    }
}
