//! Peers of the first version, which know no tree: they push their own changes to everybody, and expect the same.
//!
//! One is found out when it answers a call with 404, or makes one that only the first version makes. Until its next
//! life it is no part of the tree; our own changes are pushed to it directly, one call at a time, as it does.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::codec::DeltaReply;
use super::plane::{Plane, Shared};
use super::worker::jittered;
use super::{CallFailed, SyncCall, exchange};
use crate::catalog::log::Head;
use crate::member::Member;
use crate::model::NodeId;

/// Longest wait before one that failed is tried again.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// What is known of a peer of the first version.
#[derive(Debug)]
pub(super) struct Thin {
    /// How far it is with our log, as far as we know.
    acked: Option<Head>,
    busy: bool,
    failures: u32,
    retry_at: Instant,
}

impl Plane {
    /// From now on `peer` is treated as one of the first version.
    pub(super) fn mark_thin(&self, shared: &mut Shared, peer: NodeId) {
        let now = self.now();
        let Some(known) = shared
            .peers
            .get_mut(&peer)
            .filter(|peer| peer.thin.is_none())
        else {
            return;
        };
        tracing::info!(peer = %known.member.addr, "a peer speaks the first version of catalog sync");
        known.thin = Some(Thin {
            acked: None,
            busy: false,
            failures: 0,
            retry_at: Instant::now(),
        });
        shared.tree.down(now, peer);
        self.act(shared);
        self.push_thin(shared, peer);
    }

    /// Brings all peers of the first version up to date.
    pub(super) fn push_all_thin(&self, shared: &mut Shared) {
        let thin = shared.peers.iter().filter(|(_, peer)| peer.thin.is_some());
        for id in thin.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.push_thin(shared, id);
        }
    }

    fn push_thin(&self, shared: &mut Shared, id: NodeId) {
        let at = self.inner.catalog.own_head();
        let Some(peer) = shared.peers.get_mut(&id) else {
            return;
        };
        let member = peer.member;
        let Some(thin) = &mut peer.thin else {
            return;
        };
        let done = thin.acked.is_some_and(|acked| acked >= at);
        if thin.busy || thin.retry_at > Instant::now() || done {
            return;
        }
        thin.busy = true;
        let (plane, have) = (self.clone(), thin.acked);
        self.spawn(async move {
            let result = plane.push(member, have).await;
            plane.thin_pushed(member, result);
        });
    }

    fn thin_pushed(&self, to: Member, result: Result<Head, CallFailed>) {
        let mut shared = self.inner.shared.lock();
        let peer = shared.peers.get_mut(&to.id);
        let Some(thin) = peer
            .filter(|peer| peer.member == to)
            .and_then(|peer| peer.thin.as_mut())
        else {
            return;
        };
        thin.busy = false;
        match result {
            Ok(head) => {
                (thin.acked, thin.failures) = (Some(head), 0);
                self.push_thin(&mut shared, to.id);
            }
            Err(error) => {
                tracing::debug!(%error, "catalog call failed");
                thin.acked = None;
                thin.failures += 1;
                let wait = Duration::from_millis(250) * 2u32.saturating_pow(thin.failures.min(8));
                thin.retry_at = Instant::now() + jittered(wait.min(BACK_OFF_MAX));
            }
        }
    }

    /// Brings `peer` from `have` to where our own log is. Without knowing what it has, sends the last change: it
    /// answers with what it lacks.
    async fn push(&self, peer: Member, have: Option<Head>) -> Result<Head, CallFailed> {
        let failed = |reason: &str| CallFailed {
            call: SyncCall::Delta,
            peer,
            unsupported: false,
            reason: reason.to_owned(),
        };
        let catalog = &self.inner.catalog;
        let (own, at) = (catalog.own(), catalog.own_head());
        let mut have = have.unwrap_or(Head {
            epoch: at.epoch,
            head: at.head.saturating_sub(1),
        });
        // The second turn closes the gap that the first one found, the third one what changed in between.
        for _ in 0..3 {
            let mut lacks = None;
            for body in self.own_bodies(have) {
                let reply: DeltaReply = self.ask(peer, SyncCall::Delta, body).await?;
                let ours = reply.wants.iter().find(|want| want.node == own);
                lacks = ours.map(|want| want.have).or(lacks);
                if reply.rejected > 0 {
                    return Err(failed("it does not believe our records; its log says why"));
                }
            }
            match lacks {
                Some(lacks) => have = lacks,
                None => return Ok(at),
            }
        }
        Err(failed("it keeps missing what was sent before"))
    }

    fn own_bodies(&self, have: Head) -> Vec<Bytes> {
        let catalog = &self.inner.catalog;
        exchange::in_bodies(catalog.messages_since(catalog.own(), have))
    }
}
