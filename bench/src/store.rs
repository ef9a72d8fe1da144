//! The sealed store beside what the disk can do and beside sled alone.
//!
//! Values have 1 KiB that does not compress. A commit is durable when it is answered. The floor is a bare
//! append of the same values with one `fdatasync` for all that wait, handed over in the same way; sled alone
//! is what its `flush()` and an `fdatasync` of its file take. All run one after the other on the same disk:
//! the folder of temporary files, which must not be in memory for the figures to mean something.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use vault_kv::{InitOptions, StoreConfig, Vault, VaultConfig, bench};

use crate::Options;
use crate::process::Process;
use crate::report::{Bar, Row};

/// Keys that are written in turn.
const KEYS: u64 = 100_000;
const VALUE: usize = 1024;
/// Entries of the store that is opened again.
const ENTRIES: u64 = 1_000_000;
/// Entries that nobody folded when the process was killed.
const TAIL: u64 = 20_000;
const WATCHERS: usize = 1000;
/// The sustained measurement is so many times as long as a burst.
const SUSTAINED: u32 = 12;

/// Measures.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let runtime = Runtime::new()?;
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mut rows = Vec::new();
    // Memory that a virtual machine touches for the first time costs more than what is measured.
    burst(&runtime, folder.path(), 256, options.time)?;
    for (writers, bar) in [(1, None), (16, None), (64, Some(0.6)), (256, Some(0.7))] {
        let (floor, ours, lag) = burst(&runtime, folder.path(), writers, options.time)?;
        rows.push(Row::new(
            format!("raw log, {writers} writers"),
            floor.rate,
            "/s",
        ));
        rows.push(Row::new(
            format!("commits, {writers} writers"),
            ours.rate,
            "/s",
        ));
        rows.push(Row::new(
            format!("commit p50, {writers} writers"),
            ours.p50,
            "µs",
        ));
        rows.push(Row::new(
            format!("commit p99, {writers} writers"),
            ours.p99,
            "µs",
        ));
        let ratio = Row::new(
            format!("commits vs raw log, {writers} writers"),
            ours.rate / floor.rate,
            "×",
        )
        .note(format!("{lag} entries were not folded yet at the end"));
        rows.push(match bar {
            Some(bar) => ratio.bar(Bar::AtLeast(bar)),
            None => ratio,
        });
    }
    reads(&runtime, folder.path(), options, &mut rows)?;
    if !options.quick {
        sustained(&runtime, folder.path(), options, &mut rows)?;
        recovery(&runtime, folder.path(), &mut rows)?;
        space(&runtime, folder.path(), &mut rows)?;
    }
    Ok(rows)
}

/// The raw log and then a new store; also the entries that were not folded at the end. Their files go, and the memory
/// that the system had for them is there for the next one.
fn burst(
    runtime: &Runtime,
    folder: &Path,
    writers: u64,
    time: Duration,
) -> Result<(Figures, Figures, u64)> {
    let folder = tempfile::tempdir_in(folder)?;
    let path = folder.path().join("raw");
    let log = raw(&path)?;
    let floor = load(runtime, writers, time, move |_, value| {
        log.clone().put(0, value)
    })?;
    std::fs::remove_file(path)?;
    let dir = folder.path().join("store");
    let vault = new(runtime, &dir)?;
    let handle = vault.clone();
    let ours = load(runtime, writers, time, move |key, value| {
        put(handle.clone(), key, value)
    })?;
    let lag = bench::unfolded(&vault);
    close(vault, &dir)?;
    Ok((floor, ours, lag))
}

/// What the raw log takes a second from so many writers.
pub fn raw_rate(runtime: &Runtime, folder: &Path, writers: u64, time: Duration) -> Result<f64> {
    let folder = tempfile::tempdir_in(folder)?;
    let log = raw(&folder.path().join("raw"))?;
    let floor = load(runtime, writers, time, move |_, value| {
        log.clone().put(0, value)
    })?;
    Ok(floor.rate)
}

