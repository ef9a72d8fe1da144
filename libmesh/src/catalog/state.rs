//! The write side: all nodes' logs behind one lock, and what of a change is shown.
//!
//! A change of another node's log costs what its own records cost, plus, for each service among them, a new revision
//! and a wake-up. Only a service whose view is kept (because somebody reads it) gets a new view: that costs one record
//! for each change and one pointer copy for each of its instances.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::facts::{Facts, Touched};
use super::index::{Index, NodeCell, ServiceCell};
use super::log::NodeLog;
use super::mass::MassEvents;
use super::quota::{Limit, Pace, Quota};
use super::read::{Found, Hashes, Reading, kind};
use super::record::Key;
use super::replica::Replica;
use super::services::Services;
use super::show::{self, Maker};
use super::strings::Strings;
use super::verify::VerifiedNode;
use super::view::{InstanceView, NodeView, ServiceView};
use crate::model::{InstanceId, Liveness, NodeId, NodeRecord, ServiceName};

/// How long the owner keeps tombstones: 10 min in µs.
const TOMBSTONES: u64 = 600_000_000;
/// How often what is old is looked for: 1 min in µs.
const SWEEP: u64 = 60_000_000;
/// How long records of absent nodes and revisions of extinct services are kept: 72 h in µs.
const REAP: u64 = 72 * 3_600_000_000;

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

