//! What of a change is shown: new revisions, wake-ups, and the views that somebody reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::facts::Touched;
use super::super::index::{Index, NodeCell, ServiceCell};
use super::super::record::Key;
use super::super::show;
use super::super::view::{InstanceView, NodeView, ServiceView};
use super::{Changed, OWN, State, instances_of, maker};
use crate::model::{InstanceId, Liveness, NodeId, ServiceName};

/// How a node is shown from now on.
struct Shown {
    cell: Arc<NodeCell>,
    /// Whether readers see a difference in its instances.
    visible: bool,
    now: bool,
    revision: u64,
}

impl State {
    pub(in super::super) fn show_whole(&mut self, index: &Index, id: NodeId, now: u64) {
        if id == self.own {
            let whole = Touched {
                node: true,
                ..Touched::default()
            };
            self.show_own(index, &whole, now);
        } else {
            self.show(index, id, Changed::whole_node(), now);
        }
    }

    /// Shows what changed of another node.
    pub(in super::super) fn show(&mut self, index: &Index, id: NodeId, changed: Changed, now: u64) {
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
    pub(in super::super) fn show_own(&mut self, index: &Index, touched: &Touched, now: u64) {
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
        // Membership does not say so of one that is no member: that nothing is said of it any more does.
        let unsaid = node.is_external() && node.record.is_none();
        if node.liveness == Liveness::Left || node.disowned.is_some() || unsaid {
            index.remove_node(&id);
        }
    }

    fn collect(&mut self, pairs: &[(u32, u32)]) {
        for (service, _) in pairs {
            self.services.collect(*service);
        }
    }
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
