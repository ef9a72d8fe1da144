//! What an operator writes down: TOML files, `MESH_*` variables and flags, read strictly.
//!
//! Files are merged in name order (tables merge, `[[service]]` lists join, everything else is replaced by
//! the later file), then variables, then flags. Reading never stops at the first mistake: every problem is
//! reported at once, with the place it was written and, for an unknown key, the nearest known one.
//! A key that nobody reads is an error, so that a typo never silently means a default.

mod check;
pub mod consul;
mod dns;
mod reader;
mod sections;
mod service;
mod sources;
mod tree;

use std::{
    collections::BTreeMap, fmt, net::IpAddr, num::NonZeroUsize, path::PathBuf, time::Duration,
};

use libmesh::model::{Datacenter, NodeName};

pub use check::CheckConfig;
pub use consul::{ConsulConfig, Definition};
pub use dns::DnsConfig;
pub use reader::{nearest, parse_duration};
pub use service::{Attach, ServiceConfig};
pub use sources::Sources;
pub use tree::{Place, Problem};

/// Where configuration is looked for when no `--config` is given.
pub const DEFAULT_DIR: &str = "/etc/mesh.d";

/// Everything an agent or server is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[join]`
    pub join: JoinConfig,
    /// `[ports]`
    pub ports: Ports,
    /// `[addresses]`
    pub addresses: Addresses,
    /// `[dns]`
    pub dns: DnsConfig,
    /// `[[service]]`
    pub services: Vec<ServiceConfig>,
    /// `[[check]]`: of the node as a whole; each has an `id`.
    pub checks: Vec<CheckConfig>,
    /// `[health]`
    pub health: HealthConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// What configuration of Consul's own says besides.
    pub consul: ConsulConfig,
    /// `[tls]`; needed for `ports.https`, and for the Vault port when that is not on loopback.
    pub tls: Option<TlsFiles>,
    /// `[server]`
    pub server: ServerConfig,
    /// `[intentions]`
    pub intentions: IntentionsConfig,
    /// `[acl]`
    pub acl: AclConfig,
    /// `[log]`
    pub log: LogConfig,
}

/// `[node]`: who this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Unique in the datacenter. Default: the host's name.
    pub name: NodeName,
    /// Default `dc1`. Never changes after the first start.
    pub datacenter: Datacenter,
    /// Where state is kept. Default `/var/lib/mesh`.
    pub data_dir: PathBuf,
    /// Address to listen on for other nodes. Default `0.0.0.0`.
    pub bind: IpAddr,
    /// Address others reach this node at. Default: `bind`, or the one the host's default route uses.
    pub advertise: IpAddr,
    /// Free-form pairs; `zone` is the failure domain.
    pub meta: BTreeMap<String, String>,
    /// What TERM and INT mean. Default: leave.
    pub on_term: OnTerm,
    /// Nodes beyond which the datacenter takes no further ones. Default 5,000.
    pub pool_limit: usize,
}

/// What an agent tells the others when it is told to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnTerm {
    /// Goodbye: it is gone from all answers at once.
    #[default]
    Leave,
    /// Back within fifteen seconds: it stays in all answers until then.
    Restart,
}

impl std::str::FromStr for OnTerm {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "leave" => Ok(Self::Leave),
            "restart" => Ok(Self::Restart),
            _ => Err("\"leave\" or \"restart\" is wanted"),
        }
    }
}

/// `[join]`: how to find the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JoinConfig {
    /// `host:port` of nodes to join; without a port 8301.
    pub seeds: Vec<String>,
    /// File with a join token, for the first start.
    pub token_file: Option<PathBuf>,
    /// How long a first start waits for a mesh that does not answer or cannot admit nodes. Default 1 min.
    pub patience: Duration,
}

/// `[ports]`: 0 = any free one, `None` (written `false`) = not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports {
    /// UDP membership and TCP mesh RPC. Default 8301.
    pub gossip: u16,
    /// Consul-compatible HTTP. Default 8500.
    pub http: Option<u16>,
    /// The same over TLS. Default off; 8501 is customary.
    pub https: Option<u16>,
    /// DNS, UDP and TCP. Default 8600.
    pub dns: Option<u16>,
    /// DNS over TLS, at `addresses.dns`. Default off; 853 is customary.
    pub dns_tls: Option<u16>,
    /// Vault-compatible HTTP, on servers. Default 8200.
    pub vault: Option<u16>,
}

