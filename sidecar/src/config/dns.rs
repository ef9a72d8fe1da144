//! `[dns]`

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use dns::{Config as Server, Domain, RateLimit, ServiceTtl, TcpLimits, Ttl, Upstreams};

use super::reader::{Reader, parse_ttl};

/// `[dns]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Domains answered for; the first is the one of PTR answers. Default `mesh` and `consul`.
    pub domains: Vec<Domain>,
    /// Resolvers for all other names. Default none: such names are refused.
    pub recursors: Upstreams,
    /// How long one of them may take. Default 2 s.
    pub recursor_timeout: Duration,
    /// Domains with resolvers of their own. Default none.
    pub forward: Vec<(Domain, Vec<SocketAddr>)>,
    /// How long answers may be kept. Default 5 s, about nodes twice that.
    pub ttl: Ttl,
    /// Where `ns.<domain>` is. Default: where DNS listens, if that can be reached from outside.
    pub nameservers: Vec<IpAddr>,
    /// Leave out instances with a warning. Default false.
    pub only_passing: bool,
    /// Instances of the own zone and region first. Default true.
    pub near_first: bool,
    /// Most addresses in an answer. Default: as many as fit.
    pub max_addresses: Option<NonZeroUsize>,
    /// Most answers over UDP to those without EDNS. Default: as many as fit.
    pub udp_answer_limit: Option<NonZeroUsize>,
    /// Largest UDP message. Default 1232.
    pub udp_payload: u16,
    /// Receive threads. Default 1.
    pub threads: NonZeroUsize,
    /// Replies over UDP for a network. Default 200 a second for each public one.
    pub rate_limit: RateLimit,
    /// Limits of the TCP side.
    pub tcp: TcpLimits,
}

impl DnsConfig {
    pub(super) fn read(mut reader: Reader<'_>) -> Self {
        let usual = Server::default();
        let domains = reader.list("domains", "a domain name", domain);
        let (mut system, mut listed) = (false, Vec::new());
        let upstreams = reader.list("recursors", "an address, or \"system\"", |text| match text
            .eq_ignore_ascii_case("system")
        {
            true => Ok(None),
            false => upstream(text).map(Some),
        });
        for one in upstreams.unwrap_or_default() {
            match one {
                None => system = true,
                Some(address) => listed.push(address),
            }
        }
        if system && !listed.is_empty() {
            reader.report(
                reader.place(),
                "`dns.recursors` is either \"system\" alone or a list of addresses",
            );
        }
        let recursors = match (system, listed.is_empty()) {
            (true, _) => Upstreams::System,
            (false, true) => Upstreams::None,
            (false, false) => Upstreams::List(listed),
        };
        let recursor_timeout = reader.duration("recursor_timeout");
        let forward = read_forward(&mut reader);
        let ttl = read_ttl(&mut reader);
        let nameservers = reader.list("nameservers", "an IP address", str::parse);
        let most = |count: i64| NonZeroUsize::new(usize::try_from(count).unwrap_or(usize::MAX));
        let max_addresses = reader.integer("max_addresses", 1, 4096);
        let udp_answer_limit = reader.integer("udp_answer_limit", 1, 4096);
        let udp_payload = reader.integer("udp_payload", 512, 4096);
        let threads = reader.integer("threads", 1, 64).and_then(most);
        let only_passing = reader.flag("only_passing").unwrap_or(false);
        let near_first = reader.flag("near_first").unwrap_or(true);
        let rate_limit = read_rate_limit(&mut reader);
        let tcp = TcpLimits {
            connections: reader
                .integer("tcp_connections", 1, 1 << 20)
                .and_then(|count| usize::try_from(count).ok())
                .unwrap_or(usual.tcp.connections),
            idle: reader.duration("tcp_idle").unwrap_or(usual.tcp.idle),
        };
        let config = Self {
            domains: domains.unwrap_or(usual.domains),
            recursors,
            recursor_timeout: recursor_timeout.unwrap_or(usual.upstream_timeout),
            forward,
            ttl,
            nameservers: nameservers.unwrap_or_default(),
            only_passing,
            near_first,
            max_addresses: max_addresses.and_then(most),
            udp_answer_limit: udp_answer_limit.and_then(most),
            udp_payload: udp_payload.map_or(usual.udp_payload, |size| size as u16),
            threads: threads.unwrap_or(usual.udp_threads),
            rate_limit,
            tcp,
        };
        if config.domains.is_empty() {
            reader.report(
                reader.place(),
                "`dns.domains` must name at least one domain",
            );
        }
        reader.finish();
        config
    }

