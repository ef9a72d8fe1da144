//! `/v1/internal/ui/`: what Consul's own web page asks, and some tools besides it: the catalog in one answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use libmesh::{
    catalog::{InstanceView, NodeView},
    model::{Health, Kind},
};
use serde_json::{Value, json};

use super::{
    Inner, Refused, bad_request,
    blocking::Blocking,
    catalog::{self, Way},
    filter::{self, Filter},
    reading, render,
};
use crate::http::{Call, Reply, Routes};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/internal/ui/services", reading(inner, services))
        .get("/v1/internal/ui/nodes", reading(inner, nodes))
        .get("/v1/internal/ui/node/*name", reading(inner, node))
        .get("/v1/internal/ui/catalog-overview", reading(inner, overview))
}

/// What is summed up of a service.
#[derive(Default)]
struct Summary<'a> {
    tags: BTreeSet<&'a str>,
    nodes: BTreeSet<&'a str>,
    kind: &'static str,
    instances: usize,
    passing: usize,
    warning: usize,
    critical: usize,
    native: bool,
}

async fn services(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::HEALTH_ENTRY)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let nodes = inner.catalog.nodes();
    let nodes = nodes.iter().filter(|node| catalog::has_meta(&call, node));
    let instances: Vec<_> = nodes
        .flat_map(|node| inner.catalog.instances_on(&node.record.id))
        .filter(|view| filter.passes(&render::health_entry(&inner, view, Way::Plain)))
        .collect();
    let mut all: BTreeMap<&str, Summary<'_>> = BTreeMap::new();
    let mut proxied = BTreeSet::new();
    for view in &instances {
        if let (Kind::ConnectProxy, Some(proxy)) = (view.instance.kind, &view.instance.proxy) {
            proxied.insert(proxy.service.as_str());
        }
        let summary = all.entry(view.instance.service.as_str()).or_default();
        summary.add(view);
    }
    let datacenter = inner.about.datacenter.as_str();
    let list: Vec<_> = all
        .iter()
        .map(|(name, summary)| summary.show(name, datacenter, proxied.contains(name)))
        .collect();
    Ok(without_consistency(blocking.reply(index, &list)))
}

impl<'a> Summary<'a> {
    fn add(&mut self, view: &'a InstanceView) {
        self.kind = view.instance.kind.as_str();
        self.tags
            .extend(view.instance.tags.iter().map(|tag| &**tag));
        self.nodes.insert(view.node.record.name.as_str());
        self.instances += 1;
        self.native |= view.instance.mesh_port.is_some();
        let own = view.checks.iter().map(|check| check.status);
        let membership =
            view.node
                .record
                .is_member()
                .then(|| match view.node.liveness.is_present() {
                    true => Health::Passing,
                    false => Health::Critical,
                });
        for status in own.chain(membership) {
            match status {
                Health::Passing => self.passing += 1,
                Health::Warning => self.warning += 1,
                Health::Critical | Health::Maintenance => self.critical += 1,
            }
        }
    }

    fn show(&self, name: &str, datacenter: &str, proxied: bool) -> Value {
        let mut value = json!({
            "Name": name,
            "Datacenter": datacenter,
            "Tags": (!self.tags.is_empty()).then_some(&self.tags),
            "Nodes": self.nodes,
            "ExternalSources": null,
            "InstanceCount": self.instances,
            "ChecksPassing": self.passing,
            "ChecksWarning": self.warning,
            "ChecksCritical": self.critical,
            "GatewayConfig": {},
            "TransparentProxy": false,
            "ConnectNative": self.native,
            "ConnectedWithProxy": proxied,
            "ConnectedWithGateway": false,
        });
        if !self.kind.is_empty() {
            value["Kind"] = self.kind.into();
        }
        value
    }
}

async fn nodes(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::NODE)?;
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let nodes = inner.catalog.nodes();
    let list: Vec<_> = nodes
        .iter()
        .filter(|node| catalog::has_meta(&call, node))
        .map(|node| whole(&inner, node))
        .filter(|node| filter.keeps(node))
        .collect();
    Ok(without_consistency(blocking.reply(index, &list)))
}

