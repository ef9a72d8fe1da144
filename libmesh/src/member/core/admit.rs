//! What is heard and believed of others before foca sees it.
//!
//! The gossip key says "a member", not which. So one compromised or confused member must not take others down, and two
//! pools or two copies of a machine must not mix:
//!
//! * **Another pool's** packets and states are refused with the reason.
//! * **Claims that somebody is gone** have a budget per source: five and one in a hundred members a minute. Who is gone
//!   said so itself, or is found by our own probes, or many say so: a lost rack is learnt from many sources. A claim
//!   beyond the budget becomes a question to the member itself.
//! * **Jumps of an incarnation** by more than [`MAX_JUMP`] are ignored: nobody refutes so often unheard, and the numbers
//!   of a life are few.
//! * **Evicted** nodes (revoked certificates) are not heard and not believed.
//! * **Copies**: a member that appears at another address while it still answers at its old one is a copy of its key.
//!   Whoever knows the member asks the old address first. Where the two meet, the one that nobody knows or that started
//!   later ends, and its error names both addresses.
//! * **Full pools** let nobody else in.
//!
//! What is refused is counted, and told once per source.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{Incarnation, Member, Message, State};

use super::asks::Purpose;
use super::table::Changes;
use super::{Core, Output, PROTOCOLS, Route};
use crate::member::counters::count;
use crate::member::handle::Refusal;
use crate::member::stream::{Peer, PingAnswer, PingBody, PingKind, Seen, StreamReply};
use crate::member::wire::{Identity, Packet, Record};
use crate::model::NodeId;

/// Largest rise of an incarnation that is believed.
const MAX_JUMP: Incarnation = 100;
/// Claims that a member is gone, a source and a minute, and one more for each hundred members.
const CLAIMS: usize = 5;
const CLAIMS_WINDOW: Duration = Duration::from_secs(60);
/// Copies that are looked into at a time, and sources that are told of; more are refused silently.
const MAX_TWINS: usize = 256;
const MAX_TOLD: usize = 1024;
/// For how long the answer about a copy holds.
const TWIN_HOLDS: Duration = Duration::from_secs(10);

/// What was told of a source already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    Pool,
    Claims,
    Jump,
    Evicted,
    Copy,
}

/// A node that appeared at another address.
pub(super) struct Twin {
    new: Identity,
    /// Whether it still answers at the old one; `None` while that is asked.
    answers: Option<bool>,
    until: Duration,
}

/// Claims of one source.
pub(super) struct Claims {
    since: Duration,
    made: usize,
}

impl Core {
    fn tell_once(&mut self, what: Told, source: NodeId) -> bool {
        self.told.len() < MAX_TOLD && self.told.insert((what, source))
    }

    /// Whether a packet is heard at all.
    pub(super) fn hears(&mut self, packet: &Packet<'_>) -> bool {
        let (src, own) = (packet.header.src, *self.foca.identity());
        if self.is_evicted(src.node) || self.is_foreign(&src, packet.from.pool.as_deref()).is_some()
        {
            return false;
        }
        let member = Member::new(src, packet.header.src_incarnation, State::Alive);
        if self.jumps(src.node, &member) || self.is_copy(&member) {
            return false;
        }
        let undead = packet.header.message == Message::TurnUndead && packet.header.dst == own;
        !undead || self.may_claim(src.node, &own)
    }

    /// Whether what `source` says of a member is believed.
    pub(super) fn believes(&mut self, source: NodeId, record: &Record) -> bool {
        let (member, own) = (&record.member, *self.foca.identity());
        let id = *member.id();
        if self.evicted.contains(&id.node) && member.state() != State::Down {
            return false;
        }
        if self.jumps(source, member) {
            return false;
        }
        let takes_down = member.state() == State::Down
            && if id.node == own.node {
                id == own
            } else {
                self.table.get(id.node).is_some_and(|known| {
                    known.liveness.is_present() && known.identity.generation <= id.generation
                })
            };
        if takes_down && source != id.node {
            return self.may_claim(source, &id);
        }
        !self.is_copy(member)
    }

