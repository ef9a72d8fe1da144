//! What was not believed: counted by reason, said once for each source.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::apply::Rejection;
use super::wire::WireError;
use crate::model::NodeId;

/// Most sources that are remembered: whoever makes up more of them, fills no log.
const SOURCES_MAX: usize = 4096;
/// For how long a source is not named again: 1 h in µs.
const QUIET: u64 = 3_600_000_000;

/// How many messages were not believed since the start, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refusals {
    /// No message, truncated, damaged.
    pub malformed: u64,
    /// Of another version's format.
    pub version: u64,
    /// With a certificate that does not verify, or is revoked.
    pub certificate: u64,
    /// With a certificate that has expired.
    pub expired: u64,
    /// Not signed by the node they speak for.
    pub signature: u64,
    /// Beyond what one node may say.
    pub quota: u64,
}

impl Refusals {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.malformed
            + self.version
            + self.certificate
            + self.expired
            + self.signature
            + self.quota
    }
}

/// A reason, as a number.
type Reason = usize;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    counts: [AtomicU64; 6],
    named: Mutex<Named>,
}

#[derive(Debug, Default)]
struct Named {
    sources: HashSet<(NodeId, Reason)>,
    since: u64,
}

impl Ledger {
    /// Counts a refusal; says so when it is the first of its kind and source for an hour. `source` is what the message
    /// claims.
    pub(super) fn note(&self, source: Option<NodeId>, rejection: &Rejection, now: u64) {
        let reason = reason(rejection);
        self.counts[reason].fetch_add(1, Ordering::Relaxed);
        let source = source.unwrap_or(NodeId([0; 16]));
        if self.named.lock().is_new(source, reason, now) {
            tracing::warn!(
                source = %source,
                error = %rejection,
                "catalog messages refused; more of this kind are only counted"
            );
        }
    }

    pub(super) fn counts(&self) -> Refusals {
        let [malformed, version, certificate, expired, signature, quota] =
            std::array::from_fn(|reason| self.counts[reason].load(Ordering::Relaxed));
        Refusals {
            malformed,
            version,
            certificate,
            expired,
            signature,
            quota,
        }
    }
}

impl Named {
    fn is_new(&mut self, source: NodeId, reason: Reason, now: u64) -> bool {
        if now.saturating_sub(self.since) > QUIET || now < self.since {
            self.sources.clear();
            self.since = now;
        }
        self.sources.len() < SOURCES_MAX && self.sources.insert((source, reason))
    }
}

fn reason(rejection: &Rejection) -> Reason {
    match rejection {
        Rejection::Malformed(WireError::Format(_)) => 1,
        Rejection::Malformed(_) => 0,
        Rejection::Certificate { .. } => 2,
        Rejection::Expired { .. } => 3,
        Rejection::Signature { .. } => 4,
        Rejection::Quota { .. } => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_named_once_an_hour_and_made_up_ones_fill_no_log() {
        let mut named = Named::default();
        let id = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            NodeId(id)
        };
        assert!(named.is_new(id(1), 0, 1));
        assert!(!named.is_new(id(1), 0, 2));
        assert!(named.is_new(id(1), 1, 2), "another reason is other news");
        assert!(named.is_new(id(1), 0, QUIET + 2));
        let new = (0..100_000).filter(|n| named.is_new(id(*n), 0, QUIET + 3));
        assert!(new.count() < SOURCES_MAX);
    }
}
