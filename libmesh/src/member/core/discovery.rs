//! Finding members: announces to seeds, exchange of full state, and forgetting those that are long gone.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use foca::{State, Timer};
use rand::RngExt;

use super::asks::Purpose;
use super::timers::Item;
use super::{Core, Output, Route};
use crate::member::counters::count;
use crate::member::stream::{self, Peer};
use crate::member::wire::{self, Identity, Record};
use crate::model::{Liveness, NodeId};

/// Pause before the first exchange of full state after a join.
pub(super) const FIRST_PUSH_PULL: Duration = Duration::from_secs(1);
pub(super) const FORGET_PERIOD: Duration = Duration::from_secs(60);

impl Core {
    /// The whole member list as bytes, this node first.
    pub fn state(&self) -> Vec<u8> {
        stream::encode_state(&self.records(|_| true))
    }

    /// All members that are known, this node first.
    pub(super) fn everybody(&self) -> impl Iterator<Item = foca::Member<Identity>> {
        let own = *self.foca.identity();
        let myself = if self.is_leaving() {
            foca::Member::new(own, wire::LEFT, State::Down)
        } else {
            foca::Member::new(own, self.incarnation, State::Alive)
        };
        let others = self
            .foca
            .iter_membership_state()
            .filter(move |member| member.id().node != own.node)
            .cloned();
        std::iter::once(myself).chain(others)
    }

    /// This node, which says so for whom it speaks, and the others that are `wanted`, with what goes with each.
    pub(super) fn records(&self, wanted: impl Fn(NodeId) -> bool) -> Vec<Record> {
        let own = self.foca.identity().node;
        let notes = self.notes.lock();
        let mut records: Vec<Record> = self
            .everybody()
            .filter(|member| member.id().node == own || wanted(member.id().node))
            .map(|member| Record {
                extra: notes.of(&member),
                member,
            })
            .collect();
        records[0].extra.pool = Some(notes.pool().clone()).filter(|pool| !pool.is_empty());
        records
    }

    pub(super) fn set_seed_timer(&mut self) {
        if let Some(next) = self.seeds.next() {
            self.timers
                .replace(Item::Seeds, next.saturating_sub(self.timers.time()));
        }
    }

    /// Addresses of seeds where a member is present.
    fn present_seeds(&self) -> HashSet<SocketAddr> {
        let seeds = self.seeds.addresses();
        self.table
            .iter()
            .filter(|known| known.liveness.is_present())
            .map(|known| known.identity.addr)
            .filter(|addr| seeds.contains(addr))
            .collect()
    }

    pub(super) fn announce_to_seeds(&mut self) {
        if self.is_leaving() {
            return;
        }
        let present = self.present_seeds();
        for addr in self.seeds.due(self.timers.time(), &present, &mut self.rng) {
            let result = self
                .foca
                .announce(Identity::unknown(addr), &mut self.effects);
            self.settle(result, &[]);
            if !self.joined {
                self.sync_with(Peer { addr, node: None });
            }
        }
        self.set_seed_timer();
    }

    pub(super) fn set_push_pull_timer(&mut self) {
        let after = self
            .push_pull_pause
            .mul_f64(self.rng.random_range(1.0..2.0));
        self.push_pull_pause = (self.push_pull_pause * 2).min(self.preset.push_pull_period);
        self.timers.replace(Item::PushPull, after);
    }

    /// We are new, or were cut off: others changed while we were not told.
    pub(super) fn push_pull_soon(&mut self) {
        self.push_pull_pause = FIRST_PUSH_PULL;
        self.set_push_pull_timer();
    }

    /// A random member that did not say goodbye, or a seed where none is.
    fn random_peer(&mut self) -> Option<Peer> {
        let present = self.present_seeds();
        let members = || {
            let known = self.table.iter();
            known.filter(|known| known.liveness != Liveness::Left)
        };
        let known = members().count();
        let all = known + self.seeds.unknown(&present).count();
        if all == 0 {
            return None;
        }
        let place = self.rng.random_range(0..all);
        let member = members().nth(place).map(|known| Peer {
            addr: known.identity.addr,
            node: Some(known.identity.node),
        });
        member.or_else(|| {
            let addr = self.seeds.unknown(&present).nth(place - known)?;
            Some(Peer { addr, node: None })
        })
    }

    /// Compares what is known with a random known address. Those that are down too: that is how the two sides of a
    /// partition find each other.
    pub(super) fn push_pull(&mut self) {
        if self.is_leaving() {
            return;
        }
        if let Some(peer) = self.random_peer() {
            self.compare_with(peer);
        }
        self.set_push_pull_timer();
    }

    /// Exchanges everything: we know nobody there, or it does not understand less.
    pub(super) fn sync_with(&mut self, to: Peer) {
        let body = self.state().into();
        self.ask(
            Purpose::Sync,
            to,
            Route::Sync,
            body,
            self.preset.push_pull_period / 2,
        );
    }

    pub(super) fn apply_state(&mut self, members: Vec<Record>, spread: bool) {
        let own = self.foca.identity().node;
        let Some(source) = members.first().map(|record| record.member.id().node) else {
            return;
        };
        let mut room = self.max_members.saturating_sub(self.table.len());
        let mut pool_room = self.pool_limit.saturating_sub(self.table.present() + 1);
        // What is no news of a member may say something of itself that is.
        let (mut news, mut known) = (Vec::new(), Vec::new());
        for record in members {
            let node = record.member.id().node;
            if node != own {
                match self.table.get(node) {
                    Some(_) if !self.table.is_news(&record.member) => {
                        known.push(record);
                        continue;
                    }
                    Some(_) => {}
                    // Who is gone and forgotten here stays forgotten: nodes would remind each other for ever.
                    None if self.joined && record.member.state() == State::Down => continue,
                    None => {
                        let takes = usize::from(record.member.state() != State::Down);
                        if room == 0 || pool_room < takes {
                            count(&self.counters.dropped_full);
                            continue;
                        }
                        room -= 1;
                        pool_room -= takes;
                    }
                }
            }
            if self.believes(source, &record) {
                news.push(record);
            }
        }
        let restarting = self.note(news.iter().chain(&known));
        let news: Vec<_> = news.into_iter().map(|record| record.member).collect();
        self.meet(news.iter().map(|member| *member.id()).collect());
        let touched: Vec<NodeId> = news.iter().map(|member| member.id().node).collect();
        let result = self
            .foca
            .apply_many(news.into_iter(), spread, &mut self.effects);
        self.settle(result, &touched);
        self.spare(restarting);
    }

    /// Forgets members that have been down for long.
    pub(super) fn forget(&mut self) {
        let time = self.timers.time();
        let old: Vec<Identity> = self
            .table
            .iter()
            .filter(|known| {
                !known.liveness.is_present()
                    && time.saturating_sub(known.since) >= self.forget_after
            })
            .map(|known| known.identity)
            .collect();
        for identity in old {
            let result = self
                .foca
                .handle_timer(Timer::RemoveDown(identity), &mut self.effects);
            self.settle(result, &[]);
            self.table.remove(identity.node);
            self.outputs.push_back(Output::Forgotten(identity.node));
        }
        self.forget_claims();
        let table = &self.table;
        self.notes.lock().retain(|node| table.get(node).is_some());
        self.timers.set(Item::Forget, FORGET_PERIOD);
    }
}
