//! What a [`Mesh`](crate::mesh::Mesh) needs to start.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::{
    identity::CertificateSource,
    join::{JoinToken, NodeCredentials, Seed},
    member::Preset,
    model::{NodeName, Roles},
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

/// Configuration of a node. [`Config::new`] has the defaults; fields may be changed freely before the start.
#[derive(Clone)]
pub struct Config {
    /// The node's name, unique in the mesh. Bound to its key when it joins.
    pub node: NodeName,
    /// Where to listen, UDP and TCP on the same port. Default `0.0.0.0:8301`; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Where others reach the node. Default: `bind`, which must then be a real address.
    pub advertise: Option<SocketAddr>,
    /// The node directory (mode 0700): key, certificate, keyring, caches. `None`: nothing is kept, which
    /// needs [`Credentials::Given`].
    pub directory: Option<PathBuf>,
    /// Whether the instances and checks of the node's last life stay (needs a directory) until
    /// [`LocalLog::settle`](crate::catalog::LocalLog::settle), so that those registered again are never
    /// gone. Default false: they go at the start.
    pub resume: bool,
    /// Where the credentials come from.
    pub credentials: Credentials,
    /// Nodes to join through and to announce to.
    pub seeds: Vec<Seed>,
    /// For how long a join that fails for a temporary reason is tried again. Default 60 s.
    pub join_patience: Duration,
    /// What the node says it does. A claim only: rights are in its certificate.
    pub roles: Roles,
    /// What the node says of itself; `zone` is its failure domain.
    pub meta: BTreeMap<Arc<str>, Arc<str>>,
    /// The version of the embedding program. Default: this crate's.
    pub version: Arc<str>,
    /// Timings of membership. Default [`Preset::lan`].
    pub preset: Preset,
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
    /// The defaults for a node called `node`.
    pub fn new(node: NodeName, credentials: Credentials) -> Self {
        Self {
            node,
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8301)),
            advertise: None,
            directory: None,
            resume: false,
            credentials,
            seeds: Vec::new(),
            join_patience: Duration::from_secs(60),
            roles: Roles::default(),
            meta: BTreeMap::new(),
            version: env!("CARGO_PKG_VERSION").into(),
            preset: Preset::lan(),
            sync: sync::Config::default(),
            routes: rpc::Router::new(),
            limits: rpc::Limits::default(),
            certificates: None,
            service_ttl: None,
        }
    }
}
