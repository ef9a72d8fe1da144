//! Stream questions: the ping again, the last question before Down, witnesses of a refused port, full state.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use foca::{Header, Incarnation, Member, Message, State, TimerToken};
use rand::RngExt;

use super::timers::Item;
use super::{Core, Output, Route};
use crate::member::counters::count;
use crate::member::stream::{Peer, PingAnswer, PingBody, PingKind, Seen, StreamReply};
use crate::member::wire::{self, Identity, WireError};
use crate::model::NodeId;

/// Most questions under way.
const MAX_ASKS: usize = 64;
/// Members asked whether they see a refused port too.
const WITNESSES: usize = 3;
/// Members that are told of a death at once.
const TOLD: usize = 16;

/// Why a question was asked.
#[derive(Debug)]
pub(super) enum Purpose {
    /// The ping again, or a first one because a stream ended.
    Ping {
        target: Identity,
        /// For how long it is silent already: a ping in a datagram was not answered.
        silent: Duration,
    },
    /// The last question before Down; what to deliver if it is not answered.
    Confirm {
        target: Identity,
        incarnation: Incarnation,
        token: TimerToken,
    },
    /// The second look at a member whose port was refused.
    SecondLook {
        target: Identity,
    },
    /// Asked of a witness, about `target`.
    Witness {
        target: Identity,
    },
    /// We are the witness: whom to tell.
    Testify {
        target: Identity,
        token: u64,
    },
    /// A member appeared at another address: does the old one answer?
    Copy {
        old: Identity,
        new: Identity,
        incarnation: Incarnation,
    },
    /// Asked of somebody with our own id.
    Meet {
        claim: Identity,
    },
    /// A member was asked whether it reaches us.
    Reach {
        witness: Identity,
        /// Another did not.
        doubted: bool,
    },
    /// The whole state of a peer, for a node that knows little.
    Sync,
    /// What a peer knows otherwise than we do.
    Compare {
        peer: Peer,
    },
    /// What we know otherwise than a peer that has told us its part.
    Push,
    Goodbye,
}

#[derive(Default)]
pub(super) struct Asks {
    open: BTreeMap<u64, Asked>,
    last: u64,
}

#[derive(Debug)]
pub(super) struct Asked {
    purpose: Purpose,
    /// How much time this process had slept through when it asked.
    slept: Duration,
}

impl Asks {
    pub(super) fn take(&mut self, id: u64) -> Option<Asked> {
        self.open.remove(&id)
    }

    fn is_pinging(&self, target: &Identity) -> bool {
        self.open
            .values()
            .any(|asked| matches!(&asked.purpose, Purpose::Ping { target: other, .. } if other == target))
    }
}

/// We saw nothing listen at a member's address. After a while we and others look again.
#[derive(Debug)]
pub(super) struct Case {
    target: Identity,
    /// Answers that the second look waits for; 0 before it.
    open: usize,
    /// The second look of this node found nothing either.
    gone: bool,
    /// Another member found nothing, or there is no other.
    confirmed: bool,
}

fn peer(identity: &Identity) -> Peer {
    Peer {
        addr: identity.addr,
        node: Some(identity.node),
    }
}

impl Core {
    /// Asks a question; false if too many are open.
    pub(super) fn ask(
        &mut self,
        purpose: Purpose,
        to: Peer,
        route: Route,
        body: Bytes,
        deadline: Duration,
    ) -> bool {
        if self.asks.open.len() >= MAX_ASKS {
            count(&self.counters.streams_shed);
            return false;
        }
        self.asks.last += 1;
        let id = self.asks.last;
        let slept = self.timers.slept();
        self.asks.open.insert(id, Asked { purpose, slept });
        self.timers.set(Item::AskDeadline(id), deadline);
        self.outputs.push_back(Output::Ask {
            id,
            to,
            route,
            body,
            deadline,
        });
        true
    }

    pub(super) fn ask_ping(
        &mut self,
        purpose: Purpose,
        to: &Identity,
        target: Identity,
        kind: PingKind,
        deadline: Duration,
    ) -> bool {
        let body = PingBody {
            from: *self.foca.identity(),
            target,
            kind,
        }
        .encode();
        self.ask(purpose, peer(to), Route::Ping, body, deadline)
    }

    /// A ping made by hand; `suspicion` rides on it.
    pub(super) fn ping_packet(
        &self,
        target: Identity,
        number: u8,
        suspicion: Option<Incarnation>,
    ) -> Bytes {
        let suspect = |incarnation| Member::new(target, incarnation, State::Suspect);
        self.by_hand(
            target,
            Message::Ping(number),
            suspicion.map(suspect).as_ref(),
        )
    }

