//! What one node published, decoded: its record, instances and checks, with the index that finds an instance's checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{CheckRecord, Health, Instance, InstanceId, NodeRecord};

#[derive(Debug, Default)]
pub(super) struct Facts {
    record: Option<Arc<NodeRecord>>,
    instances: BTreeMap<InstanceId, Arc<Instance>>,
    checks: BTreeMap<Arc<str>, Arc<CheckRecord>>,
    /// The checks' ids by what they speak for.
    checks_of: BTreeSet<(Option<InstanceId>, Arc<str>)>,
}

/// What a batch of changes to one node's facts touched, and so has to be shown anew.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// The record, the liveness or a node check: everything of the node.
    pub(super) node: bool,
    /// Single instances.
    pub(super) instances: BTreeSet<InstanceId>,
}

impl Touched {
    pub(super) fn whole_node() -> Self {
        Self {
            node: true,
            instances: BTreeSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.node && self.instances.is_empty()
    }

    fn check(&mut self, check: &CheckRecord) {
        match &check.service {
            Some(id) => drop(self.instances.insert(id.clone())),
            None => self.node = true,
        }
    }
}

impl Facts {
    pub(super) fn record(&self) -> Option<&Arc<NodeRecord>> {
        self.record.as_ref()
    }

    pub(super) fn instance(&self, id: &InstanceId) -> Option<&Arc<Instance>> {
        self.instances.get(id)
    }

    pub(super) fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.instances.values()
    }

    pub(super) fn check(&self, id: &str) -> Option<&Arc<CheckRecord>> {
        self.checks.get(id)
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = &Arc<CheckRecord>> {
        self.checks.values()
    }

    /// The checks of an instance, or (`None`) of the node, by id.
    pub(super) fn checks_of(
        &self,
        instance: Option<&InstanceId>,
    ) -> impl Iterator<Item = &Arc<CheckRecord>> {
        let first = (instance.cloned(), Arc::default());
        self.checks_of
            .range(first..)
            .take_while(move |(of, _)| of.as_ref() == instance)
            .filter_map(|(_, id)| self.checks.get(id))
    }

    pub(super) fn set_record(&mut self, record: Option<NodeRecord>, touched: &mut Touched) {
        if self.record.as_deref() != record.as_ref() {
            self.record = record.map(Arc::new);
            touched.node = true;
        }
    }

    pub(super) fn set_instance(
        &mut self,
        id: &InstanceId,
        instance: Option<Instance>,
        touched: &mut Touched,
    ) {
        if self.instances.get(id).map(|known| &**known) == instance.as_ref() {
            return;
        }
        touched.instances.insert(id.clone());
        match instance {
            Some(instance) => drop(self.instances.insert(id.clone(), Arc::new(instance))),
            None => drop(self.instances.remove(id)),
        }
    }

    pub(super) fn set_check(
        &mut self,
        id: &Arc<str>,
        check: Option<CheckRecord>,
        touched: &mut Touched,
    ) {
        if self.checks.get(id).map(|known| &**known) == check.as_ref() {
            return;
        }
        if let Some(old) = self.checks.remove(id) {
            touched.check(&old);
            self.checks_of
                .remove(&(old.service.clone(), Arc::clone(id)));
        }
        if let Some(mut check) = check {
            touched.check(&check);
            if let Some(service) = &mut check.service
                && let Some((known, _)) = self.instances.get_key_value(service)
            {
                *service = known.clone();
            }
            self.checks_of
                .insert((check.service.clone(), Arc::clone(id)));
            self.checks.insert(Arc::clone(id), Arc::new(check));
        }
    }
}

/// The worst of some checks; passing when there is none.
pub(super) fn aggregate(checks: &[Arc<CheckRecord>]) -> Health {
    checks
        .iter()
        .map(|check| check.status)
        .max()
        .unwrap_or(Health::Passing)
}
