//! wrk, which makes the load.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::installed;

/// Why there are no figures where it is not.
pub const ABSENT: &str = "wrk is not installed (apt install wrk)";

/// The program.
pub struct Wrk(PathBuf);

/// What it saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Requests answered.
    pub requests: f64,
    /// In a second.
    pub rate: f64,
    /// Half of the answers came within so many ms.
    pub p50: f64,
    /// 99 % of them.
    pub p99: f64,
}

impl Wrk {
    /// `None`: it is not installed.
    pub fn installed() -> Option<Self> {
        installed("wrk").map(Self)
    }

    /// Keeps so many connections busy, with one thread; `script` says with what.
    ///
    /// # Errors
    /// Not every request was answered with success.
    pub fn run(
        &self,
        url: &str,
        connections: u32,
        time: Duration,
        script: Option<&Path>,
    ) -> Result<Load> {
        let mut command = Command::new(&self.0);
        command.args([
            "-t1",
            "--latency",
            &format!("-c{connections}"),
            &format!("-d{}", time.as_secs().max(1)),
        ]);
        if let Some(script) = script {
            command.arg("-s").arg(script);
        }
        let output = command.arg(url).output().context("cannot run wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if text.contains("Non-2xx") || text.contains("Socket errors") {
            bail!("not every request was answered:\n{text}");
        }
        parse(&text).with_context(|| format!("wrk says something else than expected:\n{text}"))
    }
}

fn parse(text: &str) -> Option<Load> {
    let mut words = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let p50 = milliseconds(&words.find(|line| line.first() == Some(&"50%"))?)?;
    let p99 = milliseconds(&words.find(|line| line.first() == Some(&"99%"))?)?;
    let requests = words
        .find(|line| line.get(1) == Some(&"requests"))?
        .first()?
        .parse()
        .ok()?;
    let rate = words
        .find(|line| line.first() == Some(&"Requests/sec:"))?
        .get(1)?
        .parse()
        .ok()?;
    Some(Load {
        requests,
        rate,
        p50,
        p99,
    })
}

fn milliseconds(line: &[&str]) -> Option<f64> {
    let text = line.get(1)?;
    let digits = text.trim_end_matches(char::is_alphabetic);
    let scale = match &text[digits.len()..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let text = "Running 5s test @ http://127.0.0.1:1/\n  1 threads and 32 connections\n  Latency Distribution\n     \
                    50%  250.00us\n     99%    1.06ms\n  660452 requests in 5.00s, 715.41MB read\n\
                    Requests/sec: 132090.51\nTransfer/sec:    143.08MB\n";
        let seen = Load {
            requests: 660_452.0,
            rate: 132_090.51,
            p50: 0.25,
            p99: 1.06,
        };
        assert_eq!(parse(text), Some(seen));
        assert_eq!(parse("unable to connect"), None);
    }
}
