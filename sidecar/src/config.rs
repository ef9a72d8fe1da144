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
mod service;
mod tree;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use libmesh::model::{Datacenter, NodeName};
use vault_kv::DEFAULT_RETENTION;

pub use check::CheckConfig;
pub use consul::{ConsulConfig, Definition};
pub use dns::DnsConfig;
pub use reader::{nearest, parse_duration};
pub use service::{Attach, ServiceConfig};
pub use tree::{Place, Problem};

use reader::Reader;
use tree::{Kind, Table};

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

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<PathBuf>,
    consul: Vec<PathBuf>,
    env: Vec<(String, String)>,
    flags: Vec<(String, &'static str, &'static str, String)>,
}

impl Sources {
    /// The given files and directories; when there are none, [`DEFAULT_DIR`] if it exists.
    pub fn new(paths: &[PathBuf]) -> Sources {
        let mut files = paths.to_vec();
        if files.is_empty() && Path::new(DEFAULT_DIR).is_dir() {
            files.push(DEFAULT_DIR.into());
        }
        Sources {
            files,
            ..Sources::default()
        }
    }

    /// Lays the files over configuration of Consul's own: these files, and the `*.json` and `*.hcl` of these directories.
    #[must_use]
    pub fn over_consul(mut self, paths: &[PathBuf]) -> Sources {
        self.consul = paths.to_vec();
        self
    }

    /// Lays `MESH_<SECTION>_<KEY>` variables over the files.
    #[must_use]
    pub fn with_env(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Sources {
        self.env = vars.into_iter().collect();
        self
    }

    /// Lays a flag's value over everything else.
    #[must_use]
    pub fn with_flag(
        mut self,
        flag: &str,
        section: &'static str,
        key: &'static str,
        value: impl Into<String>,
    ) -> Sources {
        self.flags
            .push((flag.to_owned(), section, key, value.into()));
        self
    }

    /// The files that will be read, in order: Consul's, then ours.
    pub fn list(&self) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        Ok((
            expand(&self.consul, &["json", "hcl"])?,
            expand(&self.files, &["toml"])?,
        ))
    }
}

/// Files as they are, directories as their files with such endings, in the order of their names.
fn expand(paths: &[PathBuf], endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut inside: Vec<_> = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        inside.retain(|path| {
            endings
                .iter()
                .any(|one| path.extension() == Some(one.as_ref()))
        });
        inside.sort();
        all.append(&mut inside);
    }
    Ok(all)
}

/// Keys that a variable may set; everything else is for files.
const ENV_KEYS: &[(&str, &str)] = &[
    ("node", "name"),
    ("node", "datacenter"),
    ("node", "data_dir"),
    ("node", "bind"),
    ("node", "advertise"),
    ("node", "on_term"),
    ("node", "pool_limit"),
    ("join", "seeds"),
    ("join", "token_file"),
    ("join", "patience"),
    ("ports", "gossip"),
    ("ports", "http"),
    ("ports", "https"),
    ("ports", "dns"),
    ("ports", "dns_tls"),
    ("ports", "vault"),
    ("addresses", "http"),
    ("addresses", "https"),
    ("addresses", "dns"),
    ("addresses", "vault"),
    ("addresses", "socket"),
    ("addresses", "socket_mode"),
    ("addresses", "socket_user"),
    ("addresses", "socket_group"),
    ("limits", "http_max_conns_per_client"),
    ("dns", "domains"),
    ("dns", "recursors"),
    ("dns", "ttl"),
    ("dns", "threads"),
    ("server", "store"),
    ("server", "audit"),
    ("server", "history_retention"),
    ("server", "service_cert_ttl"),
    ("server", "node_cert_ttl"),
    ("acl", "default_policy"),
    ("intentions", "default"),
    ("health", "exec_checks"),
    ("log", "level"),
    ("log", "format"),
];

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All problems at once: unreadable files, syntax, unknown keys, wrong values, contradictions.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        let mut problems = Vec::new();
        let mut tree = Table::default();
        let (consul, files) = sources.list().unwrap_or_else(|error| {
            problems.push(Problem {
                place: Place::named("configuration"),
                message: format!("a directory cannot be listed: {error}"),
            });
            Default::default()
        });
        let (sections, consul) = consul::read(&consul, &mut problems);
        tree.merge(sections);
        for file in files {
            match fs::read_to_string(&file) {
                Ok(text) => tree.merge(tree::parse(&file, &text, &mut problems)),
                Err(error) => problems.push(Problem {
                    place: Place::named(&file.display().to_string()),
                    message: format!("cannot be read: {error}"),
                }),
            }
        }
        overlay_env(&mut tree, &sources.env, &mut problems);
        for (flag, section, key, value) in &sources.flags {
            tree.set(
                section,
                key,
                &Place::named(flag),
                Kind::Loose(value.clone()),
            );
        }
        let problems = RefCell::new(problems);
        let config = read(tree, consul, &problems);
        let mut problems = problems.into_inner();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                problems.sort();
                problems.dedup();
                Err(ConfigErrors(problems))
            }
        }
    }
}

