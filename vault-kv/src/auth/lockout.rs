//! Who guesses is shut out for a while: a name of a login method that failed too often is refused whatever it shows.
//!
//! In memory only, and bounded: a restart forgets, and so does a flood of names, oldest first; each of them costs who sends it a
//! login. Names are counted in the one form that the method knows them by, so that no spelling gets tries of its own
//! (CVE-2025-6004).

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::http::ApiError;
use crate::request::Data;

/// Names that are counted at once.
const NAMES: usize = 65_536;

/// How many failures, and for how long. Times are seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockoutConfig {
    pub threshold: u32,
    pub duration: u64,
    /// Failures that long ago do not count any more.
    pub counter_reset: u64,
    pub disable: bool,
}

impl Default for LockoutConfig {
    fn default() -> Self {
        Self {
            threshold: 5,
            duration: 15 * 60,
            counter_reset: 15 * 60,
            disable: false,
        }
    }
}

impl LockoutConfig {
    /// Takes over the fields of `user_lockout_config`.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn update(&mut self, data: &Data) -> Result<(), ApiError> {
        if let Some(threshold) = data.int("lockout_threshold")? {
            self.threshold = u32::try_from(threshold)
                .ok()
                .filter(|threshold| *threshold > 0)
                .ok_or_else(|| ApiError::bad("lockout_threshold is 1 or more"))?;
        }
        for (name, seconds) in [
            ("lockout_duration", &mut self.duration),
            ("lockout_counter_reset_duration", &mut self.counter_reset),
        ] {
            if let Some(given) = data.duration(name)? {
                *seconds = given.as_secs();
            }
        }
        if let Some(disable) = data.flag("lockout_disable")? {
            self.disable = disable;
        }
        Ok(())
    }

    pub fn describe(&self) -> Value {
        json!({
            "lockout_threshold": self.threshold, "lockout_duration": self.duration,
            "lockout_counter_reset_duration": self.counter_reset, "lockout_disable": self.disable,
        })
    }
}

/// The failures of one name.
struct Failures {
    count: u32,
    /// Unix seconds.
    last: i64,
    locked_until: Option<i64>,
    /// When it can be forgotten.
    over: i64,
}

/// Failures by mount accessor and name.
pub(crate) struct Lockout {
    clock: Clock,
    names: Mutex<HashMap<(String, String), Failures>>,
}

impl Lockout {
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            names: Mutex::default(),
        }
    }

    pub fn is_locked(&self, accessor: &str, name: &str, config: &LockoutConfig) -> bool {
        let now = self.clock.unix();
        let key = (accessor.to_owned(), name.to_owned());
        let names = self.names.lock();
        let until = names.get(&key).and_then(|failures| failures.locked_until);
        !config.disable && until.is_some_and(|until| until > now)
    }

    pub fn failed(&self, accessor: &str, name: &str, config: &LockoutConfig) {
        if config.disable {
            return;
        }
        let now = self.clock.unix();
        let after = |seconds: u64| now.saturating_add_unsigned(seconds);
        let mut names = self.names.lock();
        let key = (accessor.to_owned(), name.to_owned());
        if names.len() >= NAMES && !names.contains_key(&key) {
            names.retain(|_, failures| failures.over > now);
            if names.len() >= NAMES {
                let oldest = names.iter().min_by_key(|(_, failures)| failures.over);
                let oldest = oldest.map(|(key, _)| key.clone());
                oldest.map(|key| names.remove(&key));
            }
        }
        let failures = names.entry(key).or_insert(Failures {
            count: 0,
            last: now,
            locked_until: None,
            over: now,
        });
        if failures.last.saturating_add_unsigned(config.counter_reset) <= now {
            failures.count = 0;
        }
        failures.count += 1;
        failures.last = now;
        failures.over = after(config.counter_reset);
        if failures.count >= config.threshold {
            failures.locked_until = Some(after(config.duration));
            failures.over = failures.over.max(after(config.duration));
            failures.count = 0;
        }
    }

    /// Forgets what was counted.
    pub fn forget(&self, accessor: &str, name: &str) {
        let key = (accessor.to_owned(), name.to_owned());
        self.names.lock().remove(&key);
    }

    /// The names that are locked now, by mount accessor.
    pub fn locked(&self) -> BTreeMap<String, Vec<String>> {
        let now = self.clock.unix();
        let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((accessor, name), failures) in self.names.lock().iter() {
            if failures.locked_until.is_some_and(|until| until > now) {
                out.entry(accessor.clone()).or_default().push(name.clone());
            }
        }
        out.values_mut().for_each(|names| names.sort());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_names_costs_bounded_memory_and_the_newest_count() {
        let (lockout, config) = (Lockout::new(Clock::default()), LockoutConfig::default());
        for number in 0..NAMES + 10 {
            lockout.failed("a", &number.to_string(), &config);
        }
        assert_eq!(lockout.names.lock().len(), NAMES);
        for _ in 0..config.threshold {
            lockout.failed("a", "late", &config);
        }
        assert!(lockout.is_locked("a", "late", &config));
        assert!(!lockout.is_locked("b", "late", &config));
        lockout.clock.advance(15 * 60);
        assert!(lockout.locked().is_empty());
    }
}
