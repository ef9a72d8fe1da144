//! What readers see: immutable snapshots, shared, cheap to keep.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{CheckRecord, Health, Host, Instance, Liveness, NodeRecord, ServiceName};

/// A service with its instances on nodes that are present, as of one revision.
#[derive(Debug)]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// When any part of this view last changed; see [`Catalog::revision`](super::Catalog::revision).
    pub revision: u64,
    /// Ordered by node name, then instance id. Never empty.
    pub instances: Vec<Arc<InstanceView>>,
}

impl ServiceView {
    /// The instances that may get traffic: passing or warning, on a node that is not suspect, and not
    /// [`stale`](InstanceView::stale).
    pub fn usable(&self) -> impl Iterator<Item = &Arc<InstanceView>> {
        self.instances.iter().filter(|instance| {
            instance.health.is_usable()
                && !instance.stale
                && instance.node.liveness == Liveness::Alive
        })
    }
}

/// An instance together with what decides whether to use it.
#[derive(Debug)]
pub struct InstanceView {
    /// The node it runs on.
    pub node: Arc<NodeView>,
    /// What its node published.
    pub instance: Arc<Instance>,
    /// Its own checks, then those of its node; each group by check id.
    pub checks: Vec<Arc<CheckRecord>>,
    /// The worst of `checks`; passing when there is none.
    pub health: Health,
    /// Its node is down, but so many others went down with it that the network is the more likely cause: use it when
    /// nothing better is there.
    pub stale: bool,
    /// No earlier than the last change of this instance, and no later than that of its service.
    pub revision: u64,
}

impl InstanceView {
    /// Where it answers: its own address, else its node's.
    pub fn address(&self) -> Host {
        self.instance
            .address
            .clone()
            .unwrap_or(Host::Ip(self.node.record.address))
    }

    /// Where its sidecar takes mTLS connections: its own address when that is an IP, else its node's. `None` when it
    /// has no sidecar.
    pub fn mesh_addr(&self) -> Option<SocketAddr> {
        let ip = match self.instance.address {
            Some(Host::Ip(ip)) => ip,
            Some(Host::Name(_)) | None => self.node.record.address,
        };
        self.instance
            .mesh_port
            .map(|port| SocketAddr::new(ip, port))
    }

    /// Equal in all that a reader sees but the revision.
    pub fn same_as(&self, other: &Self) -> bool {
        let nodes = (&self.node, &other.node);
        let same_node = Arc::ptr_eq(nodes.0, nodes.1)
            || (nodes.0.liveness == nodes.1.liveness && nodes.0.record == nodes.1.record);
        same_node
            && self.health == other.health
            && self.stale == other.stale
            && self.checks == other.checks
            && self.instance == other.instance
    }

    /// The order of a service's instances.
    pub(super) fn cmp_place(&self, other: &Self) -> std::cmp::Ordering {
        let (a, b) = (&self.node.record, &other.node.record);
        a.name
            .cmp(&b.name)
            .then_with(|| a.id.cmp(&b.id))
            .then_with(|| self.instance.id.cmp(&other.instance.id))
    }
}

/// A node with what membership thinks of it.
#[derive(Debug)]
pub struct NodeView {
    /// What it published about itself.
    pub record: Arc<NodeRecord>,
    /// What membership thinks.
    pub liveness: Liveness,
    /// Checks of the node as a whole, by check id.
    pub checks: Vec<Arc<CheckRecord>>,
    /// When the record, the liveness or a check last changed.
    pub revision: u64,
}

impl NodeView {
    /// Its IP address.
    pub fn ip(&self) -> IpAddr {
        self.record.address
    }
}