fn overlay_env(tree: &mut Table, vars: &[(String, String)], problems: &mut Vec<Problem>) {
    let name = |(section, key): &(&str, &str)| format!("MESH_{section}_{key}").to_uppercase();
    let known: Vec<String> = ENV_KEYS.iter().map(name).collect();
    for (var, value) in vars {
        let place = Place::named(var);
        if let Some(at) = known.iter().position(|name| name == var) {
            let (section, key) = ENV_KEYS[at];
            tree.set(section, key, &place, Kind::Loose(value.clone()));
            continue;
        }
        // Other MESH_* variables belong to the command line; only those named after a section are ours.
        let section_of = |word: &str| {
            ENV_KEYS
                .iter()
                .any(|(section, _)| section.to_uppercase() == word)
        };
        let ours = var
            .strip_prefix("MESH_")
            .and_then(|rest| rest.split_once('_'))
            .is_some_and(|(section, _)| section_of(section));
        if ours {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint =
                nearest(var, &names).map_or(String::new(), |n| format!("; did you mean {n}?"));
            problems.push(Problem {
                place,
                message: format!("unknown variable{hint}"),
            });
        }
    }
}

fn read(tree: Table, consul: ConsulConfig, problems: &RefCell<Vec<Problem>>) -> Option<Config> {
    let mut top = Reader::new("", Place::named("configuration"), tree, problems);
    let mut section = |key| {
        top.section(key)
            .unwrap_or_else(|| Reader::new(key, Place::named(key), Table::default(), problems))
    };
    let node = read_node(section("node"));
    let join = read_join(section("join"));
    let ports = read_ports(section("ports"));
    let data_dir = node.as_ref().map(|node| node.data_dir.clone());
    let data_dir = data_dir.unwrap_or_default();
    let addresses = read_addresses(section("addresses"), &data_dir);
    let dns = DnsConfig::read(section("dns"));
    let server = read_server(section("server"), &data_dir);
    let intentions = read_intentions(section("intentions"));
    let limits = read_limits(section("limits"));
    let acl = read_acl(section("acl"));
    let log = read_log(section("log"));
    let with_tls = top.has("tls");
    let tls = top.section("tls").and_then(read_tls);
    if let (Some(port), false) = (ports.https, with_tls) {
        let message =
            format!("`ports.https` is {port}, which needs [tls] with `cert_file` and `key_file`");
        top.report(&Place::named("configuration"), message);
    }
    let health = read_health(top.section("health"));
    let exec = health.exec_checks;
    let services = top.sections("service").into_iter();
    let services: Vec<_> = services
        .filter_map(|reader| ServiceConfig::read(reader, exec))
        .collect();
    let checks = read_checks(&mut top, exec);
    consul.check(exec, &mut problems.borrow_mut());
    clashes(&consul, &services, &checks, &top);
    for (at, service) in services.iter().enumerate() {
        if let Some(first) = services[..at].iter().find(|s| s.id == service.id) {
            top.report(
                &service.place,
                format!(
                    "service id {:?} is already used at {}; give one of them an `id`",
                    service.id.as_str(),
                    first.place
                ),
            );
        }
    }
    top.finish();
    Some(Config {
        node: node?,
        join,
        ports,
        addresses,
        dns,
        services,
        checks,
        health,
        limits,
        consul,
        tls,
        server: server?,
        intentions,
        acl,
        log,
    })
}

