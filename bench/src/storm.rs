//! How soon a registration is seen elsewhere, over real sockets: at rest, under load, and while a million instances come
//! (3,750 a second for 267 s, with `--seconds 267`). Agents are nodes of libmesh in this process, with a full replica
//! each; times are taken between the call that registers and the wake-up of a watcher.
//!
//! What is measured is the whole way: log, signature, calls over mutual TLS, relays, verification, index, wake-up; and
//! as all agents share this machine's processors, fifty of them cost fifty times the verification of one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libmesh::mesh::Mesh;
use libmesh::model::{CheckRecord, Health, Instance, InstanceId, ServiceName};
use libmesh::sync::sim::{Network, propagation};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, interval_at, timeout};

use crate::Options;
use crate::report::{Bar, Row};

pub mod agents;

/// What is made a second, of a million in 267 s.
const RATE: u64 = 3_750;
/// Agents that make them; one more observes.
const OWNERS: usize = 3;
/// Services of the million.
const SERVICES: u64 = 20_000;
/// Between two probes: long enough for a quiet owner to be quiet again.
const APART: Duration = Duration::from_millis(61);
/// Each of these figures is the median of so many measurements.
const ROUNDS: usize = 3;
/// One of these takes so long at most.
const ROUND: Duration = Duration::from_secs(5);
/// Time for everything to arrive at the end.
const ARRIVAL: Duration = Duration::from_secs(30);

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let mut rows = simulated();
    // Only the million takes as long as it is told.
    let time = options.time.min(ROUND);
    runtime.block_on(async {
        rows.extend(at_rest(5, time, 3.0, 6.0).await?);
        rows.extend(at_rest(50, time, 10.0, 50.0).await?);
        rows.extend(million(options.time).await?);
        Ok(rows)
    })
}

fn simulated() -> Vec<Row> {
    let seed = 1;
    let way = Duration::from_millis(1);
    let network = Network {
        latency: (way, way),
        loss: 0.02,
    };
    let at = propagation(seed, 1_000, network, 200);
    let name = "N=1000 simulated, 1 ms, 2 % loss:";
    let copies = format!("seed {seed}, {:.2} pushes for each delivery", at.copies);
    vec![
        Row::new(format!("{name} p50"), millis(at.p50), "ms").note(copies),
        Row::new(format!("{name} p99"), millis(at.p99), "ms").bar(Bar::AtMost(300.0)),
    ]
}

/// One registration at a time, seen by all; then with a thousand others a second; then a check that turns critical,
/// and many watchers of one service.
async fn at_rest(count: usize, time: Duration, p50: f64, p99: f64) -> Result<Vec<Row>> {
    let agents = agents::start(count).await?;
    let name = |what: &str| format!("{count} agents, {what}");
    // What is new is slower: connections, and a tree that is not one yet.
    probe(&agents, "warm-up", Duration::from_secs(2)).await?;
    let (middle, worst) = rounds(&agents, "quiet", time).await?;
    let note = format!("medians of {ROUNDS} rounds");
    let mut rows = vec![
        Row::new(name("seen by all: p50"), middle, "ms")
            .bar(Bar::AtMost(p50))
            .note(note),
        Row::new(name("seen by all: p99"), worst, "ms").bar(Bar::AtMost(p99)),
    ];
    let mut critical = failing(&agents).await?;
    let bar = Bar::AtMost(50.0);
    rows.push(
        Row::new(
            name("critical seen by all: p99"),
            percentile(&mut critical, 0.99),
            "ms",
        )
        .bar(bar),
    );
    let watchers = watchers(&agents[0], &agents[1]).await?;
    let bar = Bar::AtMost(30.0);
    rows.push(Row::new(name("last of 1,000 watchers"), watchers, "ms").bar(bar));

    let load: JoinSet<()> = agents
        .iter()
        .take(5)
        .map(|agent| register(agent.clone(), "load", 200, 100))
        .collect();
    let (middle, worst) = rounds(&agents, "loaded", time).await?;
    drop(load);
    let bar = Bar::AtMost(500.0);
    rows.push(Row::new(name("seen by all at 1,000/s: p50"), middle, "ms"));
    rows.push(Row::new(name("seen by all at 1,000/s: p99"), worst, "ms").bar(bar));
    agents::stop(agents).await;
    Ok(rows)
}

