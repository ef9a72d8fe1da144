//! Exchange of state over streams: the whole list for whoever joins, digests for those who know each other.
//!
//! A whole list takes 36 bytes a member; sent both ways every twenty seconds it would be most of a large cluster's
//! traffic, and tell nothing new. So members that know each other compare one hash for each of 64 parts of the member
//! list (520 bytes) and exchange the parts that differ, each list led by its sender's own record. A peer that does not understand a digest (an older version)
//! gets the whole list.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use super::asks::Purpose;
use super::timers::Item;
use super::{Core, Route};
use crate::member::counters::count;
use crate::member::digest::{Digest, Parts};
use crate::member::stream::{self, Exchange, Peer, StreamReply};
use crate::member::wire::{Identity, Record};

impl Core {
    pub(super) fn digest(&self) -> Digest {
        let notes = self.notes.lock();
        Digest::of(self.everybody().map(|member| {
            let mark = notes.mark(&member);
            (member, mark)
        }))
    }

    /// This node, and the members of some parts.
    fn records_in(&self, parts: Parts) -> Vec<Record> {
        self.records(|node| parts.contain(node))
    }

    /// Exchanges what is known otherwise there.
    pub(super) fn compare_with(&mut self, peer: Peer) {
        let body = stream::encode_digest(&self.digest()).into();
        self.ask_sync(Purpose::Compare { peer }, peer, body);
    }

    fn ask_sync(&mut self, purpose: Purpose, to: Peer, body: Bytes) {
        let deadline = self.preset.push_pull_period / 2;
        self.ask(purpose, to, Route::Sync, body, deadline);
    }

    /// The server side of `/member/sync`.
    pub(super) fn exchange(&mut self, question: Exchange) -> Bytes {
        match question {
            Exchange::State(members) => {
                self.apply_state(members, true);
                self.state().into()
            }
            Exchange::Digest(theirs) => {
                let parts = self.digest().differing(&theirs);
                let records = match parts == Parts::default() {
                    true => Vec::new(),
                    false => self.records_in(parts),
                };
                stream::encode_parts(parts, &records).into()
            }
            Exchange::Parts(_, members) => {
                self.apply_state(members, true);
                stream::encode_parts(Parts::default(), &[]).into()
            }
        }
    }

    /// We are not let in.
    fn take_denial(&mut self, reason: &str, copy: Option<SocketAddr>) {
        count(&self.counters.denied);
        if !std::mem::replace(&mut self.told_denied, true) {
            tracing::error!(reason, "this node is not let into the pool");
        }
        if let Some(addr) = copy {
            self.meet_copy(Identity {
                addr,
                ..*self.foca.identity()
            });
        }
    }

    /// The answer with a whole state.
    pub(super) fn take_state(&mut self, reply: &StreamReply) {
        let body = match reply {
            StreamReply::Acked(body) => body,
            StreamReply::Denied { reason, copy } => return self.take_denial(reason, *copy),
            StreamReply::Refused | StreamReply::Timeout => return,
        };
        let Ok(members) = stream::decode_state(body) else {
            count(&self.counters.dropped_malformed);
            return;
        };
        let Some(sender) = members.first().cloned() else {
            return;
        };
        let pool = sender.extra.pool.as_deref();
        if self.is_foreign(sender.member.id(), pool).is_some() {
            return;
        }
        count(&self.counters.push_pulls);
        // What a joining node learns, everybody else knows already.
        let spread = self.joined;
        self.apply_state(members, spread);
        if !self.joined {
            self.joined = true;
            self.push_pull_soon();
            let after = Duration::from_millis(self.rng.random_range(2_000..10_000));
            self.timers.set(Item::Reach, after);
        }
    }

    /// The answer to a digest: what differs there. What we know better goes back.
    pub(super) fn compare(&mut self, peer: Peer, reply: &StreamReply) {
        let body = match reply {
            StreamReply::Acked(body) => body,
            StreamReply::Refused => return,
            StreamReply::Denied { reason, copy } => return self.take_denial(reason, *copy),
            StreamReply::Timeout => {
                let present = peer
                    .node
                    .and_then(|node| self.table.get(node))
                    .is_some_and(|known| known.liveness.is_present());
                if present {
                    self.sync_with(peer);
                }
                return;
            }
        };
        let Ok(Exchange::Parts(parts, mut theirs)) = stream::decode_sync(body) else {
            count(&self.counters.dropped_malformed);
            return;
        };
        count(&self.counters.push_pulls);
        self.joined = true;
        if parts == Parts::default() {
            return;
        }
        self.apply_state(theirs.clone(), true);
        theirs.sort_unstable_by_key(|record| record.member.id().node);
        let mut ours = self.records_in(parts);
        let own = self.foca.identity().node;
        ours.retain(|record| {
            let node = record.member.id().node;
            node == own
                || theirs
                    .binary_search_by_key(&node, |their| their.member.id().node)
                    .map_or(true, |place| theirs[place].member != record.member)
        });
        // More than the one that says who speaks.
        if ours.len() > 1 {
            let body = stream::encode_parts(parts, &ours).into();
            self.ask_sync(Purpose::Push, peer, body);
        }
    }
}
