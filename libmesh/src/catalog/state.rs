//! The write side: all nodes' facts behind one lock, and how a change becomes views.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::facts::{Facts, Touched, aggregate};
use super::index::{Index, NodeCell};
use super::view::{InstanceView, NodeView, Place, ServiceView};
use crate::model::{InstanceId, Liveness, NodeId, ServiceName};

pub(super) struct State {
    pub(super) nodes: HashMap<NodeId, NodeState>,
    revision: u64,
}

pub(super) struct NodeState {
    pub(super) facts: Facts,
    pub(super) liveness: Liveness,
}

impl Default for NodeState {
    fn default() -> Self {
        Self {
            facts: Facts::default(),
            liveness: Liveness::Down,
        }
    }
}

impl NodeState {
    fn is_shown(&self) -> bool {
        self.facts.record().is_some() && self.liveness.is_present()
    }
}

/// The changes of one service's view: what is at a place now.
type ServiceChanges = HashMap<ServiceName, BTreeMap<Place, Option<Arc<InstanceView>>>>;

impl State {
    pub(super) fn new(own: NodeId) -> Self {
        let own_state = NodeState {
            facts: Facts::default(),
            liveness: Liveness::Alive,
        };
        Self {
            nodes: HashMap::from([(own, own_state)]),
            revision: 0,
        }
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
        if state.liveness == Liveness::Left {
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
        stale: false,
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
