//! Side-by-side benchmarks: every published figure comes from here.
//!
//! `cargo run --release -p mesh-bench -- dns` measures our server, its peers and the floor (what the machine can do at
//! best) one after the other on the same machine, and shows ratios against the bars that the project set itself.
//! `--check` makes a missed bar an exit code, `--json` is for programs.
//!
//! A benchmark is a module with a `run` function that returns rows, and a line in [`BENCHES`]. Servers that are
//! measured run as children of this same binary ([`CHILDREN`]), so that their processor time can be read apart from
//! that of the load.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

mod agents;
mod catalog;
mod checks;
mod consul;
mod detect;
mod dns;
mod netns;
mod process;
mod proxy;
mod report;
mod secrets;
mod sim;
mod store;
mod storm;
mod wrk;

use report::{Report, Row};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: vault_kv::ClearingAllocator = vault_kv::ClearingAllocator;

/// One benchmark.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn(&Options) -> Result<Vec<Row>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "catalog",
        about: "a million instances of five thousand nodes in one full replica",
        run: catalog::run,
    },
    Bench {
        name: "checks",
        about: "health checks: memory of one that waits, processor time of one that looks",
        run: checks::run,
    },
    Bench {
        name: "consul",
        about: "Consul's interface: KV, health, registrations, watchers: mesh, bare hyper, raw log, a peer by address",
        run: consul::run,
    },
    Bench {
        name: "dns",
        about: "A queries over UDP: mesh, bare echo, knot, nsd, unbound, dnsmasq, hickory-dns, a peer by address",
        run: dns::run,
    },
    Bench {
        name: "proxy",
        about: "HTTP keep-alive through a pair of mTLS proxies: mesh, haproxy",
        run: proxy::run,
    },
    Bench {
        name: "secrets",
        about: "Vault's interface: reads, writes, logins, memory, start: mesh, bare hyper, a peer by address",
        run: secrets::run,
    },
    Bench {
        name: "store",
        about: "the sealed store: mesh, bare append + fdatasync, sled alone",
        run: store::run,
    },
    Bench {
        name: "storm",
        about: "registrations seen elsewhere, 5 and 50 agents; a million of them (--seconds 267)",
        run: storm::run,
    },
    Bench {
        name: "sim",
        about: "membership in virtual time: mesh, plain foca with memberlist's LAN settings",
        run: sim::run,
    },
    Bench {
        name: "detect",
        about: "a killed process on a live host, real agents: until nobody shows it",
        run: detect::run,
    },
    Bench {
        name: "netns",
        about: "ten hosts as network namespaces: partition, loss, deafness, pauses (needs root)",
        run: netns::run,
    },
];

/// A server to be measured: its name and what runs it, given the arguments behind the name. It prints one line when
/// it can be used, and returns when its input ends.
type Child = (&'static str, fn(&[String]) -> Result<()>);

const CHILDREN: &[Child] = &[
    ("agent", agents::child),
    ("catalog-replica", catalog::replica::serve),
    ("checks-agent", checks::child),
    ("consul-server", consul::children::server),
    ("consul-pair", consul::children::pair),
    ("dns-mesh", dns::children::mesh),
    ("dns-echo", dns::children::echo),
    ("proxy-application", proxy::children::application),
    ("proxy-callee", proxy::children::callee),
    ("proxy-caller", proxy::children::caller),
    ("secrets-server", secrets::children::server),
    ("secrets-hello", secrets::children::hello),
    ("secrets-memory", secrets::children::memory),
    ("secrets-fill", secrets::children::fill),
    ("secrets-start", secrets::children::start),
    ("store-fill", store::child),
    ("store-open", store::opener),
];

/// What all benchmarks are told.
struct Options {
    /// Length of one measurement.
    time: Duration,
    /// Leave out what takes long.
    quick: bool,
    /// Simulate clusters of this size only.
    nodes: Option<usize>,
}

/// Side-by-side benchmarks.
#[derive(Parser)]
#[command(name = "mesh-bench", version, after_help = list())]
struct Cli {
    /// What to measure (default: everything).
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a bar is missed.
    #[arg(long)]
    check: bool,
    /// Seconds of one measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Leave out what takes minutes (the sim's largest clusters and longest runs, the store of a million entries).
    #[arg(long)]
    quick: bool,
    /// Simulate clusters of this size only (default: 100, 1,000 and 5,000).
    #[arg(long, value_parser = clap::value_parser!(u16).range(10..=10_000))]
    nodes: Option<u16>,
    /// Be the named server instead (used by this program itself).
    #[arg(long, hide = true, value_name = "NAME", num_args = 1.., allow_hyphen_values = true)]
    child: Option<Vec<String>>,
}

fn list() -> String {
    BENCHES
        .iter()
        .fold("What can be measured:".to_owned(), |text, bench| {
            format!("{text}\n  {:<8} {}", bench.name, bench.about)
        })
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("mesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    if let Some(child) = cli.child {
        let (name, arguments) = child.split_first().context("--child needs a name")?;
        let Some((_, serve)) = CHILDREN.iter().find(|(known, _)| known == name) else {
            bail!("there is no child named {name}");
        };
        serve(arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        eprintln!(
            "mesh-bench: this is a debug build: its figures say nothing (use `cargo run --release -p mesh-bench`)"
        );
    }
    let chosen = choose(&cli.what)?;
    let options = Options {
        time: Duration::from_secs(cli.seconds),
        quick: cli.quick,
        nodes: cli.nodes.map(usize::from),
    };
    let mut report = Report::default();
    for bench in chosen {
        let rows = (bench.run)(&options)
            .with_context(|| format!("{} could not be measured", bench.name))?;
        report.add(bench.name, rows);
    }
    if cli.json {
        println!("{}", report.json()?);
    } else {
        println!("{}", report.table());
    }
    let missed = report.missed();
    if cli.check && !missed.is_empty() {
        eprintln!("mesh-bench: missed: {}", missed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn choose(what: &[String]) -> Result<Vec<&'static Bench>> {
    if what.is_empty() || what == ["all"] {
        return Ok(BENCHES.iter().collect());
    }
    let find = |name: &String| {
        let bench = BENCHES.iter().find(|bench| bench.name == name);
        bench.with_context(|| format!("there is no benchmark named {name:?}\n{}", list()))
    };
    what.iter().map(find).collect()
}
