//! How many replies over UDP a network gets, so that nobody can have us flood somebody else by asking in his name.
//!
//! A token bucket for each network (/24 of IPv4, /56 of IPv6), filled at the limit's rate and as large as two seconds of
//! it. The buckets lie in a table of fixed size, found by a keyed hash: two networks may share one, which then holds for
//! both together, and no sender can choose which. Costs one look at the address for those who are not limited, one
//! clock and one table access for the others; one limiter belongs to one thread.
//! After "Response Rate Limiting in the Domain Name System" (P. Vixie, V. Schryver, 2012), with its slip of 2.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use crate::config::RateLimit;

/// Buckets of a limiter: 16 octets each.
const BUCKETS: usize = 1 << 14;
/// What a reply costs, so that short times fill a bucket by whole numbers.
const COST: u64 = 1_000_000;

/// What somebody gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// His answer.
    Answer,
    /// An empty reply that sends him to TCP.
    Truncate,
    /// Nothing.
    Drop,
}

/// The buckets of one thread.
#[derive(Debug)]
pub(crate) struct Limiter {
    limit: RateLimit,
    hasher: RandomState,
    begun: Instant,
    /// Empty without a limit.
    buckets: Box<[Bucket]>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// µs since the limiter began.
    at: u64,
    /// In parts of [`COST`].
    tokens: u64,
}

impl Limiter {
    pub(crate) fn new(limit: RateLimit) -> Self {
        let buckets = match limit {
            RateLimit::Off => Box::default(),
            RateLimit::Public(rate) | RateLimit::All(rate) => {
                let full = Bucket {
                    at: 0,
                    tokens: capacity(rate.get()),
                };
                vec![full; BUCKETS].into_boxed_slice()
            }
        };
        Self {
            limit,
            hasher: RandomState::new(),
            begun: Instant::now(),
            buckets,
        }
    }

    /// What `from` gets for a request now.
    pub(crate) fn admit(&mut self, from: IpAddr) -> Verdict {
        let rate = match self.limit {
            RateLimit::Off => return Verdict::Answer,
            RateLimit::All(_) | RateLimit::Public(_) if from.is_loopback() => {
                return Verdict::Answer;
            }
            RateLimit::Public(_) if is_private(from) => return Verdict::Answer,
            RateLimit::Public(rate) | RateLimit::All(rate) => rate.get(),
        };
        let now = Instant::now().duration_since(self.begun).as_micros() as u64;
        self.admit_at(from, rate, now)
    }

    fn admit_at(&mut self, from: IpAddr, rate: u32, now: u64) -> Verdict {
        let hash = self.hasher.hash_one(network(from));
        let bucket = &mut self.buckets[hash as usize % BUCKETS];
        let gained = now.saturating_sub(bucket.at).saturating_mul(rate.into());
        let tokens = bucket.tokens.saturating_add(gained).min(capacity(rate));
        let enough = tokens >= COST;
        *bucket = Bucket {
            at: now,
            tokens: if enough { tokens - COST } else { tokens },
        };
        match enough {
            true => Verdict::Answer,
            // The clock's lowest bits are as good as a coin.
            false if (now ^ hash).is_multiple_of(2) => Verdict::Truncate,
            false => Verdict::Drop,
        }
    }
}

fn capacity(rate: u32) -> u64 {
    2 * COST * u64::from(rate)
}

/// The network that is counted as one.
fn network(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => u64::from(ip.to_bits() >> 8),
        // Behind the IPv4 networks, so that the two never meet.
        IpAddr::V6(ip) => (ip.to_bits() >> 72) as u64 | 1 << 63,
    }
}

fn is_private(ip: IpAddr) -> bool {
    let v4 = |ip: Ipv4Addr| {
        let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
        ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
    };
    let v6 = |ip: Ipv6Addr| ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local();
    match ip.to_canonical() {
        IpAddr::V4(ip) => v4(ip),
        IpAddr::V6(ip) => v6(ip),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const RATE: u32 = 10;

    fn limiter() -> Limiter {
        Limiter::new(RateLimit::All(NonZeroU32::new(RATE).unwrap()))
    }

    fn answered(limiter: &mut Limiter, from: &str, times: usize, now: u64) -> usize {
        let from = from.parse().unwrap();
        (0..times)
            .filter(|_| limiter.admit_at(from, RATE, now) == Verdict::Answer)
            .count()
    }

    #[test]
    fn a_network_gets_its_share_and_no_more() {
        let mut limiter = limiter();
        assert_eq!(answered(&mut limiter, "192.0.2.1", 100, 0), 20);
        assert_eq!(
            answered(&mut limiter, "192.0.2.77", 100, 0),
            0,
            "the same /24"
        );
        assert_eq!(answered(&mut limiter, "192.0.2.1", 100, 500_000), 5);
        assert_eq!(answered(&mut limiter, "192.0.2.1", 100, 1_000_000), 5);
        assert_eq!(answered(&mut limiter, "192.0.2.1", 100, 3_600_000_000), 20);
    }

    #[test]
    fn others_are_not_held_to_it() {
        let mut limiter = limiter();
        answered(&mut limiter, "192.0.2.1", 100, 0);
        // One in 16,384 shares the bucket: of ten networks, hardly two do.
        let fine = (0..10u8).filter(|i| {
            let from = format!("198.51.{i}.1");
            answered(&mut limiter, &from, 1, 0) == 1
        });
        assert!(fine.count() >= 9);
    }

    #[test]
    fn every_second_refusal_says_come_over_tcp() {
        let mut limiter = limiter();
        let from = "2001:db8::1".parse().unwrap();
        let verdicts: Vec<_> = (0..1000)
            .map(|now| limiter.admit_at(from, RATE, now))
            .collect();
        let count = |verdict| verdicts.iter().filter(|it| **it == verdict).count();
        assert!(count(Verdict::Truncate) > 400 && count(Verdict::Drop) > 400);
    }

    #[test]
    fn whom_the_limit_is_for() {
        let one = NonZeroU32::MIN;
        let mut public = Limiter::new(RateLimit::Public(one));
        let mut all = Limiter::new(RateLimit::All(one));
        let mut off = Limiter::new(RateLimit::Off);
        for (from, in_public, in_all) in [
            ("127.0.0.1", false, false),
            ("::1", false, false),
            ("10.1.2.3", false, true),
            ("192.168.0.1", false, true),
            ("100.64.0.1", false, true),
            ("fd00::1", false, true),
            ("fe80::1", false, true),
            ("::ffff:10.1.2.3", false, true),
            ("100.128.0.1", true, true),
            ("203.0.113.9", true, true),
            ("2001:db8::1", true, true),
        ] {
            let from: IpAddr = from.parse().unwrap();
            let limited =
                |limiter: &mut Limiter| (0..50).any(|_| limiter.admit(from) != Verdict::Answer);
            assert_eq!(limited(&mut public), in_public, "{from}");
            assert_eq!(limited(&mut all), in_all, "{from}");
            assert!(!limited(&mut off));
        }
    }
}
