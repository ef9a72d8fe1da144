//! Flap damping: a check that changes its mind too often is not believed for a while when it says that all is well.
//!
//! As in BGP (RFC 2439): every change between fit and unfit costs a penalty that decays by half every minute. Above one
//! bound the check is suppressed, below a lower one it is used again. Suppressed means *critical*, so that damping
//! never hides a failure; it only delays trust, by at most three half-lives after the last change.

use std::time::Duration;

/// Cost of one change.
const FLIP: f32 = 1000.0;
/// Above this it is suppressed: the fourth change within about half a minute.
const SUPPRESS: f32 = 3000.0;
/// Below this it is used again.
const REUSE: f32 = 1000.0;
/// What bounds the delay: three half-lives above [`REUSE`].
const MOST: f32 = 8000.0;
/// In which the penalty halves.
const HALF_LIFE: Duration = Duration::from_secs(60);

/// The penalty of one check.
#[derive(Debug, Default)]
pub(super) struct Damping {
    penalty: f32,
    /// When `penalty` was that.
    at: Duration,
    suppressed: bool,
}

impl Damping {
    /// It changed between fit and unfit.
    pub(super) fn flip(&mut self, now: Duration) {
        self.decay(now);
        self.penalty = (self.penalty + FLIP).min(MOST);
        self.suppressed |= self.penalty > SUPPRESS;
    }

    /// Whether it is not believed now.
    pub(super) fn suppresses(&mut self, now: Duration) -> bool {
        if self.suppressed && self.reuse_at().is_some_and(|at| at <= now) {
            self.decay(now);
            self.suppressed = false;
        }
        self.suppressed
    }

    /// When it will be believed again, if it does not change any more.
    pub(super) fn reuse_at(&self) -> Option<Duration> {
        let half_lives = (self.penalty / REUSE).log2().max(0.0);
        self.suppressed
            .then(|| self.at + HALF_LIFE.mul_f32(half_lives))
    }

    fn decay(&mut self, now: Duration) {
        let half_lives = now.saturating_sub(self.at).as_secs_f32() / HALF_LIFE.as_secs_f32();
        self.penalty *= (-half_lives).exp2();
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(1_700_000_000 + n)
    }

    #[test]
    fn four_quick_changes_suppress_for_two_minutes() {
        let mut damping = Damping::default();
        for at in 0..4 {
            assert!(!damping.suppresses(seconds(at)));
            damping.flip(seconds(at));
        }
        assert!(damping.suppresses(seconds(4)));
        let reuse = damping.reuse_at().unwrap();
        assert!(
            (seconds(115)..seconds(123)).contains(&reuse),
            "{:?}",
            reuse - seconds(0)
        );
        assert!(damping.suppresses(reuse - Duration::from_secs(1)));
        assert!(!damping.suppresses(reuse));
        assert_eq!(damping.reuse_at(), None);
    }

    #[test]
    fn slow_changes_never_suppress() {
        let mut damping = Damping::default();
        for n in 0..100 {
            damping.flip(seconds(40 * n));
            assert!(!damping.suppresses(seconds(40 * n)), "{n}");
        }
    }

    #[test]
    fn however_often_it_changed_it_is_believed_three_minutes_after_the_last_time() {
        let mut damping = Damping::default();
        for at in 0..1000 {
            damping.flip(seconds(at));
        }
        assert!(damping.suppresses(seconds(999 + 179)));
        assert!(!damping.suppresses(seconds(999 + 181)));
    }
}
