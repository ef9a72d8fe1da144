//! Why a name is answered as it is, for people.

use std::net::IpAddr;
use std::sync::Arc;

use libmesh::catalog::{Distance, InstanceView, Select};
use libmesh::model::{Health, Host, Liveness, Proxy};

use super::names::{self, Meaning, Way};
use super::service::{Wanted, place};
use super::{Zone, text_labels};
use crate::wire::name::{Folded, WireName, encode};
use crate::wire::rtype;

/// What a name was read as, and what was made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the name was read as, and what follows from it.
    pub reading: String,
    /// It is no name of the mesh: an upstream's, if there is one for it.
    pub foreign: bool,
    /// The instances of the service that is asked for, in the order of nodes and ids; empty for other names.
    pub instances: Vec<Considered>,
}

/// An instance, and whether an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// Its node.
    pub node: String,
    /// Its id.
    pub id: String,
    /// Where it is reached in the way that was asked for.
    pub address: String,
    /// The port there.
    pub port: u16,
    /// Whether answers show it, as far as they hold all.
    pub shown: bool,
    /// Why, or why not.
    pub why: String,
}

impl Zone {
    /// Explains the answer to a name, with or without its last dot, and a type. `None` when it is no name at all.
    pub fn explain(&self, name: &str, rtype: u16) -> Option<Explanation> {
        let name = name.strip_suffix('.').unwrap_or(name);
        let wire = encode(name)?;
        let folded = Folded::new(WireName::parse(&wire)?);
        let folded = folded.as_bytes();
        let plain = |reading: String| Explanation {
            reading,
            foreign: false,
            instances: Vec::new(),
        };
        let Some(domain) = self.domain_of(folded) else {
            let (reading, foreign) = self.explain_foreign(folded);
            return Some(Explanation {
                foreign,
                ..plain(reading)
            });
        };
        let Some(labels) = text_labels(&folded[..domain.prefix_len(folded)?]) else {
            return Some(plain(
                "no name of the mesh: a label is not ASCII".to_owned(),
            ));
        };
        Some(match names::meaning(&labels, self.datacenter.as_str()) {
            Meaning::Apex => plain("the domain itself: SOA and NS".to_owned()),
            Meaning::Nameserver => plain("the domain's name server".to_owned()),
            Meaning::Branch => plain("a name above others: it exists, without records".to_owned()),
            Meaning::Address(ip) => plain(format!("the address {ip}, spelt in hexadecimal")),
            Meaning::Node(node) => plain(self.explain_node(&node)),
            Meaning::Virtual(service) => plain(match self.virtual_ips.of(&service) {
                Some(ip) => format!("the virtual IP of service {service}: {ip}"),
                None => format!(
                    "the virtual IP of service {service}, which has none: no instance of it had a sidecar yet"
                ),
            }),
            Meaning::Query(name) => self.explain_query(&name),
            Meaning::Service(way, labels) => {
                let mut readings = names::readings(labels);
                let known = readings.find(|(service, _)| self.catalog.service(service).is_some());
                let (service, subset) = known.or_else(|| names::readings(labels).next())?;
                self.explain_service(&Wanted::new(way, &service, subset.as_deref()), rtype)
            }
            Meaning::Located { way, name, subset } => {
                self.explain_service(&Wanted::new(way, name, subset), rtype)
            }
            Meaning::Port { port, name } => {
                self.explain_service(&Wanted::of_port(name, port), rtype)
            }
            Meaning::Nothing => plain(format!(
                "nothing that can exist here: a name ends with service, connect, virtual, query, node or addr, and perhaps {}",
                self.datacenter
            )),
        })
    }

