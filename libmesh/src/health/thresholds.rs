//! From single results to a status: fail fast, pass slow.

use std::time::Duration;

use crate::model::Health;

/// How many results in a row it takes, and how long a recovery. A count of 0 means the same as 1.
///
/// A check that has not failed since it began is believed at its first good result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Good ones (passing or warning) before the status follows. Default 2.
    pub success_before_passing: u32,
    /// Failures before the status becomes warning; `None` = as for critical, the default.
    pub failures_before_warning: Option<u32>,
    /// Failures before the status becomes critical. Default 1.
    pub failures_before_critical: u32,
    /// Since the first good result after a failure, before the status follows. Default 5 s.
    pub settle: Duration,
}

impl Thresholds {
    /// Every result is the status at once, as Consul has it.
    pub const IMMEDIATE: Self = Self {
        success_before_passing: 1,
        failures_before_warning: None,
        failures_before_critical: 1,
        settle: Duration::ZERO,
    };
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            success_before_passing: 2,
            settle: Duration::from_secs(5),
            ..Self::IMMEDIATE
        }
    }
}

/// Counts results. Starts saturated: the first result counts at once.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) status: Health,
    successes: u32,
    failures: u32,
    /// The first good result of the present run of them; `ZERO` at the start.
    good_since: Option<Duration>,
}

impl Fold {
    pub(super) fn new(status: Health) -> Self {
        Self {
            status,
            successes: u32::MAX,
            failures: u32::MAX,
            good_since: Some(Duration::ZERO),
        }
    }

    /// Takes a result in; the status may follow.
    pub(super) fn take(&mut self, thresholds: &Thresholds, now: Duration, result: Health) {
        if result.is_usable() {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
            let since = *self.good_since.get_or_insert(now);
            if self.successes >= thresholds.success_before_passing
                && now.saturating_sub(since) >= thresholds.settle
            {
                self.status = result;
            }
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
            self.good_since = None;
            let critical = thresholds.failures_before_critical;
            if self.failures >= critical {
                self.status = Health::Critical;
            } else if self.failures >= thresholds.failures_before_warning.unwrap_or(critical) {
                // A failure makes nothing better.
                self.status = self.status.max(Health::Warning);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Critical, Passing, Warning};

    /// One result each `step` seconds.
    fn run(thresholds: Thresholds, step: u64, results: &[Health]) -> Vec<Health> {
        let mut fold = Fold::new(Critical);
        let mut now = Duration::from_secs(1000);
        let mut take = |result: &Health| {
            now += Duration::from_secs(step);
            fold.take(&thresholds, now, *result);
            fold.status
        };
        results.iter().map(&mut take).collect()
    }

    #[test]
    fn without_thresholds_every_result_is_the_status() {
        let results = [Passing, Critical, Warning, Passing, Critical];
        assert_eq!(run(Thresholds::IMMEDIATE, 1, &results), results);
    }

    #[test]
    fn the_first_result_counts_at_once_the_others_in_a_row() {
        let thresholds = Thresholds {
            success_before_passing: 2,
            failures_before_warning: Some(2),
            failures_before_critical: 3,
            settle: Duration::ZERO,
        };
        assert_eq!(
            run(thresholds, 1, &[Passing, Critical, Critical, Critical]),
            [Passing, Passing, Warning, Critical]
        );
        assert_eq!(
            run(
                thresholds,
                1,
                &[Critical, Passing, Critical, Passing, Warning, Passing]
            ),
            [Critical, Critical, Critical, Critical, Warning, Passing]
        );
        let no_warning = Thresholds {
            failures_before_warning: None,
            ..thresholds
        };
        assert_eq!(
            run(no_warning, 1, &[Passing, Critical, Critical, Critical]),
            [Passing, Passing, Passing, Critical]
        );
    }

    #[test]
    fn by_default_it_fails_fast_and_passes_slow() {
        let results = [Passing, Critical, Passing, Passing, Passing, Passing];
        assert_eq!(
            run(Thresholds::default(), 2, &results),
            [Passing, Critical, Critical, Critical, Critical, Passing],
            "two in a row, and 5 s"
        );
        assert_eq!(
            run(Thresholds::default(), 10, &results),
            [Passing, Critical, Critical, Passing, Passing, Passing]
        );
    }

    #[test]
    fn a_failure_never_makes_the_status_better() {
        let thresholds = Thresholds {
            success_before_passing: 3,
            failures_before_warning: Some(1),
            failures_before_critical: 3,
            settle: Duration::ZERO,
        };
        assert_eq!(
            run(thresholds, 1, &[Critical, Passing, Critical]),
            [Critical, Critical, Critical]
        );
    }
}
