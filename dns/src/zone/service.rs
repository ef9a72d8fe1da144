//! Answers about services.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libmesh::catalog::{InstanceView, Select, ServiceView};
use libmesh::model::{Host, Kind, NodeRecord, Proxy};

use super::names::{self, Reading, Way};
use super::{Answer, Ask, Depends, below, node_name, push_glue, seconds};
use crate::config::Manner;
use crate::wire::name;
use crate::wire::template::{TargetId, Template};
use crate::wire::{EDE_STALE_ANSWER, rcode, rtype};

/// How long others may keep an answer that is only the last that was known.
const STALE_TTL: Duration = Duration::from_secs(1);

/// What of which service.
pub(super) struct Wanted<'n> {
    pub(super) way: Way,
    pub(super) name: &'n str,
    pub(super) subset: Option<&'n str>,
    pub(super) port: Option<&'n str>,
}

impl<'n> Wanted<'n> {
    pub(super) fn new(way: Way, name: &'n str, subset: Option<&'n str>) -> Self {
        Self {
            way,
            name,
            subset,
            port: None,
        }
    }

    /// The instances that have a port of this name.
    pub(super) fn of_port(name: &'n str, port: &'n str) -> Self {
        Self {
            port: Some(port),
            ..Self::new(Way::Direct, name, None)
        }
    }
}

/// Where an instance is reached, as far as an answer needs it.
pub(super) struct Place<'v> {
    view: &'v InstanceView,
    /// `None`: at its node.
    host: Option<Host>,
    pub(super) port: u16,
}

impl Place<'_> {
    pub(super) fn host(&self) -> Host {
        let own = self.host.clone();
        own.unwrap_or(Host::Ip(self.view.node.ip()))
    }
}

