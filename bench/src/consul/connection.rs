//! A client's connection that costs next to nothing: requests are bytes, and of an answer only what counts is read.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A connection that is kept.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

/// What counts of an answer.
pub struct Answer {
    pub status: u16,
    /// `X-Consul-Index`.
    pub index: u64,
}

impl Connection {
    pub async fn open(addr: &str) -> Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            read: Vec::with_capacity(1024),
        })
    }

    pub async fn say(&mut self, request: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(request).await?)
    }

    pub async fn hear(&mut self) -> Result<Answer> {
        self.read.clear();
        let end = loop {
            self.more().await?;
            if let Some(at) = find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = std::str::from_utf8(&self.read[..end])?.to_ascii_lowercase();
        let field = |name: &str| {
            let mut lines = head.lines().skip(1);
            lines
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let answer = Answer {
            status: status.context("no status")?,
            index: field("x-consul-index:")
                .and_then(|it| it.parse().ok())
                .unwrap_or_default(),
        };
        match field("content-length:") {
            Some(length) => {
                let length: usize = length.parse()?;
                while self.read.len() < end + length {
                    self.more().await?;
                }
            }
            // In pieces, the last of which is empty; or nothing.
            None if field("transfer-encoding:").is_some() => {
                while !self.read.ends_with(b"0\r\n\r\n") {
                    self.more().await?;
                }
            }
            None => {}
        }
        Ok(answer)
    }

    pub async fn ask(&mut self, request: &[u8]) -> Result<Answer> {
        self.say(request).await?;
        self.hear().await
    }

    async fn more(&mut self) -> Result<()> {
        let read = self.stream.read_buf(&mut self.read).await?;
        ensure!(read > 0, "the server closed the connection");
        Ok(())
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len())
        .position(|window| window == wanted)
}

/// What so many requests took.
pub struct Took {
    pub all: Duration,
    /// Each, in µs, from the least on.
    pub each: Vec<f64>,
}

impl Took {
    pub fn rate(&self) -> f64 {
        self.each.len() as f64 / self.all.as_secs_f64()
    }

    pub fn percentile(&self, share: f64) -> f64 {
        let at = (self.each.len().saturating_sub(1)) as f64 * share;
        self.each.get(at as usize).copied().unwrap_or(f64::NAN)
    }
}

/// Makes all these requests over so many connections, each the next as soon as it has its answer.
///
/// # Errors
/// Not every request was answered with success.
pub async fn make_all(addr: &str, connections: usize, requests: Vec<Bytes>) -> Result<Took> {
    let mut parts = vec![Vec::new(); connections];
    for (n, request) in requests.into_iter().enumerate() {
        parts[n % connections].push(request);
    }
    let mut open = Vec::new();
    for part in parts {
        open.push((Connection::open(addr).await?, part));
    }
    let begun = Instant::now();
    let mut clients: JoinSet<Result<Vec<f64>>> = JoinSet::new();
    for (mut connection, part) in open {
        clients.spawn(async move {
            let mut took = Vec::with_capacity(part.len());
            for request in part {
                let said = Instant::now();
                let answer = connection.ask(&request).await?;
                ensure!(
                    answer.status == 200,
                    "status {} instead of 200",
                    answer.status
                );
                took.push((Instant::now() - said).as_secs_f64() * 1e6);
            }
            Ok(took)
        });
    }
    let mut each = Vec::new();
    while let Some(done) = clients.join_next().await {
        each.extend(done??);
    }
    let all = Instant::now() - begun;
    each.sort_by(f64::total_cmp);
    Ok(Took { all, each })
}
