//! What a [`Mesh`](crate::mesh::Mesh) needs to start.
//!
//! [`Builder`] reads texts as they stand in a configuration file or an environment, parses each once, and reports all
//! that cannot be used at once, by field. [`Config`] is what comes out: typed, and free to be changed before the start.

mod builder;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::{
    identity::CertificateSource,
    join::{JoinToken, NodeCredentials, Seed},
    member::Preset,
    model::{Datacenter, NodeName, Roles},
    rpc, sync,
};

/// Where a node's credentials come from.
#[derive(Clone)]
pub enum Credentials {
    /// From the node directory, where an earlier join left them.
    Kept,
    /// From the node directory, or else by joining with this token.
    Join(JoinToken),
    /// From the embedding program: a server makes its own.
    Given(Box<NodeCredentials>),
}

pub use builder::{Builder, ConfigError};

/// Configuration of a node. [`Config::new`] has the defaults; fields may be changed freely before the start.
/// [`Config::builder`] parses texts.
#[derive(Clone)]
pub struct Config {
    /// The node's name, unique in the mesh. Bound to its key when it joins.
    pub node: NodeName,
    /// Where to listen, UDP and TCP on the same port. Default `0.0.0.0:8301`; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where others reach the node; port 0 means that of `bind`. Default: `bind`, and where that is no real address
    /// (`0.0.0.0`), the address of this machine from which the first seed is reached.
    pub advertise: Option<SocketAddr>,
    /// The datacenter that the credentials must be for. Default: whichever they are for.
    pub datacenter: Option<Datacenter>,
    /// The node directory (mode 0700): key, certificate, keyring, caches. `None`: nothing is kept, which
    /// needs [`Credentials::Given`].
    pub directory: Option<PathBuf>,
    /// Whether the instances and checks of the node's last life stay (needs a directory), so that those
    /// registered again are never gone for others. Default true. With false they go at the start.
    pub resume: bool,
    /// How long after the start those that were not registered again are taken away. Default 15 s. `None`: the
    /// program does that itself, with [`LocalLog::settle`](crate::catalog::LocalLog::settle).
    pub settle: Option<Duration>,
    /// Where the credentials come from.
    pub credentials: Credentials,
    /// Nodes to join through and to announce to.
    pub seeds: Vec<Seed>,
    /// For how long a join that fails for a temporary reason is tried again. Default 60 s.
    pub join_patience: Duration,
    /// What the node says it does. A claim only: rights are in its certificate.
    pub roles: Roles,
    /// What the node says of itself; `zone` is its failure domain, `region` what is near beyond it.
    pub meta: BTreeMap<Arc<str>, Arc<str>>,
    /// The version of the embedding program. Default: this crate's.
    pub version: Arc<str>,
    /// Timings of membership. Default [`Preset::lan`].
    pub preset: Preset,
    /// Nodes beyond which the pool (the datacenter) takes no further ones. Default 5,000, from 2,000 on a warning is
    /// logged: membership is measured up to there. Should be the same on every node.
    pub pool_limit: usize,
    /// Timings of the catalog's dissemination.
    pub sync: sync::Config,
    /// Further RPC routes of the embedding program.
    pub routes: rpc::Router,
    /// Bounds of the RPC listener.
    pub limits: rpc::Limits,
    /// Who signs certificates. `None`: a server is asked over RPC.
    pub certificates: Option<Arc<dyn CertificateSource>>,
    /// The life of service certificates to ask for. `None`: the authority's default (24 h).
    pub service_ttl: Option<Duration>,
}

impl Config {
    /// A configuration from texts, for a node called `node`; without more it is one that has joined before.
    pub fn builder(node: impl AsRef<str>) -> Builder {
        Builder::new(node.as_ref())
    }

    /// The defaults for a node called `node`.
    pub fn new(node: NodeName, credentials: Credentials) -> Self {
        Self {
            node,
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8301)),
            advertise: None,
            datacenter: None,
            directory: None,
            resume: true,
            settle: Some(Duration::from_secs(15)),
            credentials,
            seeds: Vec::new(),
            join_patience: Duration::from_secs(60),
            roles: Roles::default(),
            meta: BTreeMap::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            preset: Preset::lan(),
            pool_limit: 5_000,
            sync: sync::Config::default(),
            routes: rpc::Router::new(),
            limits: rpc::Limits::default(),
            certificates: None,
            service_ttl: None,
        }
    }
}

/// Why nobody else can reach `ip`, if that shows on it.
pub(crate) fn unreachable(ip: IpAddr) -> Option<&'static str> {
    let link_local = |ip: std::net::Ipv6Addr| (ip.segments()[0] & 0xffc0) == 0xfe80;
    match ip {
        _ if ip.is_unspecified() => {
            Some("that is every address of this machine, and none of others")
        }
        _ if ip.is_multicast() => Some("that is a multicast address"),
        IpAddr::V4(ip) if ip.is_broadcast() => Some("that is the broadcast address"),
        IpAddr::V6(ip) if link_local(ip) => {
            Some("a link-local address means another machine on every interface")
        }
        _ => None,
    }
}
