//! A queries over UDP.
//!
//! The same questions, from the same load generator (dnsperf), go to three servers with one receive thread each: ours,
//! knot with the same records, and an echo that does nothing but receive and send. What counts is processor time per
//! query: on a small machine the rate also measures what the load generator leaves over.

use std::fmt::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Options;
use crate::process::{Process, installed};
use crate::report::{Bar, Row};

pub mod children;

/// Services asked for, in turn.
const SERVICES: u8 = 100;
/// Instances of each.
const INSTANCES: u8 = 3;
/// Queries a second of the moderate load.
const MODERATE: u32 = 20_000;
/// Each figure is the median of so many measurements, taken in turn so that a disturbance hits all servers alike.
const ROUNDS: usize = 3;

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let Some(dnsperf) = installed("dnsperf") else {
        let why = "dnsperf is not installed (apt install dnsperf)";
        return Ok(vec![
            Row::missing("mesh cpu/query vs knot", "×", why).bar(KNOT_BAR),
        ]);
    };
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let questions = folder.path().join("questions");
    let names = (0..SERVICES)
        .map(|i| format!("web{i}.service.mesh A\n"))
        .collect::<String>();
    std::fs::write(&questions, names)?;

    let mut servers = vec![server("mesh", "dns-mesh")?, server("echo", "dns-echo")?];
    match installed("knotd") {
        Some(knotd) => servers.push(knot(&knotd, folder.path())?),
        None => {
            eprintln!("mesh-bench: knotd is not installed (apt install knot): its rows are missing")
        }
    }
    let load = Load {
        dnsperf: &dnsperf,
        questions: &questions,
        time: options.time,
    };
    let mut full = vec![Vec::new(); servers.len()];
    let mut moderate = vec![Vec::new(); servers.len()];
    for _ in 0..ROUNDS {
        for (i, server) in servers.iter().enumerate() {
            full[i].push(load.on(server, None)?);
            moderate[i].push(load.on(server, Some(MODERATE))?);
        }
    }
    Ok(rows(&servers, &full, &moderate))
}

const KNOT_BAR: Bar = Bar::AtMost(1.05);
/// Stretch: what answering may cost beyond receiving and sending.
const ECHO_STRETCH: f64 = 1.25;

fn rows(servers: &[Server], full: &[Vec<Figures>], moderate: &[Vec<Figures>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (i, server) in servers.iter().enumerate() {
        let name = server.name;
        let lost = full[i].iter().map(|figures| figures.lost).sum::<u64>();
        let note = if lost > 0 {
            format!("{lost} queries lost")
        } else {
            String::new()
        };
        rows.push(Row::new(format!("{name} rate"), median(&full[i], |f| f.rate), "q/s").note(note));
        rows.push(Row::new(
            format!("{name} cpu/query"),
            median(&full[i], |f| f.micros),
            "µs",
        ));
        let at = format!("{name} cpu/query at {}k q/s", MODERATE / 1000);
        rows.push(Row::new(at, median(&moderate[i], |f| f.micros), "µs"));
    }
    let ratio = |figures: &[Vec<Figures>], other: &str| {
        let at = |name: &str| servers.iter().position(|server| server.name == name);
        let value = |i: usize| median(&figures[i], |f| f.micros);
        Some(value(at("mesh")?) / value(at(other)?))
    };
    for (figures, load) in [(full, "full load"), (moderate, "20k q/s")] {
        let name = format!("mesh cpu/query vs knot, {load}");
        rows.push(match ratio(figures, "knot") {
            Some(value) => Row::new(name, value, "×").bar(KNOT_BAR),
            None => {
                Row::missing(name, "×", "knotd is not installed (apt install knot)").bar(KNOT_BAR)
            }
        });
    }
    if let Some(value) = ratio(full, "echo") {
        rows.push(
            Row::new("mesh cpu/query vs bare echo", value, "×")
                .note(format!("stretch: ≤ {ECHO_STRETCH}")),
        );
    }
    rows
}

fn median(figures: &[Figures], value: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<_> = figures.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

struct Server {
    name: &'static str,
    process: Process,
    port: u16,
}

fn server(name: &'static str, child: &str) -> Result<Server> {
    let (process, port) = Process::of_this_program(child, &[])?;
    let port = port
        .parse()
        .with_context(|| format!("{child} said {port:?} instead of its port"))?;
    Ok(Server {
        name,
        process,
        port,
    })
}

/// Knot with the same records.
fn knot(knotd: &Path, folder: &Path) -> Result<Server> {
    let port = free_port()?;
    let folder_name = folder.display();
    let config = format!(
        "server:\n  rundir: {folder_name}\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         log:\n  - target: stderr\n    any: error\n\
         database:\n  storage: {folder_name}\n\
         zone:\n  - domain: mesh\n    storage: {folder_name}\n    file: mesh.zone\n    journal-content: none\n    zonefile-load: whole\n"
    );
    let mut zone = "$ORIGIN mesh.\n@ 5 IN SOA ns hostmaster 1 3600 600 86400 5\n@ 5 IN NS ns\nns 5 IN A 127.0.0.1\n".to_owned();
    for service in 0..SERVICES {
        for instance in 1..=INSTANCES {
            writeln!(
                zone,
                "web{service}.service 5 IN A 10.1.{service}.{instance}"
            )?;
        }
    }
    let config_file = folder.join("knot.conf");
    std::fs::write(&config_file, config)?;
    std::fs::write(folder.join("mesh.zone"), zone)?;
    let mut command = Command::new(knotd);
    command
        .arg("-c")
        .arg(&config_file)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut process = Process::start(&mut command)?;
    wait_for_answer(port, &mut process).context("knotd does not answer")?;
    Ok(Server {
        name: "knot",
        process,
        port,
    })
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

#[derive(Clone, Copy, Debug)]
struct Figures {
    rate: f64,
    /// Processor time of the server per query, in µs.
    micros: f64,
    lost: u64,
}

struct Load<'a> {
    dnsperf: &'a Path,
    questions: &'a Path,
    time: Duration,
}

impl Load<'_> {
    fn on(&self, server: &Server, limit: Option<u32>) -> Result<Figures> {
        let before = server.process.processor_time()?;
        let mut command = Command::new(self.dnsperf);
        command.args([
            "-s",
            "127.0.0.1",
            "-c",
            "4",
            "-T",
            "1",
            "-q",
            "200",
            "-S",
            "0",
        ]);
        command.arg("-p").arg(server.port.to_string());
        command.arg("-l").arg(self.time.as_secs().to_string());
        command.arg("-d").arg(self.questions);
        if let Some(limit) = limit {
            command.arg("-Q").arg(limit.to_string());
        }
        let output = command.output().context("cannot run dnsperf")?;
        let used = server.process.processor_time()?.saturating_sub(before);
        let text = String::from_utf8_lossy(&output.stdout);
        let figure = |label: &str| {
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(label));
            let first = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
            first.with_context(|| format!("dnsperf said nothing about {label:?}: {text}"))
        };
        let completed = figure("Queries completed:")?;
        if completed == 0.0 {
            bail!("{} answered nothing", server.name);
        }
        Ok(Figures {
            rate: figure("Queries per second:")?,
            micros: used.as_secs_f64() * 1e6 / completed,
            lost: figure("Queries lost:")? as u64,
        })
    }
}
