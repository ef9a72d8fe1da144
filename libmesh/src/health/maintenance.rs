//! Maintenance mode: an operator takes a node, or one instance, out of use for a while.
//!
//! It is a check with a reserved id ([`NODE_MAINTENANCE`], [`SERVICE_MAINTENANCE`]`<instance>`, as Consul's clients know
//! them) and the status [`Health::Maintenance`], which nothing but [`end_maintenance`](Scheduler::end_maintenance) or the
//! deregistration of the instance ends. It is a record like others, so it survives a restart of the node if
//! that keeps a directory: the instance stays registered in maintenance until its program registers it again.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::check::CheckError;
use super::scheduler::Scheduler;
use crate::catalog::{Inherited, LocalLog};
use crate::model::{CheckRecord, Health, InstanceId};

/// Id of the check that takes a node out of use.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// What the id of a check that takes an instance out of use begins with; the instance's id follows.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// Something that is in maintenance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// The instance; `None` = the whole node.
    pub instance: Option<InstanceId>,
    /// Why.
    pub reason: Arc<str>,
    /// Since when: unix µs.
    pub since: u64,
}

impl Scheduler {
    /// Takes an instance (`None`: the whole node) out of use at once. An empty reason is replaced by a sentence that
    /// says there is none. Doing it again changes the reason.
    ///
    /// # Errors
    /// [`CheckError::Refused`] when the instance is not registered or the reason is longer than 1,024 bytes.
    pub fn begin_maintenance(
        &self,
        instance: Option<&InstanceId>,
        reason: &str,
    ) -> Result<(), CheckError> {
        let (name, what) = match instance {
            Some(_) => ("Service Maintenance Mode", "service"),
            None => ("Node Maintenance Mode", "node"),
        };
        let notes = match reason {
            "" => format!(
                "Maintenance mode is enabled for this {what}, but no reason was provided. \
                 This is a default message."
            ),
            reason => reason.to_owned(),
        };
        self.inner.log.put_check(CheckRecord {
            id: check_id(instance).into(),
            name: name.into(),
            service: instance.cloned(),
            status: Health::Maintenance,
            kind: "maintenance".into(),
            notes: notes.into(),
            create_stamp: 0,
            modify_stamp: 0,
        })?;
        tracing::info!(
            instance = instance.map(|id| id.as_str()),
            reason,
            "maintenance begins"
        );
        Ok(())
    }

    /// Puts an instance (`None`: the whole node) back into use; whether it was in maintenance. An instance that
    /// nobody has registered since the node's restart goes.
    pub fn end_maintenance(&self, instance: Option<&InstanceId>) -> bool {
        let ended = self.inner.log.remove_check(&check_id(instance));
        if ended {
            tracing::info!(
                instance = instance.map(|id| id.as_str()),
                "maintenance ends"
            );
        }
        if let Some(id) = instance
            && ended
            && self.inner.log.is_inherited(id)
        {
            self.remove_service(id);
        }
        ended
    }

    /// What is in maintenance on this node, the node itself first.
    pub fn maintenance(&self) -> Vec<Maintenance> {
        let checks = self.inner.log.checks();
        let reserved = checks.iter().filter(|record| is_maintenance(record));
        let mut all: Vec<_> = reserved
            .map(|record| Maintenance {
                instance: record.service.clone(),
                reason: Arc::clone(&record.notes),
                since: record.create_stamp,
            })
            .collect();
        all.sort_by(|a, b| a.instance.cmp(&b.instance));
        all
    }
}

/// For [`LocalLog::settle`]: says yes to what an operator has put into maintenance, which outlasts a restart. As of now.
pub fn kept_in_maintenance(log: &LocalLog) -> impl Fn(Inherited<'_>) -> bool + use<> {
    let checks = log.checks();
    let reserved = checks.iter().filter(|record| is_maintenance(record));
    let instances: BTreeSet<_> = reserved
        .filter_map(|record| record.service.clone())
        .collect();
    move |record| match record {
        Inherited::Instance(instance) => instances.contains(&instance.id),
        Inherited::Check(check) => is_maintenance(check),
    }
}

fn is_maintenance(record: &CheckRecord) -> bool {
    *record.id == *check_id(record.service.as_ref()) && record.status == Health::Maintenance
}

fn check_id(instance: Option<&InstanceId>) -> String {
    match instance {
        Some(id) => format!("{SERVICE_MAINTENANCE}{id}"),
        None => NODE_MAINTENANCE.to_owned(),
    }
}
