//! The write side: all nodes' facts behind one lock, and how a change becomes views.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::facts::{Facts, Touched, aggregate};
use super::index::{Index, NodeCell};
use super::log::NodeLog;
use super::mass::MassEvents;
use super::replica::Replica;
use super::strings::Strings;
use super::verify::VerifiedNode;
use super::view::{InstanceView, NodeView, Place, ServiceView};
use crate::model::{InstanceId, Liveness, NodeId, ServiceName};

/// How long the owner keeps tombstones: 10 min in µs.
const TOMBSTONES: u64 = 600_000_000;
/// How often what is old is looked for: 1 min in µs.
const SWEEP: u64 = 60_000_000;
/// How long records of absent nodes and revisions of extinct services are kept: 72 h in µs.
const REAP: u64 = 72 * 3_600_000_000;

pub(super) struct State {
    pub(super) nodes: HashMap<NodeId, NodeState>,
    pub(super) own_log: NodeLog,
    /// What the own log said in its last life and nobody has said again in this one.
    pub(super) inherited: Inheritance,
    pub(super) events: MassEvents,
    pub(super) strings: Strings,
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
    pub(super) facts: Facts,
    pub(super) liveness: Liveness,
    /// When membership last changed its mind, or the node was first heard of: unix µs.
    pub(super) since: u64,
    /// Shown although it is down: see [`MassEvents`].
    pub(super) stale: bool,
    /// Down or away for so long that its records were dropped; they are not asked for again until it is back.
    pub(super) reaped: bool,
    /// Its log, as far as known; unused for the own node.
    pub(super) replica: Replica,
    pub(super) verified: Option<VerifiedNode>,
    /// The record that `verified` comes from.
    pub(super) certificate: Bytes,
    /// Why its certificate no longer counts, if so: nothing of it is shown or passed on.
    pub(super) disowned: Option<String>,
    /// `verified` has changed since the records were read.
    pub(super) rights_changed: bool,
    /// Records that are shown to nobody, with the reason; by key.
    pub(super) poison: BTreeMap<Bytes, String>,
}

impl NodeState {
    pub(super) fn new(liveness: Liveness, now: u64) -> Self {
        Self {
            facts: Facts::default(),
            liveness,
            since: now,
            stale: false,
            reaped: false,
            replica: Replica::default(),
            verified: None,
            certificate: Bytes::new(),
            disowned: None,
            rights_changed: false,
            poison: BTreeMap::new(),
        }
    }

    fn is_shown(&self) -> bool {
        self.facts.record().is_some()
            && self.disowned.is_none()
            && (self.liveness.is_present() || self.stale)
    }
}

/// The changes of one service's view: what is at a place now.
type ServiceChanges = HashMap<ServiceName, BTreeMap<Place, Option<Arc<InstanceView>>>>;

impl State {
    pub(super) fn new(own: NodeId, own_log: NodeLog, now: u64) -> Self {
        let nodes = HashMap::from([(own, NodeState::new(Liveness::Alive, now))]);
        Self {
            nodes,
            own_log,
            inherited: Inheritance::default(),
            events: MassEvents::default(),
            strings: Strings::default(),
            trust: 0,
            revision: 0,
            swept: 0,
        }
    }

    /// A node's state; one that was never heard of counts as down.
    pub(super) fn node(&mut self, id: NodeId, now: u64) -> &mut NodeState {
        self.nodes
            .entry(id)
            .or_insert_with(|| NodeState::new(Liveness::Down, now))
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
        if let Some(zone) = node.facts.record().map(|record| record.zone().to_owned()) {
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
            self.publish(index, node, Touched::whole_node(), now);
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
                    .facts
                    .record()
                    .is_some_and(|record| record.zone() == zone)
        };
        self.nodes.values().filter(counts).count()
    }

