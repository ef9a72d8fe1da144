//! What the server says of itself: its machine, and what can be mounted.

use serde_json::{Map, Value, json};

use crate::clock::{Clock, rfc3339};
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::BUILTIN_VERSION;

/// What can be mounted or enabled: kind, name.
const BUILTIN: [(&str, &str); 7] = [
    ("auth", "approle"),
    ("auth", "cert"),
    ("auth", "jwt"),
    ("auth", "kubernetes"),
    ("auth", "userpass"),
    ("secret", "kv"),
    ("secret", "ssh"),
];

/// `sys/host-info`: what the kernel says; what it does not say is left out.
pub(super) fn host_info(clock: &Clock) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let word = |path: &str| read(path).split_whitespace().next().map(str::to_string);
    let mut memory = Map::new();
    for line in read("/proc/meminfo").lines() {
        let Some((name, rest)) = line.split_once(':') else {
            continue;
        };
        let name = match name {
            "MemTotal" => "total",
            "MemAvailable" => "available",
            "MemFree" => "free",
            "Buffers" => "buffers",
            "Cached" => "cached",
            "SwapTotal" => "swapTotal",
            "SwapFree" => "swapFree",
            _ => continue,
        };
        let kib = rest
            .split_whitespace()
            .next()
            .and_then(|kib| kib.parse().ok());
        if let Some(kib) = kib {
            let bytes: u64 = kib;
            memory.insert(name.into(), bytes.saturating_mul(1024).into());
        }
    }
    let cpu: Vec<_> = read("/proc/cpuinfo")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() == "model name")
        .zip(0..)
        .map(|((_, model), number)| json!({"cpu": number, "modelName": model.trim()}))
        .collect();
    let uptime = word("/proc/uptime").and_then(|text| text.split('.').next()?.parse::<u64>().ok());
    json!({
        "timestamp": rfc3339(clock.now()),
        "host": {
            "hostname": word("/proc/sys/kernel/hostname"), "os": std::env::consts::OS,
            "kernelArch": std::env::consts::ARCH, "kernelVersion": word("/proc/sys/kernel/osrelease"),
            "uptime": uptime,
        },
        "memory": memory, "cpu": cpu,
    })
}

/// `sys/plugins/catalog`
pub(super) fn catalog() -> Value {
    let named = |kind: &str| {
        let names = BUILTIN.iter().filter(|(of, _)| *of == kind);
        names.map(|(_, name)| *name).collect::<Vec<_>>()
    };
    let detailed: Vec<_> = BUILTIN
        .iter()
        .map(|(kind, name)| {
            json!({
                "type": kind, "name": name, "builtin": true, "version": BUILTIN_VERSION, "deprecation_status": "supported",
            })
        })
        .collect();
    json!({
        "auth": named("auth"), "database": named("database"), "secret": named("secret"), "detailed": detailed,
    })
}

/// `sys/plugins/catalog/:kind`
pub(super) fn listed(kind: &str) -> Result<Answer, ApiError> {
    if !matches!(kind, "auth" | "database" | "secret") {
        return Err(ApiError::bad("the plugin type is auth, database or secret"));
    }
    let names = BUILTIN.iter().filter(|(of, _)| *of == kind);
    Answer::keys(names.map(|(_, name)| (*name).to_string()).collect())
}

/// `sys/plugins/catalog/:kind/:name`
pub(super) fn plugin(path: &str) -> Result<Answer, ApiError> {
    let known = path
        .split_once('/')
        .is_some_and(|plugin| BUILTIN.contains(&plugin));
    if !known {
        return Err(ApiError::NotFound);
    }
    let name = path.split('/').next_back().unwrap_or_default();
    Ok(Answer::data(json!({
        "name": name, "builtin": true, "version": BUILTIN_VERSION, "deprecation_status": "supported", "args": null,
        "command": "", "sha256": "",
    })))
}
