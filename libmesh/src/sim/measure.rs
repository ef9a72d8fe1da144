//! What a run showed: events of members, traffic, percentiles.

use std::ops::Sub;
use std::time::Duration;

/// What a node came to think of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// New, back, or restarted.
    Up,
    /// Does not answer.
    Suspect,
    /// Answered after all.
    Alive,
    /// Gone.
    Down,
    /// Said goodbye.
    Left,
}

/// Something that a node saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Duration,
    /// Which node.
    pub by: u32,
    /// Of which node.
    pub of: u32,
    /// What.
    pub what: What,
}

/// What all nodes together sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes of them on the wire, sealing and the headers of IP and UDP included.
    pub datagram_bytes: u64,
    /// Stream questions and answers.
    pub stream_messages: u64,
    /// Bytes of them on the wire; each question pays for a new TLS connection (5,000 bytes) and its framing.
    pub stream_bytes: u64,
}

impl Traffic {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.datagram_bytes + self.stream_bytes
    }
}

impl Sub for Traffic {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            datagrams: self.datagrams - before.datagrams,
            datagram_bytes: self.datagram_bytes - before.datagram_bytes,
            stream_messages: self.stream_messages - before.stream_messages,
            stream_bytes: self.stream_bytes - before.stream_bytes,
        }
    }
}

/// Times from the shortest to the longest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(Vec<Duration>);

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        Self(times)
    }
}

impl Extend<Duration> for Times {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, times: I) {
        self.0.extend(times);
        self.0.sort_unstable();
    }
}

impl IntoIterator for Times {
    type Item = Duration;
    type IntoIter = std::vec::IntoIter<Duration>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Times {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The shortest time that `percent` of all do not exceed; zero when there is none.
    pub fn percentile(&self, percent: usize) -> Duration {
        let place = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(place).copied().unwrap_or_default()
    }

    /// The shortest.
    pub fn first(&self) -> Duration {
        self.0.first().copied().unwrap_or_default()
    }

    /// The longest.
    pub fn last(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let times: Times = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(times.percentile(50), Duration::from_millis(100));
        assert_eq!(times.percentile(99), Duration::from_millis(198));
        assert_eq!(times.last(), Duration::from_millis(200));
        assert_eq!(Times::default().percentile(99), Duration::ZERO);
    }
}
