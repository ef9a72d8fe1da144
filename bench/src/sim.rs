//! Membership in virtual time: our core beside plain foca with memberlist's LAN settings, in the same network.
//!
//! Rows are named after what happens, the size of the cluster, and who ran: `mesh` is the core that ships, `foca` is
//! `foca::Config::new_lan` driven as its documentation says. Streams cost what they cost over TCP and TLS, and are late
//! when segments get lost; the baseline has none. Every choice comes from one seed, which is printed;
//! `MESH_SIM_SEED` repeats a run. `--quick` leaves out N = 5,000 and the hour at 20 % loss.

use std::time::Duration;

use anyhow::{Context, Result};
use libmesh::member::Preset;
use libmesh::sim::{Crash, Kind, Memory, Network, Sim, Times, What, seed};

use crate::Options;
use crate::report::{Bar, Row};

const SEC: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// A bar of the project is at this size.
const DATACENTER: usize = 1000;

/// One of the two that are compared.
#[derive(Clone, Copy)]
enum Who {
    Mesh,
    Foca,
}

struct Case {
    who: Who,
    nodes: usize,
    seed: u64,
}

impl Case {
    fn kind(&self) -> Kind {
        match self.who {
            Who::Mesh => Kind::Mesh(Preset::lan()),
            Who::Foca => Kind::Plain(self.nodes as u32),
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self.who, Who::Mesh)
    }

    fn has_bar(&self) -> bool {
        self.is_ours() && self.nodes == DATACENTER
    }

    fn cluster(&self, loss: f64) -> Sim {
        Sim::established(self.seed, Network::lossy(loss), &self.kind(), self.nodes)
    }

    fn name(&self, what: &str) -> String {
        let who = match self.who {
            Who::Mesh => "mesh",
            Who::Foca => "foca",
        };
        format!("{what}, N={}, {who}", self.nodes)
    }

    fn row(&self, what: &str, value: f64, unit: &'static str) -> Row {
        Row::new(self.name(what), value, unit)
    }

    /// A row with a bar that holds for our core in a datacenter.
    fn barred(&self, what: &str, value: f64, unit: &'static str, bar: Bar) -> Row {
        let row = self.row(what, value, unit);
        if self.has_bar() { row.bar(bar) } else { row }
    }

    fn times(&self, what: &str, times: &Times, bars: Option<(f64, f64)>) -> Vec<Row> {
        let bar = |limit: Option<f64>, row: Row| match limit.filter(|_| self.has_bar()) {
            Some(limit) => row.bar(Bar::AtMost(limit)),
            None => row,
        };
        let row = |which: &str, time: Duration| {
            self.row(&format!("{what}: {which}"), time.as_secs_f64(), "s")
        };
        vec![
            bar(bars.map(|bars| bars.0), row("p50", times.percentile(50)))
                .note(format!("{} observations", times.len())),
            bar(bars.map(|bars| bars.1), row("p99", times.percentile(99))),
            row("last", times.last()),
        ]
    }
}

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let seed = seed(1);
    eprintln!("mesh-bench: sim runs with MESH_SIM_SEED={seed}");
    let sizes = match options.nodes {
        Some(nodes) => vec![nodes],
        None if options.quick => vec![100, DATACENTER],
        None => vec![100, DATACENTER, 5000],
    };
    let mut rows = Vec::new();
    for nodes in sizes {
        for who in [Who::Mesh, Who::Foca] {
            let case = Case { who, nodes, seed };
            rows.extend(quiet(&case)?);
            rows.extend(lost_host(&case));
            if nodes <= DATACENTER {
                rows.push(stalls(&case));
                rows.push(partition(&case));
            }
            rows.push(storm(&case));
            eprintln!("mesh-bench: sim: {} done", case.name("all"));
        }
        let case = Case {
            who: Who::Mesh,
            nodes,
            seed,
        };
        rows.extend(killed_process(&case));
        if !options.quick && nodes <= DATACENTER {
            rows.extend(hour(&case));
        }
    }
    Ok(rows)
}

/// Processor time of this thread.
fn processor_time() -> Result<Duration> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok());
    let nanos = nanos.with_context(|| format!("{path} has an unknown form"))?;
    Ok(Duration::from_nanos(nanos))
}

