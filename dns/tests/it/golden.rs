//! What Consul 1.21 answered, and what we answer in its manner: `golden/consul-1.21.jsonl` has its recorded answers, a
//! line each. The mesh is set up as Consul was for the recording.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dns::{Config, PreparedQuery};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};
use libmesh::catalog::testing::TestNode;
use libmesh::model::{Health, Instance};
use serde_json::{Value, json};

use crate::support::{Mesh, ask_tcp, at, instance, question, raw_udp, tagged, with_edns};

fn recorded() -> Vec<Value> {
    let dir = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let text = std::fs::read_to_string(dir.join("tests/golden/consul-1.21.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The mesh of the recording; the first node is the server.
fn mesh() -> Mesh {
    let mut mesh = Mesh::named(&[("me", "127.0.0.1")]);
    let server = &mut mesh.nodes[0];
    server.record.roles.server = true;
    server.record.version = Arc::from("1.21.4");
    server.publish().unwrap();
    mesh.put(1, instance("consul", 8300));

    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut put =
        |mesh: &mut Mesh, node: &'static str, ip: &str, meta: bool, instance: Instance| {
            let number = *nodes.entry(node).or_insert_with(|| {
                let mut new = TestNode::new(node, ip.parse().unwrap());
                new.certificate.external = true;
                new.record.external = Some(Box::default());
                new.publish().unwrap();
                if meta {
                    for (key, value) in [("zone", "z1"), ("rfc1035-plain", "raw")] {
                        new.record.meta.insert(Arc::from(key), Arc::from(value));
                    }
                    new.publish().unwrap();
                }
                mesh.nodes.push(new);
                mesh.nodes.len()
            });
            mesh.put(number, instance);
            number
        };
    put(&mut mesh, "ext1", "127.0.5.1", false, instance("db", 5432));
    put(&mut mesh, "ext2", "127.0.5.2", false, instance("db", 5433));
    let dw = |port, tag| tagged(&[tag], instance("dw", port));
    put(&mut mesh, "dn1", "127.0.7.1", false, dw(9001, "t1"));
    put(&mut mesh, "dn2", "127.0.7.2", false, dw(9002, "t1"));
    put(&mut mesh, "dn3", "127.0.7.3", false, dw(9003, "t2"));
    for (name, address, port) in [
        ("own", "127.0.8.1", 80),
        ("six", "2001:db8::1", 80),
        ("outside", "db.example.com", 5432),
    ] {
        put(
            &mut mesh,
            "dn1",
            "127.0.7.1",
            false,
            at(address, instance(name, port)),
        );
    }
    for (name, health) in [("warny", Health::Warning), ("critty", Health::Critical)] {
        let sick = instance(name, 80);
        let node = put(&mut mesh, "dn2", "127.0.7.2", false, sick.clone());
        mesh.set_health(node, &sick, health);
    }
    let mut heavy = instance("heavy", 80);
    (heavy.weights.passing, heavy.weights.warning) = (7, 3);
    put(&mut mesh, "dn3", "127.0.7.3", false, heavy);
    put(
        &mut mesh,
        "dnsix",
        "2001:db8::6",
        false,
        instance("nodesix", 80),
    );
    put(&mut mesh, "dntxt", "127.0.7.9", true, instance("txty", 80));
    for i in 0..25u16 {
        let name: &'static str = Box::leak(format!("mn{i:02}").into_boxed_str());
        let ip = format!("127.0.9.{}", i + 1);
        put(&mut mesh, name, &ip, false, instance("many", 7000 + i));
    }
    mesh
}

/// A record as it was recorded.
fn shown(record: &Record) -> String {
    let data = match &record.data {
        RData::SOA(soa) => format!(
            "{} {} <serial> {} {} {} {}",
            soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum
        ),
        RData::TXT(txt) => {
            let texts = txt
                .txt_data
                .iter()
                .map(|text| String::from_utf8_lossy(text));
            texts.collect::<Vec<_>>().join("|")
        }
        other => other.to_string(),
    };
    let line = format!(
        "{} {} {} {data}",
        record.name,
        record.ttl,
        record.record_type()
    );
    let line = line
        .replace("127.0.0.1", "<ip>")
        .replace(" me.node.", " <node>.node.");
    let line = match line.strip_prefix("me.node.") {
        Some(rest) => format!("<node>.node.{rest}"),
        None => line,
    };
    line.replace("consul-version=1.21.4", "consul-version=<version>")
}

fn section(records: &[Record], count: bool) -> Value {
    let mut lines: Vec<_> = records.iter().map(shown).collect();
    lines.sort();
    if !count || lines.is_empty() {
        return json!(lines);
    }
    let mut types: Vec<_> = records
        .iter()
        .map(|r| r.record_type().to_string())
        .collect();
    types.sort();
    types.dedup();
    json!({"count": lines.len(), "types": types})
}

fn code(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::Refused => "REFUSED",
        _ => "another",
    }
}

fn answer(reply: &Message, count: bool) -> Value {
    let mut answer = json!({
        "rcode": code(reply.metadata.response_code),
        "aa": reply.metadata.authoritative,
        "tc": reply.metadata.truncation,
        "ra": reply.metadata.recursion_available,
        "answer": section(&reply.answers, count),
        "authority": section(&reply.authorities, count),
        "additional": section(&reply.additionals, count),
    });
    if let Some(edns) = &reply.edns {
        answer["edns"] = json!(edns.max_payload());
    }
    answer
}

#[tokio::test]
async fn in_consuls_manner_the_answers_are_consuls() {
    let mesh = mesh();
    let config = Config::like_consul();
    config.queries.set([PreparedQuery {
        name: "pq".to_owned(),
        service: "db".to_owned(),
        ..PreparedQuery::default()
    }]);
    let server = mesh.serve_with(config);
    let mut different = Vec::new();
    for case in recorded() {
        let (id, ask) = (case["id"].as_str().unwrap(), &case["ask"]);
        let name = format!(
            "{}.",
            ask["name"].as_str().unwrap().replace("${node}", "me")
        );
        let rtype: RecordType = ask["type"].as_str().unwrap().parse().unwrap();
        let mut message = question(&name, rtype);
        if let Some(payload) = ask["edns"].as_u64() {
            message = with_edns(message, payload as u16);
        }
        let reply = match ask["tcp"].as_bool() {
            Some(true) => ask_tcp(&server, &name, rtype).await,
            // Not as elsewhere: Consul leaves out the OPT record of a reply that it cuts.
            _ => {
                let octets = message.to_vec().unwrap();
                let reply = raw_udp(server.local_addrs()[0], &octets).await;
                Message::from_vec(&reply).unwrap()
            }
        };
        let mut expected = case["expect"].clone();
        expected.as_object_mut().unwrap().remove("fits");
        let got = answer(&reply, case["count"].as_bool().unwrap());
        if got != expected {
            different.push((id.to_owned(), format!("want {expected}\n got {got}")));
        }
    }
    server.shutdown().await;
    let different: Vec<_> = different
        .iter()
        .map(|(id, how)| format!("{id}\n{how}"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}
