//! Writing what this node publishes.

use std::sync::Arc;

use super::{Catalog, LocalError};
use crate::model::{CheckRecord, Instance, InstanceId, NodeRecord};

/// Write access to this node's own log: the only one a node may write.
///
/// Every write shows in the own catalog before the call returns. Writing what is already there changes nothing, wakes
/// nobody and sends nothing.
#[derive(Clone, Debug)]
pub struct LocalLog {
    catalog: Catalog,
}

impl LocalLog {
    pub(super) fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    /// Publishes what this node says about itself. Nothing of the node is shown before this was called once.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::ForeignNode`] when the record's id is another's.
    pub fn put_node(&self, record: NodeRecord) -> Result<(), LocalError> {
        record.validate()?;
        if record.id != self.catalog.own() {
            return Err(LocalError::ForeignNode {
                given: record.id,
                own: self.catalog.own(),
            });
        }
        self.catalog
            .write_own(|facts, touched, _now| facts.set_record(Some(record), touched));
        Ok(())
    }

    /// Registers an instance, or changes the one with its id. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`].
    pub fn put_service(&self, mut instance: Instance) -> Result<(), LocalError> {
        instance.validate()?;
        let id = instance.id.clone();
        self.catalog.write_own(|facts, touched, now| {
            (instance.create_stamp, instance.modify_stamp) = (now, now);
            if let Some(old) = facts.instance(&id) {
                if old.same_as(&instance) {
                    return;
                }
                instance.create_stamp = old.create_stamp;
                instance.modify_stamp = now.max(old.modify_stamp + 1);
            }
            facts.set_instance(&id, Some(instance), touched);
        });
        Ok(())
    }

    /// Takes an instance and its checks away; whether there was one.
    pub fn remove_service(&self, id: &InstanceId) -> bool {
        let mut found = false;
        self.catalog.write_own(|facts, touched, _now| {
            found = facts.instance(id).is_some();
            let checks: Vec<_> = facts
                .checks_of(Some(id))
                .map(|check| Arc::clone(&check.id))
                .collect();
            for check in checks {
                facts.set_check(&check, None, touched);
            }
            facts.set_instance(id, None, touched);
        });
        found
    }

    /// Publishes a check, or its new status. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::UnknownInstance`] when it speaks for an instance that is not registered.
    pub fn put_check(&self, mut check: CheckRecord) -> Result<(), LocalError> {
        check.validate()?;
        let id = Arc::clone(&check.id);
        let mut result = Ok(());
        self.catalog.write_own(|facts, touched, now| {
            if let Some(instance) = &check.service
                && facts.instance(instance).is_none()
            {
                result = Err(LocalError::UnknownInstance {
                    id: instance.clone(),
                });
                return;
            }
            (check.create_stamp, check.modify_stamp) = (now, now);
            if let Some(old) = facts.check(&id) {
                if old.same_as(&check) {
                    return;
                }
                check.create_stamp = old.create_stamp;
                check.modify_stamp = now.max(old.modify_stamp + 1);
            }
            facts.set_check(&id, Some(check), touched);
        });
        result
    }

    /// Takes a check away; whether there was one.
    pub fn remove_check(&self, id: &str) -> bool {
        let mut found = false;
        self.catalog.write_own(|facts, touched, _now: u64| {
            let known = facts.check(id).map(|check| Arc::clone(&check.id));
            found = known.is_some();
            if let Some(id) = known {
                facts.set_check(&id, None, touched);
            }
        });
        found
    }

    /// One of this node's instances, whether or not the node is shown.
    pub fn service(&self, id: &InstanceId) -> Option<Arc<Instance>> {
        self.catalog.read_own(|facts| facts.instance(id).cloned())
    }

    /// All instances of this node, by id.
    pub fn services(&self) -> Vec<Arc<Instance>> {
        self.catalog
            .read_own(|facts| facts.instances().cloned().collect())
    }

    /// One of this node's checks.
    pub fn check(&self, id: &str) -> Option<Arc<CheckRecord>> {
        self.catalog.read_own(|facts| facts.check(id).cloned())
    }

    /// All checks of this node, by id.
    pub fn checks(&self) -> Vec<Arc<CheckRecord>> {
        self.catalog
            .read_own(|facts| facts.checks().cloned().collect())
    }
}
