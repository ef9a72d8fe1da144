//! HTTP keep-alive through a pair of proxies with mutual TLS between them.
//!
//! wrk → proxy → TLS 1.3, both ends authenticated → proxy → application: once with two of our sidecars, once with two
//! haproxy as Debian ships it, with the same certificates, the same number of threads and the same application. What
//! counts is the processor time of both proxies per request; the rate also measures what wrk and the application leave
//! over on a small machine. Measurements take turns, and ratios are taken within a turn, so that a disturbance hits
//! both alike.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::Options;
use crate::process::{Process, installed};
use crate::report::{Bar, Row};
use crate::wrk::{self, Wrk};

pub mod children;
mod credentials;

/// How often everything is measured; figures are medians.
const ROUNDS: usize = 5;
/// Connections that wrk keeps busy.
const BUSY: u32 = 32;
/// Connections of the quiet load: each request meets sleeping processes.
const QUIET: u32 = 2;
/// Connections of the load that asks for 1 MiB each time.
const BULK: u32 = 4;

const NO_WORSE: Bar = Bar::AtMost(1.0);
const NO_SLOWER: Bar = Bar::AtLeast(1.0);

/// Two proxies, the first of which is called.
struct Pair {
    name: &'static str,
    entry: SocketAddr,
    processes: [Process; 2],
}

/// One measurement.
#[derive(Clone, Copy)]
struct Figures {
    rate: f64,
    /// Processor time of both proxies per request, in µs.
    cpu: f64,
    /// 99 % of the answers came within so many ms.
    p99: f64,
}

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let Some(wrk) = Wrk::installed() else {
        return Ok(vec![
            Row::missing("mesh pair cpu/request vs haproxy", "×", wrk::ABSENT).bar(NO_WORSE),
        ]);
    };
    let folder = tempfile::tempdir().context("no temporary folder")?;
    credentials::write(folder.path())?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (_application, application) = child("proxy-application", &[])?;
    let mut pairs = vec![mesh(folder.path(), application, threads)?];
    match installed("haproxy") {
        Some(haproxy) => pairs.push(haproxy_pair(&haproxy, folder.path(), application, threads)?),
        None => eprintln!(
            "mesh-bench: haproxy is not installed (apt install haproxy): its rows are missing"
        ),
    }
    let mut rows = Vec::new();
    for (what, connections, path, bars) in [
        ("1 KB", BUSY, "/", true),
        ("1 KB, quiet", QUIET, "/", false),
        ("1 MiB", BULK, "/big", false),
    ] {
        let mut measured = vec![Vec::new(); pairs.len()];
        for _ in 0..ROUNDS {
            for (pair, figures) in pairs.iter_mut().zip(&mut measured) {
                figures.push(load(&wrk, pair, connections, path, options.time)?);
            }
        }
        rows.extend(rows_of(what, bars, &pairs, &measured));
    }
    Ok(rows)
}