    fn is_evicted(&mut self, node: NodeId) -> bool {
        if !self.evicted.contains(&node) {
            return false;
        }
        count(&self.counters.dropped_evicted);
        if self.tell_once(Told::Evicted, node) {
            tracing::warn!(%node, "a node whose certificate is revoked still sends; rotate the gossip keyring");
        }
        true
    }

    /// Why a node is of another pool than this one; `None` if it is of the same, or does not say.
    pub(super) fn is_foreign(&mut self, node: &Identity, pool: Option<&str>) -> Option<Refusal> {
        let ours = self.notes.lock().pool().clone();
        let theirs = pool.filter(|theirs| !ours.is_empty() && *theirs != &*ours)?;
        count(&self.counters.dropped_pool);
        let refusal = Refusal::Pool {
            theirs: theirs.into(),
            ours,
        };
        if self.tell_once(Told::Pool, node.node) {
            tracing::warn!(node = %node.node, addr = %node.addr, reason = %refusal, "a node was refused");
        }
        Some(refusal)
    }

    fn jumps(&mut self, source: NodeId, member: &Member<Identity>) -> bool {
        let own = *self.foca.identity();
        let known = if *member.id() == own {
            Some(self.incarnation)
        } else {
            self.table
                .get(member.id().node)
                .filter(|known| known.identity == *member.id())
                .map(|known| known.incarnation)
        };
        let jumps = member.state() != State::Down
            && known.is_some_and(|known| member.incarnation() > known.saturating_add(MAX_JUMP));
        if jumps {
            count(&self.counters.dropped_jumps);
            if self.tell_once(Told::Jump, source) {
                tracing::warn!(node = %source, about = %member.id().node, "a member claims an incarnation that cannot be");
            }
        }
        jumps
    }

    fn may_claim(&mut self, source: NodeId, gone: &Identity) -> bool {
        let time = self.timers.time();
        let allowed = CLAIMS + self.table.present() / 100;
        let claims = self.claims.entry(source).or_insert(Claims {
            since: time,
            made: 0,
        });
        if time.saturating_sub(claims.since) >= CLAIMS_WINDOW {
            *claims = Claims {
                since: time,
                made: 0,
            };
        }
        claims.made += 1;
        if claims.made <= allowed {
            return true;
        }
        count(&self.counters.dropped_claims);
        if self.tell_once(Told::Claims, source) {
            tracing::warn!(node = %source, allowed, "a member claims more members gone than it may in a minute; they are asked themselves");
        }
        self.ping_over_stream(*gone, 0, Duration::ZERO);
        false
    }

    /// Forgets budgets whose time is over and answers about copies.
    pub(super) fn forget_claims(&mut self) {
        let time = self.timers.time();
        self.claims
            .retain(|_, claims| time.saturating_sub(claims.since) < CLAIMS_WINDOW);
        self.twins.retain(|_, twin| twin.until > time);
    }

    /// Whether a member appears at another address while it may still answer at the one that we know.
    fn is_copy(&mut self, member: &Member<Identity>) -> bool {
        let (new, time) = (*member.id(), self.timers.time());
        if member.state() == State::Down {
            return false;
        }
        let moved = self.table.get(new.node).filter(|known| {
            known.liveness.is_present()
                && known.identity.addr != new.addr
                && known.identity.generation < new.generation
        });
        let Some(old) = moved.map(|known| known.identity) else {
            return false;
        };
        if let Some(twin) = self.twins.get(&new.node)
            && twin.new.addr == new.addr
            && twin.until > time
        {
            return twin.answers != Some(false);
        }
        if self.twins.len() >= MAX_TWINS {
            self.twins.retain(|_, twin| twin.until > time);
        }
        if self.twins.len() >= MAX_TWINS {
            return false;
        }
        let ping = PingKind::Ping(self.ping_packet(old, 0, None));
        let purpose = Purpose::Copy {
            old,
            new,
            incarnation: member.incarnation(),
        };
        let asked = self.ask_ping(purpose, &old, old, ping, self.preset.probe_period);
        if asked {
            let twin = Twin {
                new,
                answers: None,
                until: time + self.preset.probe_period * 2,
            };
            self.twins.insert(new.node, twin);
        }
        asked
    }

