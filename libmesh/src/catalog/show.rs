//! Making views of what lies in logs.

use std::sync::Arc;

use super::facts::{Facts, aggregate};
use super::read::{Hashes, guarded, kind};
use super::record::{self, Key};
use super::replica::Note;
use super::state::NodeState;
use super::strings::Strings;
use super::view::{InstanceView, NodeView};
use crate::model::{CheckRecord, Instance, NodeRecord};

/// What it takes to read another node's records out of its log.
pub(super) struct Maker<'a> {
    pub(super) hashes: &'a Hashes,
    pub(super) strings: &'a mut Strings,
}

impl Maker<'_> {
    /// What the node says of itself.
    pub(super) fn node_record(&mut self, node: &NodeState) -> Option<Arc<NodeRecord>> {
        let id = node.verified.as_ref()?.id;
        let mut found = None;
        let hash = self.hashes.of_key(Key::Node);
        node.replica.with_hash(hash, |note, _, body| {
            if note.kind == kind::NODE {
                found = guarded(|| record::node_record(id, self.strings, body)).ok();
            }
        });
        found.map(Arc::new)
    }

    /// The checks of an instance, or (`None`) of the node, by id.
    pub(super) fn checks_of(
        &mut self,
        node: &NodeState,
        instance: Option<&str>,
    ) -> Vec<Arc<CheckRecord>> {
        let owner = self.hashes.of_owner(instance);
        let mut hashes: Vec<_> = node
            .checks
            .range((owner, 0)..=(owner, u32::MAX))
            .map(|(_, check)| *check)
            .collect();
        if let Some(id) = instance {
            hashes.push(self.hashes.of_key(Key::DerivedCheck(id)));
        }
        hashes.sort_unstable();
        hashes.dedup();
        let mut checks = Vec::new();
        for hash in hashes {
            node.replica.with_hash(hash, |note, key, body| {
                if !matches!(note.kind, kind::CHECK | kind::DERIVED_CHECK) || note.link != owner {
                    return;
                }
                let made = guarded(|| record::check_record(Key::decode(key)?, self.strings, body));
                // A hash may be another's, too.
                let fits =
                    |check: &CheckRecord| check.service.as_ref().map(|id| id.as_str()) == instance;
                checks.extend(made.ok().filter(fits).map(Arc::new));
            });
        }
        checks.sort_unstable_by(|a: &Arc<CheckRecord>, b| a.id.cmp(&b.id));
        checks
    }

    /// The instances of a service, or (`None`) of any, whose keys have this hash.
    pub(super) fn instances(
        &mut self,
        node: &NodeState,
        view: &Arc<NodeView>,
        service: Option<u32>,
        hash: u32,
        revision: u64,
        into: &mut Vec<Arc<InstanceView>>,
    ) {
        let mut made: Vec<Instance> = Vec::new();
        node.replica.with_hash(hash, |note: Note, key, body| {
            if note.kind != kind::INSTANCE || service.is_some_and(|service| service != note.link) {
                return;
            }
            let instance = guarded(|| match Key::decode(key)? {
                Key::Instance(id) => record::instance(id, self.strings, body),
                _ => Err("no instance has this key".to_owned()),
            });
            made.extend(instance);
        });
        for instance in made {
            let checks = self.checks_of(node, Some(instance.id.as_str()));
            into.push(instance_view(
                Arc::new(instance),
                checks,
                view,
                node.stale,
                revision,
            ));
        }
    }
}

/// An instance of this node.
pub(super) fn own_instance(
    facts: &Facts,
    instance: &Arc<Instance>,
    view: &Arc<NodeView>,
    stale: bool,
    revision: u64,
) -> Arc<InstanceView> {
    let checks = facts.checks_of(Some(&instance.id)).cloned().collect();
    instance_view(Arc::clone(instance), checks, view, stale, revision)
}

fn instance_view(
    instance: Arc<Instance>,
    mut checks: Vec<Arc<CheckRecord>>,
    node: &Arc<NodeView>,
    stale: bool,
    revision: u64,
) -> Arc<InstanceView> {
    checks.extend(node.checks.iter().cloned());
    let health = aggregate(&checks);
    Arc::new(InstanceView {
        node: Arc::clone(node),
        instance,
        checks,
        health,
        stale,
        revision,
    })
}
