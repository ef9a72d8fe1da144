//! The servers that are compared, each with one receive thread and the same records.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{INSTANCES, SERVICES};
use crate::process::{Process, installed};

/// A server that can be asked.
pub struct Server {
    /// What its rows are called.
    pub name: &'static str,
    /// Where it answers.
    pub address: SocketAddr,
    runs: Runs,
}

enum Runs {
    Here(Process),
    /// Somebody else started it.
    Elsewhere(u32),
}

impl Server {
    /// The process whose time counts.
    pub fn pid(&self) -> u32 {
        match &self.runs {
            Runs::Here(process) => process.id(),
            Runs::Elsewhere(pid) => *pid,
        }
    }
}

/// How another server is started: its program, what writes its configuration, and its arguments.
struct Peer {
    name: &'static str,
    program: &'static str,
    package: &'static str,
    start: fn(&Path, &Path, u16) -> Result<Command>,
}

const PEERS: &[Peer] = &[
    Peer {
        name: "knot",
        program: "knotd",
        package: "apt install knot",
        start: knot,
    },
    Peer {
        name: "nsd",
        program: "nsd",
        package: "apt install nsd",
        start: nsd,
    },
    Peer {
        name: "unbound",
        program: "unbound",
        package: "apt install unbound",
        start: unbound,
    },
    Peer {
        name: "dnsmasq",
        program: "dnsmasq",
        package: "apt install dnsmasq-base",
        start: dnsmasq,
    },
    Peer {
        name: "hickory-dns",
        program: "hickory-dns",
        package: "cargo install hickory-dns",
        start: hickory,
    },
];

/// What to say of a server that is not there.
pub fn missing(name: &str) -> String {
    let known = PEERS.iter().find(|peer| peer.name == name);
    let how = known.map_or("", |peer| peer.package);
    format!("{name} is not installed ({how})")
}

/// Ours, the echo, and every other that the machine has.
pub fn all(folder: &Path) -> Result<Vec<Server>> {
    let mut servers = vec![
        mesh("mesh", &[SERVICES.to_string()])?,
        child("echo", "dns-echo", &[])?,
    ];
    for peer in PEERS {
        let Some(program) = installed(peer.program) else {
            eprintln!("mesh-bench: {}: its rows are missing", missing(peer.name));
            continue;
        };
        servers.push(start(peer, &program, folder)?);
    }
    servers.extend(named()?);
    Ok(servers)
}

/// Ours, with so many services, changing so many times a second.
pub fn mesh(name: &'static str, arguments: &[String]) -> Result<Server> {
    child(name, "dns-mesh", arguments)
}

fn child(name: &'static str, child: &str, arguments: &[String]) -> Result<Server> {
    let (process, port) = Process::of_this_program(child, arguments)?;
    let port: u16 = port
        .parse()
        .with_context(|| format!("{child} said {port:?} instead of its port"))?;
    Ok(Server {
        name,
        address: (Ipv4Addr::LOCALHOST, port).into(),
        runs: Runs::Here(process),
    })
}

/// A server that somebody else started.
fn named() -> Result<Option<Server>> {
    let Ok(address) = std::env::var("MESH_BENCH_DNS_ADDR") else {
        return Ok(None);
    };
    let pid = std::env::var("MESH_BENCH_DNS_PID").unwrap_or_default();
    Ok(Some(Server {
        name: "peer",
        address: address
            .parse()
            .context("MESH_BENCH_DNS_ADDR is no address")?,
        runs: Runs::Elsewhere(pid.parse().context("MESH_BENCH_DNS_PID is no process")?),
    }))
}

fn start(peer: &Peer, program: &Path, folder: &Path) -> Result<Server> {
    let own = folder.join(peer.name);
    std::fs::create_dir_all(&own)?;
    let port = free_port()?;
    let mut command = (peer.start)(program, &own, port)?;
    command
        .current_dir(&own)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(own.join("log"))?));
    let mut process = Process::start(&mut command)?;
    if let Err(error) = wait_for_answer(port, &mut process) {
        let log = std::fs::read_to_string(own.join("log")).unwrap_or_default();
        bail!("{} does not answer: {error}\n{log}", peer.name);
    }
    Ok(Server {
        name: peer.name,
        address: (Ipv4Addr::LOCALHOST, port).into(),
        runs: Runs::Here(process),
    })
}

/// Names and addresses of all instances.
fn records() -> impl Iterator<Item = (String, Ipv4Addr)> {
    (0..SERVICES).flat_map(|service| {
        (1..=INSTANCES).map(move |instance| {
            let ip = super::children::address(service, instance);
            (format!("web{service}.service.mesh"), ip)
        })
    })
}