    /// The old address answered, or did not.
    pub(super) fn judge_copy(
        &mut self,
        old: &Identity,
        new: Identity,
        incarnation: Incarnation,
        reply: &StreamReply,
    ) {
        let by = match reply {
            StreamReply::Acked(body) => PingAnswer::decode(body).ok().map(|answer| answer.by),
            _ => None,
        };
        let answers = by.is_some_and(|by| by.node == old.node && by.addr == old.addr);
        let twin = Twin {
            new,
            answers: Some(answers),
            until: self.timers.time() + TWIN_HOLDS,
        };
        self.twins.insert(new.node, twin);
        if answers {
            count(&self.counters.dropped_copies);
            if self.tell_once(Told::Copy, new.node) {
                tracing::warn!(
                    node = %new.node, known = %old.addr, refused = %new.addr,
                    "the same node key is in use at two addresses; the second is refused"
                );
            }
        } else {
            // It moved.
            let member = Member::new(new, incarnation, State::Alive);
            let result = self
                .foca
                .apply_many(std::iter::once(member), true, &mut self.effects);
            self.settle(result, &[new.node]);
        }
    }

    /// Whether the sender of a full state is answered.
    pub(super) fn admit_sender(&mut self, sender: &Record) -> Result<(), Refusal> {
        let (id, own) = (*sender.member.id(), *self.foca.identity());
        if let Some(refusal) = self.is_foreign(&id, sender.extra.pool.as_deref()) {
            return Err(refusal);
        }
        if let Some(meta) = &sender.extra.meta
            && meta.protocols.0 > PROTOCOLS.1
        {
            count(&self.counters.dropped_malformed);
            return Err(Refusal::Protocol(meta.protocols.0));
        }
        if self.is_evicted(id.node) {
            return Err(Refusal::Evicted);
        }
        if id.node == own.node && id.addr != own.addr {
            count(&self.counters.dropped_copies);
            return Err(Refusal::Copy(own.addr));
        }
        if self.is_copy(&sender.member) {
            let known = self.table.get(id.node).map(|known| known.identity.addr);
            let answers = self.twins.get(&id.node).and_then(|twin| twin.answers);
            return Err(match (known, answers) {
                (Some(known), Some(true)) => Refusal::Copy(known),
                _ => Refusal::Busy,
            });
        }
        let is_new = self
            .table
            .get(id.node)
            .is_none_or(|known| !known.liveness.is_present());
        if is_new && sender.member.state() == State::Alive && self.is_full(1) {
            return Err(Refusal::Full(self.pool_limit));
        }
        Ok(())
    }

    /// Whether `more` nodes are too many.
    pub(super) fn is_full(&mut self, more: usize) -> bool {
        // This node is one of the pool.
        let full = self.table.present() + 1 + more > self.pool_limit;
        if full {
            count(&self.counters.dropped_full);
            if !std::mem::replace(&mut self.told_full, true) {
                tracing::error!(
                    limit = self.pool_limit,
                    "this pool is full and takes no further nodes: split it, or raise its limit"
                );
            }
        }
        full
    }

    /// Somebody else goes by our id at `claim`: who is it?
    pub(super) fn meet_copy(&mut self, claim: Identity) {
        let time = self.timers.time();
        if self.is_leaving() || self.met.is_some_and(|until| until > time) {
            return;
        }
        let kind = PingKind::Copy {
            known: self.table.present() > 0,
            started: self.started,
        };
        let body = PingBody {
            from: *self.foca.identity(),
            target: claim,
            kind,
        }
        .encode();
        let to = Peer {
            addr: claim.addr,
            node: Some(claim.node),
        };
        let deadline = self.preset.probe_period;
        if self.ask(Purpose::Meet { claim }, to, Route::Ping, body, deadline) {
            self.met = Some(time + deadline);
        }
    }

    pub(super) fn hear_copy(&mut self, claim: &Identity, reply: &StreamReply) {
        let own = *self.foca.identity();
        let answer = match reply {
            StreamReply::Acked(body) => PingAnswer::decode(body).ok(),
            _ => None,
        };
        let copy = answer.filter(|answer| answer.by.node == own.node && answer.by.addr != own.addr);
        if copy.is_some_and(|answer| answer.seen == Seen::Gone) {
            self.yield_to(claim.addr);
        } else {
            // Nobody there any more, or it ends: others must hear of us again.
            self.outrun(Some(claim.generation));
        }
    }