    /// What the server that listens on `listen` is told; a node that others reach at `advertise` is found there as `ns.<domain>`.
    pub fn server(&self, listen: Vec<SocketAddr>, advertise: IpAddr, like_consul: bool) -> Server {
        let mut domains = self.domains.clone();
        let mut nameservers = self.nameservers.clone();
        if nameservers.is_empty() {
            let reached = listen
                .iter()
                .map(SocketAddr::ip)
                .filter(|ip| !ip.is_loopback());
            nameservers = reached
                .map(|ip| if ip.is_unspecified() { advertise } else { ip })
                .collect();
        }
        if like_consul {
            // Its own domain is the first there.
            domains.sort_by_key(|domain| domain.to_string() != "consul.");
            return Server {
                listen,
                domains,
                upstreams: self.recursors.clone(),
                upstream_timeout: self.recursor_timeout,
                forward: self.forward.clone(),
                ..Server::like_consul()
            };
        }
        Server {
            listen,
            domains,
            ttl: self.ttl.clone(),
            nameservers,
            only_passing: self.only_passing,
            near_first: self.near_first,
            max_addresses: self.max_addresses,
            udp_threads: self.threads,
            udp_payload: self.udp_payload,
            udp_answer_limit: self.udp_answer_limit,
            tcp: self.tcp,
            rate_limit: self.rate_limit,
            upstreams: self.recursors.clone(),
            forward: self.forward.clone(),
            upstream_timeout: self.recursor_timeout,
            ..Server::default()
        }
    }
}

fn domain(text: &str) -> Result<Domain, String> {
    Domain::parse(text).map_err(|error| error.to_string())
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    if let Ok(ip) = text.parse() {
        return Ok(SocketAddr::new(ip, 53));
    }
    text.parse::<SocketAddr>()
        .map_err(|error| error.to_string())
}

/// `[dns.forward]`: `"corp.example" = "10.0.0.53, 10.0.1.53"`.
fn read_forward(reader: &mut Reader<'_>) -> Vec<(Domain, Vec<SocketAddr>)> {
    let zones = reader.pairs("forward").unwrap_or_default();
    let mut forward = Vec::with_capacity(zones.len());
    for (zone, servers) in zones {
        let listed: Result<Vec<_>, _> =
            servers.split(',').map(|one| upstream(one.trim())).collect();
        match (domain(&zone), listed) {
            (Ok(zone), Ok(servers)) => forward.push((zone, servers)),
            (Err(error), _) => reader.report(reader.place(), format!("`dns.forward`: {error}")),
            (_, Err(error)) => reader.report(
                reader.place(),
                format!(
                    "`dns.forward.\"{zone}\"` must be addresses, with or without a port, between commas; {servers:?}: {error}"
                ),
            ),
        }
    }
    forward
}

fn read_ttl(reader: &mut Reader<'_>) -> Ttl {
    const WANTED: &str = "a duration such as \"10s\"";
    let all = reader.parsed("ttl", WANTED, parse_ttl);
    let usual = Ttl::default();
    let mut service = ServiceTtl::new(all.unwrap_or(usual.service.of("")));
    let patterns: BTreeMap<String, String> = reader.pairs("service_ttl").unwrap_or_default();
    for (pattern, text) in patterns {
        match parse_ttl(&text) {
            Ok(ttl) => service = service.with(&pattern, ttl),
            Err(error) => reader.report(
                reader.place(),
                format!("`dns.service_ttl.\"{pattern}\"` must be {WANTED}; {text:?}: {error}"),
            ),
        }
    }
    let node = reader.parsed("node_ttl", WANTED, parse_ttl);
    let negative = reader.parsed("negative_ttl", WANTED, parse_ttl);
    Ttl {
        service,
        node: node.or(all).unwrap_or(usual.node),
        negative: negative.unwrap_or(usual.negative),
    }
}

/// `rate_limit = 200`, 0 for none; with `rate_limit_private = true` for private networks, too.
fn read_rate_limit(reader: &mut Reader<'_>) -> RateLimit {
    let rate = reader.integer("rate_limit", 0, i64::from(u32::MAX));
    let private = reader.flag("rate_limit_private").unwrap_or(false);
    let RateLimit::Public(usual) = RateLimit::default() else {
        return RateLimit::default();
    };
    let rate = rate.map_or(Some(usual), |rate| {
        NonZeroU32::new(u32::try_from(rate).unwrap_or(u32::MAX))
    });
    match (rate, private) {
        (None, _) => RateLimit::Off,
        (Some(rate), false) => RateLimit::Public(rate),
        (Some(rate), true) => RateLimit::All(rate),
    }
}
