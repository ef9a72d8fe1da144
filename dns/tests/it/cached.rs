//! Answers from the cache are the answers that a server without a cache gives, whatever happened in between.

use std::sync::Arc;

use dns::responder::{Outcome, Readiness, Responder, Shared, Via};
use dns::zone::Zone;
use dns::{Config, PreparedQuery, Upstreams};
use hickory_proto::op::Message;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, SRV, TXT};
use libmesh::model::{Health, InstanceId, Kind, Liveness, Locality, NamedPort, Proxy, ServiceName};
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
    "web.connect.mesh.",
    "v1.db.connect.dc1.consul.",
    "admin.port.web.service.mesh.",
    "a.web.service.mesh.",
    "v1.a.web.service.mesh.",
    "web.virtual.mesh.",
    "pq.query.mesh.",
    "_pq._tcp.query.dc1.consul.",
    "nope.query.mesh.",
    "1.0.7.10.in-addr.arpa.",
    "3.2.1.240.in-addr.arpa.",
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
        meshed: bool,
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
    let (node, service, port) = (1..=NODES, 0..SERVICES.len(), 1..4u16);
    let step = prop_oneof![
        3 => (node.clone(), service.clone(), port.clone(), 0..4usize, 0..3usize, any::<bool>())
            .prop_map(|(node, service, port, address, tag, meshed)| {
                Step::Put { node, service, port, address, tag, meshed }
            }),
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

const SERVICES: &[&str] = &["web", "db", "a.web", "web-sidecar-proxy"];

fn service(index: usize) -> &'static str {
    SERVICES[index]
}

fn change(mesh: &Mesh, step: &Step) {
    match *step {
        Step::Put {
            node,
            service: s,
            port,
            address,
            tag,
            meshed,
        } => {
            let mut new = tagged(&[["v1", "v2", "x"][tag]], instance(service(s), port));
            if address > 0 {
                new = at(
                    ["10.7.0.1", "2001:db8::5", "db.example.com"][address - 1],
                    new,
                );
            }
            if meshed {
                new.mesh_port = Some(21_000 + port);
                new.ports = vec![NamedPort {
                    name: Arc::from("admin"),
                    port,
                }];
            }
            if s == 3 {
                new.kind = Kind::ConnectProxy;
                new.proxy = Some(Arc::new(Proxy::new(ServiceName::parse("web").unwrap())));
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
    fn cached_answers_are_fresh_answers(steps in steps(), seed in any::<u64>(), forwards in any::<bool>(), consul in any::<bool>()) {
        let mut mesh = Mesh::of(NODES as u8);
        for (node, zone) in mesh.nodes.iter_mut().zip(["a", "b", "a"]) {
            node.record.locality = Locality::new("eu", zone).unwrap();
            node.record.roles.server = true;
            node.publish().unwrap();
        }
        mesh.sync();
        let upstreams = if forwards { Upstreams::List(vec![([192, 0, 2, 1], 53).into()]) } else { Upstreams::None };
        let base = if consul { Config::like_consul() } else { Config::default() };
        let config = Config { upstreams, ..base };
        config.virtual_ips.set([(ServiceName::parse("web").unwrap(), [240, 1, 2, 3].into())]);
        config.queries.set([PreparedQuery {
            name: "pq".to_owned(),
            service: "web".to_owned(),
            tags: vec!["!v1".to_owned()],
            only_passing: true,
            ..PreparedQuery::default()
        }]);
        let payload = config.udp_payload;
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
                    prop_assert!(via == Via::Tcp || len <= usize::from(edns.unwrap_or(0).clamp(512, payload)));
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

#[test]
fn the_cached_path_allocates_nothing() {
    let mesh = Mesh::of(2);
    for port in 80..90 {
        mesh.put(1, instance("web", port));
        mesh.put(2, at("10.7.0.1", instance("web", port + 100)));
    }
    let config = Config::default();
    let zone = Zone::new(&config, mesh.nodes[0].catalog.clone());
    let mut responder = Responder::new(Arc::new(Shared::new(&config, zone, Readiness::new(true))));
    let mut out = vec![0; 65_535];
    let mut requests = Vec::new();
    for name in [
        "web.service.mesh.",
        "node2.node.mesh.",
        "mesh.",
        "example.com.",
    ] {
        for rtype in [A, AAAA, SRV, ANY, RecordType::SOA, RecordType::NS] {
            let plain = question(name, rtype);
            requests.push(plain.to_vec().unwrap());
            requests.push(with_edns(plain, 1232).to_vec().unwrap());
        }
    }
    let mut all = |responder: &mut Responder| {
        for request in &requests {
            for via in [Via::Udp, Via::Tcp] {
                let outcome = responder.respond(request, via, &mut out);
                assert!(matches!(outcome, Outcome::Reply(_)));
            }
        }
    };
    all(&mut responder);
    let first = allocation_counter::measure(|| all(&mut responder));
    assert_eq!(first.count_total, 0, "what was asked before");
    // Something else changes: these answers are still good, and that is found out for nothing, too. Only a node's is
    // made again at each change of the catalog.
    mesh.put(1, instance("db", 80));
    requests.retain(|request| !request.windows(6).any(|label| label == b"\x05node2"));
    let mut all = |responder: &mut Responder| {
        for request in &requests {
            responder.respond(request, Via::Udp, &mut out);
        }
    };
    let later = allocation_counter::measure(|| all(&mut responder));
    assert_eq!(later.count_total, 0, "after another service changed");
    let fresh = allocation_counter::measure(|| {
        all(&mut Responder::new(Arc::new(Shared::new(
            &config,
            Zone::new(&config, mesh.nodes[0].catalog.clone()),
            Readiness::new(true),
        ))))
    });
    assert!(fresh.count_total > 0, "the counter counts");
}
