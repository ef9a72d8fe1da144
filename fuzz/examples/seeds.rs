//! Writes the first corpora, from real messages: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//! Run it again when a format changes. The requests of `dns_query` are kept as they are.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libmesh::bundle::{Action, ConfigBundle, Intention, Revocation, ServiceMatch, SignedBundle};
use libmesh::catalog::log::Head;
use libmesh::catalog::testing::TestNode;
use libmesh::identity::{PublishRights, SpiffeId, TrustBundle, TrustDomain};
use libmesh::join::{JoinReply, JoinRequest, JoinToken};
use libmesh::member::core::{Core, Output};
use libmesh::member::keyring::Sealer;
use libmesh::member::stream::{PingAnswer, PingBody, PingKind, Seen};
use libmesh::member::wire::Identity;
use libmesh::member::{Config, Keyring};
use libmesh::model::{Datacenter, Instance, NodeId, NodeName, ServiceName};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let seeds = vault_kv::fuzz::seeds().into_iter();
    for (target, name, bytes) in seeds.chain(sidecar::fuzz::seeds()) {
        save(target, name, &bytes)?;
    }
    catalog()?;
    member()?;
    let domain = TrustDomain::parse("6ba7b810-9dad-11d1-80b4-00c04fd430c8.mesh")?;
    let config = bundle(&domain)?;
    join(config)?;
    certificate(&domain)
}

fn catalog() -> Result {
    let node = TestNode::new("node1", [10, 0, 0, 1].into());
    node.local()
        .put_service(Instance::new(ServiceName::parse("web")?, 80)?)?;
    for (i, message) in node
        .catalog
        .messages_since(node.id(), Head::default())
        .iter()
        .enumerate()
    {
        save("catalog_message", &format!("message{i}"), message)?;
    }
    snapshot(&node)?;
    // The body of a digest and of a pull: a format octet, then a list.
    let (id, at) = ([1u8; 16], (5u64, 7u64));
    let digest = vec![(id, at, None), (id, at, Some(9u128))];
    save(
        "sync_frames",
        "digest",
        &postcard::to_extend(&digest, vec![1])?,
    )?;
    save(
        "sync_frames",
        "pull",
        &postcard::to_extend(&vec![(id, at, 0u32)], vec![1])?,
    )?;
    let all = node.catalog.messages_since(node.id(), Head::default());
    let push = (false, vec![all[0].to_vec()]);
    let follow = ("web", 7u64, vec![(id, 300u64)]);
    let gone = (2u8, "web", 7u64, 0u8, vec![(id, Some(at))], false);
    save("sync_frames", "push", &postcard::to_extend(&push, vec![1])?)?;
    save(
        "sync_frames",
        "heads",
        &postcard::to_extend(&(true, vec![(id, at)]), vec![1])?,
    )?;
    save(
        "sync_frames",
        "compare",
        &postcard::to_extend(&(false, [1u64, 2].to_vec()), vec![1])?,
    )?;
    save(
        "sync_frames",
        "subscribe",
        &postcard::to_extend(&(9u64, vec![follow]), vec![1])?,
    )?;
    save("sync_frames", "gone", &postcard::to_extend(&gone, vec![1])?)
}

/// What a node says from its first change on, without format and signature; and its log as it is saved, as if it were of
/// the node that the target speaks for.
fn snapshot(node: &TestNode) -> Result {
    let mut said = Vec::new();
    let mut at = Head::default();
    for port in [80, 81, 82] {
        let mut instance = Instance::new(ServiceName::parse("web")?, port)?;
        instance.id = format!("web-{port}").parse()?;
        node.local().put_service(instance)?;
        for message in node.catalog.messages_since(node.id(), at) {
            let body = &message[65..];
            said.extend(u16::try_from(body.len())?.to_be_bytes());
            said.extend(body);
        }
        at = node.catalog.own_head();
    }
    save("snapshot", "said", &said)?;
    let mut saved = node.catalog.save(true);
    saved[1..17].copy_from_slice(libmesh::catalog::fuzz::speaker().as_bytes());
    save("snapshot", "saved", &saved)
}

