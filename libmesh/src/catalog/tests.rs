mod belief;
mod external;
mod lazy;
mod log;
mod quota;
mod read;
mod replicate;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Catalog, Options};
use crate::model::{
    CheckRecord, Health, Instance, InstanceId, NodeId, NodeName, NodeRecord, ServiceName,
};

/// A clock that tests set.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicU64>);

impl TestClock {
    pub(crate) fn at(micros: u64) -> Self {
        Self(Arc::new(AtomicU64::new(micros)))
    }

    pub(crate) fn advance(&self, time: std::time::Duration) {
        self.0.fetch_add(time.as_micros() as u64, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn options(&self) -> Options {
        let clock = self.clone();
        Options {
            clock: Arc::new(move || clock.now()),
            ..Options::default()
        }
    }

    pub(crate) fn catalog(&self, own: u8) -> Catalog {
        Catalog::open(NodeId([own; 16]), self.options())
    }
}

pub(crate) fn node(n: u8) -> NodeRecord {
    let name = NodeName::parse(&format!("node{n}")).unwrap();
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
    NodeRecord::new(NodeId([n; 16]), name, address, 8301)
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).unwrap()
}

pub(crate) fn instance(name: &str, port: u16) -> Instance {
    let mut instance = Instance::new(service(name), port).unwrap();
    instance.id = InstanceId::parse(&format!("{name}-{port}")).unwrap();
    instance
}

pub(crate) fn check(id: &str, service: Option<&Instance>, status: Health) -> CheckRecord {
    CheckRecord {
        id: Arc::from(id),
        name: Arc::from(id),
        service: service.map(|instance| instance.id.clone()),
        status,
        kind: Arc::from("ttl"),
        notes: Arc::from(""),
        create_stamp: 0,
        modify_stamp: 0,
    }
}
