//! The Vault interface: what a second and a processor give, and what things take in memory.
//!
//! wrk keeps 1, 16 or 64 connections busy with one thread, on the same machine as the server, which has a store on disk:
//! a write is durable when it is answered. Beside it, in the same run, hyper alone answers with a body of the same size.
//! A real peer can be named by address (`MESH_BENCH_VAULT_ADDR`, with `MESH_BENCH_VAULT_TOKEN` and, for its processor time,
//! `MESH_BENCH_VAULT_PID`): it is given the same work and its rows stand in the same table. Without one, bars are against
//! figures of OpenBao 2.6 with its raft storage, taken on a machine of this kind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Request;
use serde_json::{Value, json};
use sidecar::http::client::Target;
use tokio::runtime::Runtime;

use crate::Options;
use crate::process::{Process, processor_time};
use crate::report::{Bar, Row};
use crate::wrk::{self, Load, Wrk};

pub mod children;

/// Secrets that are read and written in turn.
const KEYS: u32 = 1000;

/// OpenBao's figures (DESIGN of this project, §10): requests a second and µs of processor time.
const READ: (f64, f64) = (12_200.0, 143.0);
const READ_AUDITED: (f64, f64) = (7_800.0, 227.0);
const WRITE: (f64, f64) = (2_300.0, 588.0);
const LOOKUP: (f64, f64) = (14_400.0, 69.0);
const LOGIN: (f64, f64) = (880.0, 1300.0);

/// A server that answers Vault's interface.
struct Server {
    name: String,
    url: String,
    token: String,
    pid: Option<u32>,
    _process: Option<Process>,
}

/// What is asked.
struct Work {
    name: &'static str,
    method: &'static str,
    /// `{n}` is a number below [`KEYS`].
    path: &'static str,
    body: String,
    /// Without a token.
    open: bool,
    connections: &'static [u32],
}

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let Some(wrk) = Wrk::installed() else {
        return Ok(vec![Row::missing("KV v2 read", "/s", wrk::ABSENT)]);
    };
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let runtime = Runtime::new()?;
    let mut rows = Vec::new();
    let floor = floor(&wrk, options, &mut rows)?;
    let plain = own(folder.path(), "mesh", &[])?;
    let work = prepared(&runtime, &plain)?;
    for work in &work {
        for connections in work.connections {
            let seen = measure(&wrk, folder.path(), &plain, work, *connections, options)?;
            rows.extend(described(&plain.name, work, *connections, &seen));
            rows.extend(judged(work, *connections, &seen, floor));
        }
    }
    drop(plain);
    for (flag, usual) in [("audit", Some(READ_AUDITED)), ("tls", None)] {
        let server = own(folder.path(), &format!("mesh, {flag}"), &[flag])?;
        for work in prepared(&runtime, &server)?.iter().take(2) {
            let connections = if work.name == "KV v2 read" { 16 } else { 64 };
            let seen = measure(&wrk, folder.path(), &server, work, connections, options)?;
            rows.extend(described(&server.name, work, connections, &seen));
            if let Some((rate, _)) = usual.filter(|_| work.name == "KV v2 read") {
                let name = format!("{}, {flag}, vs OpenBao's {rate}/s", work.name);
                rows.push(Row::new(name, seen.load.rate / rate, "×").bar(Bar::AtLeast(8.0)));
            }
        }
    }
    if let Some(peer) = peer() {
        for work in &prepared(&runtime, &peer)? {
            for connections in work.connections {
                let seen = measure(&wrk, folder.path(), &peer, work, *connections, options)?;
                rows.extend(described(&peer.name, work, *connections, &seen));
            }
        }
    }
    if !options.quick {
        memory(folder.path(), &mut rows)?;
        starts(folder.path(), &mut rows)?;
    }
    Ok(rows)
}

/// hyper alone, 16 connections.
fn floor(wrk: &Wrk, options: &Options, rows: &mut Vec<Row>) -> Result<f64> {
    let (process, addr) = Process::of_this_program("secrets-hello", &[])?;
    let url = format!("http://{addr}/");
    wrk.run(&url, 16, Duration::from_secs(1), None)?;
    let before = process.processor_time()?;
    let load = wrk.run(&url, 16, options.time, None)?;
    let cpu = (process.processor_time()? - before).as_secs_f64() * 1e6 / load.requests;
    rows.push(
        Row::new("hyper alone, 16 clients", load.rate, "/s")
            .note(format!("{cpu:.1} µs of processor")),
    );
    Ok(load.rate)
}