/// For how long a cluster in which nothing happens is looked at; `None` when that would take longer than it tells.
fn quiet_time(case: &Case, percent: u32) -> Option<Duration> {
    match (case.who, percent, case.nodes) {
        // The baseline drowns in its suspicions, and the machine in the baseline.
        (Who::Foca, 20, nodes) if nodes > DATACENTER => None,
        (Who::Foca, 20, DATACENTER) => Some(SEC * 10),
        (_, _, nodes) if nodes < DATACENTER => Some(SEC * 600),
        (_, _, DATACENTER) => Some(SEC * 60),
        _ => Some(SEC * 20),
    }
}

/// A cluster in which nothing happens: traffic, processor time, and healthy nodes that are declared down or come back
/// with a new generation because they were told so.
fn quiet(case: &Case) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for percent in [0, 5, 20] {
        let Some(time) = quiet_time(case, percent) else {
            continue;
        };
        let mut sim = case.cluster(f64::from(percent) / 100.0);
        // Exchanges of state are frequent at first.
        sim.run_for(if case.is_ours() { SEC * 30 } else { SEC * 5 });
        let (before, cpu) = (sim.traffic(), processor_time()?);
        sim.run_for(time);
        let cpu = processor_time()?.saturating_sub(cpu);
        let node_seconds = time.as_secs_f64() * case.nodes as f64;
        let traffic = sim.traffic() - before;
        let note = format!(
            "{:.1} datagrams/s with {:.0} B/s, {:.3} stream messages/s",
            traffic.datagrams as f64 / node_seconds,
            traffic.datagram_bytes as f64 / node_seconds,
            traffic.stream_messages as f64 / node_seconds,
        );
        let bytes = traffic.bytes() as f64 / node_seconds;
        let micros = cpu.as_secs_f64() * 1e6 / node_seconds;
        let limited = |name: &str, value, unit, limit| {
            let name = format!("{name}, {percent} % loss");
            if percent == 5 {
                case.barred(&name, value, unit, Bar::AtMost(limit))
            } else {
                case.row(&name, value, unit)
            }
        };
        rows.push(limited("steady traffic", bytes, "B/s", 1000.0).note(note));
        let row = limited("processor time", micros, "µs/node/s", 50.0);
        rows.push(row.note("the simulator's share included"));
        if percent > 0 {
            let what = format!("{percent} % loss");
            rows.extend(unharmed(case, &what, &sim, sim.now()));
        }
    }
    Ok(rows)
}

/// One host gone: how long until each of the others shows it as down.
fn lost_host(case: &Case) -> Vec<Row> {
    let mut rows = Vec::new();
    for percent in [0, 5, 20] {
        if quiet_time(case, percent).is_none_or(|time| time < SEC * 20) {
            continue;
        }
        let mut sim = case.cluster(f64::from(percent) / 100.0);
        let (wait, victims) = match case.who {
            Who::Mesh => (SEC * 10, [1, 2, 3, 4, 5].as_slice()),
            Who::Foca => (SEC * 30, [1, 2].as_slice()),
        };
        let mut all = Times::default();
        for victim in victims {
            let victim = victim * case.nodes / 10;
            let since = sim.now();
            sim.crash(victim, Crash::Host);
            sim.run_for(wait);
            all.extend(sim.times(victim, What::Down, since));
        }
        let bars = (percent == 5).then_some((6.0, 7.0));
        rows.extend(case.times(&format!("host gone, {percent} % loss"), &all, bars));
    }
    rows
}

/// Per node-hour, the victims counted once each and the rejoins of all.
fn unharmed(case: &Case, what: &str, sim: &Sim, time: Duration) -> [Row; 2] {
    let node_hours = time.as_secs_f64() / HOUR.as_secs_f64() * case.nodes as f64;
    let rejoins = sim.sum(|counters| &counters.rejoins);
    let mut downs: Vec<_> = sim
        .seen
        .iter()
        .filter(|seen| seen.what == What::Down)
        .map(|seen| seen.of)
        .collect();
    downs.sort_unstable();
    downs.dedup();
    let note = format!("{node_hours:.0} node-hours");
    let row = |name: String, count: f64| {
        let row = case.row(&name, count / node_hours, "/node/h");
        if case.is_ours() {
            row.bar(Bar::AtMost(0.0))
        } else {
            row
        }
    };
    [
        row(format!("healthy nodes down, {what}"), downs.len() as f64).note(note),
        row(format!("rejoins of healthy nodes, {what}"), rejoins as f64),
    ]
}

