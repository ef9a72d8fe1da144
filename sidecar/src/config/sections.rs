//! What the sections say, as settings; what is not said is a default.

use std::{
    cell::RefCell,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    num::NonZeroUsize,
    path::Path,
    time::Duration,
};

use libmesh::model::{Datacenter, NodeName};
use vault_kv::DEFAULT_RETENTION;

use super::{
    AclConfig, Addresses, CheckConfig, Config, ConsulConfig, Definition, DnsConfig, ExecChecks,
    HealthConfig, IntentionsConfig, JoinConfig, LimitsConfig, LogConfig, LogFormat, NodeConfig,
    OnTerm, Place, Ports, Problem, Seal, ServerConfig, ServiceConfig, SocketFile, TlsFiles,
    TlsVersion, reader::Reader, tree::Table,
};

pub fn read(tree: Table, consul: ConsulConfig, problems: &RefCell<Vec<Problem>>) -> Option<Config> {
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