    fn by_hand(
        &self,
        dst: Identity,
        message: Message<Identity>,
        update: Option<&Member<Identity>>,
    ) -> Bytes {
        let header = Header {
            src: *self.foca.identity(),
            src_incarnation: self.incarnation,
            dst,
            message,
        };
        let mut packet = Vec::with_capacity(128);
        let extensions = self.notes.lock().on_packet(&header.message).encode();
        wire::encode_header(&header, &extensions, &mut packet).expect("a Vec has room");
        packet.put_u16(u16::from(update.is_some()));
        if let Some(update) = update {
            wire::encode_member(update, &mut packet);
        }
        packet.into()
    }

    /// Tells a suspect itself that it is suspected (Lifeguard's buddy rule): gossip reaches most members, not all, and
    /// so does its refutation. Its answer carries it here.
    pub(super) fn warn(&mut self, target: Identity, incarnation: Incarnation) {
        let packet = self.ping_packet(target, 0, Some(incarnation));
        self.outputs.push_back(Output::Send {
            to: target.addr,
            packet,
        });
    }

    /// The current probe, if it has this number and no answer.
    fn unanswered(&self, number: u8) -> Option<Identity> {
        self.probe
            .as_ref()
            .filter(|probe| probe.number == number && !probe.answered)
            .map(|probe| probe.target)
    }

    /// A while has passed since the last ping: it, or its answer, may be lost. Until the probe ends.
    pub(super) fn ping_again(&mut self, number: u8) {
        if let Some(target) = self.unanswered(number).filter(|_| !self.is_leaving()) {
            let packet = self.ping_packet(target, number, None);
            self.outputs.push_back(Output::Send {
                to: target.addr,
                packet,
            });
            self.timers
                .set(Item::PingAgain(number), self.preset.probe_rtt / 2);
        }
    }

    /// foca starts to ask others because its ping got no answer. Most often one of them gets one in a moment, and a
    /// stream is spared.
    pub(super) fn stream_ping_later(&mut self) {
        if let Some(number) = self.probe.as_ref().map(|probe| probe.number) {
            let moment = (self.preset.probe_period - self.preset.probe_rtt) / 4;
            self.timers.set(Item::PingOverStream(number), moment);
        }
    }

    /// Nobody got an answer: try the stream.
    pub(super) fn repeat_ping(&mut self, number: u8) {
        if let Some(target) = self.unanswered(number) {
            let silent =
                self.preset.probe_rtt + (self.preset.probe_period - self.preset.probe_rtt) / 4;
            self.ping_over_stream(target, number, silent);
        }
    }

    pub(super) fn ping_over_stream(&mut self, target: Identity, number: u8, silent: Duration) {
        if self.is_leaving()
            || self.table.present_as(&target).is_none()
            || self.asks.is_pinging(&target)
        {
            return;
        }
        let packet = PingKind::Ping(self.ping_packet(target, number, None));
        if self.ask_ping(
            Purpose::Ping { target, silent },
            &target,
            target,
            packet,
            self.preset.probe_period,
        ) {
            count(&self.counters.stream_pings);
        }
    }

    /// The last question before Down; false if it cannot be asked now.
    pub(super) fn confirm(
        &mut self,
        target: Identity,
        incarnation: Incarnation,
        token: TimerToken,
    ) -> bool {
        self.warn(target, incarnation);
        let purpose = Purpose::Confirm {
            target,
            incarnation,
            token,
        };
        self.ask_ping(
            purpose,
            &target,
            target,
            PingKind::Suspicion(incarnation),
            self.preset.confirm_timeout,
        )
    }

    /// What a reply shows about `target`; its packets are taken in.
    fn take_in(&mut self, target: &Identity, reply: &StreamReply) -> Seen {
        let body = match reply {
            StreamReply::Acked(body) => body,
            StreamReply::Refused => return Seen::Gone,
            StreamReply::Timeout | StreamReply::Denied { .. } => return Seen::Silent,
        };
        let Ok(answer) = PingAnswer::decode(body) else {
            count(&self.counters.dropped_malformed);
            return Seen::Silent;
        };
        for packet in &answer.packets {
            self.packet(packet);
        }
        // Another node at its address: the one that we know is not there any more.
        if answer.by.node == target.node {
            Seen::Acked
        } else {
            Seen::Gone
        }
    }

