//! The whole answer path over arbitrary octets, for fuzzing and for the tests that replay what fuzzing found.

use std::sync::Arc;

use libmesh::catalog::Catalog;
use libmesh::model::{Host, Instance, InstanceId, NodeId, NodeName, NodeRecord, ServiceName};

use crate::config::{Config, Upstreams};
use crate::responder::{Outcome, Readiness, Responder, Shared, Via};
use crate::wire::{HEADER, TCP_MAX, UDP_WITHOUT_EDNS};
use crate::zone::Zone;

/// Answers requests over a small catalog that has something for every kind of name.
#[derive(Debug)]
pub struct Answers {
    responders: [Responder; 2],
    buffer: Vec<u8>,
}

impl Answers {
    /// One responder that refuses foreign names and one that would forward them.
    pub fn new() -> Self {
        let catalog = catalog();
        let responder = |upstreams| {
            let config = Config {
                upstreams,
                nameservers: vec![[192, 0, 2, 1].into()],
                ..Config::default()
            };
            let zone = Zone::new(&config, catalog.clone());
            Responder::seeded(
                Arc::new(Shared::new(&config, zone, Readiness::new(true))),
                1,
            )
        };
        let upstream = ([192, 0, 2, 53], 53).into();
        Self {
            responders: [
                responder(Upstreams::None),
                responder(Upstreams::List(vec![upstream])),
            ],
            buffer: vec![0; TCP_MAX],
        }
    }

    /// The replies to one request over UDP and TCP, with what must hold for each of them checked.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn to(&mut self, request: &[u8]) -> Vec<Vec<u8>> {
        let mut replies = Vec::new();
        for responder in &mut self.responders {
            for via in [Via::Udp, Via::Tcp] {
                let Outcome::Reply(len) = responder.respond(request, via, &mut self.buffer) else {
                    continue;
                };
                let reply = self.buffer[..len].to_vec();
                let limit = if via == Via::Tcp {
                    TCP_MAX
                } else {
                    usize::from(Config::default().udp_payload)
                };
                assert!(
                    (HEADER..=limit.max(UDP_WITHOUT_EDNS)).contains(&len),
                    "{len} octets"
                );
                assert_eq!(reply[..2], request[..2], "another id");
                assert_eq!(reply[2] & 0x80, 0x80, "no response");
                replies.push(reply);
            }
        }
        replies
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self::new()
    }
}

fn catalog() -> Catalog {
    let own = NodeId([1; 16]);
    let catalog = Catalog::new(own);
    let name = NodeName::parse("node1").expect("a node name");
    let record = NodeRecord {
        meta: [(Arc::from("zone"), Arc::from("z1"))].into(),
        ..NodeRecord::new(own, name, [10, 0, 0, 1].into(), 8301)
    };
    catalog.local().put_node(record).expect("well formed");
    for (service, count) in [("web", 2u16), ("many", 300)] {
        for number in 0..count {
            let name = ServiceName::parse(service).expect("a service name");
            let mut instance = Instance::new(name, 80).expect("well formed");
            instance.id = InstanceId::parse(&format!("{service}-{number}")).expect("an id");
            let [high, low] = number.to_be_bytes();
            instance.address = match number % 8 {
                0 => None,
                1 => Some(Host::Ip([0x2001, 0xdb8, 0, 0, 0, 0, 0, number].into())),
                2 => Some(Host::Name(Arc::from(format!("host{number}.example.com")))),
                _ => Some(Host::Ip([10, 1, high, low].into())),
            };
            instance.tags = vec![Arc::from("v1"), Arc::from("a.b")];
            catalog.local().put_service(instance).expect("well formed");
        }
    }
    catalog
}
