//! What is answered to which name and type.

use std::collections::BTreeSet;
use std::sync::Arc;

use dns::{Config, Domain};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
use libmesh::model::{Health, InstanceId, Liveness};

use crate::support::{
    Mesh, additional, ask, ask_tcp, ask_with, at, data, instance, question, soa_minimum, tagged,
    with_edns,
};

async fn names(mesh: &Mesh, name: &str, rtype: RecordType) -> (ResponseCode, Vec<String>) {
    let server = mesh.serve();
    let reply = ask(&server, name, rtype).await;
    server.shutdown().await;
    (reply.metadata.response_code, data(&reply))
}

fn found<const N: usize>(data: [&str; N]) -> (ResponseCode, Vec<String>) {
    (ResponseCode::NoError, data.map(str::to_owned).into())
}

fn is_nxdomain(reply: &Message) -> bool {
    reply.metadata.response_code == ResponseCode::NXDomain && soa_minimum(reply) == Some(5)
}

fn is_nodata(reply: &Message) -> bool {
    reply.metadata.response_code == ResponseCode::NoError
        && reply.answers.is_empty()
        && soa_minimum(reply) == Some(5)
}

#[tokio::test]
async fn a_service_by_all_its_names() {
    let mesh = Mesh::of(2);
    mesh.put(1, instance("web", 80));
    mesh.put(2, instance("web", 81));
    let server = mesh.serve();
    for name in [
        "web.service.mesh.",
        "WEB.Service.dc1.Mesh.",
        "web.service.consul.",
        "_web._tcp.mesh.",
        "_web._tcp.service.dc1.mesh.",
    ] {
        let reply = ask(&server, name, A).await;
        assert_eq!(data(&reply), ["10.0.0.1", "10.0.0.2"], "{name}");
        assert!(
            reply.metadata.authoritative
                && !reply.metadata.recursion_available
                && !reply.metadata.truncation
        );
        assert!(reply.answers.iter().all(|record| record.ttl == 5));
    }
    for name in [
        "web.service.dc2.mesh.",
        "nope.service.mesh.",
        "web.mesh.",
        "web.frob.mesh.",
        "*.service.mesh.",
    ] {
        assert!(is_nxdomain(&ask(&server, name, A).await), "{name}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn names_above_others_exist_without_records() {
    let mesh = Mesh::of(1);
    let server = mesh.serve();
    for name in [
        "mesh.",
        "service.mesh.",
        "node.dc1.mesh.",
        "dc1.mesh.",
        "_tcp.service.mesh.",
        "ns.mesh.",
    ] {
        assert!(is_nodata(&ask(&server, name, A).await), "{name}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn locations_name_node_or_address() {
    let mesh = Mesh::of(2);
    let mut heavy = instance("web", 80);
    heavy.weights.passing = 7;
    mesh.put(1, heavy);
    mesh.put(2, at("10.9.0.1", instance("web", 81)));
    let server = mesh.serve();
    let reply = ask(&server, "_web._tcp.service.mesh.", SRV).await;
    assert_eq!(
        data(&reply),
        [
            "1 1 81 0a090001.addr.dc1.mesh.",
            "1 7 80 node1.node.dc1.mesh."
        ]
    );
    assert_eq!(
        additional(&reply),
        [
            "0a090001.addr.dc1.mesh. 10.9.0.1",
            "node1.node.dc1.mesh. 10.0.0.1"
        ]
    );
    // The targets resolve, in the domain that was asked in.
    let reply = ask(&server, "web.service.consul.", SRV).await;
    for (name, address) in [
        ("0a090001.addr.dc1.consul.", "10.9.0.1"),
        ("node1.node.dc1.consul.", "10.0.0.1"),
    ] {
        assert!(
            data(&reply).iter().any(|location| location.ends_with(name)),
            "{:?}",
            data(&reply)
        );
        assert_eq!(data(&ask(&server, name, A).await), [address]);
    }
    server.shutdown().await;
}

#[tokio::test]
async fn subsets_are_tags_or_versions() {
    let mesh = Mesh::of(2);
    mesh.put(1, tagged(&["v1", "eu.west"], instance("web", 80)));
    let mut versioned = instance("web", 81);
    versioned.version = Some(Arc::from("2.1"));
    mesh.put(2, versioned);
    for (name, expected) in [
        ("v1.web.service.mesh.", "10.0.0.1"),
        ("eu.west.web.service.mesh.", "10.0.0.1"),
        ("_web._v1.mesh.", "10.0.0.1"),
        ("2.1.web.service.mesh.", "10.0.0.2"),
    ] {
        assert_eq!(names(&mesh, name, A).await, found([expected]), "{name}");
    }
    let server = mesh.serve();
    assert!(is_nxdomain(&ask(&server, "v9.web.service.mesh.", A).await));
    server.shutdown().await;
}

#[tokio::test]
async fn sick_instances_are_left_out_at_once() {
    let mesh = Mesh::of(2);
    let (first, second) = (instance("web", 80), instance("web", 81));
    mesh.put(1, first.clone());
    mesh.put(2, second.clone());
    let server = mesh.serve();
    assert_eq!(data(&ask(&server, "web.service.mesh.", A).await).len(), 2);
    for (health, shown) in [
        (Health::Critical, 1),
        (Health::Warning, 2),
        (Health::Maintenance, 1),
        (Health::Passing, 2),
    ] {
        mesh.set_health(2, &second, health);
        assert_eq!(
            data(&ask(&server, "web.service.mesh.", A).await).len(),
            shown,
            "{health}"
        );
    }
    mesh.set_health(1, &first, Health::Critical);
    mesh.set_health(2, &second, Health::Critical);
    assert!(is_nxdomain(&ask(&server, "web.service.mesh.", A).await));
    server.shutdown().await;
}

#[tokio::test]
async fn a_warning_instance_has_its_warning_weight() {
    let mesh = Mesh::of(1);
    let mut web = instance("web", 80);
    (web.weights.passing, web.weights.warning) = (9, 2);
    mesh.put(1, web.clone());
    mesh.set_health(1, &web, Health::Warning);
    assert_eq!(
        names(&mesh, "web.service.mesh.", SRV).await,
        found(["1 2 80 node1.node.dc1.mesh."])
    );
}

#[tokio::test]
async fn suspects_are_used_only_when_alone() {
    let mesh = Mesh::of(2);
    mesh.put(1, instance("web", 80));
    mesh.put(2, instance("web", 81));
    mesh.put(2, instance("db", 5432));
    let server = mesh.serve();
    assert_eq!(data(&ask(&server, "web.service.mesh.", A).await).len(), 2);
    mesh.set_liveness(2, Liveness::Suspect);
    assert_eq!(
        data(&ask(&server, "web.service.mesh.", A).await),
        ["10.0.0.1"]
    );
    assert_eq!(
        data(&ask(&server, "db.service.mesh.", A).await),
        ["10.0.0.2"]
    );
    assert_eq!(
        data(&ask(&server, "node2.node.mesh.", A).await),
        ["10.0.0.2"]
    );
    mesh.set_liveness(2, Liveness::Left);
    assert!(is_nxdomain(&ask(&server, "db.service.mesh.", A).await));
    assert!(is_nxdomain(&ask(&server, "node2.node.mesh.", A).await));
    server.shutdown().await;
}

#[tokio::test]
async fn a_change_of_one_service_keeps_the_answers_of_others() {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("web", 80));
    mesh.put(1, instance("db", 5432));
    let server = mesh.serve();
    ask(&server, "web.service.mesh.", A).await;
    let prepared = server.counts().prepared;
    for port in 1000..1010 {
        mesh.put(1, instance("db", port));
        assert_eq!(
            data(&ask(&server, "web.service.mesh.", A).await),
            ["10.0.0.1"]
        );
    }
    assert_eq!(
        server.counts().prepared,
        prepared,
        "the answer for web was made again"
    );
    mesh.put(1, at("10.9.9.9", instance("web", 81)));
    assert_eq!(
        data(&ask(&server, "web.service.mesh.", A).await),
        ["10.0.0.1", "10.9.9.9"]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn nodes_have_addresses_and_texts() {
    let mut mesh = Mesh::of(2);
    let node = &mut mesh.nodes[1];
    for (key, value) in [("zone", "z1"), ("rfc1035-plain", "raw"), ("a.b", "c=d")] {
        node.record.meta.insert(Arc::from(key), Arc::from(value));
    }
    node.publish().unwrap();
    mesh.sync();
    let server = mesh.serve();
    let reply = ask(&server, "node2.node.mesh.", A).await;
    assert_eq!(
        (data(&reply), reply.answers[0].ttl),
        (vec!["10.0.0.2".to_owned()], 10)
    );
    assert_eq!(
        data(&ask(&server, "node2.node.dc1.mesh.", TXT).await),
        ["a.b=c=d", "raw", "zone=z1"]
    );
    assert_eq!(
        data(&ask(&server, "node2.node.mesh.", ANY).await),
        ["10.0.0.2", "a.b=c=d", "raw", "zone=z1"]
    );
    assert_eq!(
        data(&ask(&server, "2.0.0.10.in-addr.arpa.", PTR).await),
        ["node2.node.dc1.mesh."]
    );
    assert!(is_nodata(&ask(&server, "node2.node.mesh.", AAAA).await));
    assert!(is_nodata(&ask(&server, "node1.node.mesh.", TXT).await));
    assert!(is_nxdomain(&ask(&server, "node9.node.mesh.", A).await));
    server.shutdown().await;
}

#[tokio::test]
async fn address_names() {
    let mesh = Mesh::of(1);
    assert_eq!(
        names(&mesh, "0a000001.addr.mesh.", A).await,
        found(["10.0.0.1"])
    );
    assert_eq!(
        names(&mesh, "20010DB8000000000000000000000001.addr.mesh.", AAAA).await,
        found(["2001:db8::1"])
    );
    let server = mesh.serve();
    assert!(is_nodata(&ask(&server, "0a000001.addr.mesh.", AAAA).await));
    assert!(is_nxdomain(&ask(&server, "zz.addr.mesh.", A).await));
    server.shutdown().await;
}

#[tokio::test]
async fn types_without_records_and_any() {
    let mesh = Mesh::of(1);
    mesh.put(1, at("2001:db8::7", instance("six", 80)));
    mesh.put(1, instance("web", 80));
    let server = mesh.serve();
    for rtype in [AAAA, MX, TXT, NS, SOA, CNAME] {
        assert!(
            is_nodata(&ask(&server, "web.service.mesh.", rtype).await),
            "{rtype}"
        );
    }
    assert!(is_nodata(&ask(&server, "six.service.mesh.", A).await));
    assert_eq!(
        data(&ask(&server, "six.service.mesh.", AAAA).await),
        ["2001:db8::7"]
    );
    assert_eq!(
        data(&ask(&server, "six.service.mesh.", ANY).await),
        ["2001:db8::7"]
    );
    assert_eq!(
        data(&ask(&server, "web.service.mesh.", ANY).await),
        ["10.0.0.1"]
    );
    let reply = ask(&server, "six.service.mesh.", SRV).await;
    assert_eq!(
        additional(&reply),
        ["20010db8000000000000000000000007.addr.dc1.mesh. 2001:db8::7"]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn host_names_become_aliases() {
    let mesh = Mesh::of(1);
    mesh.put(1, at("db.example.com", instance("outside", 5432)));
    for rtype in [A, AAAA, CNAME] {
        assert_eq!(
            names(&mesh, "outside.service.mesh.", rtype).await,
            found(["db.example.com."]),
            "{rtype}"
        );
    }
    assert_eq!(
        names(&mesh, "outside.service.mesh.", SRV).await,
        found(["1 1 5432 db.example.com."])
    );
}

#[tokio::test]
async fn apex_records() {
    let mesh = Mesh::of(1);
    let config = Config {
        nameservers: vec!["192.0.2.1".parse().unwrap()],
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    let reply = ask(&server, "mesh.", NS).await;
    assert_eq!(
        (data(&reply), additional(&reply)),
        (
            vec!["ns.mesh.".to_owned()],
            vec!["ns.mesh. 192.0.2.1".to_owned()]
        )
    );
    assert_eq!(data(&ask(&server, "ns.consul.", A).await), ["192.0.2.1"]);
    let soa = data(&ask(&server, "mesh.", SOA).await).remove(0);
    let serial: u64 = soa.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(
        soa.starts_with("ns.mesh. hostmaster.mesh. ") && soa.ends_with(" 3600 600 86400 5"),
        "{soa}"
    );
    assert_eq!(serial, mesh.nodes[0].catalog.revision() / 1_000_000);
    server.shutdown().await;
}

#[tokio::test]
async fn own_domains_can_be_set() {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("web", 80));
    let config = Config {
        domains: vec![Domain::parse("svc.example.com").unwrap()],
        ..Config::default()
    };
    let server = mesh.serve_with(config);
    assert_eq!(
        data(&ask(&server, "web.service.svc.example.com.", A).await),
        ["10.0.0.1"]
    );
    let reply = ask(&server, "web.service.mesh.", A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert!(!reply.metadata.authoritative);
    server.shutdown().await;
}

#[tokio::test]
async fn many_instances_are_cut_over_udp_and_whole_over_tcp() {
    let mesh = Mesh::of(1);
    for i in 0..300u16 {
        let [hi, lo] = i.to_be_bytes();
        mesh.nodes[0]
            .local()
            .put_service(at(&format!("10.1.{hi}.{lo}"), instance("many", 1000 + i)))
            .unwrap();
    }
    let server = mesh.serve();
    let plain = ask(&server, "many.service.mesh.", A).await;
    assert!(plain.metadata.truncation);
    assert_eq!(plain.answers.len(), 29);
    let larger = ask_with(&server, with_edns(question("many.service.mesh.", A), 1232)).await;
    assert!(larger.metadata.truncation);
    assert_eq!(larger.answers.len(), 74);
    // More than we send: our own limit counts.
    let largest = ask_with(&server, with_edns(question("many.service.mesh.", A), 4096)).await;
    assert_eq!(largest.answers.len(), 74);
    assert_eq!(largest.edns.unwrap().max_payload(), 1232);
    let whole = ask_tcp(&server, "many.service.mesh.", A).await;
    assert!(!whole.metadata.truncation);
    assert_eq!(data(&whole).into_iter().collect::<BTreeSet<_>>().len(), 300);
    let whole = ask_tcp(&server, "many.service.mesh.", SRV).await;
    assert_eq!((whole.answers.len(), whole.additionals.len()), (300, 300));
    assert_eq!(server.counts().truncated, 3);
    server.shutdown().await;
}

#[tokio::test]
async fn like_consul_means_three_answers_without_ttl_or_tc() {
    let mesh = Mesh::of(1);
    for i in 1..=5 {
        mesh.put(1, at(&format!("10.1.0.{i}"), instance("many", 1000 + i)));
    }
    let server = mesh.serve_with(Config::like_consul());
    let reply = ask(&server, "many.service.consul.", A).await;
    assert_eq!(
        (
            reply.answers.len(),
            reply.metadata.truncation,
            reply.answers[0].ttl
        ),
        (3, false, 0)
    );
    assert_eq!(
        ask_with(
            &server,
            with_edns(question("many.service.consul.", A), 1232)
        )
        .await
        .answers
        .len(),
        5
    );
    server.shutdown().await;
}

#[tokio::test]
async fn an_address_is_shown_once() {
    let mesh = Mesh::of(1);
    mesh.put(1, instance("web", 80));
    mesh.put(1, instance("web", 81));
    let server = mesh.serve();
    assert_eq!(
        data(&ask(&server, "web.service.mesh.", A).await),
        ["10.0.0.1"]
    );
    assert_eq!(
        ask(&server, "web.service.mesh.", SRV).await.answers.len(),
        2
    );
    mesh.nodes[0]
        .local()
        .remove_service(&InstanceId::parse("web-80").unwrap());
    assert_eq!(
        ask(&server, "web.service.mesh.", SRV).await.answers.len(),
        1
    );
    server.shutdown().await;
}