fn sustained(
    runtime: &Runtime,
    folder: &Path,
    options: &Options,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let time = options.time * SUSTAINED;
    let seconds = time.as_secs();
    let sled = sled_alone(&folder.join("sled"))?;
    let alone = load(runtime, 64, time, move |key, value| {
        sled.clone().put(key, value)
    })?;
    let vault = new(runtime, &folder.join("sustained"))?;
    let begun = Instant::now();
    let handle = vault.clone();
    let ours = load(runtime, 64, time, move |key, value| {
        put(handle.clone(), key, value)
    })?;
    // The time until all of it is folded counts.
    let written = ours.rate * time.as_secs_f64();
    close(vault, &folder.join("sustained"))?;
    let rate = written / (Instant::now() - begun).as_secs_f64();
    rows.push(Row::new(
        format!("sled alone, {seconds} s"),
        alone.rate,
        "/s",
    ));
    rows.push(
        Row::new(format!("commits, {seconds} s, folded"), rate, "/s").bar(Bar::AtLeast(40_000.0)),
    );
    rows.push(
        Row::new(
            format!("commits vs sled alone, {seconds} s"),
            rate / alone.rate,
            "×",
        )
        .bar(Bar::AtLeast(1.0)),
    );
    Ok(())
}

fn reads(runtime: &Runtime, folder: &Path, options: &Options, rows: &mut Vec<Row>) -> Result<()> {
    let vault = new(runtime, &folder.join("reads"))?;
    runtime.block_on(async {
        for key in 0..1000 {
            bench::put(&vault, &name(key), &value(key)).await?;
        }
        anyhow::Ok(())
    })?;
    let (rate, _) = read_for(&vault, options.time)?;
    rows.push(Row::new("reads, one thread", rate, "/s"));
    let stop = Arc::new(AtomicBool::new(false));
    let writing: Vec<_> = (0..16u64)
        .map(|writer| {
            let (vault, stop) = (vault.clone(), Arc::clone(&stop));
            runtime.spawn(async move {
                let mut key = 10_000 * writer + 1000;
                while !stop.load(Ordering::Relaxed) {
                    bench::put(&vault, &name(key % KEYS), &value(key)).await?;
                    key += 1;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    let (rate, p999) = read_for(&vault, options.time)?;
    stop.store(true, Ordering::Relaxed);
    for task in writing {
        runtime.block_on(task)??;
    }
    rows.push(Row::new("reads beside 16 writers", rate, "/s"));
    rows.push(Row::new("read p99.9 beside 16 writers", p999, "µs"));

    let index = runtime.block_on(bench::put(&vault, "watched", b"0"))?;
    let waiting: Vec<_> = (0..WATCHERS)
        .map(|_| {
            let vault = vault.clone();
            runtime.spawn(async move {
                bench::wait(&vault, "watched", index).await?;
                anyhow::Ok(Instant::now())
            })
        })
        .collect();
    std::thread::park_timeout(Duration::from_millis(200));
    let begun = Instant::now();
    runtime.block_on(bench::put(&vault, "watched", b"1"))?;
    let mut last = begun;
    for task in waiting {
        last = last.max(runtime.block_on(task)??);
    }
    rows.push(Row::new(
        format!("change seen by the last of {WATCHERS} watchers"),
        (last - begun).as_secs_f64() * 1e3,
        "ms",
    ));
    let begun = Instant::now();
    let names = bench::scan(&vault, "bench/")?.len();
    let rate = names as f64 / (Instant::now() - begun).as_secs_f64();
    rows.push(Row::new("names scanned", rate, "/s"));
    Ok(())
}

/// Reads a second, and the 99.9th percentile in µs.
fn read_for(vault: &Vault, time: Duration) -> Result<(f64, f64)> {
    let begun = Instant::now();
    let mut took = Vec::new();
    let mut now = begun;
    while now - begun < time {
        bench::get(vault, &name(took.len() as u64 % 1000))?.context("a record is missing")?;
        let after = Instant::now();
        took.push((after - now).as_nanos() as u64);
        now = after;
    }
    took.sort_unstable();
    let p999 = took[took.len() * 999 / 1000] as f64 / 1e3;
    Ok((took.len() as f64 / (now - begun).as_secs_f64(), p999))
}

fn recovery(runtime: &Runtime, folder: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let dir = folder.join("million");
    let vault = new(runtime, &dir)?;
    fill(runtime, &vault, 0..ENTRIES)?;
    close(vault, &dir)?;
    let dir_text = dir.display().to_string();
    let timed = |row: &str, rows: &mut Vec<Row>, bar: Option<f64>| -> Result<()> {
        let (_opener, seconds) =
            Process::of_this_program("store-open", std::slice::from_ref(&dir_text))?;
        let row = Row::new(row, seconds.trim().parse()?, "s");
        rows.push(match bar {
            Some(bar) => row.bar(Bar::AtMost(bar)),
            None => row,
        });
        Ok(())
    };
    timed("1 M entries: open after a clean stop", rows, Some(2.0))?;
    let (killed, _) = Process::of_this_program("store-fill", std::slice::from_ref(&dir_text))?;
    drop(killed);
    timed("1 M entries: open after kill -9", rows, Some(5.0))?;
    std::fs::remove_dir_all(dir.join("fold"))?;
    timed("1 M entries: open, fold from the log", rows, None)?;
    let vault = open(runtime, &dir)?;
    let begun = Instant::now();
    let compacted = vault.ledger().compact()?;
    rows.push(
        Row::new(
            "1 M entries: compaction",
            (Instant::now() - begun).as_secs_f64(),
            "s",
        )
        .note(format!(
            "{} MB before, {} MB after",
            compacted.bytes_before >> 20,
            compacted.bytes_after >> 20
        )),
    );
    close(vault, &dir)?;
    std::fs::remove_dir_all(dir.join("fold"))?;
    timed("1 M entries: open, fold from snapshot + log", rows, None)?;
    let vault = open(runtime, &dir)?;
    let path = folder.join("saved");
    let begun = Instant::now();
    let mut file = File::create(&path)?;
    vault.save_snapshot(&mut file)?;
    file.sync_all()?;
    let saved = Instant::now();
    let bytes = path.metadata()?.len();
    vault_kv::restore_snapshot(
        std::io::BufReader::new(File::open(&path)?),
        &folder.join("restored"),
        None,
    )?;
    let speed = |time: Duration| bytes as f64 / 1e6 / time.as_secs_f64();
    rows.push(Row::new("snapshot save", speed(saved - begun), "MB/s"));
    rows.push(
        Row::new("snapshot restore", speed(Instant::now() - saved), "MB/s")
            .note(format!("{} MB", bytes >> 20)),
    );
    Ok(())
}

/// What a million keys take that were written five times, before and after what was overwritten is taken out.
fn space(runtime: &Runtime, folder: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let dir = folder.join("overwritten");
    close(new(runtime, &dir)?, &dir)?;
    let mut config = config(&dir);
    config.history_retention = Duration::ZERO;
    let vault = Vault::open(config)?;
    runtime.block_on(vault.unseal_static())?;
    for _ in 0..5 {
        fill(runtime, &vault, 0..ENTRIES)?;
    }
    let compacted = vault.ledger().compact()?;
    let megabytes = |bytes: u64| (bytes >> 20) as f64;
    let name = |when: &str| format!("1 M keys written five times: {when}");
    rows.push(Row::new(
        name("space"),
        megabytes(compacted.bytes_before),
        "MB",
    ));
    rows.push(Row::new(
        name("space, compacted"),
        megabytes(compacted.bytes_after),
        "MB",
    ));
    close(vault, &dir)
}

fn fill(runtime: &Runtime, vault: &Vault, entries: std::ops::Range<u64>) -> Result<()> {
    let next = Arc::new(AtomicU64::new(entries.start));
    let tasks: Vec<_> = (0..256)
        .map(|_| {
            let (vault, next, end) = (vault.clone(), Arc::clone(&next), entries.end);
            runtime.spawn(async move {
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key >= end {
                        return anyhow::Ok(());
                    }
                    bench::put(&vault, &name(key), &key.to_be_bytes()).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        runtime.block_on(task)??;
    }
    Ok(())
}

/// The process that is killed: it opens the store, writes without waiting for the fold, and says so.
pub fn child(arguments: &[String]) -> Result<()> {
    let dir = PathBuf::from(arguments.first().context("which store?")?);
    let runtime = Runtime::new()?;
    let vault = open(&runtime, &dir)?;
    fill(&runtime, &vault, 0..TAIL)?;
    println!("written");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// A process that opens the store, as after a restart, and says how many seconds that took.
pub fn opener(arguments: &[String]) -> Result<()> {
    let dir = PathBuf::from(arguments.first().context("which store?")?);
    let runtime = Runtime::new()?;
    let begun = Instant::now();
    let vault = open(&runtime, &dir)?;
    let took = Instant::now() - begun;
    let last = bench::get(&vault, &name(ENTRIES - 1))?;
    anyhow::ensure!(last.is_some(), "the last entry is missing");
    close(vault, &dir)?;
    println!("{}", took.as_secs_f64());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn name(key: u64) -> String {
    format!("bench/{key:08}")
}

/// Bytes that do not compress and differ by key.
fn value(key: u64) -> Vec<u8> {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(VALUE);
    while value.len() < VALUE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_be_bytes());
    }
    value
}

async fn put(vault: Vault, key: u64, value: Vec<u8>) -> Result<()> {
    bench::put(&vault, &name(key), &value).await?;
    Ok(())
}

fn config(dir: &Path) -> VaultConfig {
    let mut config = VaultConfig::new(StoreConfig::Dir(dir.to_path_buf()));
    config.static_key = Some(dir.with_extension("key"));
    config
}

fn new(runtime: &Runtime, dir: &Path) -> Result<Vault> {
    let mut options = OpenOptions::new();
    let key = dir.with_extension("key");
    let mut file = options.write(true).create_new(true).mode(0o600).open(key)?;
    file.write_all(&[7; 32])?;
    let vault = Vault::open(config(dir))?;
    let one = InitOptions {
        shares: 1,
        threshold: 1,
    };
    runtime.block_on(vault.init(one))?;
    Ok(vault)
}

fn open(runtime: &Runtime, dir: &Path) -> Result<Vault> {
    let vault = Vault::open(config(dir))?;
    runtime.block_on(vault.unseal_static())?;
    Ok(vault)
}

/// Drops the last handle, and waits until all is folded and the store is closed.
fn close(vault: Vault, dir: &Path) -> Result<()> {
    drop(vault);
    File::open(dir.join("lock"))?.lock()?;
    Ok(())
}

struct Figures {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// Has `writers` tasks commit one value after the other.
fn load<F, Done>(runtime: &Runtime, writers: u64, time: Duration, commit: F) -> Result<Figures>
where
    F: Fn(u64, Vec<u8>) -> Done + Clone + Send + 'static,
    Done: Future<Output = Result<()>> + Send + 'static,
{
    let begun = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let commit = commit.clone();
            runtime.spawn(async move {
                let mut took = Vec::new();
                let mut key = writer * (KEYS / writers);
                let mut now = Instant::now();
                while now - begun < time {
                    commit(key % KEYS, value(key)).await?;
                    let after = Instant::now();
                    took.push((after - now).as_nanos() as u64);
                    now = after;
                    key += 1;
                }
                anyhow::Ok(took)
            })
        })
        .collect();
    let mut took = Vec::new();
    for task in tasks {
        took.extend(runtime.block_on(task)??);
    }
    let rate = took.len() as f64 / (Instant::now() - begun).as_secs_f64();
    took.sort_unstable();
    let at = |share: f64| took[(took.len() as f64 * share) as usize] as f64 / 1e3;
    Ok(Figures {
        rate,
        p50: at(0.5),
        p99: at(0.99),
    })
}

type Waiting = (u64, Vec<u8>, oneshot::Sender<()>);

/// A thread that takes all that wait, does one thing with them, and answers.
#[derive(Clone)]
struct Group(mpsc::Sender<Waiting>);

impl Group {
    fn start(mut durable: impl FnMut(&[Waiting]) -> Result<()> + Send + 'static) -> Self {
        let (sender, queue) = mpsc::channel::<Waiting>();
        std::thread::spawn(move || {
            while let Ok(first) = queue.recv() {
                let mut group = vec![first];
                group.extend(queue.try_iter().take(1023));
                if let Err(error) = durable(&group) {
                    eprintln!("mesh-bench: {error:#}");
                    return;
                }
                for (_, _, reply) in group {
                    // The task may have ended with its time.
                    let _ = reply.send(());
                }
            }
        });
        Self(sender)
    }

    async fn put(self, key: u64, value: Vec<u8>) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.0
            .send((key, value, reply))
            .ok()
            .context("the writer ended")?;
        Ok(answer.await?)
    }
}

/// Append and `fdatasync`, nothing else.
fn raw(path: &Path) -> Result<Group> {
    let file = File::create(path)?;
    let (mut at, mut buffer) = (0, Vec::new());
    Ok(Group::start(move |group| {
        buffer.clear();
        for (_, value, _) in group {
            buffer.extend_from_slice(value);
        }
        file.write_all_at(&buffer, at)?;
        at += buffer.len() as u64;
        Ok(file.sync_data()?)
    }))
}

/// sled, made durable.
fn sled_alone(folder: &Path) -> Result<Group> {
    let tree = sled::Config::new()
        .path(folder)
        .cache_capacity(256 << 20)
        .flush_every_ms(None)
        .open()?;
    let file = File::open(folder.join("db"))?;
    Ok(Group::start(move |group| {
        let mut batch = sled::Batch::default();
        for (key, value, _) in group {
            batch.insert(name(*key).as_bytes(), value.as_slice());
        }
        tree.apply_batch(batch)?;
        tree.flush()?;
        Ok(file.sync_data()?)
    }))
}