/// An id is used once, whoever defines it.
fn clashes(
    consul: &ConsulConfig,
    services: &[ServiceConfig],
    checks: &[CheckConfig],
    top: &Reader<'_>,
) {
    for service in services {
        let same = |other: &&Definition| other.id == service.id.as_str();
        if let Some(other) = consul.services.iter().find(same) {
            let message = format!(
                "service id {:?} is already used at {}; give one of them an `id`",
                other.id, other.place
            );
            top.report(&service.place, message);
        }
    }
    for check in checks {
        let same = |other: &&Definition| check.id.as_ref() == Some(&other.id);
        if let Some(other) = consul.checks.iter().find(same) {
            let message = format!("check id {:?} is used twice", other.id);
            top.report(&other.place, message);
        }
    }
}

fn read_node(mut reader: Reader<'_>) -> Option<NodeConfig> {
    let name = match reader.has("name") {
        true => reader.parsed("name", "a node name", NodeName::parse),
        false => {
            reader.take("name");
            let host = host_name();
            let name = NodeName::parse(&host).ok();
            if name.is_none() {
                reader.report(
                    reader.place(),
                    format!("the host's name {host:?} is no node name; set `node.name`"),
                );
            }
            name
        }
    };
    let datacenter = reader.parsed("datacenter", "a datacenter name", Datacenter::parse);
    let data_dir = reader.path("data_dir");
    let bind = reader.ip("bind").unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let advertise = reader.ip("advertise").or_else(|| match bind {
        ip if ip.is_unspecified() => default_route_address(),
        ip => Some(ip),
    });
    if advertise.is_none_or(|ip| ip.is_unspecified()) {
        reader.report(
            reader.place(),
            "no address to advertise; set `node.advertise` to one that other nodes can reach",
        );
    }
    let meta = reader.pairs("meta").unwrap_or_default();
    let on_term = reader.parsed("on_term", "\"leave\" or \"restart\"", str::parse::<OnTerm>);
    let pool_limit = reader.integer("pool_limit", 1, 65_536);
    reader.finish();
    Some(NodeConfig {
        name: name?,
        datacenter: datacenter.unwrap_or_default(),
        data_dir: data_dir.unwrap_or_else(|| "/var/lib/mesh".into()),
        bind,
        advertise: advertise?,
        meta,
        on_term: on_term.unwrap_or_default(),
        pool_limit: pool_limit.map_or(5_000, |limit| usize::try_from(limit).unwrap_or(usize::MAX)),
    })
}

