//! Checks that say what other checks say.
//!
//! As Consul's: critical when anything of the target is critical (or in maintenance), or when it is not there; else
//! warning when anything warns; the checks of the target's node count, too. Beyond Consul, a target whose node does
//! not answer is critical, and a check never follows itself. Two aliases that follow each other are critical for ever.

use std::time::Duration;

use super::check::{Alias, Check};
use super::probe::ProbeResult;
use crate::catalog::LocalLog;
use crate::model::{CheckRecord, Health, Liveness};

/// Between two looks at all aliases: many changes elsewhere shall not cost one each.
pub(super) const PACE: Duration = Duration::from_millis(20);

/// What the target of `check` says now. Costs a look at one service (here) or at one node's instances (elsewhere).
pub(super) fn look(log: &LocalLog, check: &Check, of: &Alias) -> ProbeResult {
    let catalog = log.catalog();
    let node = match &of.node {
        Some(name) => catalog.node(name.as_str()),
        None => catalog.node_by_id(&catalog.own()),
    };
    let Some(node) = node else {
        let name = of.node.as_ref().map_or("here", |name| name.as_str());
        return ProbeResult::critical(format!("node {name} is not known"));
    };
    let here = node.record.id == catalog.own();
    let name = &node.record.name;
    if !here && matches!(node.liveness, Liveness::Down | Liveness::Left) {
        return ProbeResult::critical(format!("node {name} does not answer"));
    }
    let own = |record: &CheckRecord| here && record.id == check.id;
    let Some(id) = &of.instance else {
        return worst(node.checks.iter().filter(|record| !own(record)));
    };
    let found = if here {
        let service = log.service(id).map(|instance| instance.service.clone());
        let view = service.and_then(|service| catalog.service(service.as_str()));
        view.and_then(|view| {
            let mut instances = view.instances.iter();
            instances
                .find(|it| it.node.record.id == node.record.id && it.instance.id == *id)
                .cloned()
        })
    } else {
        let instances = catalog.instances_on(&node.record.id);
        instances.into_iter().find(|it| it.instance.id == *id)
    };
    match found {
        Some(instance) => worst(instance.checks.iter().filter(|record| !own(record))),
        None => ProbeResult::critical(format!(
            "Service {id} could not be found on node {}",
            node.record.name
        )),
    }
}

fn worst<'a>(checks: impl Iterator<Item = &'a std::sync::Arc<CheckRecord>>) -> ProbeResult {
    let worst = checks.max_by_key(|record| record.status);
    match worst {
        None => passing("No checks found."),
        Some(record) if record.status == Health::Passing => passing("All checks passing."),
        Some(record) => ProbeResult {
            health: record.status.min(Health::Critical),
            output: format!("Aliased check {:?} failing: {}", record.name, record.status),
        },
    }
}

fn passing(output: &str) -> ProbeResult {
    ProbeResult {
        health: Health::Passing,
        output: output.to_owned(),
    }
}
