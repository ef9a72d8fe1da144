//! From a name and a type to a prepared answer.
//!
//! A [`Zone`] reads the catalog and remembers next to nothing: whoever keeps an [`Answer`] asks its [`Depends`] what
//! makes it old. Selection follows Consul (critical and maintenance instances are left out, warning ones are kept), plus
//! what membership knows: instances on suspect nodes, or shown only because a mass failure looks like a broken network,
//! are used when nothing better is there; the latter with a short TTL and the extended error "Stale Answer".

use std::net::IpAddr;
use std::time::Duration;

use libmesh::catalog::{Catalog, NodeView};
use libmesh::model::Datacenter;

use crate::config::{Config, Manner, Ttl};
use crate::queries::Queries;
use crate::wire::name::{self, Domain, MAX_NAME};
use crate::wire::template::Template;
use crate::wire::{HEADER, rcode, rtype};

mod addresses;
pub mod explain;
pub mod names;
mod service;
pub mod virtual_ips;

use addresses::Addresses;
use names::Meaning;
use virtual_ips::VirtualIps;

/// Name servers named in an answer at most (Consul's limit).
const NAME_SERVERS: usize = 3;

/// The names below our domains, and reverse names of our nodes and services.
#[derive(Debug)]
pub struct Zone {
    domains: Vec<Domain>,
    datacenter: Datacenter,
    ttl: Ttl,
    nameservers: Vec<IpAddr>,
    manner: Manner,
    only_passing: bool,
    near_first: bool,
    max_addresses: usize,
    virtual_ips: VirtualIps,
    queries: Queries,
    addresses: Addresses,
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
    /// The named services, as of these revisions of them.
    Services(Vec<(Box<str>, u64)>),
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
            ttl: config.ttl.clone(),
            nameservers: config.nameservers.clone(),
            manner: config.manner,
            only_passing: config.only_passing,
            near_first: config.near_first,
            max_addresses: config.max_addresses.map_or(usize::MAX, usize::from),
            virtual_ips: config.virtual_ips.clone(),
            queries: config.queries.clone(),
            addresses: Addresses::default(),
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
        let labels = text_labels(prefix);
        let meaning = labels
            .as_ref()
            .map(|labels| names::meaning(labels, self.datacenter.as_str()));
        if self.manner == Manner::Consul
            && let Some(answer) = ask.like_consul(meaning.as_ref())
        {
            return Some(answer);
        }
        Some(match meaning {
            Some(Meaning::Apex) => ask.apex(),
            Some(Meaning::Nameserver) => {
                ask.addresses(&self.nameservers, self.ttl.node, Depends::Nothing)
            }
            Some(Meaning::Branch) => ask.no_data(Depends::Nothing),
            Some(Meaning::Address(ip)) => ask.addresses(&[ip], self.ttl.node, Depends::Transient),
            Some(Meaning::Node(name)) => ask.node(&name),
            Some(Meaning::Service(way, labels)) => ask.first_of(way, names::readings(labels)),
            Some(Meaning::Located { way, name, subset }) => {
                ask.service(&service::Wanted::new(way, name, subset))
            }
            Some(Meaning::Port { port, name }) => {
                ask.service(&service::Wanted::of_port(name, port))
            }
            Some(Meaning::Virtual(name)) => ask.virtual_ip(&name),
            Some(Meaning::Query(name)) => ask.query(&name),
            Some(Meaning::Nothing) | None => ask.no_name(),
        })
    }

    /// Whether a node has a name: while it is present, and while its instances are shown although it is down.
    fn is_shown(&self, node: &NodeView) -> bool {
        node.liveness.is_present() || !self.catalog.instances_on(&node.record.id).is_empty()
    }

    /// The name of a node's address, else of the service that has it. Addresses that are not ours are foreign names.
    fn reverse(&self, folded: &[u8], rtype: u16) -> Option<Answer> {
        if !matches!(rtype, rtype::PTR | rtype::ANY) || !folded.ends_with(b"\x04arpa\0") {
            return None;
        }
        let ip = names::reverse(&text_labels(folded)?)?;
        let revision = self.catalog.revision();
        let domain = self.domains.first()?;
        let node = self
            .catalog
            .node_by_ip(ip)
            .filter(|node| self.is_shown(node));
        let (name, depends) = match node {
            Some(node) => (node_name(&node, domain)?, Depends::Catalog(revision)),
            None => match self.service_of(ip) {
                Some(name) => (
                    below(&format!("{name}.{}", self.datacenter), domain)?,
                    Depends::Transient,
                ),
                None if self.manner == Manner::Consul => {
                    return Some(self.nobody_there(domain));
                }
                None => return None,
            },
        };
        let mut template = Template::new(rcode::NOERROR, true);
        template.push_answer(rtype::PTR, seconds(self.ttl.node), &name);
        Some(Answer { template, depends })
    }

    /// TXT data of a node's metadata, and of what Consul adds to that of members.
    fn texts(&self, node: &NodeView) -> Vec<Vec<u8>> {
        let record = &node.record;
        let own = record.meta.iter().map(|(key, value)| text(key, value));
        let mut texts: Vec<_> = own.collect();
        if self.manner == Manner::Consul && record.is_member() {
            texts.push(text("consul-network-segment", ""));
            texts.push(text("consul-version", &record.version));
        }
        texts
    }

    /// `web.virtual` or `web.service`.
    fn service_of(&self, ip: IpAddr) -> Option<String> {
        if let Some(name) = self.virtual_ips.service(ip) {
            return Some(format!("{name}.virtual"));
        }
        let name = self.addresses.service(&self.catalog, ip)?;
        Some(format!("{name}.service"))
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
        let ttl = seconds(ttl);
        push_addresses(&mut template, self.rtype, ttl, addresses.iter().copied());
        self.or_no_data(template, depends)
    }

    fn virtual_ip(&self, service: &str) -> Answer {
        match self.zone.virtual_ips.of(service) {
            Some(ip) => {
                let ttl = self.zone.ttl.service.of(service);
                self.addresses(&[ip.into()], ttl, Depends::Transient)
            }
            None => self.no_name(),
        }
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
            for text in self.zone.texts(&node) {
                template.push_answer(rtype::TXT, ttl, &text);
            }
        }
        if self.zone.manner == Manner::Consul {
            if template.answers() > 0 && matches!(self.rtype, rtype::A | rtype::AAAA) {
                for text in self.zone.texts(&node) {
                    template.push_extra_of_question(rtype::TXT, ttl, &text);
                }
            }
            return Answer { template, depends };
        }
        self.or_no_data(template, depends)
    }
}

