//! What is asked for other than a service's instances: sidecars, ports by name, virtual IPs, reverse names, the nearest
//! first, the last known.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use dns::queries::QueryTemplate;
use dns::{Config, PreparedQuery, Queries, ServiceTtl, Ttl, VirtualIps};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType::{A, AAAA, ANY, PTR, SRV, TXT};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use libmesh::model::{Health, Instance, Kind, Liveness, Locality, NamedPort, Proxy, ServiceName};

use crate::support::{
    Mesh, additional, ask, ask_with, at, data, instance, question, tagged, with_edns,
};

fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

#[tokio::test]
async fn connect_leads_to_sidecars() {
    let mesh = Mesh::of(3);
    let mut own = instance("web", 80);
    own.mesh_port = Some(21_000);
    mesh.put(1, own);
    let mut elsewhere = at("10.9.0.2", tagged(&["v2"], instance("web", 81)));
    elsewhere.mesh_port = Some(21_001);
    mesh.put(2, elsewhere);
    // Without a sidecar, and one of Consul's kind.
    mesh.put(3, instance("web", 82));
    let proxy = Instance::builder(name("web-sidecar-proxy"))
        .kind(Kind::ConnectProxy)
        .proxy(Proxy::new(name("web")))
        .port(20_000);
    mesh.put(3, proxy.build().unwrap());
    let server = mesh.serve();
    let reply = ask(&server, "web.connect.mesh.", A).await;
    assert_eq!(data(&reply), ["10.0.0.1", "10.0.0.3", "10.9.0.2"]);
    let reply = ask(&server, "web.connect.dc1.mesh.", SRV).await;
    let expected = [
        "1 1 20000 node3.node.dc1.mesh.",
        "1 1 21000 node1.node.dc1.mesh.",
        "1 1 21001 0a090002.addr.dc1.mesh.",
    ];
    assert_eq!(data(&reply), expected);
    let reply = ask(&server, "v2.web.connect.mesh.", A).await;
    assert_eq!(data(&reply), ["10.9.0.2"]);
    let reply = ask(&server, "nope.connect.mesh.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    server.shutdown().await;
}

#[tokio::test]
async fn a_port_has_a_name() {
    let mesh = Mesh::of(2);
    let mut web = instance("web", 80);
    web.ports = vec![NamedPort {
        name: Arc::from("admin"),
        port: 9000,
    }];
    mesh.put(1, web);
    mesh.put(2, instance("web", 81));
    let server = mesh.serve();
    let reply = ask(&server, "admin.port.web.service.mesh.", SRV).await;
    assert_eq!(data(&reply), ["1 1 9000 node1.node.dc1.mesh."]);
    assert_eq!(additional(&reply), ["node1.node.dc1.mesh. 10.0.0.1"]);
    let reply = ask(&server, "admin.port.web.service.mesh.", A).await;
    assert_eq!(data(&reply), ["10.0.0.1"]);
    let reply = ask(&server, "nope.port.web.service.mesh.", SRV).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    server.shutdown().await;
}

#[tokio::test]
async fn a_virtual_ip_stands_for_a_service_both_ways() {
    let virtual_ips = VirtualIps::default();
    let config = Config {
        virtual_ips: virtual_ips.clone(),
        ..Config::default()
    };
    let server = Mesh::of(1).serve_with(config);
    let code = |reply: &hickory_proto::op::Message| reply.metadata.response_code;
    let reply = ask(&server, "web.virtual.mesh.", A).await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    virtual_ips.set([(name("web"), [240, 1, 2, 3].into())]);
    for spelt in ["web.virtual.mesh.", "WEB.virtual.dc1.consul."] {
        assert_eq!(data(&ask(&server, spelt, A).await), ["240.1.2.3"]);
    }
    let reply = ask(&server, "web.virtual.mesh.", AAAA).await;
    assert!(code(&reply) == ResponseCode::NoError && reply.answers.is_empty());
    let reply = ask(&server, "3.2.1.240.in-addr.arpa.", PTR).await;
    assert_eq!(data(&reply), ["web.virtual.dc1.mesh."]);
    virtual_ips.set([]);
    let reply = ask(&server, "web.virtual.mesh.", A).await;
    assert_eq!(code(&reply), ResponseCode::NXDomain);
    server.shutdown().await;
}

#[tokio::test]
async fn an_address_of_an_instance_has_the_services_name() {
    let mesh = Mesh::of(2);
    mesh.put(2, at("10.9.0.1", instance("web", 80)));
    mesh.put(1, at("10.0.0.2", instance("db", 80)));
    let server = mesh.serve();
    let reply = ask(&server, "1.0.9.10.in-addr.arpa.", PTR).await;
    assert_eq!(data(&reply), ["web.service.dc1.mesh."]);
    let reply = ask(&server, "2.0.0.10.in-addr.arpa.", PTR).await;
    assert_eq!(data(&reply), ["node2.node.dc1.mesh."], "a node's first");
    let reply = ask(&server, "9.9.9.10.in-addr.arpa.", PTR).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    server.shutdown().await;
}

#[tokio::test]
async fn names_of_services_may_hold_dots() {
    let mesh = Mesh::of(2);
    mesh.put(1, tagged(&["v1"], instance("api.shop", 80)));
    let server = mesh.serve();
    let ask_a = async |name: &str| data(&ask(&server, name, A).await);
    assert_eq!(ask_a("api.shop.service.mesh.").await, ["10.0.0.1"]);
    assert_eq!(ask_a("v1.api.shop.service.mesh.").await, ["10.0.0.1"]);
    // A service `shop` takes the name, from its first instance on; with it, `api` is a tag.
    mesh.put(2, tagged(&["api"], instance("shop", 80)));
    assert_eq!(ask_a("api.shop.service.mesh.").await, ["10.0.0.2"]);
    server.shutdown().await;
}

/// node1 in zone a, node2 in zone b of the same region, node3 elsewhere.
fn spread() -> Mesh {
    let mut mesh = Mesh::of(3);
    for (node, (region, zone)) in [("eu", "a"), ("eu", "b"), ("us", "c")]
        .into_iter()
        .enumerate()
    {
        mesh.nodes[node].record.locality = Locality::new(region, zone).unwrap();
        mesh.nodes[node].publish().unwrap();
    }
    for node in [3, 2, 1] {
        for port in [80, 81] {
            let ip = format!("10.{node}.0.{port}");
            mesh.put(node, at(&ip, instance("web", port)));
        }
    }
    mesh
}

#[tokio::test]
async fn the_nearest_come_first_in_random_order() {
    let mesh = spread();
    let server = mesh.serve();
    let mut first = HashMap::<String, u32>::new();
    for _ in 0..100 {
        let reply = ask(&server, "web.service.mesh.", A).await;
        let shown: Vec<_> = reply.answers.iter().map(|r| r.data.to_string()).collect();
        let networks: Vec<_> = shown.iter().map(|ip| &ip[..5]).collect();
        assert_eq!(
            networks,
            ["10.1.", "10.1.", "10.2.", "10.2.", "10.3.", "10.3."]
        );
        *first.entry(shown[0].clone()).or_default() += 1;
    }
    assert_eq!(first.len(), 2, "both of the own zone lead: {first:?}");
    // The same for locations; and what is left out is the farthest.
    let reply = ask(&server, "web.service.mesh.", SRV).await;
    let shown: Vec<_> = reply.answers.iter().map(|r| r.data.to_string()).collect();
    assert!(
        shown[0].contains(" 0a0100") && shown[5].contains(" 0a0300"),
        "{shown:?}"
    );
    server.shutdown().await;

    let config = Config {
        max_addresses: NonZeroUsize::new(2),
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let reply = ask(&server, "web.service.mesh.", A).await;
    assert_eq!(data(&reply), ["10.1.0.80", "10.1.0.81"]);
    assert!(!reply.metadata.truncation);
    server.shutdown().await;

    let config = Config {
        near_first: false,
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let mut far_first = false;
    for _ in 0..200 {
        let reply = ask(&server, "web.service.mesh.", A).await;
        far_first |= reply.answers[0].data.to_string().starts_with("10.3.");
    }
    assert!(far_first, "all the same when nearness does not count");
    server.shutdown().await;
}

#[tokio::test]
async fn warnings_are_left_out_on_request() {
    let mesh = Mesh::of(2);
    let warned = instance("web", 81);
    mesh.put(1, instance("web", 80));
    mesh.put(2, warned.clone());
    mesh.set_health(2, &warned, Health::Warning);
    let config = Config {
        only_passing: true,
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let reply = ask(&server, "web.service.mesh.", A).await;
    assert_eq!(data(&reply), ["10.0.0.1"]);
    server.shutdown().await;
}

#[tokio::test]
async fn times_to_live_are_by_service() {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("db-eu", 80));
    mesh.put(1, instance("web", 80));
    let service = ServiceTtl::new(Duration::from_secs(7)).with("db-*", Duration::from_secs(30));
    let config = Config {
        ttl: Ttl {
            service,
            node: Duration::from_secs(60),
            negative: Duration::from_secs(2),
        },
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    for (name, rtype, ttl) in [
        ("db-eu.service.mesh.", A, 30),
        ("db-eu.service.mesh.", SRV, 30),
        ("web.service.mesh.", ANY, 7),
        ("node1.node.mesh.", A, 60),
    ] {
        assert_eq!(
            ask(&server, name, rtype).await.answers[0].ttl,
            ttl,
            "{name}"
        );
    }
    let reply = ask(&server, "nope.service.mesh.", TXT).await;
    assert_eq!(reply.authorities[0].ttl, 2);
    server.shutdown().await;
}

/// What the OPT record says besides (RFC 8914), if anything.
fn extended_error(reply: &hickory_proto::op::Message) -> Option<u16> {
    match reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(15, bytes) => Some(u16::from_be_bytes([bytes[0], bytes[1]])),
        _ => None,
    }
}

#[tokio::test]
async fn the_last_known_is_told_as_such_when_much_is_gone_at_once() {
    let mesh = Mesh::of(5);
    for node in 2..=5 {
        mesh.put(node, instance("web", 80));
    }
    mesh.put(1, instance("own", 80));
    let server = mesh.serve();
    let asked = |name| with_edns(question(name, A), 1232);
    let reply = ask_with(&server, asked("web.service.mesh.")).await;
    assert_eq!((reply.answers.len(), reply.answers[0].ttl), (4, 5));
    assert_eq!(extended_error(&reply), None);
    for node in 2..=5 {
        mesh.set_liveness(node, Liveness::Down);
    }
    let reply = ask_with(&server, asked("web.service.mesh.")).await;
    assert_eq!((reply.answers.len(), reply.answers[0].ttl), (4, 1));
    assert_eq!(extended_error(&reply), Some(3), "Stale Answer");
    let reply = ask_with(&server, asked("own.service.mesh.")).await;
    assert_eq!((reply.answers[0].ttl, extended_error(&reply)), (5, None));
    // Somebody is back: he alone is shown, as good as new.
    mesh.set_liveness(3, Liveness::Alive);
    let reply = ask_with(&server, asked("web.service.mesh.")).await;
    assert_eq!(data(&reply), ["10.0.0.3"]);
    assert_eq!((reply.answers[0].ttl, extended_error(&reply)), (5, None));
    server.shutdown().await;
}

#[tokio::test]
async fn answers_are_explained() {
    let mesh = Mesh::of(3);
    mesh.put(1, tagged(&["v1"], instance("web", 80)));
    let sick = instance("web", 81);
    mesh.put(2, sick.clone());
    mesh.set_health(2, &sick, Health::Critical);
    mesh.put(3, at("2001:db8::1", instance("web", 82)));
    let server = mesh.serve();
    let explainer = server.explainer();
    let explain = |name: &str, rtype: u16| explainer.explain(name, rtype).expect("a name");
    let verdicts = |name: &str, rtype: u16| {
        let explained = explain(name, rtype);
        let one = |it: &dns::Considered| format!("{} {} {}", it.node, it.shown, it.why);
        explained.instances.iter().map(one).collect::<Vec<_>>()
    };
    let (a, aaaa, srv, txt) = (1, 28, 33, 16);
    let expected = [
        "node1 true passing",
        "node2 false critical: check \"up\"",
        "node3 false its address is of the other family",
    ];
    assert_eq!(verdicts("web.service.mesh", a), expected);
    assert_eq!(
        explain("web.service.mesh.", a).reading,
        "service web: 1 of 3"
    );
    assert_eq!(
        explain("WEB.service.dc1.mesh", srv).reading,
        "service web: 2 of 3"
    );
    let reading = |name: &str, rtype| explain(name, rtype).reading;
    assert!(
        reading("v1.web.service.mesh", aaaa)
            .ends_with("none of 3 has such an address; the name exists")
    );
    assert!(reading("v9.web.service.mesh", a).ends_with("so the name does not exist"));
    assert!(reading("web.service.mesh", txt).ends_with("the name exists"));
    assert!(verdicts("web.connect.mesh", a)[0].contains("no sidecar"));
    assert!(verdicts("x.port.web.service.mesh", a)[0].contains("no port named x"));
    mesh.set_liveness(3, Liveness::Suspect);
    assert!(verdicts("web.service.mesh", aaaa)[2].contains("others are better"));
    for (name, part) in [
        ("mesh", "the domain itself"),
        ("service.mesh", "above others"),
        ("node2.node.mesh", "node node2 at 10.0.0.2: alive"),
        ("nope.node.mesh", "not known"),
        ("0a000001.addr.mesh", "the address 10.0.0.1"),
        ("web.virtual.mesh", "has none"),
        ("web.frob.mesh", "nothing that can exist"),
        ("nope.service.mesh", "there is no instance"),
        ("2.0.0.10.in-addr.arpa", "the reverse name of node node2"),
        ("example.com", "it is refused"),
    ] {
        assert!(
            reading(name, a).contains(part),
            "{name}: {}",
            reading(name, a)
        );
    }
    assert!(explainer.explain(&"a".repeat(64), a).is_none());
    server.shutdown().await;
}

#[tokio::test]
async fn prepared_queries_answer_by_their_own_rules() {
    let mesh = Mesh::of(3);
    let warned = tagged(&["v2"], instance("web", 81));
    mesh.put(1, tagged(&["v1"], instance("web", 80)));
    mesh.put(2, warned.clone());
    mesh.set_health(2, &warned, Health::Warning);
    mesh.put(3, tagged(&["v2", "canary"], instance("web", 82)));
    let queries = Queries::default();
    let config = Config {
        queries: queries.clone(),
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let reply = ask(&server, "pq.query.mesh.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let query = |name: &str, tags: &[&str]| PreparedQuery {
        name: name.to_owned(),
        service: "web".to_owned(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..PreparedQuery::default()
    };
    let passing = PreparedQuery {
        only_passing: true,
        ttl: Some(Duration::from_secs(33)),
        ..query("pq", &["v2"])
    };
    let unchecked = PreparedQuery {
        only_passing: true,
        ignore_checks: vec!["check:web-81".to_owned()],
        ..query("my.unchecked", &["!canary"])
    };
    let template = PreparedQuery {
        template: Some(QueryTemplate::default()),
        service: "${name.suffix}".to_owned(),
        ..query("geo-", &[])
    };
    queries.set([passing, unchecked, template]);
    let reply = ask(&server, "PQ.query.mesh.", A).await;
    assert_eq!(
        (data(&reply), reply.answers[0].ttl),
        (vec!["10.0.0.3".to_owned()], 33)
    );
    let reply = ask(&server, "_pq._tcp.query.dc1.mesh.", SRV).await;
    assert_eq!(data(&reply), ["1 1 82 node3.node.dc1.mesh."]);
    let reply = ask(&server, "my.unchecked.query.mesh.", A).await;
    assert_eq!(data(&reply), ["10.0.0.1", "10.0.0.2"]);
    let reply = ask(&server, "geo-web.query.mesh.", A).await;
    assert_eq!((data(&reply).len(), reply.answers[0].ttl), (3, 5));
    let reply = ask(&server, "geo-nope.query.mesh.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let explained = server.explainer().explain("pq.query.mesh", 1).unwrap();
    assert_eq!(explained.reading, "prepared query \"pq\": 1 of service web");
    let why: Vec<_> = explained
        .instances
        .iter()
        .map(|one| one.why.as_str())
        .collect();
    assert_eq!(why, ["it does not have the tag v2", "warning", "passing"]);
    mesh.set_liveness(3, Liveness::Down);
    let reply = ask(&server, "pq.query.mesh.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    server.shutdown().await;
}
