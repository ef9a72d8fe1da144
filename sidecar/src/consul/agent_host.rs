//! `/v1/agent/host`: the machine, in the words of the kernel. What it does not say is left out.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::SystemTime};

use http::StatusCode;
use nix::sys::statvfs::statvfs;
use serde_json::{Map, Value, json};

use super::{Inner, Refused, around::Right, handler};
use crate::http::{Call, Reply, Routes, json as json_reply};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new().get("/v1/agent/host", handler(inner, host))
}

async fn host(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    inner.may(&call, Right::Read, &inner.own_path()).await?;
    let mut errors = Vec::new();
    let mut noted = |what: &str, found: Result<Value, String>| {
        found.unwrap_or_else(|error| {
            errors.push(format!("{what}: {error}"));
            Value::Null
        })
    };
    let memory = noted("memory", read("/proc/meminfo").map(|text| memory(&text)));
    let cpu = noted("cpu", read("/proc/cpuinfo").map(|text| processors(&text)));
    let machine = noted("host", machine());
    let directory = inner.around.get().map(|around| around.directory.as_path());
    let disk = noted("disk", disk(directory.unwrap_or(Path::new("/"))));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let value = json!({
        "Memory": memory,
        "CPU": cpu,
        "Host": machine,
        "Disk": disk,
        "CollectionTime": since.map_or(0, |since| since.as_nanos() as u64),
        "Errors": (!errors.is_empty()).then_some(errors),
    });
    Ok(json_reply(StatusCode::OK, &value))
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// From `/proc/meminfo`, in bytes.
fn memory(text: &str) -> Value {
    let kib: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect();
    let bytes = |name: &str| kib.get(name).map(|kib| kib.saturating_mul(1024));
    let mut all = Map::new();
    for (shown, name) in [
        ("total", "MemTotal"),
        ("available", "MemAvailable"),
        ("free", "MemFree"),
        ("buffers", "Buffers"),
        ("cached", "Cached"),
        ("active", "Active"),
        ("inactive", "Inactive"),
        ("dirty", "Dirty"),
        ("shared", "Shmem"),
        ("slab", "Slab"),
        ("swapTotal", "SwapTotal"),
        ("swapFree", "SwapFree"),
    ] {
        if let Some(bytes) = bytes(name) {
            all.insert(shown.to_owned(), bytes.into());
        }
    }
    if let (Some(total), Some(available)) = (bytes("MemTotal"), bytes("MemAvailable")) {
        let used = total.saturating_sub(available);
        all.insert("used".to_owned(), used.into());
        all.insert("usedPercent".to_owned(), percent(used, total).into());
    }
    Value::Object(all)
}

fn percent(part: u64, whole: u64) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 * 100.0 / whole as f64,
    }
}

/// From `/proc/cpuinfo`: one for each processor.
fn processors(text: &str) -> Value {
    let blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
    let processors = blocks.filter_map(|block| {
        let fields: BTreeMap<&str, &str> = block
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim(), value.trim()))
            .collect();
        let number: u32 = fields.get("processor")?.parse().ok()?;
        let mut shown = Map::from_iter([("cpu".to_owned(), Value::from(number))]);
        for (name, field) in [
            ("vendorId", "vendor_id"),
            ("family", "cpu family"),
            ("model", "model"),
            ("physicalId", "physical id"),
            ("coreId", "core id"),
            ("modelName", "model name"),
            ("microcode", "microcode"),
        ] {
            if let Some(value) = fields.get(field) {
                shown.insert(name.to_owned(), (*value).into());
            }
        }
        if let Some(mhz) = fields
            .get("cpu MHz")
            .and_then(|mhz| mhz.parse::<f64>().ok())
        {
            shown.insert("mhz".to_owned(), mhz.into());
        }
        Some(Value::Object(shown))
    });
    processors.collect()
}

fn machine() -> Result<Value, String> {
    let word = |path: &str| read(path).map(|text| text.trim().to_owned());
    let uptime = word("/proc/uptime")?;
    let uptime: u64 = uptime
        .split('.')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .ok_or("/proc/uptime is not readable")?;
    let booted = word("/proc/stat")?
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse::<u64>().ok());
    let processes = fs::read_dir("/proc").map_or(0, |all| {
        let numbers = all.flatten().filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        });
        numbers.count()
    });
    let release = read("/etc/os-release").unwrap_or_default();
    let said = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    Ok(json!({
        "hostname": word("/proc/sys/kernel/hostname")?,
        "uptime": uptime,
        "bootTime": booted,
        "procs": processes,
        "os": std::env::consts::OS,
        "platform": said("ID="),
        "platformVersion": said("VERSION_ID="),
        "kernelVersion": word("/proc/sys/kernel/osrelease")?,
        "kernelArch": std::env::consts::ARCH,
        "hostId": word("/etc/machine-id").unwrap_or_default(),
    }))
}

/// The file system that the agent keeps its state on.
fn disk(path: &Path) -> Result<Value, String> {
    let stat = statvfs(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let block = stat.fragment_size() as u64;
    let blocks = |count: u64| count.saturating_mul(block);
    let (total, free) = (
        blocks(stat.blocks() as u64),
        blocks(stat.blocks_available() as u64),
    );
    let used = blocks((stat.blocks() as u64).saturating_sub(stat.blocks_free() as u64));
    let (inodes, inodes_free) = (stat.files() as u64, stat.files_free() as u64);
    let inodes_used = inodes.saturating_sub(inodes_free);
    Ok(json!({
        "path": path,
        "total": total,
        "free": free,
        "used": used,
        "usedPercent": percent(used, used.saturating_add(free)),
        "inodesTotal": inodes,
        "inodesUsed": inodes_used,
        "inodesFree": inodes_free,
        "inodesUsedPercent": percent(inodes_used, inodes),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_shown_in_bytes() {
        let text = "MemTotal:  1000 kB\nMemAvailable:   250 kB\nHugePages_Total: 0\nodd\n";
        assert_eq!(
            memory(text),
            json!({"total": 1_024_000, "available": 256_000, "used": 768_000, "usedPercent": 75.0})
        );
        let text = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 2000.5\n\nprocessor\t: 1\n\nHardware : x\n";
        assert_eq!(
            processors(text),
            json!([{"cpu": 0, "modelName": "A", "mhz": 2000.5}, {"cpu": 1}])
        );
    }
}