/// A server of ours with a store of its own.
fn own(folder: &Path, name: &str, flags: &[&str]) -> Result<Server> {
    let dir = folder.join(name.replace(", ", "-"));
    let mut arguments = vec![dir.display().to_string()];
    arguments.extend(flags.iter().map(ToString::to_string));
    let (process, line) = Process::of_this_program("secrets-server", &arguments)?;
    let (addr, token) = line.split_once(' ').context("no address and token")?;
    let scheme = if flags.contains(&"tls") {
        "https"
    } else {
        "http"
    };
    Ok(Server {
        name: name.to_owned(),
        url: format!("{scheme}://{addr}"),
        token: token.to_owned(),
        pid: Some(process.id()),
        _process: Some(process),
    })
}

/// A peer that was named.
fn peer() -> Option<Server> {
    let var = |name: &str| std::env::var(format!("MESH_BENCH_VAULT_{name}")).ok();
    Some(Server {
        name: "peer".to_owned(),
        url: var("ADDR")?,
        token: var("TOKEN")?,
        pid: var("PID").and_then(|pid| pid.parse().ok()),
        _process: None,
    })
}

/// Writes what is read, and says what is asked.
fn prepared(runtime: &Runtime, server: &Server) -> Result<Vec<Work>> {
    let secret = json!({"data": {"username": "app", "password": "correct horse battery staple"}});
    // The load's own program looks at no certificates; neither is one needed to fill the store.
    let mut role = (String::new(), String::new());
    if server.url.starts_with("http://") {
        let ask =
            |method, path: String, body: Value| runtime.block_on(ask(server, method, &path, &body));
        if server.name == "peer" {
            let kv = json!({"type": "kv", "options": {"version": "2"}});
            // It may be mounted already.
            let _ = ask("POST", "sys/mounts/secret".into(), kv);
        }
        for n in 0..KEYS {
            ask("POST", format!("secret/data/k{n}"), secret.clone())?;
        }
        let _ = ask(
            "POST",
            "sys/auth/approle".into(),
            json!({"type": "approle"}),
        );
        let settings = json!({"token_policies": "default", "token_ttl": "1h"});
        ask("POST", "auth/approle/role/bench".into(), settings)?;
        let id = ask("GET", "auth/approle/role/bench/role-id".into(), Value::Null)?;
        let secret_id = ask(
            "POST",
            "auth/approle/role/bench/secret-id".into(),
            json!({}),
        )?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        role = (
            text(&id["data"]["role_id"]),
            text(&secret_id["data"]["secret_id"]),
        );
    }
    let mut work = vec![
        Work {
            name: "KV v2 read",
            method: "GET",
            path: "/v1/secret/data/k{n}",
            body: String::new(),
            open: false,
            connections: &[1, 16, 64],
        },
        Work {
            name: "KV v2 write",
            method: "POST",
            path: "/v1/secret/data/k{n}",
            body: secret.to_string(),
            open: false,
            connections: &[1, 16, 64],
        },
    ];
    if !role.0.is_empty() {
        work.extend([
            Work {
                name: "token lookup",
                method: "GET",
                path: "/v1/auth/token/lookup-self",
                body: String::new(),
                open: false,
                connections: &[16],
            },
            Work {
                name: "AppRole login",
                method: "POST",
                path: "/v1/auth/approle/login",
                body: json!({"role_id": role.0, "secret_id": role.1}).to_string(),
                open: true,
                connections: &[16],
            },
            Work {
                name: "token create",
                method: "POST",
                path: "/v1/auth/token/create",
                body: json!({"policies": ["default"], "ttl": "1h"}).to_string(),
                open: false,
                connections: &[16],
            },
        ]);
    } else {
        // Nothing is there yet: what is read is written first.
        work.swap(0, 1);
    }
    Ok(work)
}

async fn ask(server: &Server, method: &str, path: &str, body: &Value) -> Result<Value> {
    let target = Target::parse(&server.url, 8200, None)?;
    let body = match body {
        Value::Null => Bytes::new(),
        body => body.to_string().into(),
    };
    let request = Request::builder()
        .method(method)
        .uri(format!("/v1/{path}"))
        .header("x-vault-token", &server.token)
        .body(body)?;
    let answer = target.send(request, Duration::from_secs(30)).await?;
    let status = answer.status();
    ensure!(
        status.is_success(),
        "{}: {method} {path}: {status}",
        server.name
    );
    Ok(serde_json::from_slice(answer.body()).unwrap_or_default())
}

/// One measurement.
struct Seen {
    load: Load,
    /// µs of the server's processor time a request.
    cpu: Option<f64>,
}

fn measure(
    wrk: &Wrk,
    folder: &Path,
    server: &Server,
    work: &Work,
    connections: u32,
    options: &Options,
) -> Result<Seen> {
    let script = script(folder, server, work)?;
    let run = |time| wrk.run(&server.url, connections, time, Some(&script));
    run(Duration::from_secs(1)).with_context(|| format!("{}: {}", server.name, work.name))?;
    let spent = || server.pid.map(processor_time).transpose();
    let before = spent()?;
    let load = run(options.time)?;
    let after = spent()?;
    let cpu = before
        .zip(after)
        .map(|(before, after)| (after - before).as_secs_f64() * 1e6 / load.requests);
    Ok(Seen { load, cpu })
}