    /// What a name outside of our domains is, and whether it is nobody's here.
    fn explain_foreign(&self, folded: &[u8]) -> (String, bool) {
        let ip = text_labels(folded).and_then(|labels| names::reverse(&labels));
        let Some(ip) = ip else {
            return ("a name of none of our domains".to_owned(), true);
        };
        match self
            .catalog
            .node_by_ip(ip)
            .filter(|node| self.is_shown(node))
        {
            Some(node) => (
                format!("the reverse name of node {}", node.record.name),
                false,
            ),
            None => match self.service_of(ip) {
                Some(service) => (format!("the reverse name of {service}"), false),
                None => (
                    format!("the reverse name of {ip}, which is nobody's here"),
                    true,
                ),
            },
        }
    }

    fn explain_node(&self, name: &str) -> String {
        match self.catalog.node(name) {
            None => format!("node {name}, which is not known"),
            Some(node) if self.is_shown(&node) => {
                format!("node {name} at {}: {}", node.ip(), liveness(node.liveness))
            }
            Some(node) => format!("node {name}, not shown: {}", liveness(node.liveness)),
        }
    }

    fn explain_query(&self, name: &str) -> Explanation {
        let Some((query, kept)) = self.queries.find(name) else {
            return Explanation {
                reading: format!("prepared query {name}, which is not known"),
                foreign: false,
                instances: Vec::new(),
            };
        };
        let view = self.catalog.service(&query.service);
        let chosen = view
            .as_ref()
            .map(|view| query.choose(view))
            .unwrap_or_default();
        let all = view.iter().flat_map(|view| &view.instances);
        let considered = all.map(|instance| {
            let shown = chosen.iter().any(|one| Arc::ptr_eq(one, instance));
            let why = query.leaves_out(instance);
            Considered {
                node: instance.node.record.name.to_string(),
                id: instance.instance.id.to_string(),
                address: instance.address().to_string(),
                port: instance.instance.port,
                shown,
                why: match (shown, why) {
                    (true, _) => instance.health.as_str().to_owned(),
                    (false, Some(why)) => why,
                    (false, None) => format!("{}, and others are better", doubt(instance)),
                },
            }
        });
        let (asked, service) = (&kept.name, &query.service);
        Explanation {
            reading: format!(
                "prepared query {asked:?}: {} of service {service}",
                chosen.len()
            ),
            foreign: false,
            instances: considered.collect(),
        }
    }

    fn explain_service(&self, wanted: &Wanted<'_>, rtype: u16) -> Explanation {
        let what = match (wanted.way, wanted.subset, wanted.port) {
            (Way::Connect, None, _) => format!("the sidecars of service {}", wanted.name),
            (Way::Connect, Some(subset), _) => {
                format!(
                    "the sidecars of service {}, those with tag or version {subset}",
                    wanted.name
                )
            }
            (Way::Direct, _, Some(port)) => format!("port {port} of service {}", wanted.name),
            (Way::Direct, Some(subset), None) => {
                format!(
                    "service {}, those with tag or version {subset}",
                    wanted.name
                )
            }
            (Way::Direct, None, None) => format!("service {}", wanted.name),
        };
        let mut views = Vec::new();
        views.extend(self.catalog.service(wanted.name));
        if wanted.way == Way::Connect {
            views.extend(
                self.catalog
                    .service(&format!("{}{}", wanted.name, Proxy::SUFFIX)),
            );
        }
        let instances: Vec<_> = views.iter().flat_map(|view| &view.instances).collect();
        if instances.is_empty() {
            return Explanation {
                reading: format!("{what}: there is no instance"),
                foreign: false,
                instances: Vec::new(),
            };
        }
        let select = match self.only_passing {
            true => Select::passing(),
            false => Select::usable(),
        };
        let select = wanted.subset.into_iter().fold(select, Select::subset);
        let better = instances
            .iter()
            .any(|instance| select.admits(instance) && !instance.is_doubtful());
        let mut eligible = 0;
        let considered = instances.into_iter().map(|instance| {
            let verdict = self.judge(instance, wanted, &select, better);
            eligible += usize::from(verdict.is_ok());
            let verdict = verdict.and_then(|why| has_type(instance, wanted, rtype).map(|_| why));
            let at = place(instance, wanted);
            let (host, port) = match &at {
                Some(place) => (place.host(), place.port),
                None => (instance.address(), instance.instance.port),
            };
            Considered {
                node: instance.node.record.name.to_string(),
                id: instance.instance.id.to_string(),
                address: host.to_string(),
                port,
                shown: verdict.is_ok(),
                why: verdict.unwrap_or_else(|why| why),
            }
        });
        let considered: Vec<_> = considered.collect();
        let shown = considered.iter().filter(|one| one.shown).count();
        let of = considered.len();
        Explanation {
            reading: match (shown, eligible) {
                (0, 0) => format!("{what}: none of {of} can be shown, so the name does not exist"),
                (0, _) => format!("{what}: none of {of} has such an address; the name exists"),
                _ => format!("{what}: {shown} of {of}"),
            },
            foreign: false,
            instances: considered,
        }
    }

