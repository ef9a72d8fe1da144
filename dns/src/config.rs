//! What the server is told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use libmesh::model::Datacenter;

use crate::wire::name::Domain;

/// Settings of a [`DnsServer`](crate::DnsServer). [`Config::default`] is what the mesh does unless told otherwise;
/// [`Config::like_consul`] is what Consul does.
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
    /// Limits of the TCP side.
    pub tcp: TcpLimits,
    /// Who answers for names that are not ours. Default: nobody, such names are refused.
    pub upstreams: Upstreams,
    /// How long one upstream may take. Default 2 s, as in Consul.
    pub upstream_timeout: Duration,
}

/// How long others may keep answers; whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// Answers about services. Default 5 s.
    pub service: Duration,
    /// Answers about nodes and addresses. Default 10 s.
    pub node: Duration,
    /// "There is no such name" and "no such type" (RFC 2308). Default 5 s.
    pub negative: Duration,
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
            udp_threads: NonZeroUsize::MIN,
            udp_payload: 1232,
            udp_answer_limit: None,
            say_truncated: true,
            tcp: TcpLimits::default(),
            upstreams: Upstreams::None,
            upstream_timeout: Duration::from_secs(2),
        }
    }
}

impl Config {
    /// Consul's defaults for drop-in tests: TTL 0, at most three answers over plain UDP, no TC bit, EDNS up to 4096.
    pub fn like_consul() -> Self {
        Self {
            ttl: Ttl {
                service: Duration::ZERO,
                node: Duration::ZERO,
                negative: Duration::ZERO,
            },
            udp_answer_limit: NonZeroUsize::new(3),
            say_truncated: false,
            udp_payload: 4096,
            ..Self::default()
        }
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self {
            service: Duration::from_secs(5),
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
