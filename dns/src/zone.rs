//! From a name and a type to a prepared answer.
//!
//! A [`Zone`] reads the catalog and remembers nothing: whoever keeps an [`Answer`] asks its [`Depends`] what makes it
//! old. Selection follows Consul (critical and maintenance instances are left out, warning ones are kept), plus what
//! membership knows: instances on suspect nodes, or shown only because a mass failure looks like a broken network,
//! are used when nothing better is there.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use libmesh::catalog::{Catalog, InstanceView, NodeView, Select, ServiceView};
use libmesh::model::{Datacenter, Host};

use crate::config::{Config, Ttl};
use crate::wire::name::{self, Domain, MAX_NAME};
use crate::wire::template::{TargetId, Template};
use crate::wire::{HEADER, rcode, rtype};

pub mod names;

use names::Meaning;

/// The names below our domains, and reverse names of our nodes.
#[derive(Debug)]
pub struct Zone {
    domains: Vec<Domain>,
    datacenter: Datacenter,
    ttl: Ttl,
    nameservers: Vec<IpAddr>,
    catalog: Catalog,
}

/// A prepared answer and how long it is true.
#[derive(Debug)]
pub struct Answer {
    /// What to send.
    pub template: Template,
    /// What makes it old.
    pub depends: Depends,
}

/// What an answer was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Depends {
    /// Nothing that changes.
    Nothing,
    /// The named service, as of this revision of it.
    Service(Box<str>, u64),
    /// Any record, as of this revision of the catalog.
    Catalog(u64),
    /// Not worth keeping: cheap to make, and anybody can ask for endlessly many of them.
    Transient,
}

impl Zone {
    /// The zone that `config` describes over `catalog`.
    pub fn new(config: &Config, catalog: Catalog) -> Self {
        Self {
            domains: config.domains.clone(),
            datacenter: config.datacenter.clone(),
            ttl: config.ttl,
            nameservers: config.nameservers.clone(),
            catalog,
        }
    }

    /// The catalog that is read.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The domain that `folded` is in; `None` for a foreign name.
    pub fn domain_of(&self, folded: &[u8]) -> Option<&Domain> {
        self.domains
            .iter()
            .find(|domain| domain.prefix_len(folded).is_some())
    }

    /// Makes the answer to a folded name and a type; `None` for a foreign name.
    pub fn answer(&self, folded: &[u8], rtype: u16) -> Option<Answer> {
        let Some(domain) = self.domain_of(folded) else {
            return self.reverse(folded, rtype);
        };
        let prefix = &folded[..domain.prefix_len(folded)?];
        let ask = Ask {
            zone: self,
            domain,
            zone_at: (HEADER + prefix.len()) as u16,
            rtype,
        };
        let Some(labels) = text_labels(prefix) else {
            return Some(ask.no_name());
        };
        Some(match names::meaning(&labels, self.datacenter.as_str()) {
            Meaning::Apex => ask.apex(),
            Meaning::Nameserver => {
                ask.addresses(&self.nameservers, self.ttl.node, Depends::Nothing)
            }
            Meaning::Branch => ask.no_data(Depends::Nothing),
            Meaning::Address(ip) => ask.addresses(&[ip], self.ttl.node, Depends::Transient),
            Meaning::Node(name) => ask.node(&name),
            Meaning::Service { name, subset } => ask.service(name, subset.as_deref()),
            Meaning::Nothing => ask.no_name(),
        })
    }

    /// Whether a node has a name: while it is present, and while its instances are shown although it is down.
    fn is_shown(&self, node: &NodeView) -> bool {
        node.liveness.is_present() || !self.catalog.instances_on(&node.record.id).is_empty()
    }

    /// The name of a node's address. Addresses that are not ours are foreign names.
    fn reverse(&self, folded: &[u8], rtype: u16) -> Option<Answer> {
        if !matches!(rtype, rtype::PTR | rtype::ANY) {
            return None;
        }
        let ip = names::reverse(&text_labels(folded)?)?;
        let revision = self.catalog.revision();
        let node = self
            .catalog
            .node_by_ip(ip)
            .filter(|node| self.is_shown(node))?;
        let name = node_name(&node, self.domains.first()?)?;
        let mut template = Template::new(rcode::NOERROR, true);
        template.push_answer(rtype::PTR, seconds(self.ttl.node), &name);
        Some(Answer {
            template,
            depends: Depends::Catalog(revision),
        })
    }
}

