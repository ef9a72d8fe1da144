//! A thousand clients that wait for one service to change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Server, connection::Connection, registrations::service};
use crate::report::{Bar, Row};

/// Clients that wait.
const WATCHERS: usize = 1_000;
/// Changes; the figure is the median.
const ROUNDS: usize = 10;
/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(30);
/// Consul's last of a thousand, in ms.
const CONSUL: f64 = 77.0;

/// When the last one has its answer after a change, and what one takes while it waits.
pub fn measure(runtime: &Runtime, server: &Server) -> Result<Vec<Row>> {
    let (mut last, mut first, bytes, cpu) = runtime.block_on(watch(server))?;
    let named = |what: &str| {
        format!(
            "{}: {WATCHERS} watchers of one service, {what}",
            server.name
        )
    };
    let note = format!(
        "first {:.1} ms, worst round {:.1} ms; Consul {CONSUL} ms",
        median(&mut first),
        last.iter().copied().fold(0.0, f64::max)
    );
    let row = Row::new(named("last answered"), median(&mut last), "ms").note(note);
    let mut rows = vec![match server.is_own() {
        true => row.bar(Bar::AtMost(30.0)),
        false => row,
    }];
    rows.extend(cpu.map(|cpu| Row::new(named("cpu of a change"), cpu / 1e3, "ms")));
    rows.extend(bytes.map(|bytes| Row::new(named("memory of one"), bytes, "B")));
    Ok(rows)
}

async fn watch(server: &Server) -> Result<(Vec<f64>, Vec<f64>, Option<f64>, Option<f64>)> {
    let register = "/v1/agent/service/register";
    for n in 0..5 {
        let of = service("watched", &format!("watched-{n}"), n);
        server.ask("PUT", register, &of).await?;
    }
    let resident = server.resident()?;
    let mut waiting = Vec::with_capacity(WATCHERS);
    for _ in 0..WATCHERS {
        waiting.push(Connection::open(&server.addr).await?);
    }
    let (mut lasts, mut firsts, mut bytes, mut cpu) = (Vec::new(), Vec::new(), None, None);
    for round in 0..ROUNDS {
        let path = "/v1/health/service/watched?passing";
        let (index, _) = server.ask("GET", path, &Value::Null).await?;
        let request = server.request("GET", &format!("{path}&index={index}&wait=60s"), "");
        let mut clients: JoinSet<Result<_>> = JoinSet::new();
        for mut connection in waiting.drain(..) {
            let request = request.clone();
            clients.spawn(async move {
                connection.say(&request).await?;
                let answer = timeout(PATIENCE, connection.hear()).await;
                let answer = answer.context("a watcher was not told")??;
                Ok((Instant::now(), answer, connection))
            });
        }
        // All of them wait by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        if round == 0 {
            let now = resident.zip(server.resident()?);
            bytes = now.map(|(before, after)| (after - before) / WATCHERS as f64);
        }
        let spent = server.spent()?;
        let changed = service("watched", "watched-0", 100 + round as u64);
        let begun = Instant::now();
        server.ask("PUT", register, &changed).await?;
        let (mut last, mut first) = (begun, None);
        while let Some(done) = clients.join_next().await {
            let (at, answer, connection) = done??;
            ensure!(answer.status == 200, "status {}", answer.status);
            ensure!(answer.index > index, "answered without a change");
            first = Some(first.map_or(at, |first: Instant| first.min(at)));
            last = last.max(at);
            waiting.push(connection);
        }
        let spent = spent.zip(server.spent()?);
        cpu = cpu
            .or(Some(0.0))
            .zip(spent)
            .map(|(all, (before, after))| all + after - before);
        let millis = |at: Instant| at.saturating_duration_since(begun).as_secs_f64() * 1e3;
        lasts.push(millis(last));
        firsts.extend(first.map(millis));
    }
    Ok((lasts, firsts, bytes, cpu.map(|cpu| cpu / ROUNDS as f64)))
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
