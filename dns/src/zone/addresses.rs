//! Which service an instance's own address belongs to, for PTR.
//!
//! The catalog has no index for that: such questions are rare, and an index would cost every node memory. The table is
//! made when somebody asks, which takes one look at each instance, and is made again when the catalog has changed and
//! it is old enough that making tables stays below a twentieth of one processor's time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use libmesh::catalog::Catalog;
use libmesh::model::ServiceName;
use parking_lot::Mutex;

/// A table is good for this long at least, whatever changes.
const LEAST_AGE: Duration = Duration::from_secs(1);
/// And for this many times what it took to make.
const SHARE: u32 = 20;

/// The table, or none yet.
#[derive(Debug, Default)]
pub(super) struct Addresses(Mutex<Option<Table>>);

#[derive(Debug)]
struct Table {
    services: HashMap<IpAddr, ServiceName>,
    revision: u64,
    good_until: Instant,
}

impl Addresses {
    /// The service of which an instance has the address `ip` of its own; of several, the first by name.
    pub(super) fn service(&self, catalog: &Catalog, ip: IpAddr) -> Option<ServiceName> {
        let mut table = self.0.lock();
        let begun = Instant::now();
        let revision = catalog.revision();
        let good = table
            .as_ref()
            .is_some_and(|table| table.revision == revision || begun < table.good_until);
        if !good {
            let services = catalog.own_addresses();
            let now = Instant::now();
            let took = now.duration_since(begun);
            *table = Some(Table {
                services,
                revision,
                good_until: now + (took * SHARE).max(LEAST_AGE),
            });
        }
        table.as_ref()?.services.get(&ip).cloned()
    }
}
