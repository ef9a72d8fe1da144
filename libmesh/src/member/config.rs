//! Timings and limits of membership.

use std::net::SocketAddr;
use std::time::Duration;

use super::meta::NodeMeta;

/// Timings that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    /// One random member is probed each period.
    pub probe_period: Duration,
    /// How long a ping may take before others are asked, and the stream is tried.
    pub probe_rtt: Duration,
    /// From a ping that nobody could get answered to Down, the suspicion and the last question included.
    pub suspect_to_down: Duration,
    /// How long the last question over the stream may take before Down; part of `suspect_to_down`.
    pub confirm_timeout: Duration,
    /// How long a member must have been suspected before it is shown as suspect: a restart that is back within a second
    /// is never seen.
    pub suspect_shown_after: Duration,
    /// How long after a member whose port is refused was first found silent it is looked at again, by this node and by
    /// witnesses, before it is declared down; the same reason.
    pub refusal_patience: Duration,
    /// How often news is gossiped, if there is any.
    pub gossip_period: Duration,
    /// To how many members.
    pub gossip_fanout: usize,
    /// How often a random member is asked for more members.
    pub announce_period: Duration,
    /// How often two members that are down are announced to, so that a healed partition is noticed.
    pub announce_down_period: Duration,
    /// State is compared with a random known address after this long, plus up to as much again at random.
    pub push_pull_period: Duration,
    /// First and longest pause between two announces to a seed that is not a member.
    pub seed_backoff: (Duration, Duration),
}

impl Preset {
    /// For one datacenter: a lost host is known everywhere after 5 s (p50) to 6.7 s (p99, fifty nodes, 5 % loss), a
    /// killed process a second after its first connection broke or was refused; stalls of up to 4 s pass unpunished,
    /// and a process that is back within a second is never missed.
    pub fn lan() -> Self {
        Self {
            probe_period: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            suspect_to_down: Duration::from_millis(4250),
            confirm_timeout: Duration::from_millis(750),
            suspect_shown_after: Duration::from_secs(1),
            refusal_patience: Duration::from_millis(1100),
            gossip_period: Duration::from_millis(100),
            gossip_fanout: 3,
            announce_period: Duration::from_secs(30),
            announce_down_period: Duration::from_secs(20),
            push_pull_period: Duration::from_secs(15),
            seed_backoff: (Duration::from_millis(500), Duration::from_secs(15)),
        }
    }

    /// Between regions: round trips of up to a second, a crash is known after about 30 s.
    pub fn wan() -> Self {
        Self {
            probe_period: Duration::from_secs(3),
            probe_rtt: Duration::from_millis(1200),
            suspect_to_down: Duration::from_secs(25),
            confirm_timeout: Duration::from_secs(4),
            suspect_shown_after: Duration::ZERO,
            refusal_patience: Duration::from_secs(3),
            gossip_period: Duration::from_millis(500),
            gossip_fanout: 4,
            announce_period: Duration::from_secs(30),
            announce_down_period: Duration::from_secs(60),
            push_pull_period: Duration::from_secs(15),
            seed_backoff: (Duration::from_secs(2), Duration::from_secs(60)),
        }
    }
}

/// What a node needs to take part.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node.
    pub node: crate::model::NodeId,
    /// Where others reach it: UDP and TCP on the same port.
    pub advertise: SocketAddr,
    /// Must be higher than in the node's last life: persist the last one and take the larger of it + 1 and the clock in
    /// microseconds.
    pub generation: u64,
    /// Timings.
    pub preset: Preset,
    /// Addresses to announce to for as long as they are no members.
    pub seeds: Vec<SocketAddr>,
    /// What [`Membership::candidates`](super::Membership::candidates) returned in the last life: announced to, not
    /// believed.
    pub candidates: Vec<SocketAddr>,
    /// The pool: the datacenter's name. Nodes of another pool are refused; empty: nobody is.
    pub pool: std::sync::Arc<str>,
    /// What this node says of itself.
    pub meta: NodeMeta,
    /// Nodes in the pool from which on a warning is logged (default 2,000).
    pub pool_warning: usize,
    /// Nodes in the pool beyond which no further ones are let in (default 5,000). Each node looks at its own list, so it
    /// should be the same everywhere.
    pub pool_limit: usize,
    /// How long a member that is down is remembered (default 72 h, as Consul).
    pub forget_after: Duration,
    /// Members (of any state) beyond this are not let in (default 20,000); the packet that brings them is dropped and
    /// counted.
    pub max_members: usize,
}

impl Config {
    /// The LAN preset with defaults.
    pub fn lan(node: crate::model::NodeId, advertise: SocketAddr, generation: u64) -> Self {
        Self {
            node,
            advertise,
            generation,
            preset: Preset::lan(),
            seeds: Vec::new(),
            candidates: Vec::new(),
            pool: "".into(),
            meta: NodeMeta::default(),
            pool_warning: 2_000,
            pool_limit: 5_000,
            forget_after: Duration::from_secs(72 * 3600),
            max_members: 20_000,
        }
    }
}
