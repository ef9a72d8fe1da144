//! A queries over UDP.
//!
//! The same questions, from the same load generator (dnsperf), go to servers with one receive thread each: ours, an echo
//! that does nothing but receive and send, and whichever of knot, nsd, unbound, dnsmasq and hickory-dns the machine has,
//! with the same records. What counts is processor time per query: on a small machine the rate also measures what the
//! load generator leaves over. A server that runs already, a Consul for example, can be named by address and process
//! (`MESH_BENCH_DNS_ADDR=127.0.0.1:8600 MESH_BENCH_DNS_PID=4711`); it has to know the names `web0.service.mesh` … .
//!
//! Ours is measured twice more: with 100,000 services, all of which are asked for, and while 1,000 changes a second are
//! applied to its catalog, half of them to services that are asked for.

use std::path::Path;

use anyhow::{Context, Result};

use crate::Options;
use crate::process::installed;
use crate::report::{Bar, Row};

pub mod children;
mod load;
mod peers;

use load::{Figures, Load};
use peers::Server;

/// Services asked for, in turn, by the comparison with others.
const SERVICES: u32 = 100;
/// Services of a large catalog.
const MANY: u32 = 100_000;
/// Instances of each.
const INSTANCES: u8 = 3;
/// Changes a second.
const CHANGES: u32 = 1_000;
/// Queries a second of the moderate load.
const MODERATE: u32 = 20_000;
/// Each figure is the median of so many measurements, taken in turn so that a disturbance hits all servers alike.
const ROUNDS: usize = 3;

const KNOT_BAR: Bar = Bar::AtMost(1.05);
const HICKORY_BAR: Bar = Bar::AtLeast(1.7);
/// How much more a query may cost when the answers do not fit the processor's caches.
const MANY_BAR: Bar = Bar::AtMost(1.25);
const CHANGES_BAR: Bar = Bar::AtLeast(0.85);
/// Stretch: what answering may cost beyond receiving and sending.
const ECHO_STRETCH: f64 = 1.25;

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let Some(dnsperf) = installed("dnsperf") else {
        let why = "dnsperf is not installed (apt install dnsperf)";
        return Ok(vec![
            Row::missing("mesh cpu/query vs knot", "×", why).bar(KNOT_BAR),
        ]);
    };
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let load = |name: &str, services: u32| -> Result<Load> {
        let questions = folder.path().join(name);
        let names = (0..services).map(|i| format!("web{i}.service.mesh A\n"));
        std::fs::write(&questions, names.collect::<String>())?;
        Ok(Load {
            dnsperf: dnsperf.clone(),
            questions,
            time: options.time,
        })
    };
    let few = load("few", SERVICES)?;
    let mut rows = side_by_side(&few, folder.path())?;
    rows.extend(many_services(&few, &load("many", MANY)?)?);
    rows.extend(while_changing(&few)?);
    Ok(rows)
}

/// Ours and the others, in alternating rounds.
fn side_by_side(load: &Load, folder: &Path) -> Result<Vec<Row>> {
    let servers = peers::all(folder)?;
    let mut full = vec![Vec::new(); servers.len()];
    let mut moderate = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (i, server) in servers.iter().enumerate() {
            full[i].push(load.on(server, None)?);
            moderate[i].push(load.on(server, Some(MODERATE))?);
        }
    }
    Ok(rows(&servers, &full, &moderate))
}

