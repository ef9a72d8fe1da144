//! Ten hosts as network namespaces, with real agents: a partition and its end, loss, deafness, pauses.
//!
//! What counts is what each agent's catalog shows. A row says how long it took, or how many healthy nodes went missing
//! from any view.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::Options;
use crate::agents::{Fleet, PATIENCE, now};
use crate::report::{Bar, Row};

mod lab;

use lab::Lab;

const HOSTS: usize = 10;
const CUT: Duration = Duration::from_secs(40);

/// Measures.
pub fn run(_: &Options) -> Result<Vec<Row>> {
    end_on_signals()?;
    let lab = match Lab::new(HOSTS) {
        Ok(lab) => lab,
        Err(why) => {
            let why = format!("needs root and iproute2: {why}");
            return Ok(vec![
                Row::missing("each half sees itself", "s", &why).bar(Bar::AtMost(7.0)),
                Row::missing("all see all after healing", "s", &why).bar(Bar::AtMost(10.0)),
            ]);
        }
    };
    let mut fleet = Fleet::new()?;
    for host in 0..lab.len() {
        fleet.start_in(&name(host), lab.address(host), &lab.on(host))?;
    }
    fleet.agree()?;
    let mut rows = halves(&lab, &mut fleet)?;
    rows.extend(disturbances(&lab, &mut fleet)?);
    Ok(rows)
}

/// Told to end, this process takes its hosts with it. Its agents end because their input does.
fn end_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    std::thread::spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => 143,
                _ = interrupt.recv() => 130,
            }
        });
        lab::remove(&format!("{}{}-", lab::PREFIX, std::process::id()));
        std::process::exit(code)
    });
    Ok(())
}

fn name(host: usize) -> String {
    format!("h{host}")
}

fn seconds(from: u64, to: u64) -> f64 {
    Duration::from_micros(to.saturating_sub(from)).as_secs_f64()
}

fn trouble(why: String) -> anyhow::Error {
    anyhow!(why)
}

/// Half against half.
fn halves(lab: &Lab, fleet: &mut Fleet) -> Result<Vec<Row>> {
    let side = |host: usize| host >= HOSTS / 2;
    let half = |of: &str| -> BTreeSet<String> {
        let of = (0..HOSTS).find(|host| name(*host) == of).map(side);
        (0..HOSTS)
            .filter(|host| Some(side(*host)) == of)
            .map(name)
            .collect()
    };
    let cut = now();
    let end = Instant::now() + CUT;
    lab.split(side).map_err(trouble)?;
    let apart = fleet.until("each half shows itself only", PATIENCE, half)?;
    // Both go on: nobody of a half is lost to it while the other is away.
    let mut lost = 0;
    while let Some(view) = fleet.next(end)? {
        lost += half(&view.by).difference(&view.shows).count();
    }
    let healed = now();
    lab.heal().map_err(trouble)?;
    let together = fleet.agree()?;
    Ok(vec![
        Row::new("half/half: each half sees itself", seconds(cut, apart), "s")
            .bar(Bar::AtMost(7.0)),
        Row::new("half/half: lost to their own half", lost as f64, "nodes")
            .bar(Bar::AtMost(0.0))
            .note(format!("{} s apart", CUT.as_secs())),
        Row::new(
            "half/half: all see all after healing",
            seconds(healed, together),
            "s",
        )
        .bar(Bar::AtMost(10.0)),
    ])
}

/// What must not make any healthy node disappear.
fn disturbances(lab: &Lab, fleet: &mut Fleet) -> Result<Vec<Row>> {
    let missing = |fleet: &mut Fleet, time: Duration| -> Result<f64> {
        let (all, end) = (fleet.names(), Instant::now() + time);
        let mut missing = 0;
        while let Some(view) = fleet.next(end)? {
            missing += all.difference(&view.shows).count();
        }
        Ok(missing as f64)
    };
    let minute = Duration::from_secs(60);
    let none = Bar::AtMost(0.0);
    let row = |what: &str, missing: f64, note: &str| {
        Row::new(format!("{what}: healthy nodes missed"), missing, "views")
            .bar(none)
            .note(note)
    };
    let mut rows = Vec::new();
    match lab.lose(20) {
        Ok(()) => {
            rows.push(row(
                "20 % loss",
                missing(fleet, minute)?,
                "60 s on every host",
            ));
            lab.hear_all().map_err(trouble)?;
            fleet.agree()?;
            for (host, to) in [(1, 2), (3, 4), (5, 6)] {
                lab.deafen(host, to).map_err(trouble)?;
            }
            rows.push(row(
                "deaf one way",
                missing(fleet, minute)?,
                "60 s, 3 pairs",
            ));
            lab.hear_all().map_err(trouble)?;
            fleet.agree()?;
        }
        Err(why) => rows.extend(["20 % loss", "deaf one way"].map(|what| {
            let why = format!("needs nftables: {why}");
            Row::missing(format!("{what}: healthy nodes missed"), "views", why).bar(none)
        })),
    }
    let mut missed = 0.0;
    for host in [1, 4, 7, 2, 8] {
        send(fleet, host, "STOP")?;
        missed += missing(fleet, Duration::from_secs(3))?;
        send(fleet, host, "CONT")?;
        missed += missing(fleet, Duration::from_secs(5))?;
    }
    rows.push(row("paused for 3 s", missed, "5 nodes in turn"));
    Ok(rows)
}

fn send(fleet: &Fleet, host: usize, signal: &str) -> Result<()> {
    let Some(pid) = fleet.pid(&name(host)) else {
        bail!("{} does not run", name(host));
    };
    let status = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .status()?;
    if !status.success() {
        bail!("kill -{signal} {pid} failed");
    }
    Ok(())
}
