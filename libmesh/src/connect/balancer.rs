//! Which endpoint next: the nearer of two random ones by peak-EWMA of the connect time and load
//! ("power of two choices", as in Finagle), without those that failed lately.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::ServiceName;

/// How fast a good connect time is forgotten; a bad one counts at once.
const DECAY: Duration = Duration::from_secs(10);
/// Failures in a row after which an endpoint is left out.
const FAILURES: u32 = 3;
/// For how long, the first time and at most; doubled each time.
const EJECTION: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A place where a service takes mesh connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// What tells it from others; its history is kept under this and its address.
    pub id: Arc<str>,
    /// Its mTLS listener.
    pub addr: SocketAddr,
    /// The service.
    pub service: ServiceName,
    /// Its version, for splits.
    pub version: Option<Arc<str>>,
    /// Its share of traffic relative to others; 0 is used only where all have 0.
    pub weight: u16,
    /// Distance: 0 is nearest. Farther ones are used only when no nearer one is fit.
    pub distance: u8,
    /// Its node did not answer lately: used only when nothing else is left.
    pub suspect: bool,
    /// Which part of the calls it takes, of those that [`Balancer::set_split`] was told. 0 where they are not split.
    pub part: u16,
}

/// The endpoints of one service with their history. Cheap to clone.
#[derive(Clone, Default)]
pub struct Balancer {
    table: Arc<ArcSwap<Table>>,
}

#[derive(Default)]
struct Table {
    endpoints: Vec<Arc<Tracked>>,
    split: Split,
}

/// How the calls to a service are split, and how long each may take to connect.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Split {
    /// The weight of each part, by [`Endpoint::part`]; empty: there is one part. A part without endpoints takes nothing.
    pub weights: Vec<u32>,
    /// The longest that one attempt to connect may take; none: what the deadline leaves.
    pub connect_timeout: Option<Duration>,
}

struct Tracked {
    endpoint: Endpoint,
    history: Arc<History>,
}

#[derive(Default)]
struct History {
    load: AtomicUsize,
    past: Mutex<Past>,
}

#[derive(Default)]
struct Past {
    /// Peak-EWMA of the connect time, in seconds, and when it was last changed.
    latency: Option<(f64, Instant)>,
    failures: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

/// An endpoint in use; counts as load until dropped.
pub struct Pick {
    tracked: Arc<Tracked>,
    began: Instant,
}

impl Balancer {
    /// A balancer without endpoints.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the endpoints. Those that stay keep their history.
    pub fn set(&self, endpoints: Vec<Endpoint>) {
        self.set_split(endpoints, Split::default());
    }

    /// The same for calls that are split: a part is chosen by its weight, then an endpoint of it.
    pub fn set_split(&self, endpoints: Vec<Endpoint>, split: Split) {
        let old = self.table.load();
        let tracked = endpoints.into_iter().map(|endpoint| {
            let same = |known: &&Arc<Tracked>| {
                known.endpoint.id == endpoint.id && known.endpoint.addr == endpoint.addr
            };
            let known = old.endpoints.iter().find(same);
            let history = known.map(|known| known.history.clone()).unwrap_or_default();
            Arc::new(Tracked { endpoint, history })
        });
        self.table.store(Arc::new(Table {
            endpoints: tracked.collect(),
            split,
        }));
    }

    /// The endpoints now.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let table = self.table.load();
        let endpoints = table.endpoints.iter();
        endpoints.map(|tracked| tracked.endpoint.clone()).collect()
    }

