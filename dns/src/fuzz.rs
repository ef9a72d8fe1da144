//! The whole answer path over arbitrary octets, for fuzzing and for the tests that replay what fuzzing found.

use std::sync::Arc;

use libmesh::catalog::Catalog;
use libmesh::model::{Host, Instance, InstanceId, NodeId, NodeName, NodeRecord, ServiceName};

use crate::config::{Config, Upstreams};
use crate::responder::{Outcome, Readiness, Responder, Shared, Via};
use crate::server::fuzz_stream;
use crate::wire::name::{self, Folded, WireName};
use crate::wire::{HEADER, TCP_MAX, UDP_WITHOUT_EDNS};
use crate::zone::Zone;

/// Answers requests over a small catalog that has something for every kind of name.
#[derive(Debug)]
pub struct Answers {
    responders: [Responder; 2],
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
    buffer: Vec<u8>,
}

impl Answers {
    /// One responder that refuses foreign names and one that would forward them.
    pub fn new() -> Self {
        let catalog = catalog();
        let shared = |upstreams| {
            let config = Config {
                upstreams,
                nameservers: vec![[192, 0, 2, 1].into()],
                ..Config::default()
            };
            let zone = Zone::new(&config, catalog.clone());
            Arc::new(Shared::new(&config, zone, Readiness::new(true)))
        };
        let upstream = ([192, 0, 2, 53], 53).into();
        let alone = shared(Upstreams::None);
        let forwarding = shared(Upstreams::List(vec![upstream]));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        Self {
            responders: [&alone, &forwarding]
                .map(|shared| Responder::seeded(Arc::clone(shared), 1)),
            shared: alone,
            runtime: runtime.expect("a runtime without input and output"),
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

impl Answers {
    /// The replies to what a peer sends over TCP before it closes, with what must hold for them checked.
    ///
    /// # Panics
    /// When it does not hold.
    pub fn to_stream(&mut self, octets: &[u8]) -> Vec<Vec<u8>> {
        let stream = fuzz_stream(Arc::clone(&self.shared), octets);
        let written = self.runtime.block_on(stream);
        let (asked, _cut_off) = frames(octets);
        let (replies, rest) = frames(&written);
        assert!(rest.is_empty(), "a reply is cut off");
        // Nothing waits for an upstream here: replies come in the order of their questions.
        let mut asked = asked.iter();
        for reply in &replies {
            assert!(reply.len() >= HEADER, "{} octets", reply.len());
            assert!(
                asked.any(|request| request.get(..2) == Some(&reply[..2])),
                "nobody asked for this"
            );
        }
        replies.into_iter().map(<[u8]>::to_vec).collect()
    }
}

/// The frames of a stream, and what is left over.
fn frames(mut octets: &[u8]) -> (Vec<&[u8]>, &[u8]) {
    let mut frames = Vec::new();
    while let Some((len, rest)) = octets.split_first_chunk() {
        let Some((frame, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else {
            break;
        };
        frames.push(frame);
        octets = rest;
    }
    (frames, octets)
}

/// Reads a name at the start of a message, and steps over one that may be compressed; what must hold is checked
/// against another decoder.
///
/// # Panics
/// When it does not hold.
pub fn name(octets: &[u8]) {
    use hickory_proto::rr::Name;
    use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

    let mut decoder = BinDecoder::new(octets);
    let theirs = Name::read(&mut decoder)
        .ok()
        .map(|name| (name, decoder.index()));
    let ours = name::skip(octets, 0);
    if let Some((_, end)) = &theirs {
        assert_eq!(ours, Some(*end), "it ends elsewhere");
    }
    let Some(wire) = WireName::parse(octets) else {
        return;
    };
    assert_eq!(ours, Some(wire.as_bytes().len()));
    let (theirs, _) = theirs.expect("a name without compression is a name");
    let labels = |name: &[u8]| name::labels(name).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let theirs: Vec<_> = theirs.iter().map(<[u8]>::to_vec).collect();
    assert_eq!(labels(wire.as_bytes()), theirs);
    let folded = Folded::new(wire);
    assert!(folded.as_bytes().eq_ignore_ascii_case(wire.as_bytes()));
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
