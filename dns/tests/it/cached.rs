//! Answers from the cache are the answers that a server without a cache gives, whatever happened in between.

use std::sync::Arc;

use dns::responder::{Outcome, Readiness, Responder, Shared, Via};
use dns::zone::Zone;
use dns::{Config, Upstreams};
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, SRV, TXT};
use libmesh::model::{Health, InstanceId, Liveness};
use proptest::prelude::*;

use crate::support::{Mesh, at, instance, question, tagged, with_edns};

const NODES: usize = 3;
const NAMES: &[&str] = &[
    "web.service.mesh.",
    "WEB.service.dc1.mesh.",
    "v1.web.service.mesh.",
    "db.service.consul.",
    "_web._tcp.mesh.",
    "_db._v2.service.mesh.",
    "node2.node.mesh.",
    "node3.node.dc1.consul.",
    "2.0.0.10.in-addr.arpa.",
    "0a000001.addr.mesh.",
    "service.mesh.",
    "mesh.",
    "nope.service.mesh.",
    "example.com.",
];
const TYPES: &[RecordType] = &[A, AAAA, SRV, TXT, ANY, RecordType::SOA, RecordType::PTR];

#[derive(Clone, Debug)]
enum Step {
    Put {
        node: usize,
        service: usize,
        port: u16,
        address: usize,
        tag: usize,
    },
    Remove {
        node: usize,
        service: usize,
        port: u16,
    },
    Health {
        node: usize,
        service: usize,
        port: u16,
        health: usize,
    },
    Liveness {
        node: usize,
        liveness: usize,
    },
    Ask {
        name: usize,
        rtype: usize,
        edns: Option<u16>,
        via: Via,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, service, port) = (1..=NODES, 0..2usize, 1..4u16);
    let step = prop_oneof![
        3 => (node.clone(), service.clone(), port.clone(), 0..4usize, 0..3usize)
            .prop_map(|(node, service, port, address, tag)| Step::Put { node, service, port, address, tag }),
        1 => (node.clone(), service.clone(), port.clone())
            .prop_map(|(node, service, port)| Step::Remove { node, service, port }),
        1 => (node, service, port, 0..4usize)
            .prop_map(|(node, service, port, health)| Step::Health { node, service, port, health }),
        1 => (2..=NODES, 0..4usize).prop_map(|(node, liveness)| Step::Liveness { node, liveness }),
        8 => (0..NAMES.len(), 0..TYPES.len(), proptest::option::of(0..5000u16), any::<bool>())
            .prop_map(|(name, rtype, edns, tcp)| {
                Step::Ask { name, rtype, edns, via: if tcp { Via::Tcp } else { Via::Udp } }
            }),
    ];
    proptest::collection::vec(step, 1..60)
}

fn service(index: usize) -> &'static str {
    ["web", "db"][index]
}

fn change(mesh: &Mesh, step: &Step) {
    match *step {
        Step::Put {
            node,
            service: s,
            port,
            address,
            tag,
        } => {
            let mut new = tagged(&[["v1", "v2", "x"][tag]], instance(service(s), port));
            if address > 0 {
                new = at(
                    ["10.7.0.1", "2001:db8::5", "db.example.com"][address - 1],
                    new,
                );
            }
            mesh.put(node, new);
        }
        Step::Remove {
            node,
            service: s,
            port,
        } => {
            let id = InstanceId::parse(&format!("{}-{port}", service(s))).unwrap();
            mesh.nodes[node - 1].local().remove_service(&id);
            mesh.sync();
        }
        Step::Health {
            node,
            service: s,
            port,
            health,
        } => {
            let known = instance(service(s), port);
            if mesh.nodes[node - 1].local().service(&known.id).is_some() {
                let health = [
                    Health::Passing,
                    Health::Warning,
                    Health::Critical,
                    Health::Maintenance,
                ][health];
                mesh.set_health(node, &known, health);
            }
        }
        Step::Liveness { node, liveness } => {
            let liveness = [
                Liveness::Alive,
                Liveness::Suspect,
                Liveness::Down,
                Liveness::Left,
            ][liveness];
            mesh.set_liveness(node, liveness);
        }
        Step::Ask { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// One responder lives through all changes, another is new for each question. With the same luck in shuffling
    /// they say the same, octet for octet, and what they say decodes.
    #[test]
    fn cached_answers_are_fresh_answers(steps in steps(), seed in any::<u64>(), forwards in any::<bool>()) {
        let mesh = Mesh::of(NODES as u8);
        let upstreams = if forwards { Upstreams::List(vec![([192, 0, 2, 1], 53).into()]) } else { Upstreams::None };
        let config = Config { upstreams, ..Config::default() };
        let catalog = mesh.nodes[0].catalog.clone();
        let shared = Arc::new(Shared::new(&config, Zone::new(&config, catalog), Readiness::new(true)));
        let mut old = Responder::new(Arc::clone(&shared));
        let mut buffers = [vec![0; 65_535], vec![0; 65_535]];
        for step in &steps {
            let Step::Ask { name, rtype, edns, via } = *step else {
                change(&mesh, step);
                continue;
            };
            let mut message = question(NAMES[name], TYPES[rtype]);
            if let Some(payload) = edns {
                message = with_edns(message, payload);
            }
            let request = message.to_vec().unwrap();
            let [kept, fresh] = &mut buffers;
            old.reseed(seed);
            let kept_outcome = old.respond(&request, via, kept);
            let fresh_outcome = Responder::seeded(Arc::clone(&shared), seed).respond(&request, via, fresh);
            prop_assert_eq!(kept_outcome, fresh_outcome);
            match kept_outcome {
                Outcome::Reply(len) => {
                    prop_assert_eq!(&kept[..len], &fresh[..len]);
                    prop_assert!(via == Via::Tcp || len <= usize::from(edns.unwrap_or(0).clamp(512, 1232)));
                    prop_assert!(Message::from_vec(&kept[..len]).is_ok());
                }
                // Foreign names, and aliases of ours that an upstream may have to resolve.
                Outcome::Forward => prop_assert!(forwards),
                Outcome::Ignore => prop_assert!(false, "a good question was ignored"),
            }
        }
    }

    /// No octets make the whole answer path panic.
    #[test]
    fn any_octets_are_survived(
        requests in proptest::collection::vec((any::<u16>(), 0..NAMES.len(), proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6)), 1..40),
    ) {
        let mesh = Mesh::of(1);
        mesh.put(1, instance("web", 80));
        let config = Config::default();
        let zone = Zone::new(&config, mesh.nodes[0].catalog.clone());
        let mut responder = Responder::new(Arc::new(Shared::new(&config, zone, Readiness::new(true))));
        let mut out = vec![0; 65_535];
        for (rtype, name, changes) in requests {
            let message = with_edns(question(NAMES[name], RecordType::from(rtype)), 1232);
            let mut request = message.to_vec().unwrap();
            for (at, value) in changes {
                let at = at.index(request.len());
                request[at] = value;
            }
            for via in [Via::Udp, Via::Tcp] {
                if let Outcome::Reply(len) = responder.respond(&request, via, &mut out) {
                    prop_assert!((12..=65_535).contains(&len));
                    prop_assert_eq!(&out[..2], &request[..2]);
                }
            }
        }
    }
}
