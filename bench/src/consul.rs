//! Consul's interface: what a second and a processor give, how it goes on with ten thousand services, and how soon a thousand
//! watchers know.
//!
//! The server is a whole one, as `mesh dev` starts it, with its store on disk: a write is durable when it is answered. The
//! load shares the machine with it, so processor time of the server is told beside each rate. wrk makes it where the same
//! is asked over and over, from requests that were put together before; where each request is another one, and where the
//! answer is waited for, connections of our own do. Beside it, in the same run: hyper alone with a body of the same size, and a
//! bare append with one `fdatasync` for all that wait.
//!
//! A real Consul can be named by address (`MESH_BENCH_CONSUL_ADDR`, with `MESH_BENCH_CONSUL_PID` for its processor time and
//! memory, and `MESH_BENCH_CONSUL_TOKEN`): it is given the same work, its rows stand in the same table, and bars are against
//! them. Without one they are against figures of Consul 1.21 that were taken on another machine; so that its speed does not
//! count, either side is taken as a share of what hyper alone does on its machine. Times that somebody waits are as they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use serde_json::Value;
use sidecar::http::client::Target;
use tokio::runtime::Runtime;

use crate::Options;
use crate::process::{Process, processor_time};
use crate::report::Row;
use crate::wrk::{self, Load, Wrk};
use figures::{Figures, Floors, HELLO, Seen, judged};

pub mod children;
mod connection;
mod figures;
mod pair;
mod registrations;
mod watchers;

/// Keys that are read and written in turn.
const KEYS: u32 = 1000;
/// Bytes of a value.
const VALUE: usize = 128;
/// Instances of the service that is asked for.
const INSTANCES: u32 = 3;

/// A server that answers Consul's interface.
struct Server {
    name: &'static str,
    /// Host and port.
    addr: String,
    token: Option<String>,
    pid: Option<u32>,
    _process: Option<Process>,
}

/// What is asked of it by wrk.
struct Work {
    name: &'static str,
    /// Lua: the list of all requests that are made in turn.
    requests: String,
    connections: &'static [u32],
}

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let Some(wrk) = Wrk::installed() else {
        return Ok(vec![Row::missing("KV GET", "/s", wrk::ABSENT)]);
    };
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let runtime = Runtime::new()?;
    let mut rows = Vec::new();
    let floors = Floors {
        hello: hello(&wrk, options, &mut rows)?,
        log: log(&runtime, folder.path(), options, &mut rows)?,
    };
    let mut measured = |server: &Server| {
        let mut seen = Seen::new();
        for work in prepared(&runtime, server)? {
            for connections in work.connections {
                let load = measure(&wrk, folder.path(), server, &work, *connections, options)?;
                rows.extend(described(server, &work, *connections, &load));
                let (load, cpu) = load;
                if *connections == 64 {
                    let rate = load.rate;
                    seen.push((work.name, Figures { rate, cpu }));
                }
            }
        }
        rows.extend(watchers::measure(&runtime, server)?);
        let (more, rate) = registrations::at_the_catalog(&runtime, server, options)?;
        rows.extend(more);
        seen.push(("catalog/register", Figures::rate(rate)));
        rows.extend(registrations::at_the_agent(&runtime, server, options)?);
        anyhow::Ok(seen)
    };
    let theirs = peer().map(|peer| measured(&peer)).transpose()?;
    let ours = measured(&own(&folder.path().join("mesh"))?)?;
    rows.extend(judged(&ours, theirs.as_ref(), &floors));
    if !options.quick {
        rows.extend(pair::seen(&runtime, folder.path(), options)?);
    }
    Ok(rows)
}

/// hyper alone, with a body as long as an answer of KV; what it does with 64 clients.
fn hello(wrk: &Wrk, options: &Options, rows: &mut Vec<Row>) -> Result<Figures> {
    let (process, addr) = Process::of_this_program("secrets-hello", &["300".to_owned()])?;
    let url = format!("http://{addr}/");
    let mut last = HELLO;
    for connections in [1, 16, 64] {
        wrk.run(&url, connections, Duration::from_secs(1), None)?;
        let before = process.processor_time()?;
        let load = wrk.run(&url, connections, options.time, None)?;
        let cpu = (process.processor_time()? - before).as_secs_f64() * 1e6 / load.requests;
        let mut note = format!("{cpu:.1} µs of processor");
        if connections == 64 {
            let machine = load.rate / HELLO.rate;
            note += &format!("; {machine:.2} × the machine of Consul's figures");
        }
        let name = format!("hyper alone, {connections} clients");
        rows.push(Row::new(name, load.rate, "/s").note(note));
        last = Figures::new(load.rate, cpu);
    }
    Ok(last)
}

/// A bare append of values, durable, 64 writers.
fn log(runtime: &Runtime, folder: &Path, options: &Options, rows: &mut Vec<Row>) -> Result<f64> {
    let rate = crate::store::raw_rate(runtime, folder, 64, options.time)?;
    let note = "append + fdatasync for all that wait, no HTTP";
    rows.push(Row::new("raw log, 64 writers", rate, "/s").note(note));
    Ok(rate)
}

fn own(dir: &Path) -> Result<Server> {
    let arguments = [dir.display().to_string()];
    let (process, addr) = Process::of_this_program("consul-server", &arguments)?;
    Ok(Server {
        name: "mesh",
        addr,
        token: None,
        pid: Some(process.id()),
        _process: Some(process),
    })
}