fn zone() -> Result<String> {
    let mut zone = "$ORIGIN mesh.\n@ 5 IN SOA ns hostmaster 1 3600 600 86400 5\n@ 5 IN NS ns\nns 5 IN A 127.0.0.1\n".to_owned();
    for (name, ip) in records() {
        writeln!(zone, "{name}. 5 IN A {ip}")?;
    }
    Ok(zone)
}

fn knot(program: &Path, folder: &Path, port: u16) -> Result<Command> {
    let at = folder.display();
    let config = format!(
        "server:\n  rundir: {at}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         log:\n  - target: stderr\n    any: error\n\
         database:\n  storage: {at}\n\
         zone:\n  - domain: mesh\n    storage: {at}\n    file: mesh.zone\n    journal-content: none\n    zonefile-load: whole\n"
    );
    std::fs::write(folder.join("mesh.zone"), zone()?)?;
    let file = folder.join("knot.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(file);
    Ok(command)
}

fn nsd(program: &Path, folder: &Path, port: u16) -> Result<Command> {
    let at = folder.display();
    let config = format!(
        "server:\n  ip-address: 127.0.0.1@{port}\n  server-count: 1\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{at}\"\n\
         \x20 pidfile: \"\"\n  database: \"\"\n  logfile: \"{at}/nsd.log\"\n  xfrdfile: \"{at}/xfrd\"\n  zonelistfile: \"{at}/zones\"\n\
         \x20 rrl-ratelimit: 0\n\
         remote-control:\n  control-enable: no\n\
         zone:\n  name: mesh\n  zonefile: mesh.zone\n"
    );
    std::fs::write(folder.join("mesh.zone"), zone()?)?;
    let file = folder.join("nsd.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}

fn unbound(program: &Path, folder: &Path, port: u16) -> Result<Command> {
    let at = folder.display();
    let mut config = format!(
        "server:\n  interface: 127.0.0.1@{port}\n  num-threads: 1\n  username: \"\"\n  chroot: \"\"\n  directory: \"{at}\"\n\
         \x20 pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  do-not-query-localhost: no\n  module-config: \"iterator\"\n\
         \x20 local-zone: \"mesh.\" static\n"
    );
    for (name, ip) in records() {
        writeln!(config, "  local-data: \"{name}. 5 IN A {ip}\"")?;
    }
    config.push_str("remote-control:\n  control-enable: no\n");
    let file = folder.join("unbound.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("-d").arg("-c").arg(file);
    Ok(command)
}

fn dnsmasq(program: &Path, folder: &Path, port: u16) -> Result<Command> {
    let mut hosts = String::new();
    for (name, ip) in records() {
        writeln!(hosts, "{ip} {name}")?;
    }
    let hosts_file = folder.join("hosts");
    std::fs::write(&hosts_file, hosts)?;
    let mut command = Command::new(program);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
    ]);
    command.args([
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
    ]);
    command.args(["--user=root", "--group=root", "--pid-file="]);
    command.arg(format!("--port={port}"));
    command.arg(format!("--addn-hosts={}", hosts_file.display()));
    Ok(command)
}

fn hickory(program: &Path, folder: &Path, port: u16) -> Result<Command> {
    // As root it would become `nobody`, which not every system has.
    let user = match nix::unistd::geteuid().is_root() {
        true => "user = \"root\"\ngroup = \"root\"\n",
        false => "",
    };
    let config = format!(
        "{user}listen_addrs_ipv4 = [\"127.0.0.1\"]\ndirectory = \".\"\n\n\
                  [[zones]]\nzone = \"mesh.\"\nzone_type = \"Primary\"\n[zones.stores]\ntype = \"file\"\nzone_path = \"mesh.zone\"\n"
    );
    std::fs::write(folder.join("mesh.zone"), zone()?)?;
    let file = folder.join("hickory.toml");
    std::fs::write(&file, config)?;
    let mut command = Command::new(program);
    command.arg("--config").arg(file);
    command.arg("--zonedir").arg(folder);
    command.arg("--port").arg(port.to_string());
    // As many threads as the others have for receiving.
    command.env("TOKIO_WORKER_THREADS", "1");
    command.arg("--workers").arg("1");
    command.arg("--quiet");
    Ok(command)
}

/// A port that is free for UDP and TCP.
fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let tcp = TcpListener::bind("127.0.0.1:0")?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free for both UDP and TCP")
}

/// Waits until a server gives an answer with records.
fn wait_for_answer(port: u16, process: &mut Process) -> Result<()> {
    let query = b"\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04web0\x07service\x04mesh\x00\x00\x01\x00\x01";
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if process.has_ended() {
            bail!("it ended");
        }
        let mut reply = [0; 512];
        let answered = socket.send(query).and_then(|_| socket.recv(&mut reply));
        match answered {
            Ok(_) if reply[7] == INSTANCES => return Ok(()),
            // Not listening yet: refused at once rather than after the time limit.
            _ => std::thread::yield_now(),
        }
    }
    bail!("it did not within 10 s")
}