/// One question inside a domain.
struct Ask<'z> {
    zone: &'z Zone,
    domain: &'z Domain,
    zone_at: u16,
    rtype: u16,
}

impl Ask<'_> {
    fn no_name(&self) -> Answer {
        self.negative(rcode::NXDOMAIN, Depends::Transient)
    }

    fn no_data(&self, depends: Depends) -> Answer {
        self.negative(rcode::NOERROR, depends)
    }

    fn negative(&self, code: u16, depends: Depends) -> Answer {
        let mut template = Template::new(code, true);
        let ttl = seconds(self.zone.ttl.negative);
        template.push_soa(self.zone_at, false, ttl, ttl);
        Answer { template, depends }
    }

    /// `template`, or "no data" when it has no answers.
    fn or_no_data(&self, template: Template, depends: Depends) -> Answer {
        if template.answers() == 0 {
            self.no_data(depends)
        } else {
            Answer { template, depends }
        }
    }

    fn apex(&self) -> Answer {
        let mut template = Template::new(rcode::NOERROR, true);
        let ttl = seconds(self.zone.ttl.node);
        match self.rtype {
            rtype::SOA | rtype::ANY => {
                template.push_soa(self.zone_at, true, ttl, seconds(self.zone.ttl.negative))
            }
            rtype::NS => {
                let target = template.push_target();
                for ip in &self.zone.nameservers {
                    push_glue(&mut template, ttl, *ip);
                }
                let name = [b"\x02ns", self.domain.as_bytes()].concat();
                template.push_answer_to(rtype::NS, ttl, &[], &name, target);
            }
            _ => {}
        }
        self.or_no_data(template, Depends::Nothing)
    }

    fn addresses(&self, addresses: &[IpAddr], ttl: Duration, depends: Depends) -> Answer {
        let mut template = Template::new(rcode::NOERROR, true);
        push_addresses(
            &mut template,
            self.rtype,
            seconds(ttl),
            addresses.iter().copied(),
        );
        self.or_no_data(template, depends)
    }

    fn node(&self, name: &str) -> Answer {
        let depends = Depends::Catalog(self.zone.catalog.revision());
        let node = self
            .zone
            .catalog
            .node(name)
            .filter(|node| self.zone.is_shown(node));
        let Some(node) = node else {
            return self.no_name();
        };
        let mut template = Template::new(rcode::NOERROR, true);
        let ttl = seconds(self.zone.ttl.node);
        push_addresses(&mut template, self.rtype, ttl, [node.ip()].into_iter());
        if matches!(self.rtype, rtype::TXT | rtype::ANY) {
            for (key, value) in &node.record.meta {
                template.push_answer(rtype::TXT, ttl, &text(key, value));
            }
        }
        self.or_no_data(template, depends)
    }

    fn service(&self, name: &str, subset: Option<&str>) -> Answer {
        // Read before the view: if the view is newer than this, the answer is made once more, never kept too long.
        let revision = self.zone.catalog.service_revision(name);
        let view = self.zone.catalog.service(name);
        let instances = view
            .as_ref()
            .map_or_else(Vec::new, |view| select(view, subset));
        if instances.is_empty() {
            return self.no_name();
        }
        let depends = Depends::Service(name.into(), revision);
        let mut template = Template::new(rcode::NOERROR, true);
        match self.rtype {
            rtype::A | rtype::AAAA | rtype::CNAME | rtype::ANY => {
                self.service_addresses(&mut template, &instances)
            }
            rtype::SRV => self.service_locations(&mut template, &instances),
            _ => {}
        }
        self.or_no_data(template, depends)
    }

    /// Addresses of the asked family, each once; where there are none, the names that stand for addresses.
    fn service_addresses(&self, template: &mut Template, instances: &[&Arc<InstanceView>]) {
        let ttl = seconds(self.zone.ttl.service);
        let mut seen = HashSet::new();
        let ips = instances
            .iter()
            .filter_map(|instance| match instance.address() {
                Host::Ip(ip) => Some(ip),
                Host::Name(_) => None,
            });
        push_addresses(template, self.rtype, ttl, ips.filter(|ip| seen.insert(*ip)));
        if template.answers() > 0 {
            return;
        }
        let mut seen = HashSet::new();
        for instance in instances {
            if let Host::Name(host) = instance.address()
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

    fn service_locations(&self, template: &mut Template, instances: &[&Arc<InstanceView>]) {
        let ttl = seconds(self.zone.ttl.service);
        let node_ttl = seconds(self.zone.ttl.node);
        let mut targets: HashMap<Vec<u8>, TargetId> = HashMap::new();
        for instance in instances {
            let (target, ip) = match &instance.instance.address {
                None => (
                    node_name(&instance.node, self.domain),
                    Some(instance.node.ip()),
                ),
                Some(Host::Ip(ip)) => {
                    let dc = &instance.node.record.datacenter;
                    (
                        below(&format!("{}.addr.{dc}", names::hex(*ip)), self.domain),
                        Some(*ip),
                    )
                }
                Some(Host::Name(host)) => (name::encode(host), None),
            };
            let Some(target) = target else { continue };
            let id = *targets.entry(target.clone()).or_insert_with(|| {
                let id = template.push_target();
                if let Some(ip) = ip {
                    push_glue(template, node_ttl, ip);
                }
                id
            });
            let weight = instance.weight().unwrap_or_default();
            let mut prefix = [0, 1, 0, 0, 0, 0];
            prefix[2..4].copy_from_slice(&weight.to_be_bytes());
            prefix[4..].copy_from_slice(&instance.instance.port.to_be_bytes());
            template.push_answer_to(rtype::SRV, ttl, &prefix, &target, id);
        }
    }
}

/// The instances to show. Of more than a template holds, a random choice.
fn select<'v>(view: &'v ServiceView, subset: Option<&str>) -> Vec<&'v Arc<InstanceView>> {
    let select = Select::usable().limit(Template::MAX_ANSWERS);
    view.select(&subset.into_iter().fold(select, Select::subset))
}

