//! The simulated network: how long a packet takes, which are lost, and who cannot hear whom.
//!
//! Each pair of nodes has a way of its own length (fixed for the run by the seed) and every packet some jitter on top;
//! nodes are spread over zones, near within one and far between two.
//!
//! A stream question costs what it costs over TCP and TLS 1.3 on a new connection: five ways until the question is
//! there, and for each lost segment the retransmission timers of Linux (one second for the first, 200 ms for the
//! others, doubled each time). At 20 % loss that makes every second question late. So nothing is proven with streams
//! that magically survive loss.

use std::collections::HashMap;
use std::time::Duration;

use rand::{Rng, RngExt};

/// Bytes that a stream question and its answer take beyond their bodies: HTTP/2, TLS and TCP/IP framing.
const FRAMING: u64 = 400;
/// Bytes of a new mutually authenticated TLS 1.3 connection with P-256 certificates, both directions.
pub(super) const HANDSHAKE: u64 = 5000;
/// Ways of a question on a new connection: SYN, SYN-ACK, hello, hello, finished with the question.
const QUESTION_WAYS: u32 = 5;
const SYN_TIMEOUT: Duration = Duration::from_secs(1);
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// How long a way takes.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    /// Shortest and longest way without jitter; each pair of nodes has its own between them.
    pub base: (Duration, Duration),
    /// What any packet may take longer.
    pub jitter: Duration,
}

impl Latency {
    const fn micros(shortest: u64, longest: u64, jitter: u64) -> Self {
        Self {
            base: (
                Duration::from_micros(shortest),
                Duration::from_micros(longest),
            ),
            jitter: Duration::from_micros(jitter),
        }
    }
}

/// How the network behaves.
#[derive(Debug, Clone)]
pub struct Network {
    /// Share of packets that are lost, 0 to 1.
    pub loss: f64,
    /// Number of zones; node `n` is in zone `n % zones`.
    pub zones: usize,
    /// Within a zone (default 1–3 ms and up to 2 ms of jitter).
    pub near: Latency,
    /// Between zones.
    pub far: Latency,
    /// Whether stream questions get through at all.
    pub streams: bool,
    /// Nodes that keep a stream to any node, and notice at once when its process ends.
    pub kept_streams: usize,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss: 0.0,
            zones: 1,
            near: Latency::micros(1000, 3000, 2000),
            far: Latency::micros(10_000, 40_000, 5000),
            streams: true,
            kept_streams: 3,
        }
    }
}

impl Network {
    /// With this share of packets lost.
    pub fn lossy(loss: f64) -> Self {
        Self {
            loss,
            ..Self::default()
        }
    }
}

/// What a firewall or a broken link does to packets one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing gets through. Streams need both ways, so there are none between the two.
    Cut,
    /// Datagrams get lost, streams work.
    NoDatagrams,
    /// A firewall drops datagrams and refuses connections in the other's name.
    Refused,
}

/// The faults of the moment.
#[derive(Debug, Default)]
pub(super) struct Links {
    seed: u64,
    /// Nodes in different groups do not hear each other; empty when whole.
    groups: Vec<u32>,
    faults: HashMap<(u32, u32), Fault>,
}

/// What becomes of a stream question.
pub(super) enum Dial {
    Reached(Duration),
    Refused,
    Lost,
}

impl Links {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    pub(super) fn partition(&mut self, groups: Vec<u32>) {
        self.groups = groups;
    }

    pub(super) fn set(&mut self, from: usize, to: usize, fault: Fault) {
        self.faults.insert((from as u32, to as u32), fault);
    }

    pub(super) fn clear(&mut self) {
        self.groups.clear();
        self.faults.clear();
    }

    fn fault(&self, from: usize, to: usize) -> Option<Fault> {
        if self
            .groups
            .get(from)
            .zip(self.groups.get(to))
            .is_some_and(|(one, other)| one != other)
        {
            return Some(Fault::Cut);
        }
        if self.faults.is_empty() {
            return None;
        }
        self.faults.get(&(from as u32, to as u32)).copied()
    }

    pub(super) fn hears_datagrams(&self, from: usize, to: usize) -> bool {
        self.fault(from, to).is_none()
    }

    /// Whether the rest of a stream that stands gets through.
    pub(super) fn is_connected(&self, one: usize, other: usize) -> bool {
        let passes = |fault| !matches!(fault, Some(Fault::Cut | Fault::Refused));
        passes(self.fault(one, other)) && passes(self.fault(other, one))
    }

