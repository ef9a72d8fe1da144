//! What membership counts, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters since start; each only rises.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// Every counter with its name, in a fixed order.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Datagrams sent.
    datagrams_sent,
    /// Bytes of them, sealed.
    bytes_sent,
    /// Datagrams that the socket did not take (its buffer was full, or no route).
    send_failed,
    /// Datagrams received, bad ones included.
    datagrams_received,
    /// Bytes of them, sealed.
    bytes_received,
    /// Dropped: longer than a datagram may be.
    dropped_oversized,
    /// Dropped: not a sealed datagram of a known version, or its content is no packet.
    dropped_malformed,
    /// Dropped: sealed with a key that is not installed here.
    dropped_unknown_key,
    /// Dropped: altered, or sealed for another cluster.
    dropped_not_authentic,
    /// Dropped: seen before.
    dropped_replayed,
    /// Dropped: brings more members than are let in, or the pool is full.
    dropped_full,
    /// Dropped: of another pool, datagrams and states.
    dropped_pool,
    /// Dropped: of nodes whose certificates are revoked.
    dropped_evicted,
    /// Dropped: claims that a member is gone, beyond a source's budget.
    dropped_claims,
    /// Dropped: incarnations that cannot be.
    dropped_jumps,
    /// Dropped: nodes whose key answers at another address.
    dropped_copies,
    /// Times that another member did not reach this node at its advertised address.
    unreachable,
    /// Times that a peer did not let this node in.
    denied,
    /// Packets that foca refused (for example from a node with our own id).
    rejected_packets,
    /// Times a member became suspect.
    suspicions,
    /// Suspicion timers that found their suspicion refuted: each would have told a healthy node that it is dead.
    late_suspicions,
    /// Times a suspect answered the last question over the stream.
    confirms_refuted,
    /// Members declared down by this node itself.
    declared_down,
    /// Members declared down early because their process is gone: a second look and another member found its port refused.
    declared_refused,
    /// Times this node was declared down and came back with a new generation.
    rejoins,
    /// Pings repeated over the stream.
    stream_pings,
    /// Exchanges of full state, either way.
    push_pulls,
    /// Stream questions not asked because too many were open.
    streams_shed,
    /// Times the process did not run when it should have, by more than 200 ms.
    stalls,
}

/// Adds one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
