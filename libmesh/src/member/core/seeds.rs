//! Addresses that we announce to for as long as nobody there is a member.
//!
//! For ever, because islands that formed in a join storm (everybody asked another seed) never find each other
//! otherwise; with back-off, because a seed may be gone for good.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::member::candidates::MAX_CANDIDATES;

/// Most seeds; candidates have a bound of their own.
const MAX_SEEDS: usize = 1024;
/// Longest pause for candidates: there may be a thousand of them, most long gone.
const CANDIDATE_PAUSE: Duration = Duration::from_secs(300);
/// Candidates are first tried this far apart: each announce is answered by a full packet.
const CANDIDATE_SPREAD: Duration = Duration::from_millis(12);

struct Seed {
    addr: SocketAddr,
    next: Duration,
    pause: Duration,
    longest: Duration,
    /// Not tried any more after this.
    until: Option<Duration>,
}

pub(super) struct Seeds {
    seeds: Vec<Seed>,
    first: Duration,
    longest: Duration,
    own: SocketAddr,
}

impl Seeds {
    pub(super) fn new(own: SocketAddr, (first, longest): (Duration, Duration)) -> Self {
        Self {
            seeds: Vec::new(),
            first,
            longest,
            own,
        }
    }

    /// Adds a seed, to be tried at once; false when it is us, or there are too many.
    pub(super) fn add(&mut self, addr: SocketAddr, now: Duration) -> bool {
        if let Some(known) = self.seeds.iter_mut().find(|seed| seed.addr == addr) {
            *known = Seed {
                addr,
                next: now,
                pause: self.first,
                longest: self.longest,
                until: None,
            };
            return true;
        }
        if addr == self.own || self.seeds.len() >= MAX_SEEDS + MAX_CANDIDATES {
            return false;
        }
        self.seeds.push(Seed {
            addr,
            next: now,
            pause: self.first,
            longest: self.longest,
            until: None,
        });
        true
    }

    pub(super) fn add_candidates(
        &mut self,
        candidates: &[SocketAddr],
        now: Duration,
        until: Duration,
    ) {
        for (addr, place) in candidates.iter().copied().take(MAX_CANDIDATES).zip(0..) {
            if addr != self.own && self.seeds.iter().all(|seed| seed.addr != addr) {
                let next = now + CANDIDATE_SPREAD * place;
                let until = Some(until);
                self.seeds.push(Seed {
                    addr,
                    next,
                    pause: self.first,
                    longest: CANDIDATE_PAUSE,
                    until,
                });
            }
        }
    }

    /// When to look again.
    pub(super) fn next(&self) -> Option<Duration> {
        self.seeds.iter().map(|seed| seed.next).min()
    }

    /// Seeds to announce to now; they are due again after their back-off.
    pub(super) fn due(
        &mut self,
        now: Duration,
        present: &HashSet<SocketAddr>,
        rng: &mut impl Rng,
    ) -> Vec<SocketAddr> {
        self.seeds
            .retain(|seed| seed.until.is_none_or(|until| until > now));
        let mut due = Vec::new();
        for seed in &mut self.seeds {
            if present.contains(&seed.addr) {
                // Look again later: it may go. All at the same time, each look goes through all members.
                seed.pause = self.first;
                seed.next = now + self.longest;
            } else if seed.next <= now {
                due.push(seed.addr);
                seed.next = now + seed.pause.mul_f64(rng.random_range(0.75..1.25));
                seed.pause = (seed.pause * 2).min(seed.longest);
            }
        }
        due
    }

    /// All of them.
    pub(super) fn addresses(&self) -> HashSet<SocketAddr> {
        self.seeds.iter().map(|seed| seed.addr).collect()
    }

    /// All that are not among `present`.
    pub(super) fn unknown<'a>(
        &'a self,
        present: &'a HashSet<SocketAddr>,
    ) -> impl Iterator<Item = SocketAddr> + 'a {
        self.seeds
            .iter()
            .map(|seed| seed.addr)
            .filter(|addr| !present.contains(addr))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn an_absent_seed_is_tried_for_ever_with_back_off() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let (own, seed): (SocketAddr, SocketAddr) = (
            "192.0.2.1:1".parse().unwrap(),
            "192.0.2.2:1".parse().unwrap(),
        );
        let mut seeds = Seeds::new(own, (Duration::from_millis(500), Duration::from_secs(15)));
        assert!(!seeds.add(own, Duration::ZERO), "not to ourselves");
        assert!(seeds.add(seed, Duration::ZERO));
        let nobody = HashSet::new();
        let mut tries = 0;
        for second in 0..3600 {
            tries += seeds
                .due(Duration::from_secs(second), &nobody, &mut rng)
                .len();
        }
        assert!((200..400).contains(&tries), "{tries} tries in an hour");

        let present = HashSet::from([seed]);
        assert_eq!(seeds.due(Duration::from_secs(3700), &present, &mut rng), []);
        assert_eq!(
            seeds.due(Duration::from_secs(3715), &nobody, &mut rng),
            [seed],
            "it went, so it is tried again"
        );
    }

    #[test]
    fn seeds_that_are_present_are_looked_at_together() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let own = "192.0.2.1:1".parse().unwrap();
        let mut seeds = Seeds::new(own, (Duration::from_millis(500), Duration::from_secs(15)));
        let all: HashSet<SocketAddr> = (2..5u8)
            .map(|host| SocketAddr::from(([192, 0, 2, host], 1)))
            .collect();
        for addr in &all {
            seeds.add(*addr, Duration::ZERO);
        }
        assert_eq!(
            seeds.due(Duration::ZERO, &HashSet::new(), &mut rng).len(),
            3
        );
        let first = seeds.next().unwrap();
        assert_eq!(seeds.due(first, &all, &mut rng), []);
        assert_eq!(seeds.next(), Some(first + Duration::from_secs(15)));
    }

    #[test]
    fn candidates_are_tried_one_after_the_other_and_not_for_ever() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let own = "192.0.2.1:1".parse().unwrap();
        let mut seeds = Seeds::new(own, (Duration::from_millis(500), Duration::from_secs(15)));
        let candidates: Vec<_> = (0..2000u16)
            .map(|port| SocketAddr::from(([192, 0, 2, 2], port)))
            .collect();
        seeds.add_candidates(&candidates, Duration::ZERO, Duration::from_secs(60));
        let nobody = HashSet::new();
        assert_eq!(seeds.due(Duration::ZERO, &nobody, &mut rng).len(), 1);
        assert_eq!(seeds.unknown(&nobody).count(), MAX_CANDIDATES);
        assert_eq!(seeds.due(Duration::from_secs(61), &nobody, &mut rng), []);
        assert_eq!(seeds.next(), None);
    }
}
