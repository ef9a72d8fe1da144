//! When to send: the first change at once, what follows in batches, what is urgent never late.
//!
//! Pure: the time is an input.

use std::time::Duration;

use tokio::time::Instant;

const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(250);

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

    /// It was sent. A batch right after the last one makes the next wait longer; a quiet time resets that.
    pub(super) fn sent(&mut self, now: Instant) {
        let quiet = self
            .sent
            .is_none_or(|sent| now - sent >= LONGEST + self.window);
        self.window = if quiet {
            SHORTEST
        } else {
            (self.window * 2).min(LONGEST)
        };
        self.sent = Some(now);
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_goes_at_once_and_the_next_wait_longer_and_longer() {
        let mut pace = Pace::new();
        let start = Instant::now();
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..6 {
            pace.changed(false, now);
            let due = pace.due().unwrap();
            waits.push((due - now).as_millis());
            now = due;
            pace.sent(now);
        }
        assert_eq!(waits, [0, 20, 40, 80, 160, 250]);
        assert_eq!(pace.due(), None);

        pace.changed(false, now + Duration::from_secs(1));
        assert_eq!(
            pace.due(),
            Some(now + Duration::from_secs(1)),
            "quiet: at once again"
        );
    }

    #[test]
    fn urgent_changes_never_wait() {
        let mut pace = Pace::new();
        let now = Instant::now();
        pace.changed(false, now);
        pace.sent(now);
        pace.changed(false, now);
        assert!(pace.due().unwrap() > now);
        pace.changed(true, now);
        assert_eq!(pace.due(), Some(now));
        pace.changed(false, now);
        assert_eq!(pace.due(), Some(now), "and are not put off by others");
    }
}