impl Ask<'_> {
    /// The answer about the first service there is.
    pub(super) fn first_of<'n>(
        &self,
        way: Way,
        readings: impl Iterator<Item = Reading<'n>>,
    ) -> Answer {
        let catalog = &self.zone.catalog;
        // The answer holds only while the services that would be better do not exist.
        let mut absent = Vec::new();
        for (name, subset) in readings {
            let revision = catalog.service_revision(&name);
            if catalog.service(&name).is_none() {
                absent.push((name.into(), revision));
                continue;
            }
            let mut answer = self.service(&Wanted::new(way, &name, subset.as_deref()));
            if let Depends::Services(services) = &mut answer.depends {
                services.append(&mut absent);
            }
            return answer;
        }
        self.no_name()
    }

    pub(super) fn service(&self, wanted: &Wanted<'_>) -> Answer {
        let catalog = &self.zone.catalog;
        let sidecars = match wanted.way {
            Way::Direct => None,
            Way::Connect => Some(format!("{}{}", wanted.name, Proxy::SUFFIX)),
        };
        // Read before the views: if they are newer than this, the answer is made once more, never kept too long.
        let names = [Some(wanted.name), sidecars.as_deref()];
        let names = names.into_iter().flatten();
        let depends = names.map(|name| (name.into(), catalog.service_revision(name)));
        let depends = Depends::Services(depends.collect());
        let own = catalog.node_by_id(&catalog.own());
        let near = own
            .filter(|_| self.zone.near_first)
            .map(|node| Arc::clone(&node.record));
        let view = catalog.service(wanted.name);
        let sidecars = sidecars.and_then(|name| catalog.service(&name));
        let mut places = Vec::new();
        if let Some(view) = &view {
            let chosen = self.select(view, wanted.subset, near.as_ref());
            places.extend(chosen.into_iter().filter_map(|it| place(it, wanted)));
        }
        if let Some(view) = &sidecars {
            let chosen = self.select(view, wanted.subset, near.as_ref());
            places.extend(chosen.into_iter().filter_map(|it| place(it, wanted)));
            if let Some(near) = &near {
                places.sort_by_key(|place| place.view.distance(near));
            }
        }
        let ttl = self.zone.ttl.service.of(wanted.name);
        self.places(&places, ttl, near.as_deref(), depends)
    }

    /// What a prepared query finds. Not kept: the query may change at any time, and tells nobody.
    pub(super) fn query(&self, name: &str) -> Answer {
        let catalog = &self.zone.catalog;
        let Some((query, _)) = self.zone.queries.find(name) else {
            return self.no_name();
        };
        let view = catalog.service(&query.service);
        let chosen = view.as_ref().map(|view| query.choose(view));
        let mut places: Vec<_> = chosen.into_iter().flatten().map(direct).collect();
        let own = catalog.node_by_id(&catalog.own());
        let near = own.filter(|_| self.zone.near_first || query.near == "_agent");
        if let Some(near) = &near {
            places.sort_by_key(|place| place.view.distance(&near.record));
        }
        places.truncate(Template::MAX_ANSWERS);
        let ttl = query
            .ttl
            .unwrap_or(self.zone.ttl.service.of(&query.service));
        let near = near.as_ref().map(|near| &*near.record);
        self.places(&places, ttl, near, Depends::Transient)
    }

    /// The answer with these places.
    fn places(
        &self,
        places: &[Place<'_>],
        mut ttl: Duration,
        near: Option<&NodeRecord>,
        depends: Depends,
    ) -> Answer {
        if places.is_empty() {
            return self.no_name();
        }
        let mut template = Template::new(rcode::NOERROR, true);
        // Those of nodes that left with too many others are chosen only when nothing better is there.
        if places.iter().all(|place| place.view.stale) {
            ttl = ttl.min(STALE_TTL);
            template.set_extended(EDE_STALE_ANSWER);
        }
        match self.rtype {
            rtype::A | rtype::AAAA | rtype::CNAME | rtype::ANY => {
                self.service_addresses(&mut template, self.rtype, seconds(ttl), places, near);
            }
            rtype::TXT if self.zone.manner == Manner::Consul => {
                self.service_addresses(&mut template, rtype::ANY, seconds(ttl), places, near);
            }
            rtype::SRV => self.service_locations(&mut template, seconds(ttl), places, near),
            _ => {}
        }
        self.or_no_data(template, depends)
    }

    /// The instances to show. Of more than a template holds, the nearest, and of those a random choice.
    fn select<'v>(
        &self,
        view: &'v ServiceView,
        subset: Option<&str>,
        near: Option<&Arc<NodeRecord>>,
    ) -> Vec<&'v Arc<InstanceView>> {
        let select = match self.zone.only_passing {
            true => Select::passing(),
            false => Select::usable(),
        };
        let select = select.limit(Template::MAX_ANSWERS);
        let select = subset.into_iter().fold(select, Select::subset);
        view.select(&match near {
            Some(near) => select.near(Arc::clone(near)),
            None => select,
        })
    }

    /// Addresses of the asked family, each once; where there are none, the names that stand for addresses. ANY shows
    /// one kind of record only, as RFC 8482 §4.1 allows: IPv4 where there is any, else IPv6.
    fn service_addresses(
        &self,
        template: &mut Template,
        asked: u16,
        ttl: u32,
        places: &[Place<'_>],
        near: Option<&NodeRecord>,
    ) {
        let kinds: &[u16] = match asked {
            rtype::ANY => &[rtype::A, rtype::AAAA],
            rtype::A => &[rtype::A],
            rtype::AAAA => &[rtype::AAAA],
            _ => &[],
        };
        for kind in kinds {
            let mut seen = HashSet::new();
            let mut groups = Groups::new(near);
            for place in places {
                let (ip, octets) = match (place.host(), *kind) {
                    (Host::Ip(IpAddr::V4(ip)), rtype::A) => (IpAddr::V4(ip), ip.octets().to_vec()),
                    (Host::Ip(IpAddr::V6(ip)), rtype::AAAA) => {
                        (IpAddr::V6(ip), ip.octets().to_vec())
                    }
                    _ => continue,
                };
                if seen.insert(ip) {
                    groups.before(place, template);
                    template.push_answer(*kind, ttl, &octets);
                }
            }
            if template.answers() > 0 {
                template.limit(self.zone.max_addresses);
                return;
            }
        }
        let mut seen = HashSet::new();
        for place in places {
            if let Host::Name(host) = place.host()
                && seen.insert(host.to_ascii_lowercase())
                && let Some(wire) = name::encode(&host)
            {
                template.push_answer(rtype::CNAME, ttl, &wire);
            }
        }
        if template.answers() > 0 {
            template.mark_alias();
        }
    }

    fn service_locations(
        &self,
        template: &mut Template,
        ttl: u32,
        places: &[Place<'_>],
        near: Option<&NodeRecord>,
    ) {
        let node_ttl = seconds(self.zone.ttl.node);
        let mut targets: HashMap<Vec<u8>, TargetId> = HashMap::new();
        let mut groups = Groups::new(near);
        for place in places {
            let node = &place.view.node;
            let (target, ip) = match &place.host {
                None => (node_name(node, self.domain), Some(node.ip())),
                Some(Host::Ip(ip)) => {
                    let dc = &node.record.datacenter;
                    let label = names::hex(*ip);
                    (below(&format!("{label}.addr.{dc}"), self.domain), Some(*ip))
                }
                Some(Host::Name(host)) => (name::encode(host), None),
            };
            let Some(target) = target else { continue };
            let id = *targets.entry(target.clone()).or_insert_with(|| {
                let id = template.push_target();
                if let Some(ip) = ip {
                    push_glue(template, node_ttl, ip);
                }
                if self.zone.manner == Manner::Consul && place.host.is_none() {
                    for text in self.zone.texts(node) {
                        template.push_glue(rtype::TXT, node_ttl, &text);
                    }
                }
                id
            });
            let weight = place.view.weight().unwrap_or_default();
            let mut prefix = [0, 1, 0, 0, 0, 0];
            prefix[2..4].copy_from_slice(&weight.to_be_bytes());
            prefix[4..].copy_from_slice(&place.port.to_be_bytes());
            groups.before(place, template);
            template.push_answer_to(rtype::SRV, ttl, &prefix, &target, id);
        }
    }
}

/// Begins a group of answers where the distance changes.
struct Groups<'n> {
    near: Option<&'n NodeRecord>,
    last: Option<libmesh::catalog::Distance>,
}