/// Five nodes that stall for 1–4 s, again and again.
fn stalls(case: &Case) -> Row {
    let mut sim = case.cluster(0.0);
    let rounds = if case.nodes < DATACENTER { 60 } else { 14 };
    for round in 0..rounds {
        (0..5).for_each(|node| sim.pause(node));
        sim.run_for(Duration::from_millis(1000 + 500 * (round % 7)));
        (0..5).for_each(|node| sim.resume(node));
        sim.run_for(SEC * 2);
    }
    let row = case.row(
        "5 nodes stall 1-4 s: shown down",
        sim.departures() as f64,
        "views",
    );
    let row = row.note(format!("{rounds} times each"));
    if case.is_ours() {
        row.bar(Bar::AtMost(0.0))
    } else {
        row
    }
}

/// Everybody within one second, through three seeds.
fn storm(case: &Case) -> Row {
    let mut sim = Sim::new(case.seed, Network::default());
    sim.start_many(&case.kind(), case.nodes, SEC);
    let limit = if case.is_ours() { SEC * 60 } else { SEC * 30 };
    let took = sim.run_until(limit, Sim::agrees);
    let name = "join storm in 1 s: all pairs known";
    match took {
        Some(took) => case.barred(name, took.as_secs_f64(), "s", Bar::AtMost(15.0)),
        None => {
            let share = sim.known_pairs() * 100.0;
            let row = case.barred(name, f64::INFINITY, "s", Bar::AtMost(15.0));
            row.note(format!("{share:.2} % of all pairs after {limit:?}"))
        }
    }
}

/// Half against half for a minute.
fn partition(case: &Case) -> Row {
    let mut sim = case.cluster(0.0);
    sim.partition(|node| u32::from(node < case.nodes / 2));
    sim.run_for(SEC * 60);
    sim.heal();
    let limit = SEC * 60;
    let took = sim.run_until(limit, Sim::agrees);
    let name = "half/half for 60 s: healed";
    let bar = Bar::AtMost(30.0);
    match took {
        Some(took) => case.barred(name, took.as_secs_f64(), "s", bar),
        None => {
            let share = sim.known_pairs() * 100.0;
            let row = case.barred(name, f64::INFINITY, "s", bar);
            row.note(format!("{share:.2} % of all pairs after {limit:?}"))
        }
    }
}

/// A killed process whose host refuses connections; three others had a stream to it.
fn killed_process(case: &Case) -> Vec<Row> {
    let mut sim = case.cluster(0.02);
    let mut all = Times::default();
    for victim in 1..=5 {
        let victim = victim * case.nodes / 10;
        let since = sim.now();
        sim.crash(victim, Crash::Process);
        sim.run_for(SEC * 5);
        all.extend(sim.times(victim, What::Down, since));
        sim.restart(victim, Memory::Kept);
        sim.run_for(SEC * 5);
    }
    let mut rows = case.times("process killed, 2 % loss", &all, Some((1.5, 3.0)));
    rows.push(
        case.row(
            "process killed, 2 % loss: first",
            all.first().as_secs_f64(),
            "s",
        )
        .bar(Bar::AtLeast(1.0)),
    );
    rows
}

/// One virtual hour at 20 % loss.
fn hour(case: &Case) -> Vec<Row> {
    let mut sim = case.cluster(0.2);
    sim.run_for(HOUR);
    let mut rows = unharmed(case, "20 % loss for an hour", &sim, HOUR).to_vec();
    let agreed = sim.run_until(SEC * 30, Sim::agrees).is_some();
    let row = case.row(
        "20 % loss for an hour: all show all",
        f64::from(u8::from(agreed)),
        "",
    );
    rows.push(row.bar(Bar::AtLeast(1.0)));
    rows
}
