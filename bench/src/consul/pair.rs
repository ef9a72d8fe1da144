//! How soon a registration at one agent is seen at another one, by a client that waits there.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{Server, connection::Connection, registrations::service};
use crate::Options;
use crate::process::Process;
use crate::report::{Bar, Row};

/// Between two registrations: long enough for a quiet agent to be quiet again.
const APART: Duration = Duration::from_millis(61);
const PATIENCE: Duration = Duration::from_secs(10);
/// One of these takes so long at most.
const TIME: Duration = Duration::from_secs(5);

/// From the request that registers to the answer to the one that waits.
pub fn seen(runtime: &Runtime, folder: &Path, options: &Options) -> Result<Vec<Row>> {
    let dir = folder.join("pair").display().to_string();
    let (process, line) = Process::of_this_program("consul-pair", &[dir])?;
    let (first, second) = line.split_once(' ').context("not two addresses")?;
    let (first, second) = (agent(first), agent(second));
    let count = (options.time.min(TIME).as_micros() / APART.as_micros()) as u64;
    let mut times = runtime.block_on(async {
        let mut register = Connection::open(&first.addr).await?;
        let mut wait = Connection::open(&second.addr).await?;
        let mut index = wait.ask(&look(&second, 0)).await?.index;
        let mut times = Vec::new();
        // The first ones open connections between the agents.
        for n in 0..count + 10 {
            wait.say(&look(&second, index)).await?;
            tokio::time::sleep(APART).await;
            let body = service("seen", "seen", n + 1).to_string();
            let request = first.request("PUT", "/v1/agent/service/register", &body);
            let begun = Instant::now();
            register.say(&request).await?;
            let told = timeout(PATIENCE, wait.hear()).await;
            let told = told.context("a registration is not seen")??;
            let took = Instant::now() - begun;
            let done = register.hear().await?;
            ensure!(done.status == 200 && told.index > index, "not registered");
            index = told.index;
            times.extend((n >= 10).then_some(took.as_secs_f64() * 1e3));
        }
        anyhow::Ok(times)
    })?;
    drop(process);
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    let row = |name: &str, share, bar, consul| {
        let name = format!("registered at one agent, answered at another: {name}");
        let row = Row::new(name, at(share).unwrap_or(f64::NAN), "ms").bar(Bar::AtMost(bar));
        row.note(format!("Consul {consul} ms"))
    };
    Ok(vec![row("p50", 0.5, 3.0, 4.6), row("p99", 0.99, 6.0, 6.0)])
}

fn agent(addr: &str) -> Server {
    Server {
        name: "mesh",
        addr: addr.to_owned(),
        token: None,
        pid: None,
        _process: None,
    }
}

fn look(at: &Server, index: u64) -> bytes::Bytes {
    let path = format!("/v1/health/service/seen?index={index}&wait=30s");
    at.request("GET", &path, "")
}
