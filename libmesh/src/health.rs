//! Running the checks of this node and publishing their results.
//!
//! A [`Check`] looks at something with a [`Probe`] every so often, is told its status ([`How::Ttl`]), or follows other
//! checks ([`How::Alias`]). Results pass through [`Thresholds`] (fail fast, pass slow) and flap damping into the node's
//! log; what a check printed stays here (4 KiB of it) and is asked for with [`Scheduler::output`].
//!
//! | kind | passing | warning | critical |
//! |---|---|---|---|
//! | [`HttpProbe`] | 2xx | 429 | everything else |
//! | [`TcpProbe`] | connected (and the TLS handshake done) | | otherwise |
//! | [`UdpProbe`] | an answer, or silence | | refused (ICMP) |
//! | [`GrpcProbe`] | `SERVING` | | otherwise |
//! | [`H2PingProbe`] | the ping came back | | otherwise |
//! | [`ExecProbe`] | exit code 0 | 1 | every other, or a signal |
//! | [`SystemdProbe`] | active | activating, reloading | otherwise, or no systemd here |
//! | TTL | as told | as told | as told, or not told in time |
//! | alias | as the target | as the target | as the target, or it is not there |
//!
//! Behaviour is Consul's where it has one: checks are critical until they ran, unless told otherwise; the first run
//! comes at a random time within the interval; counters are consecutive and start saturated, so that the first result
//! counts at once; re-registering a check keeps its status and output. What is better than Consul's: recoveries are
//! slow by default, a check that changes its mind too often stays critical for a while, intervals are jittered, and
//! deregistration comes at its time instead of at the next of a reaper's rounds.
//!
//! Deciding is one state machine without clock and sockets; a thin shell looks and publishes. An idle check costs
//! some 860 bytes (`mesh-bench checks`) and no task, a look one task and one heap operation.
//!
//! Knows nothing of the network between nodes. New kinds of checks are new [`Probe`]s.

mod alias;
mod builder;
mod check;
mod core;
mod damping;
mod maintenance;
mod probe;
mod scheduler;
mod thresholds;

pub use builder::CheckBuilder;
pub use check::{Alias, Check, CheckError, CheckState, How};
pub use maintenance::{Maintenance, NODE_MAINTENANCE, SERVICE_MAINTENANCE, kept_in_maintenance};
pub use probe::{
    ExecProbe, GrpcProbe, H2PingProbe, HttpProbe, Probe, ProbeResult, ProbeTls, SystemdProbe,
    TcpProbe, UdpProbe,
};
pub use scheduler::Scheduler;
pub use thresholds::Thresholds;

#[cfg(test)]
mod tests;
