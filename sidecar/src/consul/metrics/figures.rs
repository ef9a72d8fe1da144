//! What the interface itself counts: on the way of every request, so with atomics only.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;

use super::shown::{Family, Kind, Summary};

/// Counters of one interface.
pub struct Figures {
    since: Instant,
    /// Answers by the first digit of their status, from 1.
    by_class: [AtomicU64; 5],
    /// Answers that a client let wait for a change.
    waited: AtomicU64,
    /// Those that it did not.
    answers: Times,
    /// Requests passed on to a server.
    forwards: Times,
    failed_forwards: AtomicU64,
}

/// How long something took, in microseconds.
#[derive(Default)]
struct Times {
    count: AtomicU64,
    sum: AtomicU64,
    /// Of the squares, for the deviation; wraps after ages.
    squares: AtomicU64,
    most: AtomicU64,
    /// The least, and one: 0 is none.
    least: AtomicU64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            by_class: Default::default(),
            waited: AtomicU64::new(0),
            answers: Times::default(),
            forwards: Times::default(),
            failed_forwards: AtomicU64::new(0),
        }
    }
}

impl Figures {
    /// A request was answered without waiting for a change.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        self.class(status);
        self.answers.add(took);
    }

    /// A request was answered that asked to wait.
    pub fn waited(&self, status: StatusCode) {
        self.class(status);
        self.waited.fetch_add(1, Relaxed);
    }

    /// A server answered a request that was passed on, or did not.
    pub fn forwarded(&self, status: StatusCode, took: Duration) {
        self.forwards.add(took);
        if status.is_server_error() {
            self.failed_forwards.fetch_add(1, Relaxed);
        }
    }

    /// How long this interface is there.
    pub fn age(&self) -> Duration {
        Instant::now().duration_since(self.since)
    }

    pub fn families(&self) -> Vec<Family> {
        let mut classes = Family::new(
            "http.answers",
            Kind::Counter,
            "Answers of this interface, by class of status.",
        );
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"]
            .iter()
            .zip(&self.by_class)
        {
            classes = classes.with(&[("class", class)], count.load(Relaxed) as f64);
        }
        vec![
            classes,
            Family::new(
                "http.waited",
                Kind::Counter,
                "Answers to requests that asked to wait for a change.",
            )
            .with(&[], self.waited.load(Relaxed) as f64),
            Family::summary(
                "http.answer_seconds",
                "Time to answer requests that did not ask to wait.",
                self.answers.summary(),
            ),
            Family::summary(
                "forward.answer_seconds",
                "Time until a server answered what was passed on to it.",
                self.forwards.summary(),
            ),
            Family::new(
                "forward.failed",
                Kind::Counter,
                "Requests passed on to a server that failed there, or did not get there.",
            )
            .with(&[], self.failed_forwards.load(Relaxed) as f64),
        ]
    }

    fn class(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(count) = self.by_class.get(class.wrapping_sub(1)) {
            count.fetch_add(1, Relaxed);
        }
    }
}

impl Times {
    fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 1);
        self.count.fetch_add(1, Relaxed);
        self.sum.fetch_add(micros, Relaxed);
        self.squares
            .fetch_add(micros.saturating_mul(micros), Relaxed);
        self.most.fetch_max(micros, Relaxed);
        // None is the greatest of all.
        if self.least.load(Relaxed).wrapping_sub(1) > micros {
            let _ = self.least.fetch_update(Relaxed, Relaxed, |least| {
                (least.wrapping_sub(1) > micros).then_some(micros + 1)
            });
        }
    }

    fn summary(&self) -> Summary {
        let read = |value: &AtomicU64| value.load(Relaxed) as f64;
        let (count, sum, squares) = (read(&self.count), read(&self.sum), read(&self.squares));
        let mean = if count > 0.0 { sum / count } else { 0.0 };
        let variance = if count > 0.0 {
            squares / count - mean * mean
        } else {
            0.0
        };
        let seconds = |micros: f64| micros / 1e6;
        Summary {
            count,
            sum: seconds(sum),
            least: seconds((read(&self.least) - 1.0).max(0.0)),
            most: seconds(read(&self.most)),
            mean: seconds(mean),
            deviation: seconds(variance.max(0.0).sqrt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn times_are_summed_up() {
        let times = Times::default();
        assert_eq!(times.summary().least, 0.0);
        for millis in [2, 4, 6] {
            times.add(Duration::from_millis(millis));
        }
        let summary = times.summary();
        assert_eq!((summary.count, summary.sum), (3.0, 0.012));
        assert_eq!((summary.least, summary.most), (0.002, 0.006));
        assert!((summary.mean - 0.004).abs() < 1e-9);
        assert!((summary.deviation - 0.001_633).abs() < 1e-6);
    }
}
