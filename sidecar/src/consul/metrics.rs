//! `/v1/agent/metrics`: what this agent counts and measures, as Consul's JSON or as text for Prometheus.
//!
//! Counters rise from the start of the agent, and are not cut into intervals as Consul's are.

mod figures;
mod shown;

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use libmesh::model::Liveness;

use super::{Inner, Refused, handler};
use crate::http::{Call, Reply, Routes, json as json_reply, text};

pub use figures::Figures;
use shown::{Family, Kind, prometheus, to_json};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new().get("/v1/agent/metrics", handler(inner, metrics))
}

async fn metrics(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let prometheus_wanted = call.query.get("format") == Some("prometheus");
    if prometheus_wanted && inner.about.like_consul {
        let mut reply = json_reply(StatusCode::OK, "");
        let reason = "Prometheus is not enabled since its retention time is not positive";
        let headers = reply.headers_mut();
        headers.insert("x-consul-reason", HeaderValue::from_static(reason));
        return Ok(reply);
    }
    let families = gather(&inner);
    if !prometheus_wanted {
        return Ok(json_reply(
            StatusCode::OK,
            &to_json(&families, inner.figures.age()),
        ));
    }
    let mut reply = text(StatusCode::OK, prometheus(&families));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(reply)
}

fn gather(inner: &Inner) -> Vec<Family> {
    let mut all = catalog(inner);
    all.extend(inner.figures.families());
    if let Some(around) = inner.around.get() {
        let members = around.mesh.membership();
        let counted = members.counters().snapshot().into_iter();
        all.extend(counted.map(|(name, value)| {
            let counter = Family::new(
                &format!("member.{name}"),
                Kind::Counter,
                "Counted by membership since the start.",
            );
            counter.with(&[], value as f64)
        }));
        all.push(
            Family::new(
                "event.kept",
                Kind::Gauge,
                "User events that this agent keeps.",
            )
            .with(&[], around.events.list(None).len() as f64),
        );
        if let Some(dns) = &around.dns {
            all.extend(dns_families(&dns()));
        }
    }
    all.extend(process());
    all
}

fn catalog(inner: &Inner) -> Vec<Family> {
    let nodes = inner.catalog.nodes();
    let mut by_state = [("alive", 0), ("suspect", 0), ("down", 0), ("left", 0)];
    let mut external = 0;
    for node in &nodes {
        if !node.record.is_member() {
            external += 1;
            continue;
        }
        let state = match node.liveness {
            Liveness::Alive => 0,
            Liveness::Suspect => 1,
            Liveness::Down => 2,
            Liveness::Left => 3,
        };
        by_state[state].1 += 1;
    }
    let mut members = Family::new(
        "members",
        Kind::Gauge,
        "Nodes with an agent, by their state.",
    );
    for (state, count) in by_state {
        members = members.with(&[("state", state)], f64::from(count));
    }
    let instances: usize = nodes
        .iter()
        .map(|node| inner.catalog.instances_on(&node.record.id).len())
        .sum();
    let gauge = |name: &str, value: f64, help: &'static str| {
        Family::new(name, Kind::Gauge, help).with(&[], value)
    };
    let local = inner.catalog.local();
    let bundle = inner.bundles.as_ref().and_then(|bundles| bundles.current());
    let mut all = vec![
        members,
        gauge(
            "catalog.external_nodes",
            f64::from(external),
            "Nodes without an agent.",
        ),
        gauge(
            "catalog.services",
            inner.catalog.service_names().len() as f64,
            "Names of services that somebody offers.",
        ),
        gauge(
            "catalog.instances",
            instances as f64,
            "Instances of services, those that are hidden left out.",
        ),
        gauge(
            "catalog.revision_microseconds",
            inner.catalog.revision() as f64,
            "Revision of the catalog: when it last changed, in microseconds of Unix time.",
        ),
        gauge(
            "agent.services",
            local.services().len() as f64,
            "Instances of this agent.",
        ),
        gauge(
            "agent.checks",
            local.checks().len() as f64,
            "Checks of this agent.",
        ),
    ];
    if let Some(bundle) = bundle {
        all.push(gauge(
            "config.ledger_index",
            bundle.index as f64,
            "Ledger index of the configuration that this agent holds.",
        ));
    }
    all
}

fn dns_families(counts: &dns::Counts) -> Vec<Family> {
    let mut replies = Family::new(
        "dns.replies",
        Kind::Counter,
        "DNS replies, by response code.",
    );
    for (code, count) in [
        ("noerror", counts.noerror),
        ("formerr", counts.formerr),
        ("servfail", counts.servfail),
        ("nxdomain", counts.nxdomain),
        ("notimp", counts.notimp),
        ("refused", counts.refused),
        ("other", counts.other),
    ] {
        replies = replies.with(&[("rcode", code)], count as f64);
    }
    let mut all = vec![replies];
    for (name, count, help) in [
        (
            "dns.ignored",
            counts.ignored,
            "Datagrams that were no requests.",
        ),
        (
            "dns.forwarded",
            counts.forwarded,
            "Requests handed to an upstream.",
        ),
        (
            "dns.truncated",
            counts.truncated,
            "Replies with the TC bit.",
        ),
        (
            "dns.limited",
            counts.limited,
            "Requests refused by the rate limit.",
        ),
        (
            "dns.prepared",
            counts.prepared,
            "Answers that had to be made anew.",
        ),
    ] {
        all.push(Family::new(name, Kind::Counter, help).with(&[], count as f64));
    }
    all
}

/// What the kernel says of this process; nothing where there is no `/proc`.
fn process() -> Vec<Family> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let open = std::fs::read_dir("/proc/self/fd").map(|all| all.count() as f64);
    let figures = [
        (
            "process.resident_memory_bytes",
            field("VmRSS:").map(|kib| kib * 1024.0),
            "Memory of this process that is in RAM.",
        ),
        (
            "process.threads",
            field("Threads:"),
            "Threads of this process.",
        ),
        ("process.open_files", open.ok(), "Open file descriptors."),
    ];
    figures
        .into_iter()
        .filter_map(|(name, value, help)| {
            Some(Family::new(name, Kind::Gauge, help).with(&[], value?))
        })
        .collect()
}
