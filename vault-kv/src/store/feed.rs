//! The newest entries in memory, for those who follow a ledger.
//!
//! A follower that keeps up reads what is here, and thousands share it; one that lags reads the log until
//! it has caught up. So a slow follower costs nothing but its own reading, and misses nothing.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::RwLock;
use tokio::sync::watch;

use super::{Entry, Head};

/// Bytes of entries kept.
const KEPT: usize = 4 << 20;

/// The head and the newest entries.
pub(crate) struct Feed {
    recent: RwLock<Recent>,
    head: watch::Sender<Head>,
}

#[derive(Default)]
struct Recent {
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
}

impl Feed {
    pub(crate) fn new(head: Head) -> Self {
        Self {
            recent: RwLock::default(),
            head: watch::Sender::new(head),
        }
    }

    pub(crate) fn head(&self) -> Head {
        *self.head.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Takes in `entries`, which are durable and follow the head.
    pub(crate) fn publish(&self, entries: Vec<Entry>) {
        let Some(head) = entries.last().map(Entry::head) else {
            return;
        };
        let mut recent = self.recent.write();
        for entry in entries {
            recent.bytes += entry.encoded_length();
            recent.entries.push_back(Arc::new(entry));
        }
        while recent.bytes > KEPT {
            let Some(oldest) = recent.entries.pop_front() else {
                break;
            };
            recent.bytes -= oldest.encoded_length();
        }
        drop(recent);
        self.head.send_replace(head);
    }

    /// See [`Store::recent`](super::Store::recent).
    pub(crate) fn recent(&self, from: u64) -> Option<Vec<Arc<Entry>>> {
        let recent = self.recent.read();
        if from > self.head().index {
            return Some(Vec::new());
        }
        let first = recent.entries.front()?.index;
        let skipped = usize::try_from(from.checked_sub(first)?).ok()?;
        Some(recent.entries.iter().skip(skipped).cloned().collect())
    }

    /// Forgets the entries, which may hold what was just taken out of the log.
    pub(crate) fn clear(&self) {
        *self.recent.write() = Recent::default();
    }
}
