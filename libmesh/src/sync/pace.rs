//! When to send: the first change at once, what follows in batches, what is urgent never late.
//!
//! How long the next batch is collected follows from the rate of changes: 20 ms and 1.15 ms more for each change a
//! second, 250 ms at most. Ten changes a second do not wait, a hundred wait 135 ms at most, two hundred and more 250 ms:
//! every node of the mesh checks each batch, so a busy owner makes few.
//!
//! Pure: the time is an input.

use std::time::Duration;

use tokio::time::Instant;

const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(250);
/// More for each change a second.
const PER_RATE: Duration = Duration::from_micros(1_150);
/// Two batches are taken to be this far apart at least when the rate is worked out.
const INSTANT: Duration = Duration::from_millis(1);

/// Paces batches of changes by their rate.
#[derive(Debug)]
pub(super) struct Pace {
    sent: Option<Instant>,
    window: Duration,
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            sent: None,
            window: SHORTEST,
            due: None,
        }
    }

    /// Something changed.
    pub(super) fn changed(&mut self, urgent: bool, now: Instant) {
        let earliest = match self.sent {
            Some(sent) if !urgent => (sent + self.window).max(now),
            _ => now,
        };
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// When to send; `None` while there is nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// A batch of so many changes was sent.
    pub(super) fn sent(&mut self, now: Instant, changes: u64) {
        self.window = match self.sent {
            None => SHORTEST,
            Some(last) => {
                let apart = (now - last).max(INSTANT);
                let rate = changes as f64 / apart.as_secs_f64();
                let more = PER_RATE.as_secs_f64() * rate;
                (SHORTEST + Duration::from_secs_f64(more.min(LONGEST.as_secs_f64()))).min(LONGEST)
            }
        };
        self.sent = Some(now);
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits of the changes of a steady stream, and how many batches it took.
    fn stream(apart: Duration, count: u32) -> (Duration, Duration, u32) {
        let mut pace = Pace::new();
        let start = Instant::now();
        let (mut batches, mut longest, mut waiting) = (0, Duration::ZERO, Vec::new());
        let mut first = None;
        for n in 0..count {
            let at = start + apart * n;
            while let Some(due) = pace.due().filter(|due| *due <= at) {
                pace.sent(due, waiting.len() as u64);
                batches += 1;
                for since in waiting.drain(..) {
                    longest = longest.max(due - since);
                    first.get_or_insert(due - since);
                }
            }
            waiting.push(at);
            pace.changed(false, at);
        }
        (first.unwrap(), longest, batches)
    }

    #[test]
    fn the_first_goes_at_once_and_the_next_wait_by_their_rate() {
        for (rate, wait, batches) in [(2, 0, 20), (10, 0, 100), (100, 150, 80), (2_000, 250, 45)] {
            let apart = Duration::from_secs(1) / rate;
            let (first, longest, made) = stream(apart, 10 * rate + 1);
            assert_eq!(first, Duration::ZERO);
            assert!(
                longest <= Duration::from_millis(wait),
                "{rate}/s: {longest:?}"
            );
            assert!(made <= batches + 1, "{rate}/s: {made} batches");
        }
    }

    #[test]
    fn a_quiet_time_ends_the_waiting() {
        let mut pace = Pace::new();
        let now = Instant::now();
        pace.changed(false, now);
        pace.sent(now, 1);
        pace.changed(false, now);
        assert_eq!(pace.due(), Some(now + SHORTEST));
        pace.sent(now + SHORTEST, 1_000);
        let later = now + Duration::from_secs(1);
        pace.changed(false, later);
        assert_eq!(pace.due(), Some(later));
    }

    #[test]
    fn urgent_changes_never_wait() {
        let mut pace = Pace::new();
        let now = Instant::now();
        pace.changed(false, now);
        pace.sent(now, 1);
        pace.changed(false, now);
        assert!(pace.due().unwrap() > now);
        pace.changed(true, now);
        assert_eq!(pace.due(), Some(now));
        pace.changed(false, now);
        assert_eq!(pace.due(), Some(now), "and are not put off by others");
    }
}
