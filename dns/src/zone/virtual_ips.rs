//! Addresses that stand for services rather than instances: `web.virtual.mesh`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use libmesh::model::ServiceName;
use parking_lot::RwLock;

/// The virtual IPs of services; clones are the same table. Who decides on them is not known here: the store does, and
/// they come with the configuration.
#[derive(Debug, Clone, Default)]
pub struct VirtualIps(Arc<RwLock<Arc<Table>>>);

#[derive(Debug, Default)]
struct Table {
    by_service: HashMap<ServiceName, Ipv4Addr>,
    by_ip: HashMap<Ipv4Addr, ServiceName>,
}

impl VirtualIps {
    /// Replaces the table. Costs what it has to copy; readers wait for one pointer swap.
    pub fn set(&self, all: impl IntoIterator<Item = (ServiceName, Ipv4Addr)>) {
        let by_service: HashMap<_, _> = all.into_iter().collect();
        let by_ip = by_service
            .iter()
            .map(|(name, ip)| (*ip, name.clone()))
            .collect();
        *self.0.write() = Arc::new(Table { by_service, by_ip });
    }

    /// The address of a service.
    pub fn of(&self, service: &str) -> Option<Ipv4Addr> {
        self.0.read().by_service.get(service).copied()
    }

    /// The service of an address.
    pub fn service(&self, ip: IpAddr) -> Option<ServiceName> {
        match ip {
            IpAddr::V4(ip) => self.0.read().by_ip.get(&ip).cloned(),
            IpAddr::V6(_) => None,
        }
    }
}
