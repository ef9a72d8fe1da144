//! The entries of the newest config bundle, and since when they are these.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use libmesh::bundle::BundleStore;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{ENTRY, Routing, of_bundle};

/// A table that keeps up with the config bundles of a node.
pub struct Followed {
    bundles: BundleStore,
    last: Mutex<Arc<Published>>,
}

/// A table, and since when it holds.
#[derive(Debug, Default)]
pub struct Published {
    /// The table.
    pub table: Routing,
    /// In unix µs, as the revisions of the catalog; 0: always.
    pub since: u64,
    entry: Option<Vec<u8>>,
}

impl Followed {
    /// Follows `bundles`.
    pub fn new(bundles: BundleStore) -> Followed {
        Followed {
            bundles,
            last: Mutex::default(),
        }
    }

    /// The table now. Costs a comparison with the last one; entries are read when they changed.
    pub fn now(&self) -> Arc<Published> {
        let bundle = self.bundles.current();
        let entry = bundle.as_ref().and_then(|it| it.entries.get(ENTRY));
        let mut last = self.last.lock();
        if last.entry.as_ref() != entry {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = since.map_or(1, |since| since.as_micros() as u64);
            *last = Arc::new(Published {
                table: bundle.as_deref().map(of_bundle).unwrap_or_default(),
                since: now.max(last.since + 1),
                entry: entry.cloned(),
            });
        }
        Arc::clone(&last)
    }

    /// Wakes when [`now`](Self::now) may give another one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.bundles.watch()
    }
}
