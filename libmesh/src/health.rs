//! Running the checks of this node and publishing their results.
//!
//! Each check is one task that never overlaps itself: the next run starts an interval after the last one *ended or
//! should have*, whichever is later. Results pass through thresholds into the node's log; what a check printed stays
//! here (4 KiB of it) and is asked for with [`Scheduler::output`].
//!
//! Behaviour is Consul's where it has one: checks are critical until they ran, unless told otherwise; the first run
//! comes at a random time within the interval; counters are consecutive and start saturated, so that the first result
//! counts at once; re-registering a check keeps its status and output.
//!
//! Knows nothing of the network between nodes. New kinds of checks are new [`Probe`]s.

mod probe;
mod scheduler;
mod thresholds;

pub use probe::{HttpProbe, Probe, ProbeResult, TcpProbe};
pub use scheduler::{Check, CheckError, How, Scheduler};
pub use thresholds::Thresholds;

#[cfg(test)]
mod tests;
