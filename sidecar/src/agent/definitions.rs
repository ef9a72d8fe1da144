//! Services and checks that are defined in Consul's form: published and checked as those of registrations.

use libmesh::{
    catalog::LocalLog,
    health::Check,
    mesh::Mesh,
    model::{CheckRecord, InstanceId},
};
use tracing::{info, warn};

use super::AgentError;
use crate::config::{Config, ConsulConfig, Definition, ExecChecks};

/// Says what was written that means nothing here.
pub fn name_meaningless(config: &ConsulConfig) {
    if !config.meaningless.is_empty() {
        let keys = config.meaningless.join(", ");
        info!(
            keys,
            "keys of Consul's configuration that mean nothing here"
        );
    }
}

/// Publishes the services with their checks.
pub fn publish(mesh: &Mesh, config: &Config) -> Result<(), AgentError> {
    for service in &config.consul.services {
        publish_one(mesh, service, config.health.exec_checks).map_err(|reason| {
            AgentError::Service {
                place: service.place.clone(),
                reason,
            }
        })?;
    }
    Ok(())
}

fn publish_one(mesh: &Mesh, service: &Definition, exec: ExecChecks) -> Result<(), String> {
    let (instance, checks) = service.service(exec)?;
    mesh.register(instance).map_err(|error| error.to_string())?;
    for check in checks {
        add(mesh, check)?;
    }
    Ok(())
}

/// Runs the checks that stand by themselves. They may be of instances that were registered over HTTP in the agent's last
/// life, so they come after those.
pub fn add_checks(mesh: &Mesh, config: &Config) {
    for check in &config.consul.checks {
        add_one(mesh, check, config.health.exec_checks);
    }
}

fn add_one(mesh: &Mesh, definition: &Definition, exec: ExecChecks) {
    let added = definition.check(exec).and_then(|(check, of)| match of {
        None => add(mesh, check),
        Some(id) if mesh.local().service(&id).is_some() => add(mesh, check.of(id)),
        Some(id) => Err(format!("ServiceID {:?} does not exist", id.as_str())),
    });
    if let Err(reason) = added {
        warn!(place = %definition.place, reason, "this check does not run");
    }
}

/// The status of a check that ran in the agent's last life counts for more than the one it is defined with.
fn add(mesh: &Mesh, mut check: Check) -> Result<(), String> {
    if mesh.local().check(&check.id).is_some() {
        check.initial = None;
    }
    let added = mesh.checks().add(check);
    added.map_err(|error| format!("Invalid check: {error}"))
}

/// Takes away what is not defined any more.
pub fn forget_gone(mesh: &Mesh, old: &ConsulConfig, new: &ConsulConfig) {
    for gone in gone(&old.services, &new.services) {
        if let Ok(id) = InstanceId::parse(&gone.id) {
            mesh.deregister(&id);
        }
    }
    for gone in gone(&old.checks, &new.checks) {
        mesh.checks().remove(&gone.id);
    }
}

/// Brings what is published to the new definitions; what did not change is not touched.
pub fn replace(mesh: &Mesh, old: &ConsulConfig, new: &Config) {
    let exec = new.health.exec_checks;
    for service in changed(&old.services, &new.consul.services) {
        let local = mesh.local();
        for check in own_checks(&local, &service.id, &new.consul) {
            mesh.checks().remove(&check);
        }
        if let Err(reason) = publish_one(mesh, service, exec) {
            warn!(place = %service.place, reason, "service not reloaded");
        }
    }
    for check in changed(&old.checks, &new.consul.checks) {
        add_one(mesh, check, exec);
    }
}

/// The checks of an instance, without those that are defined by themselves.
fn own_checks(local: &LocalLog, service: &str, new: &ConsulConfig) -> Vec<String> {
    let apart = |check: &CheckRecord| new.checks.iter().any(|other| *other.id == *check.id);
    let checks = local.checks();
    let own = checks.iter().filter(|check| {
        let of = check.service.as_ref();
        of.is_some_and(|id| id.as_str() == service) && !apart(check)
    });
    own.map(|check| check.id.to_string()).collect()
}

fn gone<'d>(old: &'d [Definition], new: &'d [Definition]) -> impl Iterator<Item = &'d Definition> {
    old.iter().filter(|o| !new.iter().any(|n| n.id == o.id))
}

fn changed<'d>(
    old: &'d [Definition],
    new: &'d [Definition],
) -> impl Iterator<Item = &'d Definition> {
    new.iter().filter(|n| !old.iter().any(|o| o.same(n)))
}
