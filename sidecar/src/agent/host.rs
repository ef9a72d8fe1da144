//! The agent as the attach API sees it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use libmesh::{
    bundle::BundleStore,
    catalog::Catalog,
    health::{Check, HttpProbe, TcpProbe},
    identity::{BoxFuture, Issued, SourceError, SpiffeId, Trust},
    mesh::Mesh,
    model::{Instance, InstanceId, ServiceName},
};

use super::services::OpenCallers;
use crate::{
    attach::{
        callers::Callers,
        host::{About, AttachHost},
        wire::CheckSpec,
    },
    forward::{Api, Forward},
};

/// Implements [`AttachHost`] on a mesh node.
pub struct Host {
    mesh: Mesh,
    callers: ArcSwap<Callers>,
    open_to: Option<u32>,
    forward: Arc<dyn Forward>,
}

impl Host {
    pub fn new(mesh: Mesh, callers: OpenCallers, forward: Arc<dyn Forward>) -> Host {
        Host {
            mesh,
            callers: ArcSwap::from_pointee(callers.callers),
            open_to: callers.open_to,
            forward,
        }
    }

    pub fn open_to(&self) -> Option<u32> {
        self.open_to
    }

    pub fn set_callers(&self, callers: OpenCallers) {
        self.callers.store(Arc::new(callers.callers));
    }
}

impl AttachHost for Host {
    fn about(&self) -> About {
        About {
            node: self.mesh.name().clone(),
            datacenter: self.mesh.datacenter().clone(),
        }
    }

    fn callers(&self) -> Arc<Callers> {
        self.callers.load_full()
    }

    fn catalog(&self) -> &Catalog {
        self.mesh.catalog()
    }

    fn trust(&self) -> &Trust {
        self.mesh.trust()
    }

    fn register(&self, instance: Instance, checks: &[CheckSpec]) -> Result<(), String> {
        let id = instance.id.clone();
        let made: Vec<Check> = checks
            .iter()
            .enumerate()
            .map(|(at, spec)| check(&id, (checks.len() > 1).then_some(at + 1), spec))
            .collect::<Result<_, _>>()?;
        let local = self.mesh.local();
        local
            .put_service(instance)
            .map_err(|error| error.to_string())?;
        for old in local.checks() {
            let stays = made.iter().any(|check| check.id == old.id);
            if old.service.as_ref() == Some(&id) && !stays {
                self.mesh.checks().remove(&old.id);
            }
        }
        for check in made {
            let added = self.mesh.checks().add(check);
            added.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn deregister(&self, id: &InstanceId) {
        self.mesh.deregister(id);
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        self.mesh.certificates().sign_service(service, csr, ttl)
    }

    fn bundles(&self) -> &BundleStore {
        self.mesh.bundle()
    }

    fn vault(
        &self,
        request: http::Request<Bytes>,
        identity: SpiffeId,
    ) -> BoxFuture<'_, http::Response<Bytes>> {
        self.forward.forward(Api::Vault, request, Some(identity))
    }
}

fn check(id: &InstanceId, number: Option<usize>, spec: &CheckSpec) -> Result<Check, String> {
    let name = match number {
        Some(number) => format!("service:{id}:{number}"),
        None => format!("service:{id}"),
    };
    let check = match spec {
        CheckSpec::Http {
            address,
            path,
            interval,
        } => {
            let probe = HttpProbe::new(&format!("http://{address}{path}"));
            let probe = probe.map_err(|error| error.to_string())?;
            Check::every(&name, Duration::from_secs((*interval).into()), probe)
        }
        CheckSpec::Tcp { address, interval } => {
            let probe = TcpProbe::new(&address.to_string()).map_err(|error| error.to_string())?;
            Check::every(&name, Duration::from_secs((*interval).into()), probe)
        }
    };
    Ok(check.of(id.clone()))
}