    /// What time alone brings: ends mass events, drops old tombstones and the records of nodes gone for long.
    pub(super) fn tick(&mut self, index: &Index, own: NodeId, now: u64) {
        let ended = self.events.expire(now);
        for node in self.mark(&ended, false) {
            self.publish(index, node, Touched::whole_node(), now);
        }
        if now.saturating_sub(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        self.own_log.collect(now.saturating_sub(TOMBSTONES));
        let gone = |(id, node): (&NodeId, &NodeState)| {
            let expired =
                *id != own && !node.liveness.is_present() && now.saturating_sub(node.since) > REAP;
            (expired && !node.reaped).then_some(*id)
        };
        for id in self.nodes.iter().filter_map(gone).collect::<Vec<_>>() {
            if let Some(node) = self.nodes.get_mut(&id) {
                *node = NodeState {
                    reaped: true,
                    ..NodeState::new(node.liveness, node.since)
                };
            }
            self.publish(index, id, Touched::whole_node(), now);
            index.remove_node(&id);
        }
        index.prune(now.saturating_sub(REAP));
    }

    /// Shows what changed of the facts of `node`. Costs O(touched instances · log) plus one pointer copy for each
    /// instance of every service among them.
    pub(super) fn publish(&mut self, index: &Index, node: NodeId, touched: Touched, now: u64) {
        if touched.is_empty() {
            return;
        }
        let Some(state) = self.nodes.get(&node) else {
            return;
        };
        if state.disowned.is_some() && index.node(&node).is_none() {
            return;
        }
        let revision = now.max(self.revision + 1);
        self.revision = revision;

        let cell = show_node(index, &node, state, touched.node, revision);
        let Some(cell) = cell else {
            index.publish_revision(revision);
            return;
        };
        let mut changes = ServiceChanges::new();
        let mut instances = touched.instances;
        {
            let mut shown = cell.instances.write();
            if touched.node {
                instances.extend(state.facts.instances().map(|instance| instance.id.clone()));
                instances.extend(shown.keys().cloned());
            }
            let view = cell.view();
            for id in instances {
                let old = shown.remove(&id);
                let new = state
                    .is_shown()
                    .then(|| instance_view(state, &view, &id, revision))
                    .flatten();
                if let Some(old) = old {
                    changes
                        .entry(old.instance.service.clone())
                        .or_default()
                        .insert(old.place(), None);
                }
                if let Some(new) = new {
                    changes
                        .entry(new.instance.service.clone())
                        .or_default()
                        .insert(new.place(), Some(Arc::clone(&new)));
                    shown.insert(id, new);
                }
            }
        }
        if state.liveness == Liveness::Left || state.disowned.is_some() {
            index.remove_node(&node);
        }
        for (name, changes) in changes {
            show_service(index, &name, changes, revision);
        }
        index.publish_revision(revision);
    }
}

/// Brings the node's own view up to date; `None` when there is nothing to show it with.
fn show_node(
    index: &Index,
    id: &NodeId,
    state: &NodeState,
    changed: bool,
    revision: u64,
) -> Option<Arc<NodeCell>> {
    if !changed {
        return index.node(id);
    }
    let record = match state.facts.record() {
        Some(record) => Arc::clone(record),
        // The record is gone: what was shown goes with it.
        None => Arc::clone(&index.node(id)?.view().record),
    };
    let checks = state.facts.checks_of(None).cloned().collect();
    Some(index.put_node(&Arc::new(NodeView {
        record,
        liveness: state.liveness,
        checks,
        revision,
    })))
}

fn instance_view(
    state: &NodeState,
    node: &Arc<NodeView>,
    id: &InstanceId,
    revision: u64,
) -> Option<Arc<InstanceView>> {
    let instance = Arc::clone(state.facts.instance(id)?);
    let mut checks: Vec<_> = state.facts.checks_of(Some(id)).cloned().collect();
    checks.extend(node.checks.iter().cloned());
    let health = aggregate(&checks);
    Some(Arc::new(InstanceView {
        node: Arc::clone(node),
        instance,
        checks,
        health,
        stale: state.stale,
        revision,
    }))
}

fn show_service(
    index: &Index,
    name: &ServiceName,
    changes: BTreeMap<Place, Option<Arc<InstanceView>>>,
    revision: u64,
) {
    let cell = index.service_or_new(name);
    let old = cell.view();
    let old = old.as_ref().map_or(&[][..], |view| &view.instances);
    let instances = merge(old, changes);
    let view = (!instances.is_empty()).then(|| {
        Arc::new(ServiceView {
            name: name.clone(),
            revision,
            instances,
        })
    });
    cell.publish(view, revision);
}

/// `old` (ordered by place) with `changes` in place; ordered again.
fn merge(
    old: &[Arc<InstanceView>],
    changes: BTreeMap<Place, Option<Arc<InstanceView>>>,
) -> Vec<Arc<InstanceView>> {
    let mut merged = Vec::with_capacity(old.len() + changes.len());
    let mut rest = old;
    for (place, new) in changes {
        let before = rest.partition_point(|view| view.cmp_place(&place).is_lt());
        merged.extend_from_slice(&rest[..before]);
        rest = &rest[before..];
        if rest
            .first()
            .is_some_and(|view| view.cmp_place(&place).is_eq())
        {
            rest = &rest[1..];
        }
        merged.extend(new);
    }
    merged.extend_from_slice(rest);
    merged
}
