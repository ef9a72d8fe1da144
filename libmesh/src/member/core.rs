//! The membership protocol without sockets, clock or randomness of its own: inputs with a time go in, [`Output`]s come
//! out. The driver runs it over UDP, the simulator in virtual time.
//!
//! `foca` is the SWIM kernel: probes, suspicion, dissemination. Around it, because alone it fails in ways that were
//! measured (each line has a test in the simulator):
//!
//! * **Late suspicions.** foca 2.0 tells a member that it is down when a suspicion timer fires, even if the suspicion
//!   was refuted meanwhile; the healthy member then takes a new generation (at N = 50 and 5 % loss, about one every
//!   twenty seconds). A timer is only delivered while foca still shows the member Suspect at that incarnation.
//! * **Lost packets.** A ping that got no answer is sent again every 100 ms, first before foca asks others (one
//!   packet instead of a dozen), and asked over the stream transport when they do not reach the target either; before Down the target
//!   is asked once more, and refutes if it can. Loss alone makes no suspect.
//! * **Our own stalls.** Time that this process slept through does not count (`timers`). The caller hands in waiting
//!   packets before timers.
//! * **Joins and heals.** A join answer over UDP holds 30 random members; the whole list is exchanged over a stream at
//!   join, and compared by digests every 15–30 s with a random known address, members that are down included
//!   (`exchange`). Seeds are announced to for ever (`seeds`).
//! * **Killed processes.** A refused connection is evidence that a process is gone. A second later (a restart may be
//!   under way) it is tried again, and three others try too; when another is refused and none is answered, Down follows at once instead of
//!   after five seconds. Any packet from the member cancels it, so a firewall that rejects cannot kill a node that
//!   others reach. Where there is no other member, the second refusal decides, if a ping over UDP meanwhile is not
//!   answered either.
//! * **Quick restarts.** A suspicion is shown after a second, a refused port counts after one: a process that is back
//!   within that second was never gone for anybody.
//! * **Announced restarts** hide nothing: for as long as one said, fifteen seconds at most, nothing bad is shown.
//! * **Goodbyes** are told from failures.
//! * **Lies, copies and strangers** are refused before foca sees them (`admit`).
//!
//! Costs: a packet without news is looked up, not scanned for; what is linear in the number of members is foca's own
//! (1.3 µs a packet at 10,000), and one scan for each probe and for each packet with news.

mod admit;
mod asks;
mod discovery;
mod effects;
mod exchange;
mod seeds;
mod suspicion;
mod table;
mod timers;
mod tuning;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use foca::{Foca, Incarnation, Message, NoCustomBroadcast, State, Timer};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use self::admit::{ClaimsBySource, Told, Twin};
use self::asks::{Asks, Case, Purpose};
use self::discovery::{FIRST_PUSH_PULL, FORGET_PERIOD};
use self::effects::Effects;
use self::seeds::Seeds;
use self::table::{Changes, Table, public};
use self::timers::{Item, Timers};
use self::tuning::{INDIRECT_PROBES, foca_config};
use super::config::{Config, Preset};
use super::counters::{Counters, count};
use super::handle::{AnswerError, MembershipGone};
use super::meta::{MAX_RESTART, NodeMeta, Notes, PROTOCOLS};
use super::stream::{self, Exchange, Peer, StreamReply};
use super::wire::{self, Identity, Record, WireCodec};
use super::{Member, MemberEvent, MemberState, candidates};
use crate::model::{Liveness, NodeId};

/// Rounds of gossip that carry a goodbye.
const GOODBYE_ROUNDS: u8 = 4;
/// Rounds of gossip that carry an announced restart.
const RESTART_ROUNDS: u8 = 4;
/// A generation this far above ours is a lie, not our own later life (35 years in microseconds).
const MAX_GENERATION_LEAD: u64 = 1 << 50;

