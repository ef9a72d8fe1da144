//! What lies between two views of a service.

use std::cmp::Ordering;
use std::sync::Arc;

use super::view::{InstanceView, ServiceView};

/// What happened to a service from one view to another. Revisions do not count: an instance that is shown anew but as
/// it was has not changed.
#[derive(Debug, Clone, Default)]
pub struct ServiceDiff {
    /// Instances that were not there before.
    pub added: Vec<Arc<InstanceView>>,
    /// Instances that are there no longer, as they were.
    pub removed: Vec<Arc<InstanceView>>,
    /// Instances of which something changed (their record, their checks, what is thought of their node), as they are.
    pub changed: Vec<Arc<InstanceView>>,
}

impl ServiceDiff {
    /// From `old` to `new`; `None` = no instances, as [`Catalog::service`](super::Catalog::service) has it. Costs one
    /// pass over both.
    pub fn between(old: Option<&ServiceView>, new: Option<&ServiceView>) -> Self {
        let (old, new) = (by_owner(old), by_owner(new));
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        let mut diff = Self::default();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return diff,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(before), Some(now)) => owner(before).cmp(&owner(now)),
            };
            let before = (order != Ordering::Greater).then(|| old.next()).flatten();
            let now = (order != Ordering::Less).then(|| new.next()).flatten();
            match (before, now) {
                (Some(before), None) => diff.removed.push(Arc::clone(before)),
                (None, Some(now)) => diff.added.push(Arc::clone(now)),
                (Some(before), Some(now)) if !now.same_as(before) => {
                    diff.changed.push(Arc::clone(now));
                }
                _ => {}
            }
        }
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

fn owner(view: &InstanceView) -> (&[u8; 16], &str) {
    (view.node.record.id.as_bytes(), view.instance.id.as_str())
}

/// By what never changes of an instance: a node may change its name.
fn by_owner(view: Option<&ServiceView>) -> Vec<&Arc<InstanceView>> {
    let instances = view.into_iter().flat_map(|view| &view.instances);
    let mut instances: Vec<_> = instances.collect();
    instances.sort_unstable_by(|a, b| owner(a).cmp(&owner(b)));
    instances
}