/// What Consul does otherwise.
impl Ask<'_> {
    fn like_consul(&self, meaning: Option<&Meaning<'_>>) -> Option<Answer> {
        let bare = |fill: &dyn Fn(&mut Template)| {
            let mut template = Template::new(rcode::NOERROR, true);
            fill(&mut template);
            Some(Answer {
                template,
                depends: Depends::Transient,
            })
        };
        match (self.rtype, meaning?) {
            // The domain's, whatever name below it was asked for.
            (rtype::SOA, _) => Some(self.authority_like_consul()),
            (rtype::NS, _) => Some(self.name_servers_like_consul()),
            (_, Meaning::Apex | Meaning::Branch) => Some(self.no_name()),
            (rtype::A | rtype::AAAA, Meaning::Address(ip))
                if ip.is_ipv4() != (self.rtype == rtype::A) =>
            {
                let ttl = seconds(self.zone.ttl.node);
                bare(&|template| match ip {
                    IpAddr::V4(ip) => {
                        template.push_extra_of_question(rtype::A, ttl, &ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        template.push_extra_of_question(rtype::AAAA, ttl, &ip.octets());
                    }
                })
            }
            (_, Meaning::Virtual(name)) if self.zone.virtual_ips.of(name).is_none() => {
                bare(&|_| {})
            }
            _ => None,
        }
    }

    /// Some servers of the mesh: name on the wire and address.
    fn servers(&self) -> Vec<(Vec<u8>, IpAddr)> {
        let nodes = self.zone.catalog.nodes();
        let servers = nodes
            .iter()
            .filter(|node| node.record.roles.server && node.liveness.is_present());
        let named = servers.filter_map(|node| Some((node_name(node, self.domain)?, node.ip())));
        named.take(NAME_SERVERS).collect()
    }

    fn name_servers_like_consul(&self) -> Answer {
        let depends = Depends::Catalog(self.zone.catalog.revision());
        let mut template = Template::new(rcode::NOERROR, true);
        let ttl = seconds(self.zone.ttl.node);
        for (name, ip) in self.servers() {
            template.push_answer_of(self.zone_at, rtype::NS, ttl, &name);
            push_extra(&mut template, &name, ttl, ip);
        }
        Answer { template, depends }
    }

    fn authority_like_consul(&self) -> Answer {
        let depends = Depends::Catalog(self.zone.catalog.revision());
        let mut template = Template::new(rcode::NOERROR, true);
        let ttl = seconds(self.zone.ttl.node);
        template.push_soa(self.zone_at, true, ttl, seconds(self.zone.ttl.negative));
        for (name, ip) in self.servers() {
            template.push_authority(self.zone_at, rtype::NS, ttl, &name);
            push_extra(&mut template, &name, ttl, ip);
        }
        Answer { template, depends }
    }
}

impl Zone {
    /// NXDOMAIN for a reverse name. It is no name of the domain, whose SOA cannot be a tail of the question: it stands
    /// in full.
    fn nobody_there(&self, domain: &Domain) -> Answer {
        let mut template = Template::new(rcode::NXDOMAIN, true);
        let ttl = seconds(self.ttl.negative);
        template.push_foreign_soa(domain.as_bytes(), ttl, ttl);
        Answer {
            template,
            depends: Depends::Transient,
        }
    }
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

fn push_extra(template: &mut Template, owner: &[u8], ttl: u32, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => template.push_extra(owner, rtype::A, ttl, &ip.octets()),
        IpAddr::V6(ip) => template.push_extra(owner, rtype::AAAA, ttl, &ip.octets()),
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