/// How a node is shown from now on.
struct Shown {
    cell: Arc<NodeCell>,
    /// Whether readers see a difference in its instances.
    visible: bool,
    now: bool,
    revision: u64,
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
        if was == liveness {
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
        longest: usize,
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
        if let Some(reason) = found.reason {
            tracing::warn!(node = %id, poison = node.poison, reason, "records quarantined");
        }
        let has = |replica: &Replica, hash, is: &dyn Fn(super::replica::Note) -> bool| {
            replica.notes(hash).any(is)
        };
        for (service, hash) in &found.instances {
            let is =
                |note: super::replica::Note| note.kind == kind::INSTANCE && note.link == *service;
            let is = has(&node.replica, *hash, &is);
            self.services.set(*service, node.number, *hash, is);
        }
        for (owner, hash) in found.checks {
            let is = |note: super::replica::Note| note.kind == kind::CHECK && note.link == owner;
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

    pub(super) fn show_whole(&mut self, index: &Index, id: NodeId, now: u64) {
        if id == self.own {
            let whole = Touched {
                node: true,
                ..Touched::default()
            };
            self.show_own(index, whole, now);
        } else {
            self.show(index, id, Changed::whole_node(), now);
        }
    }

    /// Shows what changed of another node.
    pub(super) fn show(&mut self, index: &Index, id: NodeId, changed: Changed, now: u64) {
        if !changed.node && changed.instances.is_empty() {
            return;
        }
        let whole = changed.node;
        let Some(shown) = self.show_node(index, id, whole, now) else {
            return self.collect(&changed.instances);
        };
        let mut pairs = changed.instances;
        let node = &self.nodes[&id];
        if whole {
            pairs.extend(instances_of(&node.replica));
        }
        pairs.sort_unstable();
        pairs.dedup();
        shown.cell.forget_instances();
        let view = shown.cell.view();
        let revision = shown.revision;
        let groups = pairs.chunk_by(|(a, _), (b, _)| a == b);
        for group in groups.filter(|_| shown.visible) {
            let number = group[0].0;
            let Some(service) = self.services.get(number) else {
                continue;
            };
            let Some(old) = service.cell.kept() else {
                service.cell.touch(revision);
                continue;
            };
            let mut new = Vec::new();
            if shown.now {
                let mut maker = maker(&self.hashes, &mut self.strings);
                for (_, hash) in group {
                    maker.instances(node, &view, Some(number), *hash, revision, &mut new);
                }
            }
            let hashes = &self.hashes;
            let gone = |id: &InstanceId| {
                let hash = hashes.of_key(Key::Instance(id.as_str()));
                group.binary_search(&(number, hash)).is_ok()
            };
            replace(
                &service.cell,
                &service.name,
                old.as_deref(),
                id,
                gone,
                new,
                revision,
            );
        }
        self.hide(index, id);
        self.collect(&pairs);
        index.publish_revision(revision);
    }

    /// Shows what changed of the own node.
    pub(super) fn show_own(&mut self, index: &Index, touched: Touched, now: u64) {
        if touched.is_empty() {
            return;
        }
        let own = self.own;
        if let Some(node) = self.nodes.get_mut(&own) {
            node.record = self.own_facts.record().cloned();
        }
        let mut numbers = Vec::new();
        for (name, _) in &touched.instances {
            let Some(number) = self.services.number(index, name.as_str()) else {
                continue;
            };
            // One member stands for all of ours: it keeps the service's cell.
            let has = self.own_facts.of_service(name.as_str()).next().is_some();
            self.services.set(number, OWN, 0, has);
            numbers.push((number, 0));
        }
        let Some(shown) = self.show_node(index, own, touched.node, now) else {
            return self.collect(&numbers);
        };
        let facts = &self.own_facts;
        let mut services: BTreeMap<&ServiceName, BTreeSet<&InstanceId>> = BTreeMap::new();
        for (service, id) in &touched.instances {
            services.entry(service).or_default().insert(id);
        }
        if touched.node {
            for instance in facts.instances() {
                let ids = services.entry(&instance.service).or_default();
                ids.insert(&instance.id);
            }
        }
        shown.cell.forget_instances();
        let view = shown.cell.view();
        let (stale, revision) = (self.nodes[&own].stale, shown.revision);
        for (name, ids) in services.into_iter().filter(|_| shown.visible) {
            let Some((_, service)) = self.services.by_name(name.as_str()) else {
                continue;
            };
            let Some(old) = service.cell.kept() else {
                service.cell.touch(revision);
                continue;
            };
            let there = ids.iter().filter_map(|id| facts.instance(id));
            let there = there.filter(|instance| shown.now && instance.service == *name);
            let new = there
                .map(|instance| show::own_instance(facts, instance, &view, stale, revision))
                .collect();
            let gone = |id: &InstanceId| ids.contains(id);
            replace(
                &service.cell,
                name,
                old.as_deref(),
                own,
                gone,
                new,
                revision,
            );
        }
        self.collect(&numbers);
        self.hide(index, own);
        index.publish_revision(revision);
    }

    /// Brings the node's own view up to date; `None` when there is nothing to show.
    fn show_node(&mut self, index: &Index, id: NodeId, whole: bool, now: u64) -> Option<Shown> {
        let node = self.nodes.get_mut(&id)?;
        if node.disowned.is_some() && index.node(&id).is_none() {
            return None;
        }
        let revision = now.max(self.revision + 1);
        self.revision = revision;
        let now_shown = node.is_shown();
        let was = std::mem::replace(&mut node.shown, now_shown);
        let node = &self.nodes[&id];
        let cell = if whole {
            // The record is gone: what was shown goes with it.
            let known = || index.node(&id).map(|cell| Arc::clone(&cell.view().record));
            node.record.clone().or_else(known).map(|record| {
                let checks = if id == self.own {
                    self.own_facts.checks_of(None).cloned().collect()
                } else {
                    maker(&self.hashes, &mut self.strings).checks_of(node, None)
                };
                index.put_node(&Arc::new(NodeView {
                    record,
                    liveness: node.liveness,
                    checks,
                    revision,
                }))
            })
        } else {
            index.node(&id)
        };
        let Some(cell) = cell else {
            index.publish_revision(revision);
            return None;
        };
        Some(Shown {
            cell,
            visible: was || node.shown,
            now: node.shown,
            revision,
        })
    }

    /// Takes the node itself from the index, when it is no longer to be found.
    fn hide(&self, index: &Index, id: NodeId) {
        let node = &self.nodes[&id];
        if node.liveness == Liveness::Left || node.disowned.is_some() {
            index.remove_node(&id);
        }
    }

    fn collect(&mut self, pairs: &[(u32, u32)]) {
        for (service, _) in pairs {
            self.services.collect(*service);
        }
    }

    /// The view of a service, made now. With `keep` it is kept in its cell, and up to date from then on.
    pub(super) fn view(
        &mut self,
        index: &Index,
        cell: &ServiceCell,
        name: &str,
        keep: bool,
    ) -> Option<Arc<ServiceView>> {
        // Someone else may have made it while this one waited for the lock.
        if let Some(view) = cell.kept() {
            return view;
        }
        let view = self.make_view(index, cell.revision(), name);
        if keep {
            cell.keep(view.clone());
        }
        view
    }

    fn make_view(&mut self, index: &Index, revision: u64, name: &str) -> Option<Arc<ServiceView>> {
        let mut instances = Vec::new();
        let own = &self.nodes[&self.own];
        if own.shown
            && let Some(cell) = index.node(&self.own)
        {
            let view = cell.view();
            let facts = &self.own_facts;
            let make = |instance| show::own_instance(facts, instance, &view, own.stale, revision);
            instances.extend(facts.of_service(name).map(make));
        }
        if let Some((number, service)) = self.services.by_name(name) {
            let mut maker = maker(&self.hashes, &mut self.strings);
            let mut node: Option<(u32, &NodeState, Arc<NodeView>)> = None;
            for (of, hash) in &service.members {
                if node.as_ref().is_none_or(|(number, ..)| number != of) {
                    let id = self.numbers[*of as usize];
                    let Some(state) = self.nodes.get(&id).filter(|state| state.shown) else {
                        continue;
                    };
                    let Some(cell) = index.node(&id) else {
                        continue;
                    };
                    node = Some((*of, state, cell.view()));
                }
                if let Some((_, state, view)) = &node {
                    maker.instances(state, view, Some(number), *hash, revision, &mut instances);
                }
            }
        }
        instances.sort_unstable_by(|a, b| a.cmp_place(b));
        let name = instances.first()?.instance.service.clone();
        Some(Arc::new(ServiceView {
            name,
            revision,
            instances,
        }))
    }

    /// What is shown of a node's instances, by id, made now and kept in its cell until something changes.
    pub(super) fn instances_on(
        &mut self,
        id: &NodeId,
        cell: &NodeCell,
    ) -> Arc<Vec<Arc<InstanceView>>> {
        if let Some(kept) = cell.kept_instances() {
            return kept;
        }
        let mut instances = Vec::new();
        let view = cell.view();
        if let Some(node) = self.nodes.get(id).filter(|node| node.shown) {
            if *id == self.own {
                let facts = &self.own_facts;
                let make = |one| show::own_instance(facts, one, &view, node.stale, view.revision);
                instances.extend(facts.instances().map(make));
            } else {
                let mut maker = maker(&self.hashes, &mut self.strings);
                let mut pairs: Vec<_> = instances_of(&node.replica).collect();
                pairs.sort_unstable();
                pairs.dedup();
                for (service, hash) in pairs {
                    let revision = self.services.get(service).map_or(0, |s| s.cell.revision());
                    maker.instances(node, &view, Some(service), hash, revision, &mut instances);
                }
            }
        }
        instances.sort_unstable_by(|a, b| a.instance.id.cmp(&b.instance.id));
        let instances = Arc::new(instances);
        cell.keep_instances(Arc::clone(&instances));
        instances
    }

    /// Names of the services that have instances on nodes that are shown.
    pub(super) fn service_names(&self) -> BTreeSet<ServiceName> {
        let shown = |number: u32| {
            let id = self.numbers.get(number as usize);
            id.and_then(|id| self.nodes.get(id))
                .is_some_and(|node| node.shown)
        };
        let all = self.services.all();
        let all = all.filter(|service| service.members.iter().any(|(node, _)| shown(*node)));
        all.map(|service| service.name.clone()).collect()
    }

    /// The tags of the instances on shown nodes that `wanted` picks, by service.
    pub(super) fn tags(
        &mut self,
        index: &Index,
        wanted: impl Fn(&NodeView) -> bool,
    ) -> BTreeMap<ServiceName, BTreeSet<Arc<str>>> {
        let mut all: BTreeMap<ServiceName, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.shown) {
            if !index.node(id).is_some_and(|cell| wanted(&cell.view())) {
                continue;
            }
            if *id == self.own {
                for instance in self.own_facts.instances() {
                    let tags = all.entry(instance.service.clone()).or_default();
                    tags.extend(instance.tags.iter().cloned());
                }
            }
            let (services, strings) = (&self.services, &mut self.strings);
            let is_instance = |note: super::replica::Note| note.kind == kind::INSTANCE;
            node.replica.each(is_instance, |note, _, body| {
                let Some(service) = services.get(note.link) else {
                    return;
                };
                if !all.contains_key(&service.name) {
                    all.insert(service.name.clone(), BTreeSet::new());
                }
                let known = all.get_mut(&service.name).expect("it was put there");
                for tag in super::record::tags(body) {
                    if !known.contains(tag) {
                        known.insert(strings.shared(tag));
                    }
                }
            });
        }
        all
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

/// Shows a kept view in which the instances of `node` that are `gone` give way to `new` ones.
fn replace(
    cell: &ServiceCell,
    name: &ServiceName,
    old: Option<&ServiceView>,
    node: NodeId,
    gone: impl Fn(&InstanceId) -> bool,
    mut new: Vec<Arc<InstanceView>>,
    revision: u64,
) {
    new.sort_unstable_by(|a, b| a.cmp_place(b));
    let old = old.map_or(&[][..], |view| &view.instances);
    let mut instances = Vec::with_capacity(old.len() + new.len());
    let mut new = new.into_iter().peekable();
    for view in old {
        if view.node.record.id == node && gone(&view.instance.id) {
            continue;
        }
        while let Some(before) = new.next_if(|new| new.cmp_place(view).is_lt()) {
            instances.push(before);
        }
        instances.push(Arc::clone(view));
    }
    instances.extend(new);
    let view = (!instances.is_empty()).then(|| {
        Arc::new(ServiceView {
            name: name.clone(),
            revision,
            instances,
        })
    });
    cell.publish(view, revision);
}
