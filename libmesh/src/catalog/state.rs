//! The write side: all nodes' logs behind one lock, and what of a change is shown.
//!
//! A change of another node's log costs what its own records cost, plus, for each service among them, a new revision
//! and a wake-up. Only a service whose view is kept (because somebody reads it) gets a new view: that costs one record
//! for each change and one pointer copy for each of its instances.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::facts::Facts;
use super::index::Index;
use super::log::NodeLog;
use super::mass::MassEvents;
use super::quota::{Limit, Pace, Quota};
use super::read::{Found, Hashes, Reading, kind};
use super::replica::{Note, Replica};
use super::services::Services;
use super::show::Maker;
use super::strings::Strings;
use super::verify::VerifiedNode;
use crate::model::{InstanceId, Liveness, NodeId, NodeRecord};

mod publish;
mod views;

/// How long the owner keeps tombstones: 10 min in µs.
const TOMBSTONES: u64 = 600_000_000;
/// How often what is old is looked for: 1 min in µs.
const SWEEP: u64 = 60_000_000;
/// How long records of absent nodes and revisions of extinct services are kept: 72 h in µs.
const REAP: u64 = 72 * 3_600_000_000;

/// For how long poison of one node is not named again: 1 h in µs.
const QUIET: u64 = 3_600_000_000;

/// The own node's number.
const OWN: u32 = 0;

pub(super) struct State {
    own: NodeId,
    pub(super) nodes: HashMap<NodeId, NodeState>,
    /// The nodes by their numbers.
    numbers: Vec<NodeId>,
    pub(super) own_facts: Facts,
    pub(super) own_log: NodeLog,
    /// How fast the own log changed lately.
    pub(super) own_pace: Pace,
    /// What the own log said in its last life and nobody has said again in this one.
    pub(super) inherited: Inheritance,
    pub(super) events: MassEvents,
    pub(super) services: Services,
    pub(super) hashes: Hashes,
    strings: Strings,
    /// How often trust changed; see [`reverify`](super::Catalog::reverify).
    pub(super) trust: u64,
    revision: u64,
    swept: u64,
}

#[derive(Default)]
pub(super) struct Inheritance {
    pub(super) instances: BTreeSet<InstanceId>,
    pub(super) checks: BTreeSet<Arc<str>>,
}

pub(super) struct NodeState {
    number: u32,
    /// What it says of itself.
    pub(super) record: Option<Arc<NodeRecord>>,
    pub(super) liveness: Liveness,
    /// When membership last changed its mind, or the node was first heard of: unix µs.
    pub(super) since: u64,
    /// Shown although it is down: see [`MassEvents`].
    pub(super) stale: bool,
    /// Down or away for so long that its records were dropped; they are not asked for again until it is back.
    pub(super) reaped: bool,
    /// Whether its instances are in the views.
    shown: bool,
    /// Its log, as far as known; unused for the own node.
    pub(super) replica: Replica,
    /// Hash of what a check speaks for and of the check's key; of those where the one does not follow from the other.
    pub(super) checks: BTreeSet<(u32, u32)>,
    /// How many of its records are poison.
    pub(super) poison: usize,
    /// When that was last said: unix µs.
    named: Option<u64>,
    pub(super) verified: Option<VerifiedNode>,
    /// The record that `verified` comes from.
    pub(super) certificate: Bytes,
    /// Why its certificate no longer counts, if so: nothing of it is shown or passed on.
    pub(super) disowned: Option<String>,
    /// `verified` has changed since the records were read.
    pub(super) rights_changed: bool,
    pub(super) pace: Pace,
    /// Its log was too large: nothing is taken before this time (unix µs), and then all of it.
    pub(super) paused: Option<(u64, Limit)>,
}

impl NodeState {
    pub(super) fn new(number: u32, liveness: Liveness, now: u64) -> Self {
        Self {
            number,
            record: None,
            liveness,
            since: now,
            stale: false,
            reaped: false,
            shown: false,
            replica: Replica::default(),
            checks: BTreeSet::new(),
            poison: 0,
            named: None,
            verified: None,
            certificate: Bytes::new(),
            disowned: None,
            rights_changed: false,
            pace: Pace::default(),
            paused: None,
        }
    }