impl<'n> Groups<'n> {
    fn new(near: Option<&'n NodeRecord>) -> Self {
        Self { near, last: None }
    }

    fn before(&mut self, place: &Place<'_>, template: &mut Template) {
        let distance = self.near.map(|near| place.view.distance(near));
        if std::mem::replace(&mut self.last, distance) != distance {
            template.begin_group();
        }
    }
}

fn direct(view: &Arc<InstanceView>) -> Place<'_> {
    Place {
        view,
        host: view.instance.address.clone(),
        port: view.instance.port,
    }
}

/// Where an instance of the service, or of its sidecars, is reached; `None` when not in the asked way.
pub(super) fn place<'v>(view: &'v Arc<InstanceView>, wanted: &Wanted<'_>) -> Option<Place<'v>> {
    match (wanted.way, wanted.port) {
        (Way::Connect, _) if view.instance.service.as_str() != wanted.name => {
            let proxy = view.instance.proxy.as_ref();
            let for_it = view.instance.kind == Kind::ConnectProxy
                && proxy.is_some_and(|proxy| proxy.service.as_str() == wanted.name);
            for_it.then(|| direct(view))
        }
        (Way::Direct, None) => Some(direct(view)),
        (Way::Direct, Some(port)) => Some(Place {
            port: view.instance.named_port(port)?,
            ..direct(view)
        }),
        (Way::Connect, _) => {
            let at: SocketAddr = view.mesh_addr()?;
            let at_node = view.instance.address.is_none() || at.ip() == view.node.ip();
            Some(Place {
                host: (!at_node).then_some(Host::Ip(at.ip())),
                port: at.port(),
                view,
            })
        }
    }
}
