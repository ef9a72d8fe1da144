//! A killed process on a live host: how long until nobody shows it any more.
//!
//! Agents over real sockets on this machine, each with its own process, keys and catalog. One after the other is killed
//! with SIGKILL; each of the others counts from that moment until its own catalog shows the victim no more. Consul
//! takes 5.7 s with five agents and 7 s with ten (measured the same way).

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Options;
use crate::agents::{Fleet, PATIENCE};
use crate::report::{Bar, Row};

/// Agents, and how many of them are killed in turn.
const SIZES: [(usize, usize); 2] = [(5, 15), (50, 8)];
const P50: Bar = Bar::AtMost(1.5);
const P99: Bar = Bar::AtMost(3.0);
/// A restart within a second must not be seen.
const FIRST: Bar = Bar::AtLeast(1.0);

/// Measures.
pub fn run(_: &Options) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (agents, victims) in SIZES {
        let mut times = measure(agents, victims)?;
        times.sort_by(f64::total_cmp);
        let percentile = |percent: usize| {
            let place = (times.len() * percent).div_ceil(100).max(1) - 1;
            times.get(place).copied().unwrap_or(f64::NAN)
        };
        let note = format!("{victims} killed, {} observations", times.len());
        let row = |what: &str, value| Row::new(format!("{agents} agents, {what}"), value, "s");
        rows.push(row("p50", percentile(50)).bar(P50).note(note));
        rows.push(row("p99", percentile(99)).bar(P99));
        rows.push(row("first", percentile(0)).bar(FIRST));
    }
    Ok(rows)
}

fn measure(agents: usize, victims: usize) -> Result<Vec<f64>> {
    let mut fleet = Fleet::new()?;
    for agent in 0..agents {
        fleet.start(&format!("n{agent}"))?;
    }
    fleet.agree()?;
    let mut times = Vec::new();
    for round in 0..victims {
        // Never the first, which is the others' seed.
        let victim = format!("n{}", agents + round - 1);
        let killed = fleet.kill(&victim);
        let mut missing = fleet.names();
        let deadline = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            let Some(view) = fleet.next(deadline)? else {
                anyhow::bail!(
                    "{missing:?} still show {victim} after {} s",
                    PATIENCE.as_secs()
                );
            };
            if !view.shows.contains(&victim) && missing.remove(&view.by) {
                times.push(Duration::from_micros(view.at.saturating_sub(killed)).as_secs_f64());
            }
        }
        // Another one takes its place under a new name.
        fleet.start(&format!("n{}", agents + round))?;
        fleet.agree()?;
    }
    Ok(times)
}
