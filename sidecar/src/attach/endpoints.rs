//! Where the calls to a service go: its endpoints, or those that the config entries put in their place.
//!
//! Without entries for the service an answer costs a walk over its instances, as before there were any; with them one over those
//! of each service that its chain names, and a subset's filter looks at each as Consul's interface would show it.

use std::{
    collections::BTreeSet,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use libmesh::{
    catalog::{Catalog, Distance, InstanceView, ServiceWatch},
    model::{Health, NodeRecord, ServiceName},
};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::wire::{EndpointWire, EndpointsReply};
use crate::{
    consul::{
        filter::{self, Filter},
        render,
    },
    routing::{Chain, Followed, Resolved, Subset},
};

/// The endpoints of `service`; when those of `index` still hold, after the next change or `wait`.
pub async fn answer(
    catalog: &Catalog,
    routing: &Followed,
    service: &ServiceName,
    index: Option<u64>,
    wait: Duration,
) -> EndpointsReply {
    let until = Instant::now() + wait;
    let mut entries = routing.watch();
    loop {
        entries.borrow_and_update();
        let published = routing.now();
        let chain = match published.table.is_plain(service) {
            true => None,
            // What does not fit together is refused when it is written.
            false => published.table.chain(service.as_str()).ok(),
        };
        let watches: Vec<_> = names(service, chain.as_ref())
            .iter()
            .map(|name| catalog.watch_service(name))
            .collect();
        // Taken before the views: a view newer than its index only makes the next poll return at once.
        let revisions = watches.iter().map(ServiceWatch::revision);
        let now = revisions.max().unwrap_or_default().max(published.since);
        let over = Instant::now() >= until;
        if over || index.is_none_or(|index| now > index) {
            return reply(catalog, service, chain.as_ref(), now);
        }
        let changed = async {
            tokio::select! {
                () = any_changed(&watches, now) => {}
                _ = entries.changed() => {}
            }
        };
        // Over or not, what holds now is the answer.
        let _ = timeout_at(until, changed).await;
    }
}

/// The services whose instances matter.
fn names(service: &ServiceName, chain: Option<&Chain>) -> BTreeSet<ServiceName> {
    let targets = chain.iter().flat_map(|chain| &chain.branches);
    let targets = targets.flat_map(|branch| {
        let target = &branch.target;
        std::iter::once(target).chain(&target.failover)
    });
    let mut names: BTreeSet<_> = targets
        .filter_map(|target| ServiceName::parse(&target.service).ok())
        .collect();
    if names.is_empty() {
        names.insert(service.clone());
    }
    names
}

/// Ends when one of the services has another revision than `now` or lower ones.
async fn any_changed(watches: &[ServiceWatch], now: u64) {
    let mut all: Vec<Pin<Box<dyn Future<Output = u64> + Send + '_>>> = watches
        .iter()
        .map(|watch| Box::pin(watch.changed_after(now)) as _)
        .collect();
    poll_fn(|context| {
        let woken = all
            .iter_mut()
            .any(|one| one.as_mut().poll(context).is_ready());
        if woken {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

fn reply(
    catalog: &Catalog,
    service: &ServiceName,
    chain: Option<&Chain>,
    index: u64,
) -> EndpointsReply {
    let own = catalog.node_by_id(&catalog.own());
    let own = own.as_ref().map(|node| &*node.record);
    let mut reply = EndpointsReply {
        index,
        endpoints: Vec::new(),
        weights: Vec::new(),
        connect_timeout: None,
    };
    let Some(chain) = chain else {
        let view = catalog.service(service.as_str());
        let instances = view.iter().flat_map(|view| &view.instances);
        reply.endpoints = instances.filter_map(|it| endpoint(it, own)).collect();
        return reply;
    };
    for (part, branch) in (0..).zip(&chain.branches) {
        let targets = std::iter::once(&branch.target).chain(&branch.target.failover);
        let mut found = targets.map(|target| of_target(catalog, target, own));
        // Who stands in is asked only when there is nobody.
        let endpoints = found.find(|found| !found.is_empty()).unwrap_or_default();
        reply.weights.push(branch.weight);
        reply
            .endpoints
            .extend(endpoints.into_iter().map(|it| EndpointWire { part, ..it }));
    }
    let timeouts = chain.branches.iter().map(|branch| &branch.target);
    let timeouts = timeouts.filter(|target| !target.is_default);
    reply.connect_timeout = timeouts.map(|target| target.connect_timeout).max();
    for endpoint in &mut reply.endpoints {
        if endpoint.service.as_deref() == Some(service.as_str()) {
            endpoint.service = None;
        }
    }
    reply
}

fn of_target(catalog: &Catalog, target: &Resolved, own: Option<&NodeRecord>) -> Vec<EndpointWire> {
    let Some(view) = catalog.service(&target.service) else {
        return Vec::new();
    };
    let filter = match target.subset.filter.as_str() {
        "" => None,
        // One that cannot be read is refused when it is written; it lets nobody pass.
        text => match Filter::parse(text, filter::HEALTH_ENTRY) {
            Ok(filter) => Some(filter),
            Err(_) => return Vec::new(),
        },
    };
    let service: Arc<str> = target.service.as_str().into();
    view.instances
        .iter()
        .filter(|instance| belongs(instance, &target.subset, filter.as_ref()))
        .filter_map(|instance| endpoint(instance, own))
        .map(|endpoint| EndpointWire {
            service: Some(Arc::clone(&service)),
            ..endpoint
        })
        .collect()
}

fn belongs(instance: &InstanceView, subset: &Subset, filter: Option<&Filter>) -> bool {
    if subset.only_passing && instance.health != Health::Passing {
        return false;
    }
    filter.is_none_or(|filter| {
        filter.keeps(&json!({
            "Node": render::node(&instance.node),
            "Service": render::service(&instance.instance),
            "Checks": [],
        }))
    })
}

fn endpoint(instance: &InstanceView, own: Option<&NodeRecord>) -> Option<EndpointWire> {
    let distance = own.map_or(Distance::Far, |own| instance.distance(own));
    Some(EndpointWire {
        id: format!("{}/{}", instance.node.record.name, instance.instance.id).into(),
        address: instance.mesh_addr()?,
        weight: instance.weight()?,
        version: instance.instance.version.clone(),
        distance: distance as u8,
        suspect: instance.is_doubtful(),
        service: None,
        part: 0,
    })
}

#[cfg(test)]
mod tests;
