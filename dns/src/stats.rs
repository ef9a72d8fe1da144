//! Counters of what was answered.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::wire::rcode;

/// Running totals; all of a server's threads add to one of these.
#[derive(Debug, Default)]
pub struct Stats {
    by_rcode: [AtomicU64; 6],
    other: AtomicU64,
    ignored: AtomicU64,
    forwarded: AtomicU64,
    truncated: AtomicU64,
    limited: AtomicU64,
    prepared: AtomicU64,
}

/// The totals at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Answered, no error.
    pub noerror: u64,
    /// Unreadable requests.
    pub formerr: u64,
    /// Not able to answer.
    pub servfail: u64,
    /// No such name.
    pub nxdomain: u64,
    /// Kinds of request that we do not know.
    pub notimp: u64,
    /// Foreign names without an upstream.
    pub refused: u64,
    /// Other response codes.
    pub other: u64,
    /// Datagrams that were no requests.
    pub ignored: u64,
    /// Requests handed to an upstream; they count under their response code too.
    pub forwarded: u64,
    /// Replies with the TC bit.
    pub truncated: u64,
    /// Requests over UDP that got no or an empty reply, because too many came from their network.
    pub limited: u64,
    /// Answers that were not (or no longer) in the cache.
    pub prepared: u64,
}

impl Stats {
    pub(crate) fn reply(&self, code: u16) {
        self.by_rcode
            .get(usize::from(code))
            .unwrap_or(&self.other)
            .fetch_add(1, Relaxed);
    }

    pub(crate) fn ignored(&self) {
        self.ignored.fetch_add(1, Relaxed);
    }

    pub(crate) fn forwarded(&self) {
        self.forwarded.fetch_add(1, Relaxed);
    }

    pub(crate) fn truncated(&self) {
        self.truncated.fetch_add(1, Relaxed);
    }

    pub(crate) fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    pub(crate) fn prepared(&self) {
        self.prepared.fetch_add(1, Relaxed);
    }

    /// The totals now.
    pub fn counts(&self) -> Counts {
        let code = |code: u16| self.by_rcode[usize::from(code)].load(Relaxed);
        Counts {
            noerror: code(rcode::NOERROR),
            formerr: code(rcode::FORMERR),
            servfail: code(rcode::SERVFAIL),
            nxdomain: code(rcode::NXDOMAIN),
            notimp: code(rcode::NOTIMP),
            refused: code(rcode::REFUSED),
            other: self.other.load(Relaxed),
            ignored: self.ignored.load(Relaxed),
            forwarded: self.forwarded.load(Relaxed),
            truncated: self.truncated.load(Relaxed),
            limited: self.limited.load(Relaxed),
            prepared: self.prepared.load(Relaxed),
        }
    }
}
