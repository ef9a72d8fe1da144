//! What lies between two looks at the catalog.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::view::{InstanceView, NodeView, ServiceView};

/// What happened between two looks. Revisions do not count: what is shown anew but as it was has not changed.
#[derive(Debug, Clone)]
pub struct Diff<T> {
    /// The catalog is at least this far; see [`Catalog::revision`](super::Catalog::revision).
    pub revision: u64,
    /// Not there before.
    pub added: Vec<Arc<T>>,
    /// There before, and different now (a record, checks, what is thought of a node): as they are.
    pub changed: Vec<Arc<T>>,
    /// There no longer: as they were.
    pub removed: Vec<Arc<T>>,
}

impl<T> Diff<T> {
    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }

    /// From `old` to `new`, each in its own order: one pass over both.
    fn between<K: Hash + Eq>(
        revision: u64,
        old: &[&Arc<T>],
        new: &[&Arc<T>],
        key: impl Fn(&T) -> K,
        same: impl Fn(&T, &T) -> bool,
    ) -> Self {
        let before: HashMap<K, &Arc<T>> = old.iter().map(|thing| (key(thing), *thing)).collect();
        let there: HashSet<K> = new.iter().map(|thing| key(thing)).collect();
        let removed = old.iter().filter(|thing| !there.contains(&key(thing)));
        let removed = removed.map(|thing| Arc::clone(thing)).collect();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for thing in new {
            match before.get(&key(thing)) {
                None => added.push(Arc::clone(thing)),
                Some(before) if Arc::ptr_eq(before, thing) || same(before, thing) => {}
                Some(_) => changed.push(Arc::clone(thing)),
            }
        }
        Self {
            revision,
            added,
            changed,
            removed,
        }
    }
}

impl Diff<InstanceView> {
    /// Between two sets of services. An instance that moved from one service to another has changed.
    pub fn instances(revision: u64, old: &[Arc<ServiceView>], new: &[Arc<ServiceView>]) -> Self {
        // By what never changes of an instance: its node may change its name.
        let key = |view: &InstanceView| (view.node.record.id, view.instance.id.shared());
        let (old, new) = (all(old), all(new));
        Self::between(revision, &old, &new, key, InstanceView::same_as)
    }
}

impl Diff<NodeView> {
    /// Between two sets of nodes.
    pub fn nodes(revision: u64, old: &[Arc<NodeView>], new: &[Arc<NodeView>]) -> Self {
        let same = |a: &NodeView, b: &NodeView| {
            a.liveness == b.liveness && a.record == b.record && a.checks == b.checks
        };
        let (old, new): (Vec<_>, Vec<_>) = (old.iter().collect(), new.iter().collect());
        Self::between(revision, &old, &new, |node| node.record.id, same)
    }
}

fn all(services: &[Arc<ServiceView>]) -> Vec<&Arc<InstanceView>> {
    services.iter().flat_map(|view| &view.instances).collect()
}