/// What the caller has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a packet in a datagram.
    Send {
        /// Where to.
        to: SocketAddr,
        /// What; fits a datagram when sealed.
        packet: Bytes,
    },
    /// Ask a stream question; give the reply to [`Core::handle_stream_reply`]. One that comes after the deadline is
    /// ignored.
    Ask {
        /// Names the question.
        id: u64,
        /// Whom.
        to: Peer,
        /// Which route.
        route: Route,
        /// The body.
        body: Bytes,
        /// How long it may take.
        deadline: Duration,
    },
    /// The answer to an earlier [`Core::answer_ping`] is ready.
    Answer {
        /// As given to `answer_ping`.
        token: u64,
        /// The body.
        body: Bytes,
    },
    /// The membership changed.
    Event(MemberEvent),
    /// A member that was down for long is forgotten.
    Forgotten(NodeId),
    /// This node took a new generation.
    Local(Member),
    /// The goodbye is said: nothing more will come.
    Left,
}

/// Route of a stream question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `/member/ping`.
    Ping,
    /// `/member/sync`.
    Sync,
}

/// foca's current probe, as far as we can see it.
struct Probe {
    target: Identity,
    number: u8,
    answered: bool,
}

/// The protocol. See the module.
pub struct Core {
    foca: Foca<Identity, WireCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    effects: Effects,
    timers: Timers,
    table: Table,
    seeds: Seeds,
    asks: Asks,
    cases: BTreeMap<NodeId, Case>,
    /// Suspicion timers under way, one a member.
    suspicions: BTreeMap<NodeId, (Identity, Incarnation)>,
    probe: Option<Probe>,
    /// Our own, as last sent.
    incarnation: Incarnation,
    /// Packets to this node are kept for a stream answer instead of being sent.
    capture: Option<(NodeId, Vec<Bytes>)>,
    leaving: Arc<AtomicBool>,
    /// A full state was exchanged once.
    joined: bool,
    /// Until the next exchange of full state: short after a join, then growing to the preset's.
    push_pull_pause: Duration,
    tuned_for: usize,
    preset: Preset,
    forget_after: Duration,
    max_members: usize,
    pool_warning: usize,
    pool_limit: usize,
    notes: Arc<Mutex<Notes>>,
    /// The generation with which this process started.
    started: u64,
    evicted: BTreeSet<NodeId>,
    claims: ClaimsBySource,
    twins: BTreeMap<NodeId, Twin>,
    /// No question to a copy of ours before this.
    met: Option<Duration>,
    told: BTreeSet<(Told, NodeId)>,
    told_full: bool,
    told_denied: bool,
    told_large: bool,
    failure: Option<String>,
    rng: Xoshiro256PlusPlus,
    outputs: VecDeque<Output>,
    counters: Arc<Counters>,
    #[cfg(test)]
    pub(crate) unguarded: bool,
}

impl Core {
    /// A node that knows nobody yet. `now` is any clock that does not run back; `seed` feeds all random choices.
    pub fn new(config: &Config, now: Duration, seed: u64, counters: Arc<Counters>) -> Self {
        // No scope ids or mapped addresses: an identity must be the same to everybody.
        let advertise = SocketAddr::new(
            config.advertise.ip().to_canonical(),
            config.advertise.port(),
        );
        let own = Identity {
            node: config.node,
            addr: advertise,
            generation: config.generation,
        };
        let leaving = Arc::new(AtomicBool::new(false));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let foca_rng = Xoshiro256PlusPlus::from_rng(&mut rng);
        let notes = Notes::new(own.node, config.pool.clone(), Some(config.meta.clone()));
        let notes = Arc::new(Mutex::new(notes));
        let codec = WireCodec::new(own.node, Arc::clone(&leaving), Arc::clone(&notes));
        let mut core = Self {
            foca: Foca::new(own, foca_config(&config.preset, 1), foca_rng, codec),
            effects: Effects::default(),
            timers: Timers::new(now),
            table: Table::new(config.preset.suspect_shown_after),
            seeds: Seeds::new(advertise, config.preset.seed_backoff),
            asks: Asks::default(),
            cases: BTreeMap::new(),
            suspicions: BTreeMap::new(),
            probe: None,
            incarnation: 0,
            capture: None,
            leaving,
            joined: false,
            push_pull_pause: FIRST_PUSH_PULL,
            tuned_for: 1,
            preset: config.preset.clone(),
            forget_after: config.forget_after,
            max_members: config.max_members,
            pool_warning: config.pool_warning,
            pool_limit: config.pool_limit,
            notes,
            started: config.generation,
            evicted: BTreeSet::new(),
            claims: BTreeMap::new(),
            twins: BTreeMap::new(),
            met: None,
            told: BTreeSet::new(),
            told_full: false,
            told_denied: false,
            told_large: false,
            failure: None,
            rng,
            outputs: VecDeque::new(),
            counters,
            #[cfg(test)]
            unguarded: false,
        };
        let time = core.timers.time();
        for addr in &config.seeds {
            core.seeds.add(*addr, time);
        }
        core.seeds
            .add_candidates(&config.candidates, time, time + config.forget_after);
        core.set_seed_timer();
        core.set_push_pull_timer();
        core.timers.set(Item::Forget, FORGET_PERIOD);
        core
    }

