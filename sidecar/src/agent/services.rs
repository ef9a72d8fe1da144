//! The `[[service]]` definitions of the configuration: published, checked, and attached to.

use std::{path::Path, sync::Arc};

use libmesh::{
    health::Check,
    mesh::Mesh,
    model::{Instance, InstanceId, ServiceName},
};
use tracing::warn;

use super::{AgentError, read_private};
use crate::{
    attach::callers::{AttachToken, Callers, Declaration},
    config::{CheckConfig, Config, ServiceConfig},
    consul::{COMPATIBLE, SERVERS},
};

/// Who may attach, and whether anybody may.
pub struct OpenCallers {
    pub callers: Callers,
    pub open_to: Option<u32>,
}

/// Reads who may attach as which service.
pub fn callers(config: &Config, open_to: Option<u32>) -> Result<OpenCallers, AgentError> {
    let declared = config.services.iter().map(|service| {
        let token = service.attach.token_file.as_deref();
        Ok(Declaration {
            service: service.name.clone(),
            uids: service.attach.uid.into_iter().collect(),
            token: token.map(|path| attach_token(service, path)).transpose()?,
        })
    });
    let callers = Callers::new(declared.collect::<Result<_, _>>()?);
    Ok(OpenCallers {
        callers: match open_to {
            Some(uid) => callers.open_to(uid),
            None => callers,
        },
        open_to,
    })
}

fn attach_token(service: &ServiceConfig, path: &Path) -> Result<AttachToken, AgentError> {
    let failed = |reason: String| AgentError::AttachToken {
        place: service.place.clone(),
        path: path.to_owned(),
        reason,
    };
    let text = read_private(path).map_err(|error| failed(error.to_string()))?;
    AttachToken::new(&text).map_err(|error| failed(error.to_string()))
}

/// The instances that the configuration defines, in either form.
pub fn configured(config: &Config) -> Vec<InstanceId> {
    let own = config.services.iter().map(|it| it.id.clone());
    let defined = &config.consul.services;
    own.chain(
        defined
            .iter()
            .filter_map(|it| InstanceId::parse(&it.id).ok()),
    )
    .collect()
}

/// Publishes a service and runs its checks. One without a port and checks only declares who may attach.
pub fn register(mesh: &Mesh, service: &ServiceConfig) -> Result<(), String> {
    if service.port == 0 && service.mesh_port.is_none() && service.checks.is_empty() {
        return Ok(());
    }
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut instance =
        Instance::new(service.name.clone(), service.port).map_err(|error| text(&error))?;
    instance.id = service.id.clone();
    instance.address.clone_from(&service.address);
    instance.tags = service.tags.iter().map(|tag| tag.as_str().into()).collect();
    let pairs = service.meta.iter();
    instance.meta = pairs
        .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
        .collect();
    instance.version = service.version.as_deref().map(Arc::from);
    instance.weights = service.weights;
    instance.mesh_port = service.mesh_port;
    mesh.register(instance).map_err(|error| text(&error))?;
    for (at, check) in service.checks.iter().enumerate() {
        let number = (service.checks.len() > 1).then_some(at + 1);
        let check = make_check(service, check, number)?;
        mesh.checks().add(check).map_err(|error| text(&error))?;
    }
    Ok(())
}

/// Publishes a server as Consul's do themselves: as an instance of the service `consul`, where its RPC is.
pub fn register_server(mesh: &Mesh) -> Result<(), String> {
    let name = ServiceName::parse(SERVERS).map_err(|error| error.to_string())?;
    let mut instance =
        Instance::new(name, mesh.addr().port()).map_err(|error| error.to_string())?;
    instance.meta = [
        ("version".into(), COMPATIBLE.into()),
        ("non_voter".into(), "false".into()),
        ("read_replica".into(), "false".into()),
    ]
    .into_iter()
    .collect();
    mesh.register(instance).map_err(|error| error.to_string())
}

fn make_check(
    service: &ServiceConfig,
    config: &CheckConfig,
    number: Option<usize>,
) -> Result<Check, String> {
    let id = match (&config.id, number) {
        (Some(id), _) => id.clone(),
        (None, None) => format!("service:{}", service.id),
        (None, Some(number)) => format!("service:{}:{number}", service.id),
    };
    let made = config.make(&id);
    let mut check = made.map_err(|error| format!("check {id:?}: {error}"))?;
    if config.name.is_none() {
        check.name = format!("Service '{}' check", service.name).into();
    }
    Ok(check.of(service.id.clone()))
}

/// Runs a check of the node.
pub fn add_check(mesh: &Mesh, config: &CheckConfig) -> Result<(), String> {
    // One without an id is not a valid configuration.
    let id = config.id.as_deref().unwrap_or_default();
    let failed = |error: &dyn std::fmt::Display| format!("check {id:?}: {error}");
    let check = config.make(id).map_err(|error| failed(&error))?;
    mesh.checks().add(check).map_err(|error| failed(&error))
}

/// The same as [`replace`] for the checks of the node.
pub fn replace_checks(mesh: &Mesh, old: &[CheckConfig], new: &[CheckConfig]) {
    for gone in old.iter().filter(|o| !new.iter().any(|n| n.id == o.id)) {
        mesh.checks().remove(gone.id.as_deref().unwrap_or_default());
    }
    for check in new.iter().filter(|check| !old.contains(check)) {
        if let Err(reason) = add_check(mesh, check) {
            warn!(reason, "check not reloaded");
        }
    }
}

/// Brings what is published from the old definitions to the new ones. What did not change is not touched,
/// so that its checks keep their status.
pub fn replace(mesh: &Mesh, old: &[ServiceConfig], new: &[ServiceConfig]) {
    let same = |a: &ServiceConfig, b: &ServiceConfig| {
        let moved = ServiceConfig {
            place: b.place.clone(),
            ..a.clone()
        };
        moved == *b
    };
    for gone in old.iter().filter(|o| !new.iter().any(|n| n.id == o.id)) {
        mesh.deregister(&gone.id);
    }
    for service in new {
        if old.iter().any(|o| same(o, service)) {
            continue;
        }
        for check in mesh.local().checks() {
            if check.service.as_ref() == Some(&service.id) {
                mesh.checks().remove(&check.id);
            }
        }
        if let Err(reason) = register(mesh, service) {
            warn!(service = %service.name, place = %service.place, reason, "service not reloaded");
        }
    }
}