/// The first packets of two nodes that meet, and one of them sealed with the key of the target.
fn datagrams() -> Result {
    let addr = |n: u8| SocketAddr::from(([10, 0, 0, n], 8301));
    let core = |n: u8, seeds| {
        let config = Config {
            seeds,
            ..Config::lan(NodeId([n; 16]), addr(n), 7)
        };
        Core::new(&config, Duration::ZERO, n.into(), Arc::default())
    };
    let mut cores = [core(1, vec![addr(2)]), core(2, Vec::new())];
    let mut packets: Vec<Bytes> = Vec::new();
    while packets.len() < 8 {
        let due = cores.iter().filter_map(Core::next_timeout).min();
        let now = due.ok_or("nothing is due")?;
        for at in 0..2 {
            cores[at].handle_timeout(now);
            while let Some(output) = cores[at].poll_output() {
                if let Output::Send { packet, .. } = output {
                    cores[1 - at].handle_datagram(now, &packet);
                    packets.push(packet);
                }
            }
        }
    }
    for (i, packet) in packets.iter().enumerate() {
        save("datagram", &format!("packet{i}"), packet)?;
    }
    let keyring = Keyring::from_bytes(&[&[1, 1][..], &[7; 32]].concat())?;
    let mut sealed = Vec::new();
    Sealer::new(keyring, b"fuzz")?.seal(&packets[0], &mut sealed)?;
    save("datagram", "sealed", &sealed)
}

fn member() -> Result {
    let identity = |n: u8| Identity {
        node: NodeId([n; 16]),
        addr: ([10, 0, 0, n], 8301).into(),
        generation: u64::from(n),
    };
    let (from, target) = (identity(1), identity(2));
    let mut encoded = Vec::new();
    from.encode(&mut encoded);
    save("identity", "v4", &encoded)?;
    datagrams()?;
    let packet = vec![1, 2, 3, 4].into();
    for (name, kind) in [
        ("ping", PingKind::Ping(packet)),
        ("suspicion", PingKind::Suspicion(3)),
        ("witness", PingKind::Witness),
    ] {
        save("member", name, &PingBody { from, target, kind }.encode())?;
    }
    let packets = vec![vec![1, 2, 3].into()];
    save(
        "member",
        "answer",
        &PingAnswer {
            by: target,
            seen: Seen::Acked,
            packets,
        }
        .encode(),
    )?;
    save("member", "keyring", &Keyring::generate()?.to_bytes())
}

fn bundle(domain: &TrustDomain) -> Result<SignedBundle> {
    let bundle = ConfigBundle {
        index: 7,
        head: [3; 32],
        issued_at: 1_800_000_000,
        trust_domain: domain.clone(),
        datacenter: Datacenter::default(),
        roots: vec![vec![0x30, 0x00]],
        intentions: vec![Intention {
            source: ServiceMatch::Any,
            destination: ServiceMatch::Name(ServiceName::parse("web")?),
            action: Action::Allow,
        }],
        default_action: Action::Deny,
        revoked: vec![Revocation::Serial("0a1b".to_owned())],
        entries: [("virtual-ip".to_owned(), vec![1, 2])].into(),
    };
    let bytes = postcard::to_stdvec(&bundle)?;
    save("config_bundle", "opened", &bytes)?;
    let signed = SignedBundle {
        bytes: [&[1][..], &bytes].concat(),
        signature: vec![9; 64],
        chain: vec![vec![0x30, 0x00]],
    };
    save("config_bundle", "signed", &postcard::to_stdvec(&signed)?)?;
    Ok(signed)
}

fn join(config: SignedBundle) -> Result {
    let token = JoinToken::generate([7; 32])?;
    save("join", "token", token.reveal().as_bytes())?;
    let advertise = ([10, 0, 0, 1], 8301).into();
    let request = JoinRequest {
        token: token.id(),
        secret: [5; 32],
        node: NodeName::parse("node1")?,
        csr: vec![0x30, 0x00],
        advertise,
    };
    save("join", "request", &request.encode())?;
    let reply = JoinReply {
        chain: vec![vec![0x30, 0x00]],
        bundle: TrustBundle {
            roots: vec![vec![0x30, 0x00]],
        },
        datacenter: Datacenter::default(),
        keyring: vec![1; 32],
        seeds: vec![advertise],
        config: Some(config),
    };
    save("join", "reply", &reply.encode())
}

fn certificate(domain: &TrustDomain) -> Result {
    let datacenter = Datacenter::default();
    for (name, id) in [
        (
            "service",
            SpiffeId::service(domain, &datacenter, &ServiceName::parse("web")?),
        ),
        ("node", SpiffeId::node(domain, &NodeName::parse("node1")?)),
        ("config", SpiffeId::config_signer(domain, &datacenter)),
    ] {
        save("certificate", name, id.to_string().as_bytes())?;
    }
    save(
        "certificate",
        "rights",
        &PublishRights::new(["web", "api-*"])?.to_extension().1,
    )
}

fn save(target: &str, name: &str, bytes: &[u8]) -> Result {
    let folder = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)?;
    Ok(())
}