/// Medians of the 50th and the 99th percentile of [`probe`], over some rounds.
async fn rounds(agents: &[Mesh], prefix: &str, time: Duration) -> Result<(f64, f64)> {
    let (mut middles, mut worsts) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut times = probe(agents, &format!("{prefix}-{round}"), time).await?;
        middles.push(percentile(&mut times, 0.5));
        worsts.push(percentile(&mut times, 0.99));
    }
    Ok((percentile(&mut middles, 0.5), percentile(&mut worsts, 0.5)))
}

/// Registers at the first agent, one after the other for `time`; for each, when the last agent saw it, in ms.
async fn probe(agents: &[Mesh], service: &str, time: Duration) -> Result<Vec<f64>> {
    let (say, mut seen) = mpsc::unbounded_channel();
    let mut watching = JoinSet::new();
    let service = ServiceName::parse(service)?;
    for agent in &agents[1..] {
        let (watch, say) = (agent.catalog().watch_service(&service), say.clone());
        watching.spawn(async move {
            let mut revision = 0;
            let mut known = 0;
            loop {
                revision = watch.changed_after(revision).await;
                let now = Instant::now();
                let count = watch.view().map_or(0, |view| view.instances.len());
                if (known..count).any(|n| say.send((n, now)).is_err()) {
                    return;
                }
                known = known.max(count);
            }
        });
    }
    let count = (time.as_micros() / APART.as_micros()) as usize;
    let mut made = Vec::with_capacity(count);
    let mut last = vec![Duration::ZERO; count];
    // The last change of what was before must not make the first one of this a second of its batch.
    let mut tick = interval_at(tokio::time::Instant::now() + APART, APART);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left = count * watching.len();
    let deadline = tokio::time::Instant::now() + time * 4 + ARRIVAL;
    while left > 0 {
        tokio::select! {
            _ = tick.tick(), if made.len() < count => {
                made.push(Instant::now());
                agents[0].register(instance(&service, made.len())?)?;
            }
            Some((n, at)) = seen.recv() => {
                last[n] = last[n].max(at.saturating_duration_since(made[n]));
                left -= 1;
            }
            () = tokio::time::sleep_until(deadline) => anyhow::bail!("{left} registrations of {service} are not seen"),
        }
    }
    Ok(last.into_iter().map(millis).collect())
}

/// Checks that turn critical at the first agent; for each, when the last agent saw it, in ms.
async fn failing(agents: &[Mesh]) -> Result<Vec<f64>> {
    let service = ServiceName::parse("failing")?;
    let mut times = Vec::new();
    for n in 0..30 {
        let instance = instance(&service, n)?;
        let id = instance.id.clone();
        agents[0].register(instance)?;
        let wait = |status: Health| {
            let mut waiting = JoinSet::new();
            for agent in &agents[1..] {
                let (watch, id) = (agent.catalog().watch_service(&service), id.clone());
                waiting.spawn(async move {
                    loop {
                        let revision = watch.revision();
                        let view = watch.view();
                        let mut all = view.iter().flat_map(|view| &view.instances);
                        if all.any(|i| i.instance.id == id && i.health == status) {
                            return Instant::now();
                        }
                        watch.changed_after(revision).await;
                    }
                });
            }
            async move { timeout(ARRIVAL, waiting.join_all()).await }
        };
        agents[0].local().put_check(check(&id, Health::Passing))?;
        wait(Health::Passing).await.context("a check is not seen")?;
        let waiting = wait(Health::Critical);
        let began = Instant::now();
        agents[0].local().put_check(check(&id, Health::Critical))?;
        let seen = waiting.await.context("a failure is not seen")?;
        let last = seen.into_iter().max().context("nobody watches")?;
        times.push(millis(last.saturating_duration_since(began)));
    }
    Ok(times)
}

fn check(id: &InstanceId, status: Health) -> CheckRecord {
    CheckRecord {
        id: Arc::from(format!("check-of-{}", id.as_str())),
        name: Arc::from("bench"),
        service: Some(id.clone()),
        status,
        kind: Arc::from("ttl"),
        notes: Arc::from(""),
        create_stamp: 0,
        modify_stamp: 0,
    }
}

