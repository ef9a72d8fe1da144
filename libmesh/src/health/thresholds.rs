//! From single results to a status.

use crate::model::Health;

/// How many results in a row it takes. 0 means the same as 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Good ones (passing or warning) before the status follows.
    pub success_before_passing: u32,
    /// Failures before the status becomes warning; `None` = as for critical.
    pub failures_before_warning: Option<u32>,
    /// Failures before the status becomes critical.
    pub failures_before_critical: u32,
}

/// Counts results. Starts saturated: the first result counts at once.
#[derive(Debug)]
pub(super) struct Fold {
    thresholds: Thresholds,
    status: Health,
    successes: u32,
    failures: u32,
}

impl Fold {
    pub(super) fn new(thresholds: Thresholds, status: Health) -> Self {
        Self {
            thresholds,
            status,
            successes: thresholds.success_before_passing,
            failures: thresholds.failures_before_critical,
        }
    }

    /// Takes a result in; the status that follows.
    pub(super) fn take(&mut self, result: Health) -> Health {
        let Thresholds {
            success_before_passing,
            failures_before_warning,
            failures_before_critical,
        } = self.thresholds;
        if result.is_usable() {
            self.successes = self.successes.saturating_add(1);
            self.failures = 0;
            if self.successes >= success_before_passing {
                self.status = result;
            }
        } else {
            self.failures = self.failures.saturating_add(1);
            self.successes = 0;
            if self.failures >= failures_before_critical {
                self.status = Health::Critical;
            } else if self.failures >= failures_before_warning.unwrap_or(failures_before_critical) {
                self.status = Health::Warning;
            }
        }
        self.status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Critical, Passing, Warning};

    fn run(thresholds: Thresholds, results: &[Health]) -> Vec<Health> {
        let mut fold = Fold::new(thresholds, Critical);
        results.iter().map(|result| fold.take(*result)).collect()
    }

    #[test]
    fn without_thresholds_every_result_is_the_status() {
        let results = [Passing, Critical, Warning, Passing, Critical];
        assert_eq!(run(Thresholds::default(), &results), results);
    }

    #[test]
    fn the_first_result_counts_at_once_the_others_in_a_row() {
        let thresholds = Thresholds {
            success_before_passing: 2,
            failures_before_warning: Some(2),
            failures_before_critical: 3,
        };
        assert_eq!(
            run(thresholds, &[Passing, Critical, Critical, Critical]),
            [Passing, Passing, Warning, Critical]
        );
        assert_eq!(
            run(
                thresholds,
                &[Critical, Passing, Critical, Passing, Warning, Passing]
            ),
            [Critical, Critical, Critical, Critical, Warning, Passing]
        );
        let no_warning = Thresholds {
            failures_before_warning: None,
            ..thresholds
        };
        assert_eq!(
            run(no_warning, &[Passing, Critical, Critical, Critical]),
            [Passing, Passing, Passing, Critical]
        );
    }
}
