//! Writing what this node publishes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch as tokio_watch;

use super::facts::{Facts, Touched};
use super::log::{Head, NodeLog};
use super::quota::{Limit, Pace, Quota};
use super::record::{self, Key};
use super::state::Inheritance;
use super::strings::Strings;
use super::verify::VerifiedNode;
use super::{Catalog, LocalError};
use crate::model::{CheckRecord, Instance, InstanceId, NodeId, NodeRecord};

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

    /// Publishes this node's certificate chain (DER, leaf first). Peers believe nothing else of this node before.
    ///
    /// # Errors
    /// [`LocalError::Certificate`] when it does not verify, or is another node's; [`LocalError::Quota`].
    pub fn set_certificate(&self, chain: &[Vec<u8>]) -> Result<(), LocalError> {
        let verified = self.catalog.verify_own(chain)?;
        let body = record::encode_chain(chain);
        self.catalog.write_own(|own| {
            own.must_put(Key::Certificate, body)?;
            *own.verified = verified;
            Ok(())
        })
    }

    /// Publishes what this node says about itself. Nothing of the node is shown before this was called once.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::Quota`]; [`LocalError::ForeignNode`] when the record's id is another's.
    pub fn put_node(&self, record: NodeRecord) -> Result<(), LocalError> {
        record.validate()?;
        if record.id != self.catalog.own() {
            return Err(LocalError::ForeignNode {
                given: record.id,
                own: self.catalog.own(),
            });
        }
        let body = record::encode_node(&record);
        self.catalog.write_own(|own| {
            own.must_put(Key::Node, body)?;
            own.facts.set_record(Some(record), &mut own.touched);
            Ok(())
        })
    }

    /// Takes back what this node says about itself: from then on neither it nor what it offers is shown to anybody.
    pub fn remove_node(&self) {
        self.catalog.write_own(|own| {
            own.remove(Key::Node);
            own.facts.set_record(None, &mut own.touched);
        });
    }

    /// Registers an instance, or changes the one with its id. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::NotPermitted`] when this node's certificate does not allow the service
    /// (peers would not believe it), or what it is a proxy for; [`LocalError::Quota`].
    pub fn put_service(&self, mut instance: Instance) -> Result<(), LocalError> {
        instance.validate()?;
        let id = instance.id.clone();
        self.catalog.write_own(|own| {
            let proxied = instance.proxy.as_ref().map(|proxy| &proxy.service);
            for service in std::iter::once(&instance.service).chain(proxied) {
                if let Some(verified) = own.verified
                    && !(verified.may_publish)(service)
                {
                    let service = service.clone();
                    return Err(LocalError::NotPermitted { service });
                }
            }
            own.inherited.instances.remove(&id);
            (instance.create_stamp, instance.modify_stamp) = (own.now, own.now);
            if let Some(old) = own.facts.instance(&id) {
                if old.same_as(&instance) {
                    return Ok(());
                }
                instance.create_stamp = old.create_stamp;
                instance.modify_stamp = own.now.max(old.modify_stamp + 1);
            }
            own.put(
                Key::Instance(id.as_str()),
                record::encode_instance(&instance),
            )?;
            own.facts
                .set_instance(&id, Some(instance), &mut own.touched);
            Ok(())
        })
    }

    /// Takes an instance and its checks away; whether there was one.
    pub fn remove_service(&self, id: &InstanceId) -> bool {
        self.catalog.write_own(|own| own.remove_service(id))
    }

    /// Publishes a check, or its new status, which no rate holds back. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::UnknownInstance`] when it speaks for an instance that is not registered;
    /// [`LocalError::Quota`].
    pub fn put_check(&self, mut check: CheckRecord) -> Result<(), LocalError> {
        check.validate()?;
        let id = Arc::clone(&check.id);
        self.catalog.write_own(|own| {
            if let Some(instance) = &check.service
                && own.facts.instance(instance).is_none()
            {
                return Err(LocalError::UnknownInstance {
                    id: instance.clone(),
                });
            }
            own.inherited.checks.remove(&id);
            (check.create_stamp, check.modify_stamp) = (own.now, own.now);
            let (mut known, mut worse) = (false, false);
            if let Some(old) = own.facts.check(&id) {
                if old.same_as(&check) {
                    return Ok(());
                }
                check.create_stamp = old.create_stamp;
                check.modify_stamp = own.now.max(old.modify_stamp + 1);
                known = true;
                worse = old.status < check.status && !check.status.is_usable();
            }
            let (key, body) = (Key::of_check(&id), record::encode_check(&check));
            match known {
                true => own.must_put(key, body)?,
                false => own.put(key, body)?,
            }
            own.urgent |= worse;
            own.facts.set_check(&id, Some(check), &mut own.touched);
            Ok(())
        })
    }

    /// Takes a check away; whether there was one.
    pub fn remove_check(&self, id: &str) -> bool {
        self.catalog.write_own(|own| {
            let Some(id) = own.facts.check(id).map(|check| Arc::clone(&check.id)) else {
                return false;
            };
            own.remove_check(&id);
            true
        })
    }

    /// Takes away what the log said in the node's last life (see [`Catalog::restore`]) and nobody has said again since
    /// the start, except what `keep` wants. What is kept, may be settled again later. A check goes with its instance.
    pub fn settle(&self, keep: impl Fn(Inherited<'_>) -> bool) {
        self.catalog.write_own(|own| {
            let gone: Vec<_> = own
                .inherited
                .instances
                .iter()
                .filter_map(|id| own.facts.instance(id))
                .filter(|instance| !keep(Inherited::Instance(instance)))
                .map(|instance| instance.id.clone())
                .collect();
            for id in gone {
                own.remove_service(&id);
            }
            let stays = |check: &CheckRecord| {
                let with = check.service.as_ref();
                with.is_some_and(|id| own.inherited.instances.contains(id))
                    || keep(Inherited::Check(check))
            };
            let gone: Vec<_> = own
                .inherited
                .checks
                .iter()
                .filter_map(|id| own.facts.check(id))
                .filter(|check| !stays(check))
                .map(|check| Arc::clone(&check.id))
                .collect();
            for id in gone {
                own.remove_check(&id);
            }
        });
    }

    /// Whether an instance is there only because the node's last life registered it.
    pub fn is_inherited(&self, id: &InstanceId) -> bool {
        self.catalog
            .write_own(|own| own.inherited.instances.contains(id))
    }

    /// The catalog that the log is part of.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Where this node's log stands, told of every change.
    pub fn watch(&self) -> tokio_watch::Receiver<OwnHead> {
        self.catalog.watch_own()
    }

    /// Where the log stands, and which instances and checks were taken away after `since`, whatever took them; `None` when
    /// that is not remembered any more (as when the log began anew): then all have to be looked at. Costs one look at
    /// each record that changed since.
    pub fn gone_since(&self, since: Head) -> (Head, Option<Vec<Gone>>) {
        let state = self.catalog.inner.state.lock();
        let gone = state.own_log.gone_since(since).map(|keys| {
            let gone = |key: &Bytes| match Key::decode(key).ok()? {
                Key::Certificate | Key::Node => None,
                Key::Instance(id) => Some(Gone::Instance(InstanceId::parse(id).ok()?)),
                Key::DerivedCheck(of) => Some(Gone::Check(record::derived(of).into())),
                Key::Check(id) => Some(Gone::Check(id.into())),
            };
            keys.filter_map(gone).collect()
        });
        (state.own_log.head(), gone)
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

    /// The checks of an instance, or (`None`) of the node as a whole, by id.
    pub fn checks_of(&self, instance: Option<&InstanceId>) -> Vec<Arc<CheckRecord>> {
        self.catalog
            .read_own(|facts| facts.checks_of(instance).cloned().collect())
    }

    /// All checks of this node, by id.
    pub fn checks(&self) -> Vec<Arc<CheckRecord>> {
        self.catalog
            .read_own(|facts| facts.checks().cloned().collect())
    }
}

/// What was taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gone {
    /// An instance, by its id.
    Instance(InstanceId),
    /// A check, by its id.
    Check(Arc<str>),
}

