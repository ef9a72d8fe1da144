//! The open connections of a dialler or acceptor: judged again whenever intentions, roots or
//! revocations change.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::interval;

use super::stream::Gate;
use crate::{
    bundle::BundleStore,
    identity::{Leaf, SpiffeId},
    model::ServiceName,
};

/// Which end of its connections we are.
#[derive(Clone)]
pub(super) enum Role {
    /// We call; the peer is the service called.
    Caller { own: SpiffeId },
    /// We are this service; the peer calls.
    Callee { service: ServiceName },
}

pub(super) struct Open {
    role: Role,
    bundles: BundleStore,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, (Leaf, Arc<Gate>)>,
}

/// One entry among the open connections; gone when dropped.
pub(super) struct Watched {
    id: u64,
    open: Arc<Open>,
}

impl Open {
    /// Must be called in a tokio runtime: a task watches for changes until all connections and the
    /// owner are gone.
    pub(super) fn new(role: Role, bundles: BundleStore) -> Arc<Self> {
        let open = Arc::new(Self {
            role,
            bundles: bundles.clone(),
            connections: Mutex::default(),
        });
        tokio::spawn(watch(Arc::downgrade(&open), bundles));
        open
    }

    /// Why a connection with `peer` is not allowed now.
    pub(super) fn refusal(&self, peer: &Leaf) -> Option<String> {
        if self.bundles.trust().revoked().covers(peer) {
            return Some(format!("the certificate of {} is revoked", peer.spiffe));
        }
        let (source, destination) = match &self.role {
            Role::Caller { own } => match peer.spiffe.as_service() {
                Some(service) => (own, service),
                None => return Some(format!("{} is no service", peer.spiffe)),
            },
            Role::Callee { service } => (&peer.spiffe, service),
        };
        denial(&self.bundles, source, destination)
    }

    /// Adds a connection. It is judged after it was added, so that no change is missed.
    pub(super) fn add(self: &Arc<Self>, peer: &Leaf, gate: Arc<Gate>) -> Result<Watched, String> {
        let id = {
            let mut connections = self.connections.lock();
            connections.next += 1;
            let id = connections.next;
            connections.open.insert(id, (peer.clone(), gate));
            id
        };
        let watched = Watched {
            id,
            open: self.clone(),
        };
        match self.refusal(peer) {
            Some(reason) => Err(reason),
            None => Ok(watched),
        }
    }

    fn judge_all(&self) {
        let judged: Vec<(Leaf, Arc<Gate>)> =
            self.connections.lock().open.values().cloned().collect();
        for (peer, gate) in judged {
            if let Some(reason) = self.refusal(&peer) {
                gate.shut(reason);
            }
        }
    }
}

/// Why the intentions do not let `source` call `destination`.
pub(super) fn denial(
    bundles: &BundleStore,
    source: &SpiffeId,
    destination: &ServiceName,
) -> Option<String> {
    let decision = bundles.decide(source, destination);
    (!decision.is_allowed()).then(|| {
        let source = source
            .as_service()
            .map_or_else(|| source.to_string(), ToString::to_string);
        format!("{source} may not call {destination}: {decision}")
    })
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.open.connections.lock().open.remove(&self.id);
    }
}

async fn watch(open: Weak<Open>, bundles: BundleStore) {
    let mut rules = bundles.watch();
    let mut trust = bundles.trust().watch();
    // The senders live as long as the stores, which this task keeps: it ends by the owner's going.
    let mut alive = interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            _ = rules.changed() => {}
            _ = trust.changed() => {}
            _ = alive.tick() => {
                if open.strong_count() == 0 {
                    return;
                }
                continue;
            }
        }
        let Some(open) = open.upgrade() else { return };
        open.judge_all();
    }
}
