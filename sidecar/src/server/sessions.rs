//! Ends sessions whose node or check is gone or critical.
//!
//! One task looks at the sessions when they or the catalog change, ten times a second at most. What it has never seen there
//! it waits for: after a start, other nodes and their checks come by and by.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use libmesh::catalog::Catalog;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vault_kv::{Error, Meta, Session, Sessions};

use super::Shared;
use crate::consul::{Binding, stored::Kept};

/// The namespace of the Consul interface's keys.
pub const NAMESPACE: &str = "consul";

/// Between two looks at least.
const PACE: Duration = Duration::from_millis(100);
/// How long what was never seen may be missing.
const PATIENCE: Duration = Duration::from_secs(60);
/// After the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub async fn guard(shared: Arc<Shared>, catalog: Catalog, stop: CancellationToken) {
    let mut sealed = shared.vault.watch_sealed();
    let sessions = shared.vault.kv(NAMESPACE).sessions();
    let mut revisions = catalog.watch_all();
    let mut guard = Guard {
        sessions: sessions.clone(),
        catalog,
        seen: HashSet::new(),
        missing: HashMap::new(),
    };
    let work = async {
        // The senders live as long as the vault and the catalog, which live here.
        while sealed.wait_for(|sealed| !sealed).await.is_ok() {
            let index = match guard.look().await {
                Ok(index) => index,
                Err(Error::Sealed) => {
                    // The watch says so a moment later.
                    sleep(PACE).await;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "sessions are not looked at for a second");
                    sleep(RETRY).await;
                    continue;
                }
            };
            sleep(PACE).await;
            tokio::select! {
                _ = revisions.changed(), if !guard.is_idle() => {}
                _ = sessions.wait("", index) => {}
                () = sleep(PATIENCE), if !guard.missing.is_empty() => {}
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

struct Guard {
    sessions: Sessions,
    catalog: Catalog,
    /// Sessions of which everything was there once.
    seen: HashSet<String>,
    /// Sessions of which something was never there, and since when.
    missing: HashMap<String, Instant>,
}

impl Guard {
    /// Looks at every session; the index of their last change before that.
    async fn look(&mut self) -> Result<u64, Error> {
        let sessions = self.sessions.clone();
        let index = sessions.changed("")?;
        let all = sessions.list()?;
        let there: HashSet<_> = all.iter().map(|session| session.id.clone()).collect();
        self.seen.retain(|id| there.contains(id));
        self.missing.retain(|id, _| there.contains(id));
        for session in all {
            let Some(reason) = self.over(&session) else {
                continue;
            };
            let meta = Meta {
                actor: "system: sessions".to_owned(),
                via: "internal".to_owned(),
                operation: "session invalidated".to_owned(),
                keys: vec![session.id.clone()],
                reason,
                ..Meta::default()
            };
            sessions.destroy(meta, &session.id).await?;
        }
        Ok(index)
    }

    /// Nothing that the catalog can end.
    fn is_idle(&self) -> bool {
        self.seen.is_empty() && self.missing.is_empty()
    }

    /// Why it has to end, if it has.
    fn over(&mut self, session: &Session) -> Option<String> {
        let kept = Kept::of(&session.options);
        if kept.node.is_empty() {
            return None;
        }
        let (reason, gone) = match Binding::of(&self.catalog, &kept) {
            Binding::Holds => {
                self.missing.remove(&session.id);
                self.seen.insert(session.id.clone());
                return None;
            }
            Binding::Critical(check) => (format!("the check {check} is critical"), true),
            Binding::NoCheck(check) => (format!("the check {check} is gone"), false),
            Binding::NoNode => (format!("the node {} is gone", kept.node), false),
        };
        if gone || self.seen.contains(&session.id) {
            return Some(reason);
        }
        let now = Instant::now();
        let since = *self.missing.entry(session.id.clone()).or_insert(now);
        (now - since >= PATIENCE).then_some(reason)
    }
}