/// A record of the node's last life.
#[derive(Debug, Clone, Copy)]
pub enum Inherited<'a> {
    /// An instance.
    Instance(&'a Instance),
    /// A check of the node, or of an instance that was registered again.
    Check(&'a CheckRecord),
}

/// Where the own log stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnHead {
    /// How far it is.
    pub at: Head,
    /// Number of the last change that must not wait: something turned critical, or went.
    pub urgent: u64,
}

/// One write to the own log, while the lock is held.
pub(super) struct OwnWrite<'a> {
    pub(super) own: NodeId,
    pub(super) facts: &'a mut Facts,
    pub(super) verified: &'a mut Option<VerifiedNode>,
    pub(super) log: &'a mut NodeLog,
    pub(super) inherited: &'a mut Inheritance,
    pub(super) quota: &'a Quota,
    pub(super) pace: &'a mut Pace,
    pub(super) touched: Touched,
    pub(super) urgent: bool,
    pub(super) now: u64,
}

impl OwnWrite<'_> {
    fn put(&mut self, key: Key<'_>, body: Bytes) -> Result<(), LocalError> {
        let over = |limit, most| Err(LocalError::Quota { limit, most });
        if !self.log.has(&key.encode()) && self.log.records() >= self.quota.records {
            return over(Limit::Records, self.quota.records);
        }
        if self.log.bytes() + body.len() > self.quota.bytes {
            return over(Limit::Bytes, self.quota.bytes);
        }
        if !self.pace.is_open(self.quota, self.now) {
            return over(Limit::Rate, self.quota.changes_per_second as usize);
        }
        self.must_put(key, body)
    }

    /// For what the mesh has to know however much was said before: who this node is, how healthy what it has is.
    fn must_put(&mut self, key: Key<'_>, body: Bytes) -> Result<(), LocalError> {
        if body.len() > self.quota.record_bytes {
            return Err(LocalError::Quota {
                limit: Limit::RecordBytes,
                most: self.quota.record_bytes,
            });
        }
        if self.log.put(key.encode(), body, self.now).is_some() {
            self.pace.add(1);
        }
        Ok(())
    }

    /// Taking away is never refused.
    fn remove(&mut self, key: Key<'_>) {
        if self.log.remove(&key.encode(), self.now).is_some() {
            self.urgent = true;
            self.pace.add(1);
        }
    }

    /// Takes what the log says of a key into the facts.
    pub(super) fn take_back(
        &mut self,
        key: Key<'_>,
        body: &[u8],
        strings: &mut Strings,
    ) -> Result<(), String> {
        match key {
            Key::Certificate => {}
            Key::Node => {
                let record = record::node_record(self.own, strings, body)?;
                self.facts.set_record(Some(record), &mut self.touched);
            }
            Key::Instance(id) => {
                let instance = record::instance(id, strings, body)?;
                let id = instance.id.clone();
                self.facts
                    .set_instance(&id, Some(instance), &mut self.touched);
            }
            Key::DerivedCheck(_) | Key::Check(_) => {
                let check = record::check_record(key, strings, body)?;
                let id = Arc::clone(&check.id);
                self.facts.set_check(&id, Some(check), &mut self.touched);
            }
        }
        Ok(())
    }

    fn remove_service(&mut self, id: &InstanceId) -> bool {
        let checks = self.facts.checks_of(Some(id));
        let checks: Vec<_> = checks.map(|check| Arc::clone(&check.id)).collect();
        for check in checks {
            self.remove_check(&check);
        }
        let found = self.facts.instance(id).is_some();
        self.inherited.instances.remove(id);
        self.remove(Key::Instance(id.as_str()));
        self.facts.set_instance(id, None, &mut self.touched);
        found
    }

    fn remove_check(&mut self, id: &Arc<str>) {
        self.inherited.checks.remove(id);
        self.remove(Key::of_check(id));
        self.facts.set_check(id, None, &mut self.touched);
    }
}