/// A peer that was named.
fn peer() -> Option<Server> {
    let var = |name: &str| std::env::var(format!("MESH_BENCH_CONSUL_{name}")).ok();
    let addr = var("ADDR")?;
    Some(Server {
        name: "peer",
        addr: addr.trim_start_matches("http://").to_owned(),
        token: var("TOKEN"),
        pid: var("PID").and_then(|pid| pid.parse().ok()),
        _process: None,
    })
}

impl Server {
    fn is_own(&self) -> bool {
        self._process.is_some()
    }

    /// The head of a request and its body, as they go over the wire.
    fn request(&self, method: &str, path: &str, body: &str) -> Bytes {
        let token = self.token.as_ref();
        let token = token.map_or_else(String::new, |token| format!("x-consul-token: {token}\r\n"));
        let length = match body.len() {
            0 => String::new(),
            length => format!("content-length: {length}\r\n"),
        };
        let addr = &self.addr;
        format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\n{token}{length}\r\n{body}").into()
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<(u64, Value)> {
        let target = Target::parse(&self.addr, 8500, None)?;
        let body = match body {
            Value::Null => Bytes::new(),
            Value::String(text) => text.clone().into(),
            body => body.to_string().into(),
        };
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        let answer = target
            .send(request.body(body)?, Duration::from_secs(30))
            .await?;
        let (status, name) = (answer.status(), self.name);
        ensure!(status.is_success(), "{name}: {method} {path}: {status}");
        let index = answer.headers().get("x-consul-index");
        let index = index.and_then(|index| index.to_str().ok()?.parse().ok());
        let value = serde_json::from_slice(answer.body()).unwrap_or_default();
        Ok((index.unwrap_or_default(), value))
    }

    /// µs of processor time that it has used so far.
    fn spent(&self) -> Result<Option<f64>> {
        let spent = self.pid.map(processor_time).transpose()?;
        Ok(spent.map(|spent| spent.as_secs_f64() * 1e6))
    }

    /// Bytes that it has resident.
    fn resident(&self) -> Result<Option<f64>> {
        let Some(pid) = self.pid else {
            return Ok(None);
        };
        let path = format!("/proc/{pid}/status");
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        Ok(Some(kib.context("no VmRSS")? * 1024.0))
    }
}

/// Writes what is read, and says what is asked.
fn prepared(runtime: &Runtime, server: &Server) -> Result<Vec<Work>> {
    runtime.block_on(async {
        let value = Value::String("v".repeat(VALUE));
        for n in 0..KEYS {
            let path = format!("/v1/kv/bench/k{n}");
            server.ask("PUT", &path, &value).await?;
        }
        for n in 0..INSTANCES {
            let service = registrations::service("web", &format!("web-{n}"), 8000 + u64::from(n));
            let path = "/v1/agent/service/register";
            server.ask("PUT", path, &service).await?;
        }
        anyhow::Ok(())
    })?;
    let headers = match &server.token {
        Some(token) => format!("{{[\"X-Consul-Token\"] = {token:?}}}"),
        None => "{}".to_owned(),
    };
    let many = |call: &str| {
        let last = KEYS - 1;
        format!("for n = 0, {last} do\n  requests[#requests + 1] = wrk.format({call})\nend\n")
    };
    let written = |letter: char| {
        let value = letter.to_string().repeat(VALUE);
        many(&format!(
            "\"PUT\", \"/v1/kv/bench/k\" .. n, {headers}, {value:?}"
        ))
    };
    let one = |path: &str| format!("requests[1] = wrk.format(\"GET\", {path:?}, {headers})\n");
    Ok(vec![
        Work {
            name: "KV GET",
            requests: many(&format!("\"GET\", \"/v1/kv/bench/k\" .. n, {headers}")),
            connections: &[1, 16, 64],
        },
        Work {
            name: "KV PUT",
            // A value that is there already would change nothing.
            requests: written('a') + &written('b'),
            connections: &[1, 16, 64],
        },
        Work {
            name: "health/service?passing",
            requests: one("/v1/health/service/web?passing"),
            connections: &[1, 16, 64],
        },
        Work {
            name: "catalog/service",
            requests: one("/v1/catalog/service/web"),
            connections: &[64],
        },
    ])
}

/// One measurement, and µs of the server's processor time a request.
fn measure(
    wrk: &Wrk,
    folder: &Path,
    server: &Server,
    work: &Work,
    connections: u32,
    options: &Options,
) -> Result<(Load, Option<f64>)> {
    let script = script(folder, work)?;
    let url = format!("http://{}", server.addr);
    let run = |time| wrk.run(&url, connections, time, Some(&script));
    run(Duration::from_secs(1)).with_context(|| format!("{}: {}", server.name, work.name))?;
    let before = server.spent()?;
    let load = run(options.time)?;
    let spent = before.zip(server.spent()?);
    let cpu = spent.map(|(before, after)| (after - before) / load.requests);
    Ok((load, cpu))
}

fn script(folder: &Path, work: &Work) -> Result<PathBuf> {
    let file = folder.join("load.lua");
    let text = format!(
        "local requests, n = {{}}, 0\n\
         function init(arguments)\n{}end\n\
         function request()\n  n = n % #requests + 1\n  return requests[n]\nend\n",
        work.requests
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

fn described(
    server: &Server,
    work: &Work,
    connections: u32,
    (load, cpu): &(Load, Option<f64>),
) -> Vec<Row> {
    let named = |what| {
        let (server, work) = (server.name, work.name);
        format!("{server}: {work}, {connections} clients{what}")
    };
    let note = format!("p50 {:.2} ms, p99 {:.2} ms", load.p50, load.p99);
    let mut rows = vec![Row::new(named(""), load.rate, "/s").note(note)];
    rows.extend(cpu.map(|cpu| Row::new(named(", cpu"), cpu, "µs/request")));
    rows
}