    /// The limit that it exceeds, if nothing is taken of it now.
    pub(super) fn refused(&mut self, quota: &Quota, now: u64) -> Option<Limit> {
        match self.paused {
            Some((until, limit)) if now < until => Some(limit),
            _ if !self.pace.is_open(quota, now) => Some(Limit::Rate),
            _ => None,
        }
    }

    /// Membership has no say in it.
    pub(super) fn is_external(&self) -> bool {
        self.verified.as_ref().is_some_and(|node| node.external)
    }

    fn is_shown(&self) -> bool {
        self.record.is_some()
            && self.disowned.is_none()
            && (self.liveness.is_present() || self.stale)
    }
}

/// What of another node has to be shown anew.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// The record, the liveness or a node check: everything of the node.
    pub(super) node: bool,
    /// Single instances: their service, before or after, and the hash of their key.
    pub(super) instances: Vec<(u32, u32)>,
}

impl Changed {
    pub(super) fn whole_node() -> Self {
        Self {
            node: true,
            instances: Vec::new(),
        }
    }
}

impl State {
    pub(super) fn new(own: NodeId, own_log: NodeLog, now: u64) -> Self {
        let nodes = HashMap::from([(own, NodeState::new(OWN, Liveness::Alive, now))]);
        Self {
            own,
            nodes,
            numbers: vec![own],
            own_facts: Facts::default(),
            own_log,
            own_pace: Pace::default(),
            inherited: Inheritance::default(),
            events: MassEvents::default(),
            services: Services::default(),
            hashes: Hashes::default(),
            strings: Strings::default(),
            trust: 0,
            revision: 0,
            swept: 0,
        }
    }

    /// A node's state; one that was never heard of counts as down.
    pub(super) fn node(&mut self, id: NodeId, now: u64) -> &mut NodeState {
        let numbers = &mut self.numbers;
        self.nodes.entry(id).or_insert_with(|| {
            numbers.push(id);
            NodeState::new((numbers.len() - 1) as u32, Liveness::Down, now)
        })
    }

    /// Takes what membership says, and shows what follows from it.
    pub(super) fn set_liveness(&mut self, index: &Index, id: NodeId, liveness: Liveness, now: u64) {
        let node = self.node(id, now);
        let was = node.liveness;
        if was == liveness || node.is_external() {
            return;
        }
        (node.liveness, node.since) = (liveness, now);
        if liveness.is_present() {
            node.reaped = false;
        }
        let mut changed = vec![id];
        if let Some(zone) = node.record.as_ref().map(|record| record.zone().to_owned()) {
            let present = self.present_in(&zone);
            if was.is_present() && liveness == Liveness::Down {
                let stale = self.events.down(&zone, id, present, now);
                if !stale.is_empty() {
                    tracing::warn!(
                        zone,
                        down = stale.len(),
                        present,
                        "many nodes down at once: keeping them as stale"
                    );
                }
                changed.extend(self.mark(&stale, true));
            } else if !was.is_present() {
                let ended = self.events.resolved(&zone, id, present);
                changed.extend(self.mark(&ended, false));
                self.mark(&[id], false);
            }
        }
        for node in changed {
            self.show_whole(index, node, now);
        }
    }

    fn mark(&mut self, nodes: &[NodeId], stale: bool) -> Vec<NodeId> {
        let mut marked = Vec::new();
        for id in nodes {
            if let Some(node) = self.nodes.get_mut(id)
                && node.stale != stale
            {
                node.stale = stale;
                marked.push(*id);
            }
        }
        marked
    }

    fn present_in(&self, zone: &str) -> usize {
        let counts = |node: &&NodeState| {
            node.liveness.is_present()
                && !node.is_external()
                && node.disowned.is_none()
                && node
                    .record
                    .as_ref()
                    .is_some_and(|record| record.zone() == zone)
        };
        self.nodes.values().filter(counts).count()
    }

