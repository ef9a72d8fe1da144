//! What readers ask for, made when they ask.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::index::{Index, NodeCell, ServiceCell};
use super::super::read::kind;
use super::super::record;
use super::super::replica::Note;
use super::super::show;
use super::super::view::{InstanceView, NodeView, ServiceView};
use super::{NodeState, State, instances_of, maker};
use crate::model::{Host, Instance, NodeId, ServiceName};

impl State {
    /// The view of a service, made now. With `keep` it is kept in its cell, and up to date from then on.
    pub(in super::super) fn view(
        &mut self,
        index: &Index,
        cell: &ServiceCell,
        name: &str,
        keep: bool,
    ) -> Option<Arc<ServiceView>> {
        // Someone else may have made it while this one waited for the lock.
        if let Some(view) = cell.kept() {
            return view;
        }
        let view = self.make_view(index, cell.revision(), name);
        if keep {
            cell.keep(view.clone());
        }
        view
    }

    fn make_view(&mut self, index: &Index, revision: u64, name: &str) -> Option<Arc<ServiceView>> {
        let mut instances = Vec::new();
        let own = &self.nodes[&self.own];
        if own.shown
            && let Some(cell) = index.node(&self.own)
        {
            let view = cell.view();
            let facts = &self.own_facts;
            let make = |instance| show::own_instance(facts, instance, &view, own.stale, revision);
            instances.extend(facts.of_service(name).map(make));
        }
        if let Some((number, service)) = self.services.by_name(name) {
            let mut maker = maker(&self.hashes, &mut self.strings);
            let mut node: Option<(u32, &NodeState, Arc<NodeView>)> = None;
            for (of, hash) in &service.members {
                if node.as_ref().is_none_or(|(number, ..)| number != of) {
                    let id = self.numbers[*of as usize];
                    let Some(state) = self.nodes.get(&id).filter(|state| state.shown) else {
                        continue;
                    };
                    let Some(cell) = index.node(&id) else {
                        continue;
                    };
                    node = Some((*of, state, cell.view()));
                }
                if let Some((_, state, view)) = &node {
                    maker.instances(state, view, Some(number), *hash, revision, &mut instances);
                }
            }
        }
        instances.sort_unstable_by(|a, b| a.cmp_place(b));
        let name = instances.first()?.instance.service.clone();
        Some(Arc::new(ServiceView {
            name,
            revision,
            instances,
        }))
    }

    /// What is shown of a node's instances, by id, made now and kept in its cell until something changes.
    pub(in super::super) fn instances_on(
        &mut self,
        id: &NodeId,
        cell: &NodeCell,
    ) -> Arc<Vec<Arc<InstanceView>>> {
        if let Some(kept) = cell.kept_instances() {
            return kept;
        }
        let mut instances = Vec::new();
        let view = cell.view();
        if let Some(node) = self.nodes.get(id).filter(|node| node.shown) {
            if *id == self.own {
                let facts = &self.own_facts;
                let make = |one| show::own_instance(facts, one, &view, node.stale, view.revision);
                instances.extend(facts.instances().map(make));
            } else {
                let mut maker = maker(&self.hashes, &mut self.strings);
                let mut pairs: Vec<_> = instances_of(&node.replica).collect();
                pairs.sort_unstable();
                pairs.dedup();
                for (service, hash) in pairs {
                    let revision = self.services.get(service).map_or(0, |s| s.cell.revision());
                    maker.instances(node, &view, Some(service), hash, revision, &mut instances);
                }
            }
        }
        instances.sort_unstable_by(|a, b| a.instance.id.cmp(&b.instance.id));
        let instances = Arc::new(instances);
        cell.keep_instances(Arc::clone(&instances));
        instances
    }

