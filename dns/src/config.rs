//! What the server is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use libmesh::model::Datacenter;

use crate::queries::Queries;
use crate::secured::Accept;
use crate::wire::name::Domain;
use crate::zone::virtual_ips::VirtualIps;

/// Settings of a [`DnsServer`](crate::DnsServer). [`Config::default`] is what the mesh does unless told otherwise;
/// [`Config::like_consul`] is what Consul does.
///
/// ```
/// use std::time::Duration;
/// use dns::{Config, ServiceTtl, Ttl};
///
/// let service = ServiceTtl::new(Duration::from_secs(5)).with("db*", Duration::from_secs(30));
/// let config = Config { only_passing: true, ttl: Ttl { service, ..Ttl::default() }, ..Config::default() };
/// # assert_eq!(config.ttl.service.of("db-eu"), Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to listen, UDP and TCP alike; port 0 takes a free one. Default `127.0.0.1:8600`.
    pub listen: Vec<SocketAddr>,
    /// The domains that are ours; the first is the one that PTR answers use. Default `mesh.` and `consul.`.
    pub domains: Vec<Domain>,
    /// The datacenter of this node's catalog: what `web.service.dc1.mesh` may name. Default `dc1`.
    pub datacenter: Datacenter,
    /// How long others may keep answers.
    pub ttl: Ttl,
    /// Answer to `ns.<domain>`: where this server is reached from outside. Default: none, the name has no address.
    pub nameservers: Vec<IpAddr>,
    /// Answers in the manner of. Default [`Manner::Mesh`].
    pub manner: Manner,
    /// Leave out instances with a warning, too. Default false.
    pub only_passing: bool,
    /// Show the instances of the own zone first, then those of the own region. Default true; without effect where
    /// nodes name no locality.
    pub near_first: bool,
    /// The most addresses (A, AAAA) in an answer, over any transport. Default: as many as fit.
    pub max_addresses: Option<NonZeroUsize>,
    /// The addresses that stand for services. Default: none.
    pub virtual_ips: VirtualIps,
    /// What `.query` names ask for. Default: none.
    pub queries: Queries,
    /// Receive threads for each address, each with a socket of its own. Default 1: answers come from a cache in
    /// memory, and one thread outruns what a host's clients ask.
    pub udp_threads: NonZeroUsize,
    /// The largest UDP message sent and taken, 512 to 4096 octets. Default 1232, which fits IPv6's minimum MTU
    /// (DNS flag day 2020).
    pub udp_payload: u16,
    /// The most answers in a UDP reply to somebody without EDNS. Default: as many as fit.
    pub udp_answer_limit: Option<NonZeroUsize>,
    /// Say that a UDP reply was cut (TC bit), so that the asker comes again over TCP. Default true.
    pub say_truncated: bool,
    /// Limits of the TCP side, with and without TLS each.
    pub tcp: TcpLimits,
    /// DNS over TLS (RFC 7858): where to listen, and who speaks TLS. Default: not served.
    pub tls: Option<(Vec<SocketAddr>, Arc<dyn Accept>)>,
    /// How many replies over UDP somebody can cause who may not be who he says he is. Default: [`RateLimit::Public`]
    /// with 200.
    pub rate_limit: RateLimit,
    /// Who answers for names that are not ours. Default: nobody, such names are refused.
    pub upstreams: Upstreams,
    /// Domains that others answer for than `upstreams`: of several that a name is in, the longest. Default: none.
    pub forward: Vec<(Domain, Vec<SocketAddr>)>,
    /// How long one upstream may take. Default 2 s, as in Consul.
    pub upstream_timeout: Duration,
}

/// Where servers of the field differ on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As the standards say.
    #[default]
    Mesh,
    /// As Consul 1.21 does: a node's metadata with its address, a service's addresses for TXT, the domain's SOA and NS
    /// for any name, no SOA where a node lacks the type, NXDOMAIN for the domain itself and for addresses that nobody
    /// has.
    Consul,
}

/// Whose replies are counted. A UDP reply goes to whoever the sender claims to be: unlimited, a server can be made to
/// flood others (RFC 5358, BCP 38). What is over the limit is answered with an empty reply that says "come over TCP"
/// every second time, and not at all otherwise. Networks are counted as a whole: /24 of IPv4, /56 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// No limit.
    Off,
    /// So many a second for each network that is not private (RFC 1918, RFC 6598, RFC 4193, link-local, loopback).
    Public(NonZeroU32),
    /// So many a second for each network but loopback.
    All(NonZeroU32),
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::Public(const { NonZeroU32::new(200).expect("not zero") })
    }
}

