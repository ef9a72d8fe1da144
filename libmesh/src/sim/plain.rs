//! The baseline: foca as its documentation drives it, with `Config::new_lan` (memberlist's LAN settings), our identities
//! on the wire, and nothing else. Identities renew themselves, as a user would have it after the first false death.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use foca::{Foca, NoCustomBroadcast, Notification, Timer};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::member::core::Output;
use crate::member::wire::{Identity, WireCodec};
use crate::member::{Config, Counters, Member, MemberEvent};
use crate::model::{Liveness, NodeId};

pub(super) struct Plain {
    foca: Foca<Identity, WireCodec, Xoshiro256PlusPlus, NoCustomBroadcast>,
    notes: Notes,
}

struct Notes {
    now: Duration,
    timers: BinaryHeap<Reverse<(Duration, u64, Timer<Identity>)>>,
    number: u64,
    outputs: VecDeque<Output>,
    present: BTreeMap<NodeId, bool>,
    counters: Arc<Counters>,
}

impl Plain {
    pub(super) fn new(
        config: &Config,
        size: u32,
        now: Duration,
        seed: u64,
        counters: Arc<Counters>,
    ) -> Self {
        let own = Identity {
            node: config.node,
            addr: config.advertise,
            generation: config.generation,
        };
        let lan = foca::Config::new_lan(NonZeroU32::new(size.max(1)).expect("at least 1"));
        let nothing = crate::member::meta::Notes::new(own.node, "".into(), None);
        let nothing = Arc::new(parking_lot::Mutex::new(nothing));
        let codec = WireCodec::new(own.node, Arc::new(AtomicBool::new(false)), nothing);
        let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut plain = Self {
            foca: Foca::new(own, lan, rng, codec),
            notes: Notes {
                now,
                timers: BinaryHeap::new(),
                number: 0,
                outputs: VecDeque::new(),
                present: BTreeMap::new(),
                counters,
            },
        };
        for seed in &config.seeds {
            if *seed != config.advertise {
                let _ = plain
                    .foca
                    .announce(Identity::unknown(*seed), &mut plain.notes);
            }
        }
        plain
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.notes.outputs.pop_front()
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.notes.timers.peek().map(|Reverse((due, ..))| *due)
    }

    pub(super) fn handle_datagram(&mut self, now: Duration, packet: &[u8]) {
        self.notes.now = now;
        // What foca refuses is dropped, as its examples do.
        let _ = self.foca.handle_data(packet, &mut self.notes);
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        self.notes.now = now;
        while self.next_timeout().is_some_and(|due| due <= now) {
            if let Some(Reverse((_, _, timer))) = self.notes.timers.pop() {
                let _ = self.foca.handle_timer(timer, &mut self.notes);
            }
        }
    }

    /// Believes that these are members, and does not pass it on.
    pub(super) fn believe(&mut self, members: impl Iterator<Item = Identity>) {
        let own = self.foca.identity().node;
        let others = members
            .filter(|identity| identity.node != own)
            .map(foca::Member::alive);
        let _ = self.foca.apply_many(others, false, &mut self.notes);
    }

    pub(super) fn liveness(&self, id: NodeId) -> Option<Liveness> {
        let present = self.notes.present.get(&id)?;
        Some(if *present {
            Liveness::Alive
        } else {
            Liveness::Down
        })
    }

    pub(super) fn present(&self) -> usize {
        self.foca.num_members()
    }
}

impl Notes {
    fn tell(&mut self, event: MemberEvent) {
        self.outputs.push_back(Output::Event(event));
    }
}

fn member(identity: &Identity) -> Member {
    Member {
        id: identity.node,
        addr: identity.addr,
        generation: identity.generation,
    }
}

impl foca::Runtime<Identity> for &mut Notes {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::MemberUp(identity) => {
                self.present.insert(identity.node, true);
                self.tell(MemberEvent::Up(member(identity)));
            }
            Notification::MemberDown(identity) => {
                self.present.insert(identity.node, false);
                self.tell(MemberEvent::Down(identity.node));
            }
            Notification::Rename(_, identity) => self.tell(MemberEvent::Up(member(identity))),
            Notification::Rejoin(_) => crate::member::count(&self.counters.rejoins),
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.outputs.push_back(Output::Send {
            to: to.addr,
            packet: Bytes::copy_from_slice(data),
        });
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.number += 1;
        self.timers
            .push(Reverse((self.now + after, self.number, timer)));
    }
}
