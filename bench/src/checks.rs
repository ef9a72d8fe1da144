//! What checks cost their agent: memory of one that waits, processor time of one that looks. Ten thousand of them in a
//! process of their own, against a port of this one.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use libmesh::catalog::Catalog;
use libmesh::health::{Check, Probe, ProbeResult, Scheduler, TcpProbe};
use libmesh::identity::BoxFuture;
use libmesh::model::{CheckRecord, Health, Instance, InstanceId, NodeId, ServiceName};
use serde::{Deserialize, Serialize};

use crate::Options;
use crate::process::Process;
use crate::report::{Bar, Row};

/// Checks of the one agent.
const CHECKS: usize = 10_000;
/// How often each looks while that is measured.
const INTERVAL: Duration = Duration::from_secs(10);

/// What the child found.
#[derive(Serialize, Deserialize)]
struct Found {
    bytes: f64,
    own_micros: f64,
    tcp_micros: f64,
    tcp_looks: u64,
}

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    // Ends with this program.
    thread::spawn(move || listener.incoming().for_each(drop));
    let seconds = options.time.max(INTERVAL).as_secs();
    let arguments = [port.to_string(), seconds.to_string()];
    let (_child, line) = Process::of_this_program("checks-agent", &arguments)?;
    let found: Found = serde_json::from_str(&line)?;
    Ok(vec![
        Row::new("a check that waits", found.bytes, "bytes")
            .bar(Bar::AtMost(1024.0))
            .note(format!("{CHECKS} TCP checks, besides their records")),
        Row::new("a look at nothing: CPU", found.own_micros, "µs")
            .note("scheduler, task and timers alone"),
        Row::new("a look at a TCP port: CPU", found.tcp_micros, "µs")
            .note(format!("{} looks", found.tcp_looks)),
    ])
}

/// The agent: its port to look at and for how many seconds.
pub fn child(arguments: &[String]) -> Result<()> {
    let port: u16 = arguments.first().context("no port")?.parse()?;
    let seconds: u64 = arguments.get(1).context("no time")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let found = runtime.block_on(measure(port, Duration::from_secs(seconds)))?;
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

async fn measure(port: u16, time: Duration) -> Result<Found> {
    let catalog = Catalog::new(NodeId([1; 16]));
    let local = catalog.local();
    let service = ServiceName::parse("web")?;
    for n in 0..CHECKS {
        let mut instance = Instance::new(service.clone(), port)?;
        instance.id = InstanceId::parse(&format!("web-{n}"))?;
        instance.service = ServiceName::parse(&format!("web-{}", n % 1000))?;
        local.put_service(instance)?;
        local.put_check(CheckRecord {
            id: id(n).into(),
            name: id(n).into(),
            service: Some(InstanceId::parse(&format!("web-{n}"))?),
            status: Health::Critical,
            kind: "tcp".into(),
            notes: "".into(),
            create_stamp: 0,
            modify_stamp: 0,
        })?;
    }
    let scheduler = Scheduler::new(local);
    let before = resident()?;
    let address = format!("127.0.0.1:{port}");
    for n in 0..CHECKS {
        let check = Check::every(&id(n), INTERVAL, TcpProbe::new(&address)?);
        scheduler.add(check.of(InstanceId::parse(&format!("web-{n}"))?))?;
    }
    let bytes = (resident()? - before) / CHECKS as f64;

    let start = processor_time()?;
    tokio::time::sleep(time).await;
    let spent = processor_time()? - start;
    // Every check looks once an interval.
    let tcp_looks = CHECKS as u64 * time.as_secs() / INTERVAL.as_secs();

    let looks = Arc::new(AtomicU64::new(0));
    for n in 0..CHECKS {
        let nothing = Nothing(Arc::clone(&looks));
        let check = Check::every(&id(n), Duration::from_secs(1), nothing);
        scheduler.add(check.of(InstanceId::parse(&format!("web-{n}"))?))?;
    }
    let (start, first) = (processor_time()?, looks.load(Ordering::Relaxed));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let own = processor_time()? - start;
    let own_looks = looks.load(Ordering::Relaxed) - first;
    Ok(Found {
        bytes,
        own_micros: own * 1e6 / own_looks as f64,
        tcp_micros: spent * 1e6 / tcp_looks as f64,
        tcp_looks,
    })
}

fn id(n: usize) -> String {
    format!("service:web-{n}")
}

/// Is always well.
struct Nothing(Arc<AtomicU64>);

impl Probe for Nothing {
    fn kind(&self) -> &'static str {
        "tcp"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { ProbeResult::passing("") })
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.context("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<f64>()? * 1024.0)
}

/// Processor time of this process so far, in seconds.
fn processor_time() -> Result<f64> {
    let schedstat = fs::read_to_string("/proc/self/stat")?;
    // The command's name, in parentheses, may contain spaces.
    let (_, rest) = schedstat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