fn read_join(mut reader: Reader<'_>) -> JoinConfig {
    let seeds = reader.list("seeds", "\"host\" or \"host:port\"", |seed| {
        let (host, port) = split_port(seed, 8301).ok_or("the port is no number")?;
        match host.is_empty() {
            true => Err("the host is missing"),
            false => Ok(format!("{host}:{port}")),
        }
    });
    let join = JoinConfig {
        seeds: seeds.unwrap_or_default(),
        token_file: reader.path("token_file"),
        patience: reader
            .duration("patience")
            .unwrap_or(Duration::from_secs(60)),
    };
    reader.finish();
    join
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare v6 address.
fn split_port(text: &str, default: u16) -> Option<(String, u16)> {
    if let Ok(IpAddr::V6(ip)) = text.parse() {
        return Some((format!("[{ip}]"), default));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => Some((host.to_owned(), port.parse().ok()?)),
        _ => Some((text.to_owned(), default)),
    }
}

fn read_ports(mut reader: Reader<'_>) -> Ports {
    let gossip = reader.integer("gossip", 0, i64::from(u16::MAX));
    let ports = Ports {
        gossip: gossip.and_then(|p| u16::try_from(p).ok()).unwrap_or(8301),
        http: reader.port("http").unwrap_or(Some(8500)),
        https: reader.port("https").unwrap_or(None),
        dns: reader.port("dns").unwrap_or(Some(8600)),
        dns_tls: reader.port("dns_tls").unwrap_or(None),
        vault: reader.port("vault").unwrap_or(Some(8200)),
    };
    reader.finish();
    ports
}

fn read_addresses(mut reader: Reader<'_>, data_dir: &Path) -> Addresses {
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    let mode = reader.parsed("socket_mode", "an octal mode such as \"0660\"", |text| {
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| (1..=0o777).contains(mode))
            .ok_or("there is no such mode")
    });
    let user = reader.user("socket_user");
    let group = reader.group("socket_group");
    let mut listed = |key| reader.ips(key).unwrap_or_else(|| vec![local]);
    let addresses = Addresses {
        http: listed("http"),
        https: listed("https"),
        dns: listed("dns"),
        vault: reader.ip("vault").unwrap_or(local),
        socket: reader
            .path("socket")
            .unwrap_or_else(|| data_dir.join("mesh.sock")),
        socket_file: SocketFile {
            mode: mode.unwrap_or(SocketFile::default().mode),
            user,
            group,
        },
    };
    reader.finish();
    addresses
}

fn read_limits(mut reader: Reader<'_>) -> LimitsConfig {
    let most = reader.integer("http_max_conns_per_client", 0, 1 << 20);
    reader.finish();
    let most = most.map_or(2_000, |most| usize::try_from(most).unwrap_or(usize::MAX));
    LimitsConfig {
        http_max_conns_per_client: NonZeroUsize::new(most),
    }
}

fn read_server(mut reader: Reader<'_>, data_dir: &Path) -> Option<ServerConfig> {
    let store = reader.path("store");
    let seal = match reader.section("seal") {
        Some(section) => read_seal(section),
        None => Some(Seal::Shamir),
    };
    let audit = reader.list("audit", "a file's path", |path| {
        Ok::<_, String>(path.into())
    });
    let history_retention = reader.duration("history_retention");
    let day = Duration::from_secs(24 * 3600);
    let service_cert_ttl = reader.duration("service_cert_ttl").unwrap_or(day);
    let node_cert_ttl = reader.duration("node_cert_ttl").unwrap_or(day * 7);
    reader.finish();
    Some(ServerConfig {
        store: store.unwrap_or_else(|| data_dir.join("store")),
        seal: seal?,
        audit: audit.unwrap_or_default(),
        history_retention: history_retention.unwrap_or(DEFAULT_RETENTION),
        service_cert_ttl,
        node_cert_ttl,
    })
}

fn read_tls(mut reader: Reader<'_>) -> Option<TlsFiles> {
    if !reader.has("cert_file") || !reader.has("key_file") {
        reader.report(reader.place(), "[tls] needs `cert_file` and `key_file`");
    }
    let (cert_file, key_file) = (reader.path("cert_file"), reader.path("key_file"));
    let client_ca_file = reader.path("client_ca_file");
    let min_version = reader.parsed("min_version", "\"1.2\" or \"1.3\"", |text| match text {
        "1.2" => Ok(TlsVersion::V12),
        "1.3" => Ok(TlsVersion::V13),
        _ => Err("there is no such version"),
    });
    reader.finish();
    Some(TlsFiles {
        cert_file: cert_file?,
        key_file: key_file?,
        client_ca_file,
        min_version: min_version.unwrap_or_default(),
    })
}

