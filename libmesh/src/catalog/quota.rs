//! How much one node may say.
//!
//! The same limits hold at both ends. A node's own log refuses first, with an error that says which limit; what others
//! say beyond it is not taken in, so that a node that was taken over costs the mesh no more than a large honest one. A
//! refused node is heard again when it says less: changes flow into a bucket that drains, and a log that was too large
//! is asked for as a whole after a pause.

/// How much one node may say: limits of its log, which every node holds it to.
///
/// All nodes of a mesh should have the same. A change of more than one record at a time is let in as a whole; what it
/// costs beyond the burst is waited for after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Most records: instances and checks, each one. Default 1,048,576.
    pub records: usize,
    /// Longest record, in bytes. Default and greatest: [`RECORD_MAX`](super::wire::RECORD_MAX), 64 KiB.
    pub record_bytes: usize,
    /// Most bytes of the log: of all records together at home, of the kept messages elsewhere. Default 512 MiB.
    pub bytes: usize,
    /// Changes a second, in the long run. Default 10,000. Others' logs may do twice as many, so that a node that keeps
    /// its limit is never refused because its changes were on the way together.
    pub changes_per_second: u32,
    /// Changes beyond that, when there were few before. Default 250,000.
    pub burst: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            records: 1 << 20,
            record_bytes: super::wire::RECORD_MAX,
            bytes: 512 << 20,
            changes_per_second: 10_000,
            burst: 250_000,
        }
    }
}

impl Quota {
    /// No limits but those of the wire format.
    pub const UNLIMITED: Self = Self {
        records: usize::MAX,
        record_bytes: super::wire::RECORD_MAX,
        bytes: usize::MAX,
        changes_per_second: u32::MAX,
        burst: u32::MAX,
    };

    /// What others are held to.
    pub(super) fn doubled(self) -> Self {
        Self {
            changes_per_second: self.changes_per_second.saturating_mul(2),
            burst: self.burst.saturating_mul(2),
            ..self
        }
    }
}

/// Which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`Quota::records`].
    Records,
    /// [`Quota::record_bytes`].
    RecordBytes,
    /// [`Quota::bytes`].
    Bytes,
    /// [`Quota::changes_per_second`].
    Rate,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Records => "records of one node",
            Self::RecordBytes => "bytes of a record",
            Self::Bytes => "bytes of one node's log",
            Self::Rate => "changes a second of one node",
        })
    }
}

/// How many changes were made lately: a bucket that drains with time. It may be filled over its brim, by one large
/// change; then nothing goes in before it is below again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Millionths of changes.
    filled: u64,
    /// Unix µs.
    at: u64,
}

impl Pace {
    /// Whether something may come now.
    pub(super) fn is_open(&mut self, quota: &Quota, now: u64) -> bool {
        let drained = now
            .saturating_sub(self.at)
            .saturating_mul(quota.changes_per_second.into());
        self.filled = self.filled.saturating_sub(drained);
        self.at = now;
        self.filled <= u64::from(quota.burst) * 1_000_000
    }

    /// Notes what came.
    pub(super) fn add(&mut self, changes: usize) {
        self.filled = self.filled.saturating_add(changes as u64 * 1_000_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_goes_and_drains() {
        let quota = Quota {
            changes_per_second: 10,
            burst: 100,
            ..Quota::default()
        };
        let mut pace = Pace::default();
        let mut now = 1_000_000;
        let mut taken = 0;
        while pace.is_open(&quota, now) {
            pace.add(1);
            taken += 1;
        }
        assert_eq!(taken, 101);
        now += 99_999;
        assert!(!pace.is_open(&quota, now));
        now += 1;
        assert!(pace.is_open(&quota, now));
        pace.add(1_000);
        now += 99_000_000;
        assert!(
            !pace.is_open(&quota, now),
            "what was too much is waited for"
        );
        now += 1_000_000;
        assert!(pace.is_open(&quota, now));
        assert!(
            pace.is_open(&quota, 0),
            "a clock that goes back drains nothing and stops nothing"
        );
    }
}