async fn node(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    if call.params.get("name").is_empty() {
        return Err(bad_request("Missing node name"));
    }
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let found = catalog::one(&inner, &call).map(|node| whole(&inner, &node));
    Ok(without_consistency(blocking.reply(index, &found)))
}

/// A node with its instances and checks.
fn whole(inner: &Inner, node: &NodeView) -> Value {
    let instances = inner.catalog.instances_on(&node.record.id);
    let services: Vec<_> = instances
        .iter()
        .map(|view| render::service(&view.instance))
        .collect();
    let own = node.checks.iter();
    let own = own.map(|check| render::check(inner, node, check, None));
    let of_instances = instances.iter().flat_map(|view| {
        let own = view.checks.iter().filter(|check| check.service.is_some());
        own.map(|check| render::check(inner, node, check, Some(&view.instance)))
    });
    let checks: Vec<_> = render::member_check(node)
        .into_iter()
        .chain(own)
        .chain(of_instances)
        .collect();
    let shown = json!(render::node(node));
    json!({
        "ID": shown["ID"], "Node": shown["Node"], "Address": shown["Address"],
        "TaggedAddresses": shown["TaggedAddresses"], "Meta": shown["Meta"],
        "Services": services, "Checks": checks,
    })
}

/// How many nodes, services and checks are in which state.
async fn overview(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let nodes = inner.catalog.nodes();
    let mut of_nodes = Tally::default();
    let mut of_services: BTreeMap<String, Tally> = BTreeMap::new();
    let mut of_checks: BTreeMap<String, Tally> = BTreeMap::new();
    for node in &nodes {
        let instances = inner.catalog.instances_on(&node.record.id);
        let membership = render::member_check(node).map(|_| {
            let health = match node.liveness.is_present() {
                true => Health::Passing,
                false => Health::Critical,
            };
            ("Serf Health Status".to_owned(), health)
        });
        let own = node.checks.iter();
        let own: Vec<_> = own
            .map(|check| (check.name.to_string(), check.status))
            .chain(membership)
            .collect();
        of_nodes.add(own.iter().map(|(_, health)| *health).max());
        for (name, health) in own {
            of_checks.entry(name).or_default().add(Some(health));
        }
        for view in &instances {
            let name = view.instance.service.to_string();
            of_services.entry(name).or_default().add(Some(view.health));
            for check in view.checks.iter().filter(|check| check.service.is_some()) {
                let name = check.name.to_string();
                of_checks.entry(name).or_default().add(Some(check.status));
            }
        }
    }
    let named = |all: BTreeMap<String, Tally>| -> Vec<Value> {
        let all = all.into_iter();
        all.map(|(name, counts)| counts.show(&name)).collect()
    };
    let value = json!({
        "Nodes": [of_nodes.show("")],
        "Services": named(of_services),
        "Checks": named(of_checks),
    });
    Ok(without_consistency(blocking.reply(index, &value)))
}

/// How many are in which state.
#[derive(Default)]
struct Tally {
    passing: usize,
    warning: usize,
    critical: usize,
}

impl Tally {
    /// One more, in its worst state; without any check it passes.
    fn add(&mut self, worst: Option<Health>) {
        match worst.unwrap_or(Health::Passing) {
            Health::Passing => self.passing += 1,
            Health::Warning => self.warning += 1,
            Health::Critical | Health::Maintenance => self.critical += 1,
        }
    }

    fn show(&self, name: &str) -> Value {
        json!({
            "Name": name,
            "Total": self.passing + self.warning + self.critical,
            "Passing": self.passing,
            "Warning": self.warning,
            "Critical": self.critical,
        })
    }
}

/// These answers of Consul's do not say it.
fn without_consistency(mut reply: Reply) -> Reply {
    reply.headers_mut().remove("x-consul-effective-consistency");
    reply
}