/// How long others may keep answers; whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// Answers about services. Default 5 s for all.
    pub service: ServiceTtl,
    /// Answers about nodes and addresses. Default 10 s.
    pub node: Duration,
    /// "There is no such name" and "no such type" (RFC 2308). Default 5 s.
    pub negative: Duration,
}

/// How long others may keep answers about services, by the service's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTtl {
    other: Duration,
    exact: BTreeMap<Box<str>, Duration>,
    prefixes: BTreeMap<Box<str>, Duration>,
}

impl ServiceTtl {
    /// The same for all services.
    pub fn new(all: Duration) -> Self {
        Self {
            other: all,
            exact: BTreeMap::new(),
            prefixes: BTreeMap::new(),
        }
    }

    /// Another one for the services that `pattern` names: `web`, `web*`, or `*` for all that no other pattern names.
    /// A whole name counts more than a prefix, a longer prefix more than a shorter one.
    #[must_use]
    pub fn with(mut self, pattern: &str, ttl: Duration) -> Self {
        let pattern = pattern.to_ascii_lowercase();
        match pattern.strip_suffix('*') {
            Some("") => self.other = ttl,
            Some(prefix) => {
                self.prefixes.insert(prefix.into(), ttl);
            }
            None => {
                self.exact.insert(pattern.into(), ttl);
            }
        }
        self
    }

    /// The one for a service.
    pub fn of(&self, service: &str) -> Duration {
        if let Some(ttl) = self.exact.get(service) {
            return *ttl;
        }
        let fitting = self
            .prefixes
            .iter()
            .filter(|(p, _)| service.starts_with(&***p));
        fitting
            .max_by_key(|(prefix, _)| prefix.len())
            .map_or(self.other, |(_, ttl)| *ttl)
    }
}

/// Limits of the TCP side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpLimits {
    /// Open connections; one more is closed at once. Default 1024.
    pub connections: usize,
    /// A connection without a whole query for so long is closed (RFC 7766 §6.2.3). Default 10 s.
    pub idle: Duration,
}

/// Who answers for foreign names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Upstreams {
    /// Nobody: REFUSED.
    #[default]
    None,
    /// These. The one that answered last is asked first; when it fails, the next in this order is.
    List(Vec<SocketAddr>),
    /// Those that the system is configured with (`/etc/resolv.conf`).
    System,
}

impl Default for Config {
    fn default() -> Self {
        let domain = |text| Domain::parse(text).expect("a constant name is well formed");
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8600))],
            domains: vec![domain("mesh"), domain("consul")],
            datacenter: Datacenter::default(),
            ttl: Ttl::default(),
            nameservers: Vec::new(),
            manner: Manner::Mesh,
            only_passing: false,
            near_first: true,
            max_addresses: None,
            virtual_ips: VirtualIps::default(),
            queries: Queries::default(),
            udp_threads: NonZeroUsize::MIN,
            udp_payload: 1232,
            udp_answer_limit: None,
            say_truncated: true,
            tcp: TcpLimits::default(),
            tls: None,
            rate_limit: RateLimit::default(),
            upstreams: Upstreams::None,
            forward: Vec::new(),
            upstream_timeout: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Consul's defaults for drop-in tests: TTL 0, at most three answers over plain UDP, no TC bit, EDNS up to 4096, its
    /// [`Manner`], `consul.` as the first domain.
    pub fn like_consul() -> Self {
        let mut config = Self::default();
        config.domains.reverse();
        Self {
            manner: Manner::Consul,
            near_first: false,
            ttl: Ttl {
                service: ServiceTtl::new(Duration::ZERO),
                node: Duration::ZERO,
                negative: Duration::ZERO,
            },
            udp_answer_limit: NonZeroUsize::new(3),
            say_truncated: false,
            udp_payload: 4096,
            ..config
        }
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self {
            service: ServiceTtl::new(Duration::from_secs(5)),
            node: Duration::from_secs(10),
            negative: Duration::from_secs(5),
        }
    }
}

impl Default for TcpLimits {
    fn default() -> Self {
        Self {
            connections: 1024,
            idle: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_exact_ttl_counts() {
        let seconds = Duration::from_secs;
        let ttl = ServiceTtl::new(seconds(5))
            .with("db*", seconds(10))
            .with("db-eu*", seconds(20))
            .with("DB-eu-1", seconds(30));
        for (service, expected) in [
            ("web", 5),
            ("db", 10),
            ("db-us", 10),
            ("db-eu", 20),
            ("db-eu-1", 30),
            ("db-eu-10", 20),
        ] {
            assert_eq!(ttl.of(service), seconds(expected), "{service}");
        }
        assert_eq!(ttl.with("*", seconds(1)).of("web"), seconds(1));
    }
}