/// Adds those of `addresses` that the type asks for. ANY shows one kind of record only, as RFC 8482 §4.1 allows:
/// IPv4 where there is any, else IPv6.
fn push_addresses(
    template: &mut Template,
    asked: u16,
    ttl: u32,
    addresses: impl Iterator<Item = IpAddr>,
) {
    let mut v6 = Vec::new();
    for ip in addresses {
        match ip {
            IpAddr::V4(ip) if matches!(asked, rtype::A | rtype::ANY) => {
                template.push_answer(rtype::A, ttl, &ip.octets());
            }
            IpAddr::V6(ip) if matches!(asked, rtype::AAAA | rtype::ANY) => v6.push(ip),
            _ => {}
        }
    }
    if template.answers() == 0 {
        for ip in v6 {
            template.push_answer(rtype::AAAA, ttl, &ip.octets());
        }
    }
}

fn push_glue(template: &mut Template, ttl: u32, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => template.push_glue(rtype::A, ttl, &ip.octets()),
        IpAddr::V6(ip) => template.push_glue(rtype::AAAA, ttl, &ip.octets()),
    }
}

fn node_name(node: &NodeView, domain: &Domain) -> Option<Vec<u8>> {
    below(
        &format!("{}.node.{}", node.record.name, node.record.datacenter),
        domain,
    )
}

/// `prefix` in front of `domain`; `None` when that is no name.
fn below(prefix: &str, domain: &Domain) -> Option<Vec<u8>> {
    let mut wire = name::encode(prefix)?;
    wire.pop();
    wire.extend_from_slice(domain.as_bytes());
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// The labels as text; `None` when one is not ASCII, or has a dot of its own that would be mistaken for a border.
fn text_labels(wire: &[u8]) -> Option<Vec<&str>> {
    name::labels(wire)
        .map(|label| {
            std::str::from_utf8(label)
                .ok()
                .filter(|text| text.is_ascii() && !text.contains('.'))
        })
        .collect()
}

/// TXT data of a metadata pair: `key=value` (RFC 1464), or the value alone for keys that start with `rfc1035-`, cut
/// into strings of 255 octets.
fn text(key: &str, value: &str) -> Vec<u8> {
    let whole = if key.starts_with("rfc1035-") {
        value.to_owned()
    } else {
        // RFC 1464 §2.1 quotes these with a grave accent.
        format!("{}={value}", key.replace('`', "``").replace('=', "`="))
    };
    let mut data = Vec::with_capacity(whole.len() + 4);
    for part in whole.as_bytes().chunks(255) {
        data.push(part.len() as u8);
        data.extend_from_slice(part);
    }
    if data.is_empty() {
        data.push(0);
    }
    data
}

fn seconds(ttl: Duration) -> u32 {
    // RFC 2181 §8: 31 bits.
    u32::try_from(ttl.as_secs())
        .unwrap_or(u32::MAX)
        .min(i32::MAX as u32)
}