    pub(super) fn dial(
        &self,
        network: &Network,
        from: usize,
        to: usize,
        rng: &mut impl Rng,
    ) -> Dial {
        let (there, back) = (self.fault(from, to), self.fault(to, from));
        if !network.streams || there == Some(Fault::Cut) || back == Some(Fault::Cut) {
            return Dial::Lost;
        }
        if there == Some(Fault::Refused) {
            return Dial::Refused;
        }
        // What the other's firewall refuses, it refuses only to those who dial; answers pass.
        let mut takes = Duration::ZERO;
        for way in 0..QUESTION_WAYS {
            takes += self.way(network, from, to, rng);
            let timeout = if way < 2 { SYN_TIMEOUT } else { RETRANSMISSION };
            takes += retransmissions(network.loss, timeout, rng);
        }
        Dial::Reached(takes)
    }

    /// Time of an answer on a stream that stands.
    pub(super) fn answer(
        &self,
        network: &Network,
        from: usize,
        to: usize,
        rng: &mut impl Rng,
    ) -> Duration {
        self.way(network, from, to, rng) + retransmissions(network.loss, RETRANSMISSION, rng)
    }

    /// Time of one packet.
    pub(super) fn way(
        &self,
        network: &Network,
        from: usize,
        to: usize,
        rng: &mut impl Rng,
    ) -> Duration {
        let zones = network.zones.max(1);
        let latency = if from % zones == to % zones {
            &network.near
        } else {
            &network.far
        };
        let (shortest, longest) = latency.base;
        let pair = ((from.min(to) as u64) << 32) | from.max(to) as u64;
        let share = mix(self.seed ^ pair) % 1024;
        let base = shortest + (longest - shortest) * share as u32 / 1024;
        let jitter = latency.jitter.as_nanos() as u64;
        base + Duration::from_nanos(rng.random_range(0..=jitter))
    }
}

/// How much later a segment arrives because it, or those that repeat it, got lost.
fn retransmissions(loss: f64, first: Duration, rng: &mut impl Rng) -> Duration {
    let (mut late, mut timeout) = (Duration::ZERO, first);
    while loss > 0.0 && late < Duration::from_secs(60) && rng.random_bool(loss) {
        late += timeout;
        timeout *= 2;
    }
    late
}

/// Bytes on the wire of a question or an answer.
pub(super) fn stream_bytes(body: usize) -> u64 {
    FRAMING / 2 + body as u64
}

/// The finalizer of splitmix64: neighbours become unrelated.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn a_pair_has_one_way_and_zones_are_near_or_far() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let links = Links::new(7);
        let network = Network {
            zones: 2,
            ..Network::default()
        };
        let mut way = |from, to| links.way(&network, from, to, &mut rng);
        for node in 1..100 {
            let took = way(0, node);
            let (shortest, longest) = if node % 2 == 0 { (1, 5) } else { (10, 45) };
            assert!(took >= Duration::from_millis(shortest));
            assert!(took <= Duration::from_millis(longest));
            let again = way(node, 0);
            let jitter = Duration::from_millis(if node % 2 == 0 { 2 } else { 5 });
            assert!(took.abs_diff(again) <= jitter, "{took:?} and {again:?}");
        }
    }

    #[test]
    fn faults_work_one_way_and_streams_need_both() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let network = Network::default();
        let mut links = Links::new(7);
        links.set(0, 1, Fault::Cut);
        assert!(!links.hears_datagrams(0, 1) && links.hears_datagrams(1, 0));
        assert!(!links.is_connected(1, 0));
        assert!(matches!(links.dial(&network, 1, 0, &mut rng), Dial::Lost));
        links.set(0, 1, Fault::Refused);
        assert!(matches!(
            links.dial(&network, 0, 1, &mut rng),
            Dial::Refused
        ));
        links.set(0, 1, Fault::NoDatagrams);
        assert!(!links.hears_datagrams(0, 1));
        assert!(matches!(
            links.dial(&network, 0, 1, &mut rng),
            Dial::Reached(_)
        ));
        links.clear();
        links.partition(vec![0, 1]);
        assert!(!links.hears_datagrams(0, 1) && !links.hears_datagrams(1, 0));
    }

    #[test]
    fn loss_makes_streams_late_and_does_not_lose_them() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let links = Links::new(7);
        let network = Network::lossy(0.2);
        let late = (0..1000)
            .filter(|_| match links.dial(&network, 0, 1, &mut rng) {
                Dial::Reached(took) => took >= RETRANSMISSION,
                Dial::Refused | Dial::Lost => panic!("TCP repeats"),
            })
            .count();
        assert!((500..850).contains(&late), "{late} of 1000 late");
    }
}