fn script(folder: &Path, server: &Server, work: &Work) -> Result<PathBuf> {
    let file = folder.join("load.lua");
    let token = if work.open { "" } else { &server.token };
    let headers = match token {
        "" => "{}".to_owned(),
        token => format!("{{[\"X-Vault-Token\"] = {token:?}}}"),
    };
    let (before, after) = work.path.split_once("{n}").unwrap_or((work.path, ""));
    let path = match work.path.contains("{n}") {
        true => format!("{before:?} .. n .. {after:?}"),
        false => format!("{before:?}"),
    };
    let text = format!(
        "local n = 0\nlocal headers = {headers}\nlocal body = {:?}\n\
         function request()\n  n = (n + 1) % {KEYS}\n  return wrk.format({:?}, {path}, headers, body)\nend\n",
        work.body, work.method
    );
    std::fs::write(&file, text)?;
    Ok(file)
}

fn described(server: &str, work: &Work, connections: u32, seen: &Seen) -> Vec<Row> {
    let named = |what| format!("{server}: {}, {connections} clients{what}", work.name);
    let load = seen.load;
    let note = format!("p50 {:.2} ms, p99 {:.2} ms", load.p50, load.p99);
    let mut rows = vec![Row::new(named(""), load.rate, "/s").note(note)];
    rows.extend(
        seen.cpu
            .map(|cpu| Row::new(named(", cpu"), cpu, "µs/request")),
    );
    rows
}

/// What the project set itself.
fn judged(work: &Work, connections: u32, seen: &Seen, floor: f64) -> Vec<Row> {
    let (usual, times) = match (work.name, connections) {
        ("KV v2 read", 16) => (READ, 8.0),
        ("KV v2 write", 64) => (WRITE, 10.0),
        ("token lookup", 16) => (LOOKUP, 8.0),
        ("AppRole login", 16) => (LOGIN, 10.0),
        _ => return Vec::new(),
    };
    let (rate, cpu) = usual;
    let mut rows = vec![
        Row::new(
            format!("{}, vs OpenBao's {rate}/s", work.name),
            seen.load.rate / rate,
            "×",
        )
        .bar(Bar::AtLeast(times)),
    ];
    rows.extend(seen.cpu.map(|own| {
        let name = format!("{}, cpu vs OpenBao's {cpu} µs", work.name);
        Row::new(name, own / cpu, "×").bar(Bar::AtMost(1.0 / times))
    }));
    if work.name == "KV v2 read" {
        let name = format!("{}, vs hyper alone", work.name);
        rows.push(Row::new(name, seen.load.rate / floor, "×").bar(Bar::AtLeast(0.6)));
    }
    rows
}

/// What one of many takes.
fn memory(folder: &Path, rows: &mut Vec<Row>) -> Result<()> {
    for (what, count, bar) in [
        ("kv", 100_000, Some(300.0)),
        ("tokens", 200_000, None),
        ("leases", 1_000_000, Some(400.0)),
    ] {
        let dir = folder.join(format!("memory-{what}"));
        let arguments = [
            dir.display().to_string(),
            what.to_owned(),
            count.to_string(),
        ];
        let (process, line) = Process::of_this_program("secrets-memory", &arguments)?;
        drop(process);
        std::fs::remove_dir_all(&dir)?;
        let row = Row::new(
            format!("one of {count} {what}, resident"),
            line.parse()?,
            "B",
        );
        rows.push(match bar {
            Some(bar) => row.bar(Bar::AtMost(bar)),
            None => row,
        });
    }
    Ok(())
}

/// From nothing to the first answer, with 200,000 secrets.
fn starts(folder: &Path, rows: &mut Vec<Row>) -> Result<()> {
    for (how, flag, bar) in [("a clean stop", "", 200.0), ("kill -9", "stay", 1000.0)] {
        let dir = folder.join("start");
        let arguments = [
            dir.display().to_string(),
            "200000".to_owned(),
            flag.to_owned(),
        ];
        let (process, _) = Process::of_this_program("secrets-fill", &arguments)?;
        drop(process);
        let (process, line) = Process::of_this_program("secrets-start", &arguments[..1])?;
        drop(process);
        std::fs::remove_dir_all(&dir)?;
        let name = format!("200,000 secrets: first answer after {how}");
        rows.push(Row::new(name, line.parse()?, "ms").bar(Bar::AtMost(bar)));
    }
    Ok(())
}