    /// What is to be done, in order; ask until `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due, on the caller's clock.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.timers.next()
    }

    /// This node.
    pub fn local(&self) -> Member {
        public(self.foca.identity())
    }

    /// All other members that are known, those that are down or left included.
    pub fn members(&self) -> Vec<MemberState> {
        self.table.states()
    }

    /// How many other members are alive or suspect.
    pub fn present(&self) -> usize {
        self.table.present()
    }

    /// What is thought of a member; `None` if it is not known.
    pub fn liveness(&self, node: NodeId) -> Option<Liveness> {
        self.table.shown(node)
    }

    /// What a member says of itself, as far as it was heard.
    pub fn meta(&self, node: NodeId) -> Option<Arc<NodeMeta>> {
        self.notes.lock().meta(node)
    }

    /// Whose meta changed since this was last called.
    pub fn take_changed_metas(&mut self) -> BTreeSet<NodeId> {
        self.notes.lock().take_changed()
    }

    /// Why this node ended by itself.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Addresses of present members as bytes, one a line; see [`Config::candidates`].
    pub fn candidates(&self) -> Vec<u8> {
        candidates::encode(
            self.table
                .iter()
                .filter(|k| k.liveness.is_present())
                .map(|known| known.identity.addr),
        )
    }

    /// Timers that are set; bounded by members and open questions.
    pub fn timers(&self) -> usize {
        self.timers.len()
    }

    /// The content of an opened datagram. Hand in all that wait before [`handle_timeout`](Self::handle_timeout).
    pub fn handle_datagram(&mut self, now: Duration, packet: &[u8]) {
        self.advance(now);
        if !self.is_leaving() {
            self.packet(packet);
        }
    }

    /// Fires the timers that are due.
    pub fn handle_timeout(&mut self, now: Duration) {
        self.advance(now);
        for item in self.timers.due() {
            self.fire(item);
        }
    }

    /// The reply to [`Output::Ask`].
    pub fn handle_stream_reply(&mut self, now: Duration, id: u64, reply: &StreamReply) {
        self.advance(now);
        if let Some(asked) = self.asks.take(id) {
            self.resolve(&asked, reply);
        }
    }

    /// The answer to a `/member/ping`, or `None` if it comes later as [`Output::Answer`] with `token`.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn answer_ping(
        &mut self,
        now: Duration,
        body: &[u8],
        token: u64,
    ) -> Result<Option<Bytes>, AnswerError> {
        self.advance(now);
        if self.is_leaving() {
            return Err(MembershipGone.into());
        }
        Ok(self.answer(stream::PingBody::decode(body)?, token)?)
    }

    /// The answer to a `/member/sync`.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn answer_sync(&mut self, now: Duration, body: &[u8]) -> Result<Bytes, AnswerError> {
        self.advance(now);
        if self.is_leaving() {
            return Err(MembershipGone.into());
        }
        let question = stream::decode_sync(body)?;
        if let Exchange::State(members) | Exchange::Parts(_, members) = &question
            && let Some(sender) = members.first()
        {
            self.admit_sender(sender)?;
        }
        count(&self.counters.push_pulls);
        Ok(self.exchange(question))
    }

    /// Announces to `addr` now and for as long as nobody there is a member.
    pub fn add_seed(&mut self, now: Duration, addr: SocketAddr) {
        self.advance(now);
        let time = self.timers.time();
        if self
            .seeds
            .add(SocketAddr::new(addr.ip().to_canonical(), addr.port()), time)
        {
            self.set_seed_timer();
        }
    }

    /// A stream from `node` ended without a goodbye: ping it over the stream at once.
    pub fn peer_closed(&mut self, now: Duration, node: NodeId) {
        self.advance(now);
        let present = self
            .table
            .get(node)
            .filter(|known| known.liveness.is_present());
        if let Some(target) = present.map(|known| known.identity) {
            self.ping_over_stream(target, 0, Duration::ZERO);
        }
    }

    /// Announces that this node will be back within `within`, 15 s at most; [`Output::Left`] comes when it is said.
    pub fn restart(&mut self, now: Duration, within: Duration) {
        self.advance(now);
        if self.is_leaving() {
            return;
        }
        let until = self.timers.time() + within.min(MAX_RESTART);
        self.notes.lock().restart_until(until);
        // A higher incarnation makes it news that others pass on.
        let suspect = foca::Member::new(*self.foca.identity(), self.incarnation, State::Suspect);
        let result = self
            .foca
            .apply_many(std::iter::once(suspect), true, &mut self.effects);
        self.settle(result, &[]);
        self.push_state();
        self.timers.set(
            Item::GoodbyeRound(RESTART_ROUNDS),
            self.preset.gossip_period,
        );
    }

    /// Says goodbye; [`Output::Left`] comes when it is said.
    pub fn leave(&mut self, now: Duration) {
        self.advance(now);
        if self.leaving.swap(true, Ordering::Relaxed) {
            return;
        }
        let result = self.foca.leave_cluster(&mut self.effects);
        self.settle(result, &[]);
        self.push_state();
        self.timers.set(
            Item::GoodbyeRound(GOODBYE_ROUNDS),
            self.preset.gossip_period,
        );
    }

    /// What is said at the end, over streams too: the few datagrams of a small cluster may all be lost.
    fn push_state(&mut self) {
        let state = Bytes::from(self.state());
        for known in self.random_present(INDIRECT_PROBES, &|_| true) {
            self.ask(
                Purpose::Goodbye,
                known,
                Route::Sync,
                state.clone(),
                Duration::from_millis(500),
            );
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn advance(&mut self, now: Duration) {
        if self.timers.advance(now) {
            count(&self.counters.stalls);
        }
        self.notes.lock().now = self.timers.time();
    }

    fn packet(&mut self, bytes: &[u8]) {
        let Ok(packet) = wire::decode_packet(bytes) else {
            count(&self.counters.dropped_malformed);
            return;
        };
        if !self.hears(&packet) {
            return;
        }
        let (own, header) = (*self.foca.identity(), packet.header.clone());
        let src = Record {
            member: foca::Member::new(header.src, header.src_incarnation, State::Alive),
            extra: packet.from.clone(),
        };
        let believed: Vec<bool> = packet
            .updates
            .iter()
            .map(|update| self.believes(header.src.node, update))
            .collect();
        // What is no news would make foca scan its members for nothing.
        let told: Vec<bool> = packet
            .updates
            .iter()
            .zip(&believed)
            .map(|(update, believed)| *believed && self.table.is_news(&update.member))
            .collect();
        let rest;
        let bytes = if told.iter().all(|told| *told) {
            bytes
        } else {
            rest = packet.bytes_of(&told);
            &rest[..]
        };
        let mut kept = believed.iter();
        let mut updates = packet.updates;
        updates.retain(|_| kept.next().is_some_and(|kept| *kept));
        let records = || updates.iter().chain([&src]);
        let news = records().filter(|record| self.table.is_news(&record.member));
        let touched: Vec<NodeId> = news.map(|record| record.member.id().node).collect();
        let unknown = |record: &&Record| {
            let node = record.member.id().node;
            node != own.node && self.table.get(node).is_none()
        };
        let strangers = records().filter(unknown).count();
        let newcomers = records()
            .filter(unknown)
            .filter(|record| record.member.state() != State::Down)
            .count();
        if strangers > 0 && self.table.len() + strangers > self.max_members {
            count(&self.counters.dropped_full);
            return;
        }
        if newcomers > 0 && self.is_full(newcomers) {
            return;
        }
        let restarting = self.note(records());
        let claims = updates
            .iter()
            .map(|update| *update.member.id())
            .chain([header.dst]);
        self.meet(claims.collect());

        let (answers_for, number) = match header.message {
            Message::Ack(number) => (header.src, Some(number)),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (origin, Some(probe_number)),
            _ => (header.src, None),
        };
        self.cases.remove(&header.src.node);
        self.cases.remove(&answers_for.node);
        if let Some(probe) = &mut self.probe
            && probe.target == answers_for
            && Some(probe.number) == number
        {
            probe.answered = true;
        }
        let result = self.foca.handle_data(bytes, &mut self.effects);
        self.settle(result, &touched);
        self.spare(restarting);
    }

    /// Looks for our own id in what others say.
    fn meet(&mut self, claims: Vec<Identity>) {
        let own = *self.foca.identity();
        let ahead = |id: &Identity| id.node == own.node && id.generation > own.generation;
        for claim in claims.into_iter().filter(ahead) {
            if claim.addr == own.addr {
                self.outrun(Some(claim.generation));
            } else {
                self.meet_copy(claim);
            }
        }
    }

    /// Others know us by a higher generation than ours (our persisted one was lost, or a copy of us is gone): go past it,
    /// or nobody believes us.
    fn outrun(&mut self, generation: Option<u64>) {
        let own = *self.foca.identity();
        let ahead = generation
            .filter(|seen| *seen > own.generation && *seen - own.generation < MAX_GENERATION_LEAD);
        if let Some(seen) = ahead.filter(|_| !self.is_leaving()) {
            let result = self.foca.change_identity(
                Identity {
                    generation: seen + 1,
                    ..own
                },
                &mut self.effects,
            );
            self.effects.rejoin();
            self.settle(result, &[]);
        }
    }

    fn fire(&mut self, item: Item) {
        match item {
            Item::Foca(Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                token,
            }) => {
                self.suspicion_due(member_id, incarnation, token);
            }
            Item::Foca(timer) => {
                let indirect = matches!(timer, Timer::SendIndirectProbe { .. });
                // The end of a probe that failed makes its target suspect, and only we know which it was.
                let ends = matches!(timer, Timer::ProbeRandomMember(_));
                let target = self
                    .probe
                    .as_ref()
                    .filter(|probe| ends && !probe.answered)
                    .map(|probe| probe.target.node);
                let result = self.foca.handle_timer(timer, &mut self.effects);
                self.settle(result, target.as_slice());
                if indirect {
                    self.stream_ping_later();
                }
            }
            Item::PingAgain(number) => self.ping_again(number),
            Item::PingOverStream(number) => self.repeat_ping(number),
            Item::AskDeadline(id) => {
                if let Some(asked) = self.asks.take(id) {
                    self.resolve(&asked, &StreamReply::Timeout);
                }
            }
            Item::SecondLook(node) => self.look_again(node),
            Item::Show(node) => {
                let mut changes = Changes::default();
                self.table.show(node, self.timers.time(), &mut changes);
                self.publish(changes);
            }
            Item::Seeds => self.announce_to_seeds(),
            Item::PushPull => self.push_pull(),
            Item::Reach if self.is_leaving() => {}
            Item::Reach => self.check_reach(None),
            Item::Forget => self.forget(),
            Item::GoodbyeRound(0) => self.outputs.push_back(Output::Left),
            Item::GoodbyeRound(rounds) => {
                let result = self.foca.gossip(&mut self.effects);
                self.settle(result, &[]);
                self.timers
                    .set(Item::GoodbyeRound(rounds - 1), self.preset.gossip_period);
            }
        }
    }

    /// Takes over what a call of foca brought: timers, packets, changed members (`touched` and those that foca named).
    fn settle(&mut self, result: Result<(), foca::Error>, touched: &[NodeId]) {
        if let Err(error) = result {
            count(&self.counters.rejected_packets);
            tracing::debug!(%error, "membership refused an input");
        }
        if std::mem::take(&mut self.effects.timers_void) {
            self.timers.void();
            self.suspicions.clear();
            self.probe = None;
        }
        for (timer, after) in std::mem::take(&mut self.effects.timers) {
            if let Timer::ChangeSuspectToDown {
                member_id,
                incarnation,
                ..
            } = &timer
            {
                let suspicion = (*member_id, *incarnation);
                // Every failed probe of a suspect sets its timer again; the first one counts.
                if self.suspicions.insert(member_id.node, suspicion) == Some(suspicion) {
                    continue;
                }
                self.warn(suspicion.0, suspicion.1);
            }
            self.timers.set(Item::Foca(timer), after);
        }
        for (to, packet) in std::mem::take(&mut self.effects.packets) {
            self.sent(to, packet);
        }
        let mut changed = std::mem::take(&mut self.effects.touched);
        changed.extend_from_slice(touched);
        self.refresh(changed);
        if std::mem::take(&mut self.effects.rejoined) {
            count(&self.counters.rejoins);
            self.push_pull_soon();
            self.outputs.push_back(Output::Local(self.local()));
        }
        self.retune();
    }

    fn sent(&mut self, to: Identity, packet: Bytes) {
        if let Ok(header) = wire::decode_header(&mut &packet[..]) {
            self.incarnation = header.src_incarnation;
            if let Message::Ping(number) = header.message {
                self.probe = Some(Probe {
                    target: to,
                    number,
                    answered: false,
                });
                self.timers
                    .set(Item::PingAgain(number), self.preset.probe_rtt / 2);
            }
        }
        match &mut self.capture {
            Some((node, packets)) if *node == to.node && packets.len() < stream::MAX_PACKETS => {
                packets.push(packet)
            }
            _ => self.outputs.push_back(Output::Send {
                to: to.addr,
                packet,
            }),
        }
    }

    fn refresh(&mut self, mut changed: Vec<NodeId>) {
        if changed.is_empty() {
            return;
        }
        changed.sort_unstable();
        let (own, time) = (self.foca.identity().node, self.timers.time());
        let mut changes = Changes::default();
        changed.dedup();
        let mut left = changed.len();
        for member in self.foca.iter_membership_state() {
            if left == 0 {
                break;
            }
            let node = member.id().node;
            if changed.binary_search(&node).is_ok() {
                left -= 1;
                if node != own {
                    self.table.refresh(member, time, &mut changes);
                }
            }
        }
        self.publish(changes);
    }

    fn publish(&mut self, changes: Changes) {
        for (node, after) in changes.later {
            self.timers.set(Item::Show(node), after);
        }
        for event in changes.events {
            if matches!(event, MemberEvent::Suspect(_)) {
                count(&self.counters.suspicions);
            }
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// How often news is repeated depends on the cluster's size.
    fn retune(&mut self) {
        let members = self.table.present() + 1;
        if members >= self.tuned_for * 2 || members * 2 <= self.tuned_for {
            self.tuned_for = members;
            // Only fails when a period changes, and none does.
            let _ = self.foca.set_config(foca_config(&self.preset, members));
        }
        if members < self.pool_warning {
            self.told_large = false;
        } else if !std::mem::replace(&mut self.told_large, true) {
            tracing::warn!(
                members,
                limit = self.pool_limit,
                "this pool is large: plan to split it before it reaches its limit"
            );
        }
    }
}

#[cfg(test)]
mod tests;
