//! dnsperf.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::peers::Server;
use crate::process::processor_time;

/// What one run saw.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Answers a second.
    pub rate: f64,
    /// Processor time of the server per query, in µs.
    pub micros: f64,
    /// Questions without an answer.
    pub lost: u64,
}

/// Questions, and for how long they are asked.
#[derive(Clone, Debug)]
pub struct Load {
    pub dnsperf: PathBuf,
    pub questions: PathBuf,
    pub time: Duration,
}

impl Load {
    /// A file with the first questions only.
    pub fn head(&self, count: usize) -> Result<PathBuf> {
        let text = std::fs::read_to_string(&self.questions)?;
        let lines = text.lines().take(count).map(|line| format!("{line}\n"));
        let file = self.questions.with_extension("head");
        std::fs::write(&file, lines.collect::<String>())?;
        Ok(file)
    }

    /// Asks, as fast as answers come or `limit` times a second.
    pub fn on(&self, server: &Server, limit: Option<u32>) -> Result<Figures> {
        let before = processor_time(server.pid())?;
        let mut command = Command::new(&self.dnsperf);
        command.args(["-c", "4", "-T", "1", "-q", "200", "-S", "0"]);
        command.arg("-s").arg(server.address.ip().to_string());
        command.arg("-p").arg(server.address.port().to_string());
        command.arg("-l").arg(self.time.as_secs().to_string());
        command.arg("-d").arg(&self.questions);
        if let Some(limit) = limit {
            command.arg("-Q").arg(limit.to_string());
        }
        let output = command.output().context("cannot run dnsperf")?;
        let used = processor_time(server.pid())?.saturating_sub(before);
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
