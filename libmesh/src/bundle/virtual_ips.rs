//! Addresses that stand for services, whatever instances they have: decided once by the store, the same on every node
//! from then on.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::ConfigBundle;
use crate::model::ServiceName;

/// The entry that holds them.
const ENTRY: &str = "virtual-ips";

impl ConfigBundle {
    /// The virtual IPs of services. An entry that this version cannot read counts as none.
    pub fn virtual_ips(&self) -> BTreeMap<ServiceName, Ipv4Addr> {
        let Some(entry) = self.entries.get(ENTRY) else {
            return BTreeMap::new();
        };
        postcard::from_bytes(entry).unwrap_or_else(|error| {
            tracing::error!(%error, "the virtual IPs of the config bundle are not readable");
            BTreeMap::new()
        })
    }

    /// Puts the virtual IPs of services into the bundle.
    pub fn set_virtual_ips(&mut self, all: &BTreeMap<ServiceName, Ipv4Addr>) {
        if all.is_empty() {
            self.entries.remove(ENTRY);
            return;
        }
        let entry = postcard::to_stdvec(all).expect("plain data always encodes");
        self.entries.insert(ENTRY.to_owned(), entry);
    }
}
