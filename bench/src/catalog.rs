//! A million instances from five thousand nodes, taken into one full replica.
//!
//! Each node is a real log with a real key: 200 instances with a check each, written through the public interface, and
//! one signed snapshot. The replica is a process of its own, so that what it needs is its own: it has the messages in
//! memory before the first figure is taken, and copies each, as it would from a connection. Times are processor time
//! of its one thread.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use libmesh::catalog::log::Head;
use libmesh::catalog::testing::TestNode;
use libmesh::model::{CheckRecord, Health, Host, Instance, NodeId, ServiceName};

use crate::Options;
use crate::process::Process;
use crate::report::{Bar, Row};

pub mod replica;

const NODES: u32 = 5_000;
/// With `--quick`.
const FEW_NODES: u32 = 500;
/// Replicas, one after the other; the one that took the median time is told of.
const RUNS: usize = 3;
const PER_NODE: u32 = 200;
const SERVICES: u32 = 1_000;
const DISTINCT: u32 = 1_000;
/// Nodes that change their instances afterwards, one by one.
const CHANGING: u32 = 100;

pub fn run(options: &Options) -> Result<Vec<Row>> {
    let nodes = if options.quick { FEW_NODES } else { NODES };
    let instances = f64::from(nodes * PER_NODE);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("messages");
    let made = make(&path, nodes)?;
    let text = path
        .to_str()
        .context("the temporary directory has a strange name")?;
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let (_replica, line) = Process::of_this_program("catalog-replica", &[text.to_owned()])?;
        let figures: replica::Figures =
            serde_json::from_str(&line).context("the replica failed")?;
        runs.push(figures);
    }
    runs.sort_by(|a, b| a.apply.total_cmp(&b.apply));
    let figures = &runs[RUNS / 2];
    let each = |total: f64| total / instances;
    let million = 1e6 / instances;
    Ok(vec![
        Row::new("bytes per instance, resident", each(figures.resident), "B")
            .bar(Bar::AtMost(300.0))
            .note(format!(
                "with its check and all indexes; {instances} instances of {nodes} nodes"
            )),
        Row::new("bytes per instance, in messages", each(figures.bytes), "B"),
        Row::new(
            "1 M instances applied, one core",
            figures.apply * million,
            "s",
        )
        .bar(Bar::AtMost(5.0)),
        Row::new(
            "floor: signatures and one hash of the same bytes",
            figures.floor * million,
            "s",
        ),
        Row::new("times the floor", figures.apply / figures.floor, "×"),
        Row::new("snapshots of all nodes", figures.bytes / 1e6, "MB"),
        Row::new(
            "snapshot made and signed, per instance",
            made.seconds * million,
            "µs",
        ),
        Row::new(
            "snapshots of all nodes handed to a joiner",
            figures.hand_out * 1e3,
            "ms",
        )
        .note("they are passed on as they came"),
        Row::new(
            "single changes applied",
            figures.changes / figures.changing,
            "1/s",
        )
        .note("each one signed message; the service's view is kept and updated"),
        Row::new("read of a kept view", figures.read_kept * 1e9, "ns"),
        Row::new(
            "first read of a service, per instance",
            figures.read_first * 1e6,
            "µs",
        )
        .note(format!("{} instances", figures.read_instances)),
        Row::new("names of all services", figures.names * 1e3, "ms"),
    ])
}

struct Made {
    /// Processor time of making snapshots.
    seconds: f64,
}

/// Writes `(node id ‖ length ‖ message)*`: first the snapshots, then, after an empty message, the single changes.
fn make(path: &Path, nodes: u32) -> Result<Made> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut changing = Vec::new();
    let mut seconds = 0.0;
    for n in 0..nodes {
        let node = synthetic(n)?;
        let began = Instant::now();
        let messages = node.catalog.messages_since(node.id(), Head::default());
        seconds += (Instant::now() - began).as_secs_f64();
        for message in messages {
            write(&mut out, node.id(), &message)?;
        }
        if n < CHANGING {
            changing.push(node);
        }
    }
    write(&mut out, NodeId([0; 16]), &[])?;
    for at in 0..PER_NODE as usize {
        for node in &changing {
            let have = node.catalog.own_head();
            let local = node.local();
            let mut instance = Instance::clone(&local.services()[at]);
            instance.weights.warning += 1;
            local.put_service(instance)?;
            for message in node.catalog.messages_since(node.id(), have) {
                write(&mut out, node.id(), &message)?;
            }
        }
    }
    out.flush()?;
    Ok(Made { seconds })
}

fn write(out: &mut impl Write, node: NodeId, message: &[u8]) -> Result<()> {
    out.write_all(node.as_bytes())?;
    out.write_all(&(message.len() as u32).to_le_bytes())?;
    out.write_all(message)?;
    Ok(())
}

fn synthetic(n: u32) -> Result<TestNode> {
    let address = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
    let node = TestNode::new(&format!("node-{n}"), address);
    let local = node.local();
    for at in 0..PER_NODE {
        let unique = n * PER_NODE + at;
        let service = ServiceName::parse(&format!("service-{}", spread(unique, 1) % SERVICES))?;
        let value = |salt: u32| format!("value-{:03}", spread(unique, salt) % DISTINCT);
        let id = format!(
            "{unique:08x}{:08x}{:08x}{:08x}",
            spread(unique, 2),
            spread(unique, 3),
            spread(unique, 4)
        );
        let instance = Instance::builder(service.clone())
            .id(&id)
            .port(1024 + (unique % 60_000) as u16)
            .tags([value(5), value(6)])
            .meta("release", &value(7))
            .meta("team", &value(8))
            .meta("commit", &format!("{:08x}{unique:08x}", spread(unique, 9)))
            .build()?;
        let instance = Instance {
            address: Some(Host::Ip(Ipv4Addr::from(0x0b00_0000 + unique).into())),
            ..instance
        };
        local.put_service(instance.clone())?;
        local.put_check(CheckRecord {
            id: Arc::from(format!("service:{id}")),
            name: Arc::from(format!("Service '{service}' check")),
            service: Some(instance.id),
            status: Health::Passing,
            kind: Arc::from("tcp"),
            notes: Arc::from(""),
            create_stamp: 0,
            modify_stamp: 0,
        })?;
    }
    Ok(node)
}

/// A number that looks random and is always the same (splitmix64).
fn spread(n: u32, salt: u32) -> u32 {
    let mut z = (u64::from(n) << 32 | u64::from(salt)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as u32
}

/// Messages with whose they are.
type Messages<'a> = Vec<(NodeId, &'a [u8])>;

/// The messages of a file that [`make`] wrote: snapshots, single changes.
fn parts(mut bytes: &[u8]) -> Result<[Messages<'_>; 2]> {
    let mut parts = [Vec::new(), Vec::new()];
    let mut part = 0;
    while let Some((node, rest)) = bytes.split_first_chunk::<16>() {
        let (length, rest) = rest.split_first_chunk::<4>().context("cut short")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (message, rest) = rest.split_at_checked(length).context("cut short")?;
        bytes = rest;
        if length == 0 {
            part += 1;
            continue;
        }
        match parts.get_mut(part) {
            Some(part) => part.push((NodeId(*node), message)),
            None => bail!("too many parts"),
        }
    }
    Ok(parts)
}