    /// Why it is shown, or why not.
    fn judge(
        &self,
        instance: &Arc<InstanceView>,
        wanted: &Wanted<'_>,
        select: &Select,
        better: bool,
    ) -> Result<String, String> {
        if let Some(subset) = wanted.subset
            && !instance.instance.matches(subset)
        {
            return Err(format!("neither a tag nor its version is {subset}"));
        }
        if !select.admits(instance) {
            return Err(sickness(instance));
        }
        let Some(place) = place(instance, wanted) else {
            return Err(match wanted.port {
                Some(port) => format!("it has no port named {port}"),
                None => "it has no sidecar".to_owned(),
            });
        };
        if better && instance.is_doubtful() {
            return Err(format!("{}, and others are better", doubt(instance)));
        }
        let mut why = vec![instance.health.as_str().to_owned()];
        if instance.is_doubtful() {
            why.push(format!("{}, but nothing is better", doubt(instance)));
        }
        let own = self.catalog.node_by_id(&self.catalog.own());
        if let Some(own) = own.filter(|_| self.near_first) {
            match instance.distance(&own.record) {
                Distance::Zone => {}
                Distance::Region => why.push("behind those of the own zone".to_owned()),
                Distance::Far => why.push("behind those of the own region".to_owned()),
            }
        }
        if matches!(place.host(), Host::Name(_)) {
            why.push("as an alias, where no instance has an address".to_owned());
        }
        Ok(why.join("; "))
    }
}

/// Whether an instance that can be shown has records of the type.
fn has_type(instance: &Arc<InstanceView>, wanted: &Wanted<'_>, rtype: u16) -> Result<(), String> {
    let host = place(instance, wanted).map(|place| place.host());
    match (host, rtype) {
        (Some(Host::Ip(IpAddr::V4(_))), rtype::AAAA)
        | (Some(Host::Ip(IpAddr::V6(_))), rtype::A) => {
            Err("its address is of the other family".to_owned())
        }
        (_, rtype::A | rtype::AAAA | rtype::SRV | rtype::ANY | rtype::CNAME) => Ok(()),
        _ => Err("services have no records of this type".to_owned()),
    }
}

/// `critical: check "up"`.
fn sickness(instance: &InstanceView) -> String {
    let bad = instance
        .checks
        .iter()
        .filter(|check| check.status == instance.health);
    let names: Vec<_> = bad.map(|check| format!("{:?}", check.name)).collect();
    match (instance.health, names.is_empty()) {
        (Health::Maintenance, _) => "in maintenance".to_owned(),
        (Health::Passing, _) => liveness(instance.node.liveness).to_owned(),
        (health, true) => health.as_str().to_owned(),
        (health, false) => format!("{}: check {}", health.as_str(), names.join(", ")),
    }
}

fn doubt(instance: &InstanceView) -> &'static str {
    if instance.stale {
        "its node went down together with many others"
    } else {
        liveness(instance.node.liveness)
    }
}

fn liveness(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Alive => "alive",
        Liveness::Suspect => "its node does not answer just now",
        Liveness::Down => "its node is down",
        Liveness::Left => "its node has left",
    }
}