    /// What time alone brings: ends mass events, drops old tombstones, the records of nodes gone for long, and views
    /// that nobody reads.
    pub(super) fn tick(&mut self, index: &Index, now: u64) {
        let ended = self.events.expire(now);
        for node in self.mark(&ended, false) {
            self.show_whole(index, node, now);
        }
        if now.saturating_sub(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.own_log.collect(now.saturating_sub(TOMBSTONES));
        let own = self.own;
        let gone = |(id, node): (&NodeId, &NodeState)| {
            let expired =
                *id != own && !node.liveness.is_present() && now.saturating_sub(node.since) > REAP;
            (expired && !node.reaped).then_some(*id)
        };
        for id in self.nodes.iter().filter_map(gone).collect::<Vec<_>>() {
            self.reap(index, id, now);
        }
        index.forget_unread();
        index.prune(now.saturating_sub(REAP));
    }

    fn reap(&mut self, index: &Index, id: NodeId, now: u64) {
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let empty = NodeState {
            reaped: true,
            shown: node.shown,
            ..NodeState::new(node.number, node.liveness, node.since)
        };
        let was = std::mem::replace(node, empty);
        let instances: Vec<_> = instances_of(&was.replica).collect();
        for (service, hash) in &instances {
            self.services.set(*service, was.number, *hash, false);
        }
        let changed = Changed {
            node: true,
            instances,
        };
        self.show(index, id, changed, now);
        index.remove_node(&id);
    }

    /// Takes `message` into the log of `id`, or, without one, reads the log again.
    pub(super) fn read<T>(
        &mut self,
        index: &Index,
        id: NodeId,
        (longest, now): (usize, u64),
        read: impl FnOnce(&mut Replica, &mut Reading<'_>) -> T,
    ) -> Option<(T, Changed)> {
        let node = self.nodes.get_mut(&id)?;
        let verified = node.verified.clone()?;
        let mut reading = Reading {
            node: &verified,
            longest,
            hashes: &self.hashes,
            index,
            services: &mut self.services,
            found: Found::default(),
        };
        let result = read(&mut node.replica, &mut reading);
        let found = reading.found;
        node.poison = node.poison.saturating_add_signed(found.poison);
        if let Some(reason) = found.reason
            && node
                .named
                .is_none_or(|named| now.saturating_sub(named) > QUIET)
        {
            node.named = Some(now);
            tracing::warn!(
                node = %id,
                poison = node.poison,
                reason,
                "records quarantined; more of this node are only counted"
            );
        }
        let has = |replica: &Replica, hash, is: &dyn Fn(Note) -> bool| replica.notes(hash).any(is);
        for (service, hash) in &found.instances {
            let is = |note: Note| note.kind == kind::INSTANCE && note.link == *service;
            let is = has(&node.replica, *hash, &is);
            self.services.set(*service, node.number, *hash, is);
        }
        for (owner, hash) in found.checks {
            let is = |note: Note| note.kind == kind::CHECK && note.link == owner;
            match has(&node.replica, hash, &is) {
                true => node.checks.insert((owner, hash)),
                false => node.checks.remove(&(owner, hash)),
            };
        }
        let mut changed = Changed {
            node: found.node,
            instances: found.instances,
        };
        let whole_node = self.hashes.of_owner(None);
        for owner in found.owners {
            changed.node |= owner == whole_node;
            let of = node
                .replica
                .notes(owner)
                .filter(|note| note.kind == kind::INSTANCE);
            changed.instances.extend(of.map(|note| (note.link, owner)));
        }
        if found.node {
            let record = maker(&self.hashes, &mut self.strings).node_record(node);
            node.record = record;
        }
        Some((result, changed))
    }
}

fn maker<'a>(hashes: &'a Hashes, strings: &'a mut Strings) -> Maker<'a> {
    Maker { hashes, strings }
}

fn instances_of(replica: &Replica) -> impl Iterator<Item = (u32, u32)> {
    let instances = replica
        .all_notes()
        .filter(|(_, note)| note.kind == kind::INSTANCE);
    instances.map(|(hash, note)| (note.link, hash))
}