/// `[addresses]`: where the ports are opened. Default for all: `127.0.0.1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// For `ports.http`.
    pub http: Vec<IpAddr>,
    /// For `ports.https`.
    pub https: Vec<IpAddr>,
    /// For `ports.dns` and `ports.dns_tls`.
    pub dns: Vec<IpAddr>,
    /// For `ports.vault`.
    pub vault: IpAddr,
    /// The agent's Unix socket. Default `<data_dir>/mesh.sock`.
    pub socket: PathBuf,
    /// Who may open it.
    pub socket_file: SocketFile,
}

/// Whose a Unix socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketFile {
    /// Its permissions. Default 0666: who may do what is decided for each caller.
    pub mode: u32,
    /// Default: the agent's.
    pub user: Option<u32>,
    /// Default: the agent's.
    pub group: Option<u32>,
}

impl Default for SocketFile {
    fn default() -> Self {
        SocketFile {
            mode: 0o666,
            user: None,
            group: None,
        }
    }
}

/// `[server]`: the sealed store and what it issues. Read by `mesh server` only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Directory of the store. Default `<data_dir>/store`.
    pub store: PathBuf,
    /// How it is unsealed.
    pub seal: Seal,
    /// Audit log files; each request is written to all of them before it is answered.
    pub audit: Vec<PathBuf>,
    /// How long the value of a record is kept that was overwritten; compaction takes it out after that. Default 30 days.
    pub history_retention: Duration,
    /// Life of a service's certificate. Default 24 h.
    pub service_cert_ttl: Duration,
    /// Life of a node's certificate. Default 7 days.
    pub node_cert_ttl: Duration,
}

/// `[server.seal]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Seal {
    /// `type = "shamir"`: people hold shares.
    #[default]
    Shamir,
    /// `type = "static"`: the key is in a file (0600), for unattended starts.
    Static {
        /// The key's file.
        key_file: PathBuf,
    },
}

/// `[tls]`: the certificate that the HTTPS port and the Vault port show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub cert_file: PathBuf,
    /// Private key (0600).
    pub key_file: PathBuf,
    /// Authorities: who asks at the HTTPS port must show a certificate of theirs. Default: nobody has to.
    pub client_ca_file: Option<PathBuf>,
    /// The least version of TLS. Default 1.2.
    pub min_version: TlsVersion,
}

/// Versions of TLS that are spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    #[default]
    V12,
    /// 1.3
    V13,
}

/// `[limits]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Open connections of one client address to the HTTP and HTTPS ports together, and of one user to the Unix
    /// socket; `None` (written 0) = no limit. Default 2,000.
    pub http_max_conns_per_client: Option<NonZeroUsize>,
}

/// `[intentions]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntentionsConfig {
    /// Whether calls that no intention names are allowed. Default: they are not.
    pub default_allow: bool,
}

/// `[acl]`: whether the Consul-compatible interface asks for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclConfig {
    /// Default: only what the store keeps needs a token.
    pub enabled: bool,
    /// Whether catalog, health and agent answer what no rule speaks of. Default: they do not.
    pub default_allow: bool,
    /// How long an agent believes what a server said of a token. Default 30 s.
    pub token_ttl: Duration,
    /// A file (0600) with the token of requests that bring none.
    pub default_token_file: Option<PathBuf>,
}

/// `[health]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HealthConfig {
    /// Who may have programs run as checks. Default nobody.
    pub exec_checks: ExecChecks,
}

/// Who may have programs run as checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExecChecks {
    /// `"off"`
    #[default]
    Off,
    /// `"config"`: whoever writes the configuration files.
    Config,
    /// `"api"`: also whoever reaches the HTTP interface.
    Api,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`. Default `info`.
    pub level: tracing::Level,
    /// Default `auto`.
    pub format: LogFormat,
}

/// How log lines look. They always go to stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

#[cfg(test)]
mod tests;
