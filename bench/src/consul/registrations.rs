//! What a registration costs: of nodes without an agent through the catalog, of services at their agent.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{Server, connection::make_all};
use crate::Options;
use crate::report::{Bar, Row};

/// What an instance takes of Consul's memory.
const CONSUL: f64 = 18_400.0;
/// Nodes without an agent.
const NODES: usize = 100;
/// Instances of them all.
const EXTERNAL: usize = 10_000;
/// Clients that register at once.
const CLIENTS: usize = 64;
/// Services of the one agent.
const SERVICES: [usize; 4] = [1, 100, 1_000, 10_000];
/// Registrations of which the cost is taken with so many services present.
const PROBES: usize = 300;

/// A registration at the agent.
pub fn service(name: &str, id: &str, port: u64) -> Value {
    json!({
        "Name": name, "ID": id, "Port": port, "Address": "127.0.0.1",
        "Tags": ["v1", "bench"], "Meta": {"team": "storage"},
    })
}

/// `catalog/register` of instances that run on nodes without an agent; also how many a second.
pub fn at_the_catalog(
    runtime: &Runtime,
    server: &Server,
    options: &Options,
) -> Result<(Vec<Row>, f64)> {
    let count = if options.quick {
        EXTERNAL / 5
    } else {
        EXTERNAL
    };
    let request = |n: usize| {
        let node = n % NODES;
        let body = json!({
            "Node": format!("external-{node}"), "Address": format!("10.9.0.{node}"),
            "Service": {
                "Service": format!("external-{}", n % 50), "ID": format!("external-{n}"),
                "Port": 8080, "Tags": ["v1", "bench"], "Meta": {"team": "storage"},
            },
        });
        server.request("PUT", "/v1/catalog/register", &body.to_string())
    };
    // The nodes first: their keys and certificates are made once.
    let first = runtime.block_on(make_all(
        &server.addr,
        CLIENTS,
        (0..NODES).map(request).collect(),
    ))?;
    let (resident, spent) = (server.resident()?, server.spent()?);
    let requests: Vec<Bytes> = (NODES..count).map(request).collect();
    let took = runtime.block_on(make_all(&server.addr, CLIENTS, requests))?;
    let made = (count - NODES) as f64;
    let cpu = spent
        .zip(server.spent()?)
        .map(|(before, after)| (after - before) / made);
    let bytes = resident
        .zip(server.resident()?)
        .map(|(before, after)| (after - before) / made);
    let name = format!("{}: catalog/register, {CLIENTS} clients", server.name);
    let note = format!(
        "p50 {:.2} ms, p99 {:.2} ms; {NODES} nodes; the first of each {:.1} ms",
        took.percentile(0.5) / 1e3,
        took.percentile(0.99) / 1e3,
        first.percentile(0.5) / 1e3
    );
    let mut rows = vec![Row::new(name.clone(), took.rate(), "/s").note(note)];
    rows.extend(cpu.map(|cpu| Row::new(format!("{name}, cpu"), cpu, "µs/request")));
    rows.extend(bytes.map(|bytes| Row::new(format!("{name}, an instance resident"), bytes, "B")));
    if server.is_own() {
        let smaller = format!("an instance resident, vs Consul's {CONSUL} B");
        rows.extend(
            bytes.map(|bytes| Row::new(smaller, bytes / CONSUL, "×").bar(Bar::AtMost(1.0))),
        );
    }
    Ok((rows, took.rate()))
}

/// `agent/service/register` with more and more services present.
pub fn at_the_agent(runtime: &Runtime, server: &Server, options: &Options) -> Result<Vec<Row>> {
    let register = |n: usize, port: usize| {
        let (name, id) = (format!("local-{n}"), format!("local-{n}"));
        let body = service(&name, &id, port as u64).to_string();
        server.request("PUT", "/v1/agent/service/register", &body)
    };
    let (mut rows, mut present, mut costs) = (Vec::new(), 0, Vec::new());
    for count in SERVICES {
        if options.quick && count > 1_000 {
            break;
        }
        let clients = if count - present > CLIENTS {
            CLIENTS
        } else {
            1
        };
        let fill = (present..count).map(|n| register(n, 1)).collect();
        let spent = server.spent()?;
        let filled = runtime.block_on(make_all(&server.addr, clients, fill))?;
        if count >= 1_000 {
            let name = format!(
                "{}: {} agent/service/register, {clients} clients",
                server.name,
                count - present
            );
            let note = format!(
                "p50 {:.2} ms, p99 {:.2} ms",
                filled.percentile(0.5) / 1e3,
                filled.percentile(0.99) / 1e3
            );
            rows.push(Row::new(&name, filled.rate(), "/s").note(note));
            let cpu = spent.zip(server.spent()?);
            let cpu = cpu.map(|(before, after)| (after - before) / (count - present) as f64);
            rows.extend(cpu.map(|cpu| Row::new(format!("{name}, cpu"), cpu, "µs/request")));
        }
        present = count;
        // What belongs to the filling must not be taken for the cost of one.
        std::thread::park_timeout(Duration::from_millis(300));
        // Each with a port that it never had: what is there already costs nothing.
        let first = 2 + costs.len() * PROBES;
        let again = (0..PROBES)
            .map(|n| register(n % present, first + n))
            .collect();
        let spent = server.spent()?;
        let took = runtime.block_on(make_all(&server.addr, 1, again))?;
        let cpu = spent.zip(server.spent()?);
        let cpu = cpu.map(|(before, after)| (after - before) / PROBES as f64);
        let median = took.percentile(0.5) / 1e3;
        let name = format!("{}: agent/service/register, {count} present", server.name);
        let mut note = format!("p99 {:.2} ms", took.percentile(0.99) / 1e3);
        if let Some(cpu) = cpu {
            note += &format!(", {cpu:.0} µs of processor");
        }
        rows.push(Row::new(name, median, "ms").note(note));
        costs.push((count, median));
    }
    if server.is_own()
        && let (Some((few, least)), Some((many, most))) = (costs.first(), costs.last())
    {
        let name = format!("agent/service/register, {many} present vs {few}");
        let note = "Consul: 5.4 ms with 6,000";
        rows.push(
            Row::new(name, most / least, "×")
                .bar(Bar::AtMost(1.5))
                .note(note),
        );
    }
    Ok(rows)
}