    /// Names of the services that have instances on nodes that are shown.
    pub(in super::super) fn service_names(&self) -> BTreeSet<ServiceName> {
        let shown = |number: u32| {
            let id = self.numbers.get(number as usize);
            id.and_then(|id| self.nodes.get(id))
                .is_some_and(|node| node.shown)
        };
        let all = self.services.all();
        let all = all.filter(|service| service.members.iter().any(|(node, _)| shown(*node)));
        all.map(|service| service.name.clone()).collect()
    }

    /// The tags of the instances on shown nodes that `wanted` picks, by service.
    pub(in super::super) fn tags(
        &mut self,
        index: &Index,
        wanted: impl Fn(&NodeView) -> bool,
    ) -> BTreeMap<ServiceName, BTreeSet<Arc<str>>> {
        let mut all: BTreeMap<ServiceName, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.shown) {
            if !index.node(id).is_some_and(|cell| wanted(&cell.view())) {
                continue;
            }
            if *id == self.own {
                for instance in self.own_facts.instances() {
                    let tags = all.entry(instance.service.clone()).or_default();
                    tags.extend(instance.tags.iter().cloned());
                }
            }
            let (services, strings) = (&self.services, &mut self.strings);
            let is_instance = |note: Note| note.kind == kind::INSTANCE;
            node.replica.each(is_instance, |note, _, body| {
                let Some(service) = services.get(note.link) else {
                    return;
                };
                if !all.contains_key(&service.name) {
                    all.insert(service.name.clone(), BTreeSet::new());
                }
                let known = all.get_mut(&service.name).expect("it was put there");
                for tag in record::tags(body) {
                    if !known.contains(tag) {
                        known.insert(strings.shared(tag));
                    }
                }
            });
        }
        all
    }

    /// The service of each address that an instance on a shown node has of its own.
    pub(in super::super) fn own_addresses(&self) -> HashMap<IpAddr, ServiceName> {
        let mut all: HashMap<IpAddr, ServiceName> = HashMap::new();
        let mut put = |ip: IpAddr, service: &ServiceName| {
            all.entry(ip)
                .and_modify(|known| {
                    if service < known {
                        known.clone_from(service);
                    }
                })
                .or_insert_with(|| service.clone());
        };
        self.each_instance(|instance| match instance {
            Stored::Own(instance) => {
                if let Some(Host::Ip(ip)) = &instance.address {
                    put(*ip, &instance.service);
                }
            }
            Stored::Other(service, body) => {
                if let Some(ip) = record::own_ip(body) {
                    put(ip, service);
                }
            }
        });
        all
    }

    /// The services that can be called over mTLS.
    pub(in super::super) fn meshed_services(&self) -> BTreeSet<ServiceName> {
        let mut all = BTreeSet::new();
        self.each_instance(|instance| {
            let (service, (takes, proxied)) = match instance {
                Stored::Own(instance) => {
                    let proxied = instance.proxy.as_ref().map(|proxy| proxy.service.as_str());
                    (&instance.service, (instance.mesh_port.is_some(), proxied))
                }
                Stored::Other(service, body) => (service, record::meshed(body)),
            };
            if takes && !all.contains(service) {
                all.insert(service.clone());
            }
            if let Some(proxied) = proxied.filter(|name| !all.contains(*name)) {
                all.extend(ServiceName::parse(proxied));
            }
        });
        all
    }

    /// Shows every instance on a shown node as it lies there.
    fn each_instance(&self, mut show: impl FnMut(Stored<'_>)) {
        for (id, node) in self.nodes.iter().filter(|(_, node)| node.shown) {
            if *id == self.own {
                for instance in self.own_facts.instances() {
                    show(Stored::Own(instance));
                }
            }
            let is_instance = |note: Note| note.kind == kind::INSTANCE;
            node.replica.each(is_instance, |note, _, body| {
                if let Some(service) = self.services.get(note.link) {
                    show(Stored::Other(&service.name, body));
                }
            });
        }
    }
}

/// An instance that no view has been made of.
enum Stored<'a> {
    Own(&'a Instance),
    /// Its service and its record.
    Other(&'a ServiceName, &'a [u8]),
}