    pub(super) fn resolve(&mut self, asked: &Asked, reply: &StreamReply) {
        if self.is_leaving() {
            return;
        }
        match asked.purpose {
            Purpose::Ping { target, silent } => match self.take_in(&target, reply) {
                Seen::Acked => drop(self.cases.remove(&target.node)),
                Seen::Gone => self.open_case(target, silent),
                Seen::Silent => {}
            },
            Purpose::SecondLook { target } => {
                let seen = self.take_in(&target, reply);
                self.second_look(&target, seen, |case| case.gone = true);
            }
            Purpose::Confirm {
                target,
                incarnation,
                token,
            } => {
                let seen = self.take_in(&target, reply);
                let stands = seen != Seen::Acked && self.is_suspect(&target, incarnation);
                if stands && asked.slept != self.timers.slept() {
                    // The answer may have come while we did not run.
                    self.suspect_for_longer(target, incarnation, token);
                } else if stands {
                    count(&self.counters.declared_down);
                    self.declare_down(target, incarnation, token);
                } else {
                    self.suspicions.remove(&target.node);
                    count(&self.counters.confirms_refuted);
                }
            }
            Purpose::Witness { target } => {
                let seen = match reply {
                    StreamReply::Acked(body) => {
                        PingAnswer::decode(body).map_or(Seen::Silent, |answer| answer.seen)
                    }
                    _ => Seen::Silent,
                };
                self.second_look(&target, seen, |case| case.confirmed = true);
            }
            Purpose::Testify { target, token } => {
                let seen = self.take_in(&target, reply);
                self.testify(token, seen);
            }
            Purpose::Sync => self.take_state(reply),
            Purpose::Compare { peer } => self.compare(peer, reply),
            Purpose::Push | Purpose::Goodbye => {}
            Purpose::Copy {
                old,
                new,
                incarnation,
            } => self.judge_copy(&old, new, incarnation, reply),
            Purpose::Meet { claim } => self.hear_copy(&claim, reply),
            Purpose::Reach { witness, doubted } => self.hear_reach(&witness, doubted, reply),
        }
    }

    /// Nothing listens at `target`'s address as far as we see: look again when a restart would be over. A packet from it
    /// meanwhile closes the case; so that there is one, it is pinged.
    fn open_case(&mut self, target: Identity, silent: Duration) {
        if self.table.present_as(&target).is_none() || self.cases.contains_key(&target.node) {
            return;
        }
        let case = Case {
            target,
            open: 0,
            gone: false,
            confirmed: false,
        };
        self.cases.insert(target.node, case);
        let patience = self.preset.refusal_patience.saturating_sub(silent);
        let patience = self
            .restart_left(target.node)
            .map_or(patience, |left| left.max(patience));
        self.timers.set(Item::SecondLook(target.node), patience);
        self.greet(target);
    }

    fn greet(&mut self, target: Identity) {
        let packet = self.ping_packet(target, 0, None);
        self.outputs.push_back(Output::Send {
            to: target.addr,
            packet,
        });
    }

    pub(super) fn look_again(&mut self, node: NodeId) {
        let Some(target) = self.cases.get(&node).map(|case| case.target) else {
            return;
        };
        if self.is_leaving() || self.table.present_as(&target).is_none() {
            self.cases.remove(&node);
            return;
        }
        if let Some(left) = self.restart_left(node) {
            self.timers.set(Item::SecondLook(node), left);
            return;
        }
        self.greet(target);
        let deadline = self.preset.probe_period * 2;
        let ping = PingKind::Ping(self.ping_packet(target, 0, None));
        let purpose = Purpose::SecondLook { target };
        let mut open = usize::from(self.ask_ping(purpose, &target, target, ping, deadline));
        let witnesses =
            self.random_present_identities(WITNESSES, &|identity| identity.node != target.node);
        for witness in &witnesses {
            let purpose = Purpose::Witness { target };
            let asked = self.ask_ping(purpose, witness, target, PingKind::Witness, deadline);
            open += usize::from(asked);
        }
        let alone = self.table.present() <= 1;
        match self.cases.get_mut(&node) {
            Some(case) if open > 0 => {
                case.open = open;
                case.confirmed = alone;
            }
            _ => drop(self.cases.remove(&node)),
        }
    }

    /// One answer of the second look; `note` is done when it found nothing.
    fn second_look(&mut self, target: &Identity, seen: Seen, note: impl FnOnce(&mut Case)) {
        // No case any more: a packet came from the target.
        let Some(case) = self
            .cases
            .get_mut(&target.node)
            .filter(|case| case.target == *target)
        else {
            return;
        };
        case.open = case.open.saturating_sub(1);
        if seen == Seen::Gone {
            note(case);
        }
        // All are heard out: whoever reaches it outweighs two firewalls that refuse.
        let proven = case.gone && case.confirmed && case.open == 0;
        if seen == Seen::Acked || case.open == 0 {
            self.cases.remove(&target.node);
        }
        let Some(known) = self.table.present_as(target).filter(|_| proven) else {
            return;
        };
        count(&self.counters.declared_refused);
        let down = Member::new(*target, known.incarnation, State::Down);
        let result = self
            .foca
            .apply_many(std::iter::once(down.clone()), true, &mut self.effects);
        self.settle(result, &[target.node]);
        self.tell(&down);
    }