fn rows(servers: &[Server], full: &[Vec<Figures>], moderate: &[Vec<Figures>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (i, server) in servers.iter().enumerate() {
        let name = server.name;
        let lost = full[i].iter().map(|figures| figures.lost).sum::<u64>();
        let note = if lost > 0 {
            format!("{lost} queries lost")
        } else {
            String::new()
        };
        rows.push(Row::new(format!("{name} rate"), median(&full[i], |f| f.rate), "q/s").note(note));
        rows.push(Row::new(
            format!("{name} cpu/query"),
            median(&full[i], |f| f.micros),
            "µs",
        ));
        let at = format!("{name} cpu/query at {}k q/s", MODERATE / 1000);
        rows.push(Row::new(at, median(&moderate[i], |f| f.micros), "µs"));
    }
    let at = |name: &str| servers.iter().position(|server| server.name == name);
    let ratio = |figures: &[Vec<Figures>], other: &str, value: fn(&Figures) -> f64| {
        let value = |i: usize| median(&figures[i], value);
        Some(value(at("mesh")?) / value(at(other)?))
    };
    let compared = |name: String, ratio: Option<f64>, other: &str, bar: Bar| match ratio {
        Some(value) => Row::new(name, value, "×").bar(bar),
        None => Row::missing(name, "×", peers::missing(other)).bar(bar),
    };
    for (figures, load) in [(full, "full load"), (moderate, "20k q/s")] {
        let name = format!("mesh cpu/query vs knot, {load}");
        let ratio = ratio(figures, "knot", |f| f.micros);
        rows.push(compared(name, ratio, "knot", KNOT_BAR));
    }
    let rate = ratio(full, "hickory-dns", |f| f.rate);
    let name = "mesh rate vs hickory-dns".to_owned();
    rows.push(compared(name, rate, "hickory-dns", HICKORY_BAR));
    for other in ["nsd", "unbound", "dnsmasq", "peer"] {
        if let Some(value) = ratio(full, other, |f| f.micros) {
            rows.push(Row::new(format!("mesh cpu/query vs {other}"), value, "×"));
        }
    }
    if let Some(value) = ratio(full, "echo", |f| f.micros) {
        rows.push(
            Row::new("mesh cpu/query vs bare echo", value, "×")
                .note(format!("stretch: ≤ {ECHO_STRETCH}")),
        );
    }
    rows
}

/// The same catalog size as beside others, and a large one, all of which is asked for.
fn many_services(few: &Load, many: &Load) -> Result<Vec<Row>> {
    let small = peers::mesh("mesh, 10 services", &["10".to_owned()])?;
    let large = peers::mesh("mesh, 100,000 services", &[MANY.to_string()])?;
    let first_ten = Load {
        questions: few.head(10)?,
        ..few.clone()
    };
    let mut figures = [const { Vec::new() }; 3];
    // Every answer is prepared once before it counts.
    many.on(&large, None)?;
    for _ in 0..ROUNDS {
        figures[0].push(first_ten.on(&small, None)?);
        figures[1].push(first_ten.on(&large, None)?);
        figures[2].push(many.on(&large, None)?);
    }
    let [small, same, all] = figures.map(|figures| median(&figures, |f| f.micros));
    Ok(vec![
        Row::new("cpu/query, 10 services", small, "µs"),
        Row::new("cpu/query, 100,000 services, 10 asked for", same, "µs"),
        Row::new("cpu/query, 100,000 services, all asked for", all, "µs"),
        Row::new("10 of 100,000 services vs 10 of 10", same / small, "×").bar(KNOT_BAR),
        Row::new("100,000 of 100,000 services vs 10 of 10", all / small, "×").bar(MANY_BAR),
    ])
}

/// What remains of the rate while the catalog changes.
fn while_changing(load: &Load) -> Result<Vec<Row>> {
    let quiet = peers::mesh("mesh", &[SERVICES.to_string()])?;
    let changing = [SERVICES.to_string(), CHANGES.to_string()];
    let changing = peers::mesh("mesh", &changing)?;
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        before.push(load.on(&quiet, None)?);
        during.push(load.on(&changing, None)?);
    }
    let [before, during] = [before, during].map(|figures| median(&figures, |f| f.rate));
    let note = format!("the changes, {CHANGES} a second, are made and signed in the same process");
    Ok(vec![
        Row::new("rate, quiet catalog", before, "q/s"),
        Row::new("rate, catalog with 1,000 changes/s", during, "q/s").note(note),
        Row::new("rate with changes vs without", during / before, "×").bar(CHANGES_BAR),
    ])
}

fn median(figures: &[Figures], value: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<_> = figures.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