/// A change at `owner`, and 1,000 watchers of that service at `agent`: when the last one knew, in ms (the median of ten).
async fn watchers(owner: &Mesh, agent: &Mesh) -> Result<f64> {
    let service = ServiceName::parse("watched")?;
    let mut times = Vec::new();
    for n in 0..10 {
        let mut waiting = JoinSet::new();
        let revision = agent.catalog().watch_service(&service).revision();
        for _ in 0..1_000 {
            let watch = agent.catalog().watch_service(&service);
            waiting.spawn(async move {
                watch.changed_after(revision).await;
                Instant::now()
            });
        }
        tokio::time::sleep(APART).await;
        let began = Instant::now();
        owner.register(instance(&service, n)?)?;
        let woken = timeout(ARRIVAL, waiting.join_all()).await?;
        let last = woken.into_iter().max().context("nobody watches")?;
        times.push(millis(last.saturating_duration_since(began)));
    }
    Ok(percentile(&mut times, 0.5))
}

/// Registers `rate` instances a second of `services` services, until dropped.
async fn register(agent: Mesh, prefix: &'static str, rate: u64, services: u64) {
    let mut tick = interval(Duration::from_millis(10));
    let (began, mut made) = (Instant::now(), 0);
    loop {
        tick.tick().await;
        let due = (Instant::now() - began).as_secs_f64() * rate as f64;
        while made < due as u64 {
            made += 1;
            let registered = ServiceName::parse(&format!("{prefix}-{}", made % services))
                .ok()
                .and_then(|service| instance(&service, made as usize).ok())
                .is_some_and(|instance| agent.register(instance).is_ok());
            if !registered {
                return;
            }
        }
    }
}

/// 3,750 registrations a second through three agents, and what a fourth one sees of them.
async fn million(time: Duration) -> Result<Vec<Row>> {
    let agents = agents::start(OWNERS + 1).await?;
    let (observer, owners) = agents.split_last().context("there are agents")?;
    let before = resident()?;
    let load: JoinSet<()> = owners
        .iter()
        .map(|agent| register(agent.clone(), "storm", RATE / OWNERS as u64, SERVICES))
        .collect();
    let pair = [owners[0].clone(), observer.clone()];
    let began = Instant::now();
    let mut times = probe(&pair, "probe", time).await?;
    drop(load);
    let took = Instant::now() - began;
    let made: usize = owners
        .iter()
        .map(|owner| owner.local().services().len())
        .sum();
    let complete = async {
        let mut changes = observer.catalog().watch_all();
        let seen = || {
            let services = observer.catalog().services();
            services
                .iter()
                .map(|view| view.instances.len())
                .sum::<usize>()
        };
        while seen() < made && changes.changed().await.is_ok() {}
    };
    let ended = Instant::now();
    timeout(ARRIVAL, complete)
        .await
        .context("not everything arrives")?;
    let arrival = Instant::now() - ended;
    let resident = resident()?.saturating_sub(before);
    let rate = made as f64 / took.as_secs_f64();
    ensure!(made > 0, "nothing was registered");
    let name = |what: &str| format!("storm of {RATE}/s, {what}");
    let rows = vec![
        Row::new(name("registered"), made as f64, "instances")
            .note("3,750/s for 267 s are a million: --seconds 267"),
        Row::new(name("rate"), rate, "/s").bar(Bar::AtLeast(RATE as f64 * 0.98)),
        Row::new(
            name("seen by an observer: p50"),
            percentile(&mut times, 0.5),
            "ms",
        ),
        Row::new(
            name("seen by an observer: p99"),
            percentile(&mut times, 0.99),
            "ms",
        )
        .bar(Bar::AtMost(500.0)),
        Row::new(name("all seen after the end"), millis(arrival), "ms"),
        Row::new(
            name("memory of an instance in a replica"),
            resident as f64 / (made * agents.len()) as f64,
            "bytes",
        )
        .note("with what owners and connections need; the bar is in the row of catalog"),
    ];
    agents::stop(agents).await;
    Ok(rows)
}

fn instance(service: &ServiceName, n: usize) -> Result<Instance> {
    let mut instance = Instance::new(service.clone(), 8080)?;
    instance.id = InstanceId::parse(&format!("{:-<32}", format!("{service}-{n}")))?;
    Ok(instance)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn percentile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times
        .get(((times.len().max(1) - 1) as f64 * share).ceil() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Resident bytes of this process.
fn resident() -> Result<usize> {
    let status =
        std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    Ok(kib.context("no VmRSS in /proc/self/status")? * 1024)
}
