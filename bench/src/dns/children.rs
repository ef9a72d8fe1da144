//! The servers of ours that are measured.

use std::io::{Read, stdin};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dns::{Config, DnsServer, Readiness};
use libmesh::catalog::log::Head;
use libmesh::catalog::testing::TestNode;
use libmesh::catalog::{Catalog, Outcome};
use libmesh::model::{Host, Instance, InstanceId, ServiceName};

use super::{INSTANCES, SERVICES};

/// Changes come in batches, so many a second.
const BATCHES: u32 = 50;

/// Services of one node: no node may say much more at once.
const OF_ONE_NODE: u32 = 1_000;

/// Where an instance of a service is.
pub fn address(service: u32, instance: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(10 << 24 | service << 4 | u32::from(instance))
}

/// Our server over a catalog with the services that are asked for. Arguments: how many, and how many changes a second
/// are applied.
pub fn mesh(arguments: &[String]) -> Result<()> {
    let number = |at: usize| -> Result<u32> {
        let text = arguments.get(at).map_or("0", String::as_str);
        text.parse()
            .with_context(|| format!("{text:?} is no number"))
    };
    let (services, changes) = (number(0)?, number(1)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let node = TestNode::new("node1", [10, 0, 0, 1].into());
    let mut others = Vec::new();
    for (number, first) in (0..services).step_by(OF_ONE_NODE as usize).enumerate() {
        let ip = Ipv4Addr::from_bits(11 << 24 | number as u32);
        let other = TestNode::new(&format!("other{number}"), ip.into());
        for service in first..services.min(first + OF_ONE_NODE) {
            for number in 1..=INSTANCES {
                other.local().put_service(instance(service, number)?)?;
            }
        }
        other.send_to(&node.catalog);
        // Only the first changes later.
        if others.is_empty() {
            others.push(other);
        }
    }
    let other = others.first().context("no services")?;
    runtime.block_on(async {
        let config = Config {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            ..Config::default()
        };
        let server = DnsServer::bind(&config, node.catalog.clone(), Readiness::new(true))?;
        println!("{}", server.local_addrs()[0].port());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let changing = (changes > 0)
                .then(|| scope.spawn(|| change(other, &node.catalog, services, changes, &stop)));
            until_input_ends();
            stop.store(true, Ordering::Relaxed);
            changing.map_or(Ok(()), |thread| thread.join().expect("it does not panic"))
        })?;
        server.shutdown().await;
        Ok(())
    })
}

/// Receives and sends, the same way as our server does.
pub fn echo(_: &[String]) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    println!("{}", socket.local_addr()?.port());
    std::thread::spawn(move || dns::echo(&socket));
    until_input_ends();
    Ok(())
}

fn until_input_ends() {
    // An error means the same as the end: nobody is there any more.
    let _ = stdin().read_to_end(&mut Vec::new());
}

fn instance(service: u32, number: u8) -> Result<Instance> {
    let name = ServiceName::parse(&format!("web{service}"))?;
    let mut instance = Instance::new(name, 80)?;
    instance.id = InstanceId::parse(&format!("web{service}-{number}"))?;
    instance.address = Some(Host::Ip(address(service, number).into()));
    Ok(instance)
}

/// Another node's instances change, every second one of a service that is asked for, and its signed batches are applied
/// as they come.
fn change(
    other: &TestNode,
    catalog: &Catalog,
    services: u32,
    rate: u32,
    stop: &AtomicBool,
) -> Result<()> {
    let (tick, mut next) = (Duration::from_secs(1) / BATCHES, Instant::now());
    let mut count = 0u32;
    while !stop.load(Ordering::Relaxed) {
        let have = catalog
            .heads()
            .into_iter()
            .find(|log| log.node == other.id());
        let mut have = have.map_or(Head::default(), |log| log.at);
        for _ in 0..rate / BATCHES {
            count += 1;
            let service = match count % 2 {
                0 => count / 2 % services,
                _ => services + count / 2 % SERVICES,
            };
            let mut changed = instance(service, 1)?;
            changed.port = 1024 + (count % 60_000) as u16;
            other.local().put_service(changed)?;
        }
        for message in other.catalog.messages_since(other.id(), have) {
            if let Outcome::Pull(from) = catalog.apply(message) {
                have = from;
            }
        }
        next += tick;
        std::thread::park_timeout(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}