    /// The longest that one attempt to connect may take.
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.table.load().split.connect_timeout
    }

    /// The next endpoint, none of `except`; `None` when there is no other.
    pub fn pick(&self, except: &[SocketAddr], now: Instant) -> Option<Pick> {
        let table = self.table.load();
        let untried = |tracked: &&Arc<Tracked>| !except.contains(&tracked.endpoint.addr);
        let part = table.part(untried);
        let others = || {
            let all = table.endpoints.iter().filter(untried);
            all.filter(move |tracked| part.is_none_or(|part| tracked.endpoint.part == part))
        };
        let fit =
            |tracked: &&Arc<Tracked>| !tracked.endpoint.suspect && !tracked.history.is_ejected(now);
        let weighted = |tracked: &&Arc<Tracked>| tracked.endpoint.weight > 0;
        let mut candidates: Vec<_> = others().filter(fit).filter(weighted).collect();
        if candidates.is_empty() {
            // Nobody is fit: trying somebody is better than giving up.
            candidates = others().filter(fit).collect();
        }
        if candidates.is_empty() {
            candidates = others().collect();
        }
        let nearest = candidates
            .iter()
            .map(|tracked| tracked.endpoint.distance)
            .min()?;
        candidates.retain(|tracked| tracked.endpoint.distance == nearest);
        let chosen = match candidates[..] {
            [only] => only,
            _ => {
                let first = rand::random_range(0..candidates.len());
                let second = (first + rand::random_range(1..candidates.len())) % candidates.len();
                let (first, second) = (candidates[first], candidates[second]);
                if second.cost(now) < first.cost(now) {
                    second
                } else {
                    first
                }
            }
        };
        chosen.history.load.fetch_add(1, Ordering::Relaxed);
        Some(Pick {
            tracked: chosen.clone(),
            began: now,
        })
    }
}

impl Table {
    /// The part whose turn it is, of those with an endpoint that fits; `None` where there is one.
    fn part(&self, fits: impl Fn(&&Arc<Tracked>) -> bool) -> Option<u16> {
        if self.split.weights.len() < 2 {
            return None;
        }
        let has = |part: usize| {
            let mut of_it = self.endpoints.iter().filter(&fits);
            of_it.any(|tracked| usize::from(tracked.endpoint.part) == part)
        };
        let weights = self.split.weights.iter().enumerate();
        let weights: Vec<_> = weights
            .filter(|(part, weight)| **weight > 0 && has(*part))
            .collect();
        let sum: u32 = weights.iter().map(|(_, weight)| **weight).sum();
        // Where only parts without weight are left, anybody is better than nobody.
        let mut left = (sum > 0).then(|| rand::random_range(0..sum))?;
        let chosen = weights.iter().find(|(_, weight)| {
            let here = left < **weight;
            left = left.saturating_sub(**weight);
            here
        });
        chosen.and_then(|(part, _)| u16::try_from(*part).ok())
    }
}

impl Tracked {
    fn cost(&self, now: Instant) -> f64 {
        let load = self.history.load.load(Ordering::Relaxed) + 1;
        // An endpoint without history looks fast, so that it is tried.
        let latency = self.history.past.lock().latency_at(now).max(1e-4);
        latency * load as f64 / f64::from(self.endpoint.weight.max(1))
    }
}

impl History {
    fn is_ejected(&self, now: Instant) -> bool {
        self.past
            .lock()
            .ejected_until
            .is_some_and(|until| now < until)
    }
}

impl Past {
    fn latency_at(&self, now: Instant) -> f64 {
        self.latency.map_or(0.0, |(latency, stamp)| {
            latency * decay(now.saturating_duration_since(stamp))
        })
    }
}

impl Pick {
    /// The endpoint.
    pub fn endpoint(&self) -> &Endpoint {
        &self.tracked.endpoint
    }

    /// The connection stands.
    pub fn connected(&self, now: Instant) {
        let took = now.saturating_duration_since(self.began).as_secs_f64();
        let mut past = self.tracked.history.past.lock();
        let average = match past.latency {
            Some((old, stamp)) if took < old => {
                let kept = decay(now.saturating_duration_since(stamp));
                old * kept + took * (1.0 - kept)
            }
            _ => took,
        };
        *past = Past {
            latency: Some((average, now)),
            ..Past::default()
        };
    }

    /// The endpoint could not be reached, or was not who it should be.
    pub fn failed(&self, now: Instant) {
        let mut past = self.tracked.history.past.lock();
        past.failures += 1;
        if past.failures >= FAILURES {
            let span = EJECTION
                .0
                .saturating_mul(1 << past.ejections.min(6))
                .min(EJECTION.1);
            past.ejected_until = Some(now + span);
            past.ejections += 1;
            // One failure after the ejection ejects again.
            past.failures = FAILURES - 1;
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.tracked.history.load.fetch_sub(1, Ordering::Relaxed);
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests;