fn rows_of(what: &str, bars: bool, pairs: &[Pair], measured: &[Vec<Figures>]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (pair, figures) in pairs.iter().zip(measured) {
        let of = |pick: fn(&Figures) -> f64| median(figures.iter().map(pick).collect());
        let named = |unit| format!("{} pair {what}, {unit}", pair.name);
        rows.push(
            Row::new(named("requests"), of(|f| f.rate), "/s")
                .note(format!("p99 {:.2} ms", of(|f| f.p99))),
        );
        rows.push(Row::new(named("cpu"), of(|f| f.cpu), "µs/request"));
    }
    let ratio = |pick: fn(&Figures) -> f64| match measured {
        [ours, theirs] => Some(median(
            ours.iter()
                .zip(theirs)
                .map(|(a, b)| pick(a) / pick(b))
                .collect(),
        )),
        _ => None,
    };
    let mut against = |what: String, value: Option<f64>, bar: Bar| {
        let row = match value {
            Some(value) => Row::new(what, value, "×"),
            None => Row::missing(what, "×", "haproxy is not installed"),
        };
        rows.push(if bars { row.bar(bar) } else { row });
    };
    against(
        format!("mesh pair {what}, cpu/request vs haproxy"),
        ratio(|f| f.cpu),
        NO_WORSE,
    );
    against(
        format!("mesh pair {what}, requests vs haproxy"),
        ratio(|f| f.rate),
        NO_SLOWER,
    );
    rows
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn mesh(folder: &Path, application: SocketAddr, threads: usize) -> Result<Pair> {
    let common = [folder.display().to_string(), threads.to_string()];
    let arguments = |addr: SocketAddr| [common.as_slice(), &[addr.to_string()]].concat();
    let (callee, mesh_port) = child("proxy-callee", &arguments(application))?;
    let (caller, entry) = child("proxy-caller", &arguments(mesh_port))?;
    Ok(Pair {
        name: "mesh",
        entry,
        processes: [caller, callee],
    })
}

fn haproxy_pair(
    program: &Path,
    folder: &Path,
    application: SocketAddr,
    threads: usize,
) -> Result<Pair> {
    let (entry, middle) = (free_port()?, free_port()?);
    let head = format!(
        "global\n  nbthread {threads}\n  maxconn 1000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  \
         timeout server 1m\n"
    );
    let tls = |who: &str| {
        format!(
            "ssl crt {0}/{who}.pem ca-file {0}/root.pem verify required",
            folder.display()
        )
    };
    let callee = format!(
        "{head}listen callee\n  bind {middle} {} ssl-min-ver TLSv1.3\n  server application {application}\n",
        tls("db")
    );
    let caller = format!(
        "{head}listen caller\n  bind {entry}\n  server callee {middle} {} ssl-min-ver TLSv1.3 sni str({1}) verifyhost {1}\n",
        tls("web"),
        credentials::DNS_NAME
    );
    let start = |name: &str, config: String| -> Result<Process> {
        let file = folder.join(format!("haproxy-{name}.cfg"));
        let said = std::fs::File::create(folder.join(format!("haproxy-{name}.log")))?;
        std::fs::write(&file, config)?;
        // haproxy does not notice that this program is gone; the kernel tells it, where setpriv is to be had.
        let mut command = match installed("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        Process::start(
            command
                .arg("-db")
                .arg("-f")
                .arg(file)
                .stdout(Stdio::null())
                .stderr(said),
        )
    };
    let mut pair = Pair {
        name: "haproxy",
        entry,
        processes: [start("caller", caller)?, start("callee", callee)?],
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(entry)
        .and(TcpStream::connect(middle))
        .is_err()
    {
        if pair.processes.iter_mut().any(Process::has_ended) {
            let log = |name| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
            bail!(
                "haproxy does not start:\n{}{}",
                log("haproxy-caller.log"),
                log("haproxy-callee.log")
            );
        }
        if Instant::now() > deadline {
            bail!("haproxy does not listen");
        }
        std::thread::yield_now();
    }
    Ok(pair)
}

fn load(
    wrk: &Wrk,
    pair: &mut Pair,
    connections: u32,
    path: &str,
    time: Duration,
) -> Result<Figures> {
    // Connections are made, and their handshakes paid for, in a first run that is not counted.
    let url = format!("http://{}{path}", pair.entry);
    wrk.run(&url, connections, Duration::from_secs(1), None)?;
    let spent = |pair: &Pair| -> Result<Duration> {
        Ok(pair.processes[0].processor_time()? + pair.processes[1].processor_time()?)
    };
    let before = spent(pair)?;
    let load = wrk.run(&url, connections, time, None)?;
    let cpu = (spent(pair)? - before).as_secs_f64() * 1e6 / load.requests;
    Ok(Figures {
        rate: load.rate,
        cpu,
        p99: load.p99,
    })
}

fn child(name: &str, arguments: &[String]) -> Result<(Process, SocketAddr)> {
    let (process, line) = Process::of_this_program(name, arguments)?;
    let addr = line
        .parse()
        .with_context(|| format!("{name} says {line:?}"))?;
    Ok((process, addr))
}

fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