    /// Gossip takes its rounds and misses one in a thousand; of a death many are told at once, in a small cluster all.
    pub(super) fn tell(&mut self, down: &Member<Identity>) {
        for member in self.random_present_identities(TOLD, &|_| true) {
            let packet = self.by_hand(member, Message::Gossip, Some(down));
            let to = member.addr;
            self.outputs.push_back(Output::Send { to, packet });
        }
    }

    fn testify(&mut self, token: u64, seen: Seen) {
        let body = PingAnswer {
            by: *self.foca.identity(),
            seen,
            packets: Vec::new(),
        }
        .encode();
        self.outputs.push_back(Output::Answer { token, body });
    }

    /// The server side of `/member/ping`.
    pub(super) fn answer(
        &mut self,
        question: PingBody,
        token: u64,
    ) -> Result<Option<Bytes>, WireError> {
        let own = *self.foca.identity();
        match question.kind {
            PingKind::Ping(packet) => {
                drop(wire::decode_packet(&packet)?);
                self.capture = Some((question.from.node, Vec::new()));
                self.packet(&packet);
            }
            PingKind::Suspicion(incarnation) => {
                self.capture = Some((question.from.node, Vec::new()));
                if question.target == own {
                    let suspect = Member::new(own, incarnation, State::Suspect);
                    let result =
                        self.foca
                            .apply_many(std::iter::once(suspect), true, &mut self.effects);
                    self.settle(result, &[]);
                }
            }
            PingKind::Copy { known, started }
                if question.from.node == own.node && question.from.addr != own.addr =>
            {
                let loses = self.loses_to(&question.from, known, started);
                let answer = PingAnswer {
                    by: own,
                    seen: if loses { Seen::Acked } else { Seen::Gone },
                    packets: Vec::new(),
                };
                if loses {
                    self.yield_to(question.from.addr);
                }
                return Ok(Some(answer.encode()));
            }
            PingKind::Copy { .. } => {}
            PingKind::Witness => {
                let target = question.target;
                let known = self
                    .table
                    .get(target.node)
                    .is_some_and(|known| known.identity == target);
                let packet = PingKind::Ping(self.ping_packet(target, 0, None));
                let deadline = self.preset.probe_period * 3 / 2;
                let purpose = Purpose::Testify { target, token };
                // Only members are asked: nobody makes us connect to an address of its choice.
                if !known || !self.ask_ping(purpose, &target, target, packet, deadline) {
                    self.testify(token, Seen::Silent);
                }
                return Ok(None);
            }
        }
        // An announce carries our identity and incarnation: it refutes, and tells of a newer life.
        if self
            .capture
            .as_ref()
            .is_some_and(|(_, packets)| packets.is_empty())
            && question.from.node != own.node
        {
            let result = self.foca.announce(question.from, &mut self.effects);
            self.settle(result, &[]);
        }
        let packets = self
            .capture
            .take()
            .map_or_else(Vec::new, |(_, packets)| packets);
        Ok(Some(
            PingAnswer {
                by: *self.foca.identity(),
                seen: Seen::Acked,
                packets,
            }
            .encode(),
        ))
    }

    /// Up to `wanted` random members that are alive.
    pub(super) fn random_present(
        &mut self,
        wanted: usize,
        fits: &dyn Fn(NodeId) -> bool,
    ) -> Vec<Peer> {
        self.random_present_identities(wanted, &|identity| fits(identity.node))
            .iter()
            .map(peer)
            .collect()
    }

    pub(super) fn random_present_identities(
        &mut self,
        wanted: usize,
        fits: &dyn Fn(&Identity) -> bool,
    ) -> Vec<Identity> {
        let mut members: Vec<Identity> = self
            .table
            .iter()
            .filter(|known| {
                known.liveness == crate::model::Liveness::Alive && fits(&known.identity)
            })
            .map(|known| known.identity)
            .collect();
        let wanted = wanted.min(members.len());
        for place in 0..wanted {
            let other = self.rng.random_range(place..members.len());
            members.swap(place, other);
        }
        members.truncate(wanted);
        members
    }
}
