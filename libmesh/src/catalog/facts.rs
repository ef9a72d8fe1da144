//! What this node itself published, as its callers gave it: its record, instances and checks, with the indexes that
//! find an instance's checks and a service's instances. Others' records stay as they came; see the `replica` module.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{CheckRecord, Health, Instance, InstanceId, NodeRecord, ServiceName};

#[derive(Debug, Default)]
pub(super) struct Facts {
    record: Option<Arc<NodeRecord>>,
    instances: BTreeMap<InstanceId, Arc<Instance>>,
    of_service: BTreeMap<ServiceName, BTreeSet<InstanceId>>,
    checks: BTreeMap<Arc<str>, Arc<CheckRecord>>,
    /// The checks' ids by what they speak for.
    checks_of: BTreeSet<(Option<InstanceId>, Arc<str>)>,
}

/// What a batch of changes to the facts touched, and so has to be shown anew.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// The record, or a node check: everything of the node.
    pub(super) node: bool,
    /// Single instances, by the service they belong to or belonged to.
    pub(super) instances: BTreeSet<(ServiceName, InstanceId)>,
}

impl Touched {
    pub(super) fn is_empty(&self) -> bool {
        !self.node && self.instances.is_empty()
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

    /// The instances of a service, by id.
    pub(super) fn of_service(&self, service: &str) -> impl Iterator<Item = &Arc<Instance>> {
        let ids = self.of_service.get(service).into_iter().flatten();
        ids.filter_map(|id| self.instances.get(id))
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
        let old = self.instances.get(id);
        if old.map(|known| &**known) == instance.as_ref() {
            return;
        }
        if let Some(old) = old {
            let service = old.service.clone();
            if let Some(ids) = self.of_service.get_mut(&service) {
                ids.remove(id);
                if ids.is_empty() {
                    self.of_service.remove(&service);
                }
            }
            touched.instances.insert((service, id.clone()));
        }
        let Some(instance) = instance else {
            self.instances.remove(id);
            return;
        };
        let service = instance.service.clone();
        self.of_service
            .entry(service.clone())
            .or_default()
            .insert(id.clone());
        touched.instances.insert((service, id.clone()));
        self.instances.insert(id.clone(), Arc::new(instance));
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
            self.touch(&old, touched);
            self.checks_of
                .remove(&(old.service.clone(), Arc::clone(id)));
        }
        if let Some(mut check) = check {
            self.touch(&check, touched);
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

    fn touch(&self, check: &CheckRecord, touched: &mut Touched) {
        match &check.service {
            Some(id) => {
                let instance = self.instances.get(id);
                let pair = instance.map(|instance| (instance.service.clone(), id.clone()));
                touched.instances.extend(pair);
            }
            None => touched.node = true,
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
