//! Connectors by (caller, callee), their endpoints kept in step with the catalog.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    bundle::BundleStore,
    catalog::{Catalog, Distance, InstanceView, ServiceView},
    connect::{Balancer, Connector, Endpoint},
    identity::Identity,
    model::{NodeRecord, ServiceName},
};

/// The connectors of a node, made when first used.
pub(super) struct Outbound {
    catalog: Catalog,
    bundles: BundleStore,
    stop: CancellationToken,
    connectors: Mutex<HashMap<(ServiceName, ServiceName), Connector>>,
}

impl Outbound {
    pub(super) fn new(catalog: Catalog, bundles: BundleStore, stop: CancellationToken) -> Self {
        Self {
            catalog,
            bundles,
            stop,
            connectors: Mutex::default(),
        }
    }

    /// The connector for calls from `caller`'s identity to `service`.
    pub(super) fn connector(
        &self,
        caller: &ServiceName,
        identity: Identity,
        service: &ServiceName,
    ) -> Connector {
        let key = (caller.clone(), service.clone());
        let mut connectors = self.connectors.lock();
        if let Some(connector) = connectors.get(&key) {
            return connector.clone();
        }
        let balancer = Balancer::new();
        let connector = Connector::new(
            identity,
            self.bundles.clone(),
            service.clone(),
            balancer.clone(),
        );
        balancer.set(endpoints_of(
            &self.catalog,
            self.catalog.service(service.as_str()).as_deref(),
        ));
        tokio::spawn(follow(
            self.catalog.clone(),
            service.clone(),
            balancer,
            self.stop.clone(),
        ));
        connectors.insert(key, connector.clone());
        connector
    }
}

async fn follow(
    catalog: Catalog,
    service: ServiceName,
    balancer: Balancer,
    stop: CancellationToken,
) {
    let watch = catalog.watch_service(&service);
    let mut seen = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            revision = watch.changed_after(seen) => seen = revision,
        }
        balancer.set(endpoints_of(&catalog, watch.view().as_deref()));
    }
}

/// The instances of a service that take mesh connections, seen from the catalog's own node: passing and
/// warning ones, stale ones last.
pub(super) fn endpoints_of(catalog: &Catalog, view: Option<&ServiceView>) -> Vec<Endpoint> {
    let own = catalog.node_by_id(&catalog.own());
    let own = own.as_ref().map(|node| &*node.record);
    let instances = view
        .map(|view| view.instances.as_slice())
        .unwrap_or_default();
    instances
        .iter()
        .filter_map(|instance| endpoint(own, instance))
        .collect()
}

fn endpoint(own: Option<&NodeRecord>, view: &Arc<InstanceView>) -> Option<Endpoint> {
    let weight = view.weight()?;
    // By zone, not by host: the other hosts of a zone should not idle.
    let distance = own.map_or(Distance::Far, |own| view.distance(own));
    Some(Endpoint {
        id: format!("{}/{}", view.node.record.id, view.instance.id).into(),
        addr: view.mesh_addr()?,
        service: view.instance.service.clone(),
        version: view.instance.version.clone(),
        weight,
        distance: distance as u8,
        suspect: view.is_doubtful(),
        part: 0,
    })
}