fn read_seal(mut reader: Reader<'_>) -> Option<Seal> {
    let place = reader.place().clone();
    if !reader.has("type") {
        reader.report(&place, "[server.seal] needs `type`");
    }
    let kind = reader.parsed("type", "\"shamir\" or \"static\"", |text| match text {
        "shamir" | "static" => Ok(text == "static"),
        _ => Err("there is no such seal"),
    });
    let key_file = reader.path("key_file");
    let seal = match (kind, key_file) {
        (Some(true), Some(key_file)) => Some(Seal::Static { key_file }),
        (Some(true), None) => {
            reader.report(&place, "a static seal needs `key_file`");
            None
        }
        (Some(false), Some(_)) => {
            reader.report(&place, "`key_file` is for type = \"static\" only");
            None
        }
        (Some(false), None) => Some(Seal::Shamir),
        (None, _) => None,
    };
    reader.finish();
    seal
}

fn read_intentions(mut reader: Reader<'_>) -> IntentionsConfig {
    let default = reader.parsed("default", "\"deny\" or \"allow\"", |text| match text {
        "deny" | "allow" => Ok(text == "allow"),
        _ => Err("there is no such default"),
    });
    reader.finish();
    IntentionsConfig {
        default_allow: default.unwrap_or(false),
    }
}

fn read_acl(mut reader: Reader<'_>) -> AclConfig {
    let default = reader.parsed(
        "default_policy",
        "\"deny\" or \"allow\"",
        |text| match text {
            "deny" | "allow" => Ok(text == "allow"),
            _ => Err("there is no such default"),
        },
    );
    let acl = AclConfig {
        enabled: reader.flag("enabled").unwrap_or(false),
        default_allow: default.unwrap_or(false),
        token_ttl: reader
            .duration("token_ttl")
            .unwrap_or(Duration::from_secs(30)),
        default_token_file: reader.path("default_token_file"),
    };
    reader.finish();
    acl
}

fn read_health(reader: Option<Reader<'_>>) -> HealthConfig {
    let Some(mut reader) = reader else {
        return HealthConfig::default();
    };
    let wanted = "\"off\", \"config\" or \"api\"";
    let exec = reader.parsed("exec_checks", wanted, |text| match text {
        "off" => Ok(ExecChecks::Off),
        "config" => Ok(ExecChecks::Config),
        "api" => Ok(ExecChecks::Api),
        _ => Err("there is no such choice"),
    });
    reader.finish();
    HealthConfig {
        exec_checks: exec.unwrap_or_default(),
    }
}

fn read_checks(top: &mut Reader<'_>, exec: ExecChecks) -> Vec<CheckConfig> {
    let mut checks: Vec<CheckConfig> = Vec::new();
    for reader in top.sections("check") {
        let place = reader.place().clone();
        let Some(check) = CheckConfig::read(reader, exec) else {
            continue;
        };
        let same = |other: &CheckConfig| other.id == check.id;
        match &check.id {
            None => top.report(&place, "a [[check]] needs an `id`"),
            Some(id) if checks.iter().any(same) => {
                top.report(&place, format!("check id {id:?} is used twice"));
            }
            Some(_) => {}
        }
        if check.deregister_after.is_some() {
            let message = "`deregister_critical_service_after` is for checks of services only";
            top.report(&place, message);
        }
        checks.push(check);
    }
    checks
}

fn read_log(mut reader: Reader<'_>) -> LogConfig {
    let level = reader.parsed("level", "error, warn, info, debug or trace", str::parse);
    let format = reader.parsed("format", "auto, human or json", |text| match text {
        "auto" => Ok(LogFormat::Auto),
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err("there is no such format"),
    });
    reader.finish();
    LogConfig {
        level: level.unwrap_or(tracing::Level::INFO),
        format: format.unwrap_or_default(),
    }
}

fn host_name() -> String {
    let full = nix::unistd::gethostname().unwrap_or_default();
    let full = full.to_string_lossy().to_lowercase();
    full.split('.').next().unwrap_or_default().to_owned()
}

/// The address that packets to the outside would carry. Nothing is sent: connecting a UDP socket only looks
/// up the route. The target is TEST-NET-1 (RFC 5737).
fn default_route_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    match socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)) {
        Ok(()) => Some(socket.local_addr().ok()?.ip()),
        Err(_) => Some(Ipv4Addr::LOCALHOST.into()),
    }
}

#[cfg(test)]
mod tests;