    /// Asked by a node with our own id: which of us ends? True when it is this one.
    pub(super) fn loses_to(&self, other: &Identity, known: bool, started: u64) -> bool {
        let rank =
            |known: bool, started: u64, addr: SocketAddr| (known, Reverse(started), Reverse(addr));
        let own = self.foca.identity();
        rank(known, started, other.addr) > rank(self.table.present() > 0, self.started, own.addr)
    }

    /// Ends without a goodbye: the other one goes on under this id.
    pub(super) fn yield_to(&mut self, other: SocketAddr) {
        let own = *self.foca.identity();
        self.failure = Some(format!(
            "node {} runs already at {other}, and this process at {} has the same node key: the machine or its node \
             directory is a copy; stop one of them, and give the copy a directory of its own (it joins with a new token)",
            own.node, own.addr
        ));
        self.leaving
            .store(true, std::sync::atomic::Ordering::Relaxed);
        self.outputs.push_back(Output::Left);
    }

    /// Exactly these nodes are neither heard nor believed, and those among them that are members are down.
    pub fn evict(&mut self, now: Duration, nodes: impl IntoIterator<Item = NodeId>) {
        self.advance(now);
        let own = self.foca.identity().node;
        self.evicted = nodes.into_iter().filter(|node| *node != own).collect();
        let gone: Vec<_> = self
            .table
            .iter()
            .filter(|known| {
                known.liveness.is_present() && self.evicted.contains(&known.identity.node)
            })
            .map(|known| Member::new(known.identity, known.incarnation, State::Down))
            .collect();
        let touched: Vec<NodeId> = gone.iter().map(|member| member.id().node).collect();
        // Others hear of it from whom they believe, not from us.
        let result = self
            .foca
            .apply_many(gone.into_iter(), false, &mut self.effects);
        self.settle(result, &touched);
    }

    /// Takes note of what records say beside foca's part of them, before foca passes them on; who restarts until when.
    pub(super) fn note<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Record>,
    ) -> Vec<(Identity, Duration)> {
        let mut notes = self.notes.lock();
        let learnt = records.filter_map(|record| Some((*record.member.id(), notes.learn(record)?)));
        learnt.collect()
    }

    /// Nothing bad is shown of these until their time is over.
    pub(super) fn spare(&mut self, restarting: Vec<(Identity, Duration)>) {
        let mut changes = Changes::default();
        for (life, until) in restarting {
            self.table.restarting(&life, until);
            self.table.show(life.node, self.timers.time(), &mut changes);
        }
        self.publish(changes);
    }

    /// Whether others reach this node: a random member is asked to try, some seconds after the join; then one more.
    pub(super) fn check_reach(&mut self, doubted_by: Option<NodeId>) {
        let own = *self.foca.identity();
        let others =
            self.random_present_identities(1, &|identity| Some(identity.node) != doubted_by);
        let deadline = self.preset.probe_period * 3;
        match others.first().copied() {
            Some(witness) => {
                let purpose = Purpose::Reach {
                    witness,
                    doubted: doubted_by.is_some(),
                };
                let _ = self.ask_ping(purpose, &witness, own, PingKind::Witness, deadline);
            }
            None if doubted_by.is_some() => tell_unreachable(&own),
            None => {}
        }
    }

    pub(super) fn hear_reach(&mut self, witness: &Identity, doubted: bool, reply: &StreamReply) {
        let StreamReply::Acked(body) = reply else {
            return;
        };
        if PingAnswer::decode(body).map_or(Seen::Acked, |answer| answer.seen) == Seen::Acked {
            return;
        }
        count(&self.counters.unreachable);
        if doubted {
            tell_unreachable(self.foca.identity());
        } else {
            self.check_reach(Some(witness.node));
        }
    }
}

fn tell_unreachable(own: &Identity) {
    tracing::warn!(
        advertised = %own.addr,
        "others do not reach this node at the address that it advertises: check the advertise address and that its TCP \
         port is open"
    );
}

pub(super) type ClaimsBySource = BTreeMap<NodeId, Claims>;
