//! Writing what this node publishes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch as tokio_watch;

use super::facts::{Facts, Touched};
use super::log::{Head, NodeLog};
use super::record::{self, Key};
use super::state::Inheritance;
use super::verify::VerifiedNode;
use super::wire::RECORD_MAX;
use super::{Catalog, LocalError};
use crate::model::{CheckRecord, Instance, InstanceId, InvalidField, NodeRecord};

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
    /// [`LocalError::Certificate`] when it does not verify, or is another node's.
    pub fn set_certificate(&self, chain: &[Vec<u8>]) -> Result<(), LocalError> {
        let verified = self.catalog.verify_own(chain)?;
        let body = fitting("certificate", record::encode(&chain))?;
        self.catalog.write_own(|own| {
            *own.verified = verified;
            own.put(&Key::Certificate, body);
        });
        Ok(())
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
        let body = fitting("node", record::encode(&record))?;
        self.catalog.write_own(|own| {
            own.put(&Key::Node, body);
            own.facts.set_record(Some(record), &mut own.touched);
        });
        Ok(())
    }

    /// Registers an instance, or changes the one with its id. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::NotPermitted`] when this node's certificate does not allow the service
    /// (peers would not believe it).
    pub fn put_service(&self, mut instance: Instance) -> Result<(), LocalError> {
        instance.validate()?;
        let id = instance.id.clone();
        self.catalog.write_own(|own| {
            if let Some(verified) = own.verified
                && !(verified.may_publish)(&instance.service)
            {
                return Err(LocalError::NotPermitted {
                    service: instance.service,
                });
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
                &Key::Instance(id.clone()),
                fitting("instance", record::encode(&instance))?,
            );
            own.facts
                .set_instance(&id, Some(instance), &mut own.touched);
            Ok(())
        })
    }

    /// Takes an instance and its checks away; whether there was one.
    pub fn remove_service(&self, id: &InstanceId) -> bool {
        self.catalog.write_own(|own| own.remove_service(id))
    }

    /// Publishes a check, or its new status. The stamps are set here.
    ///
    /// # Errors
    /// [`LocalError::Invalid`]; [`LocalError::UnknownInstance`] when it speaks for an instance that is not registered.
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
            if let Some(old) = own.facts.check(&id) {
                if old.same_as(&check) {
                    return Ok(());
                }
                check.create_stamp = old.create_stamp;
                check.modify_stamp = own.now.max(old.modify_stamp + 1);
                own.urgent |= old.status < check.status && !check.status.is_usable();
            }
            own.put(
                &Key::Check(Arc::clone(&id)),
                fitting("check", record::encode(&check))?,
            );
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
    pub(super) facts: &'a mut Facts,
    pub(super) verified: &'a mut Option<VerifiedNode>,
    pub(super) log: &'a mut NodeLog,
    pub(super) inherited: &'a mut Inheritance,
    pub(super) touched: Touched,
    pub(super) urgent: bool,
    pub(super) now: u64,
}

impl OwnWrite<'_> {
    fn put(&mut self, key: &Key, body: Bytes) {
        self.log.put(key.encode(), body, self.now);
    }

    fn remove(&mut self, key: &Key) {
        self.urgent |= self.log.remove(&key.encode(), self.now).is_some();
    }

    fn remove_service(&mut self, id: &InstanceId) -> bool {
        let checks = self.facts.checks_of(Some(id));
        let checks: Vec<_> = checks.map(|check| Arc::clone(&check.id)).collect();
        for check in checks {
            self.remove_check(&check);
        }
        let found = self.facts.instance(id).is_some();
        self.inherited.instances.remove(id);
        self.remove(&Key::Instance(id.clone()));
        self.facts.set_instance(id, None, &mut self.touched);
        found
    }

    fn remove_check(&mut self, id: &Arc<str>) {
        self.inherited.checks.remove(id);
        self.remove(&Key::Check(Arc::clone(id)));
        self.facts.set_check(id, None, &mut self.touched);
    }
}

/// A record's body, unless it is longer than peers take.
fn fitting(field: &'static str, body: Bytes) -> Result<Bytes, InvalidField> {
    if body.len() > RECORD_MAX {
        return Err(InvalidField::new(
            field,
            format!("has {} bytes, the most is {RECORD_MAX}", body.len()),
        ));
    }
    Ok(body)
}
