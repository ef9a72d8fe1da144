//! Readiness as guards: a part that has to come up first holds one, and drops it when it is up.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// What the process still waits for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

/// A part that is not up yet.
pub struct Pending {
    readiness: Readiness,
    part: &'static str,
}

impl Readiness {
    /// Ready, until a part is named.
    pub fn new() -> Self {
        Self::default()
    }

    /// Not ready until the guard is dropped.
    pub fn wait_for(&self, part: &'static str) -> Pending {
        *self.pending.lock().entry(part).or_default() += 1;
        Pending {
            readiness: self.clone(),
            part,
        }
    }

    /// The parts that are not up yet; empty means ready.
    pub fn pending(&self) -> Vec<&'static str> {
        self.pending.lock().keys().copied().collect()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut pending = self.readiness.pending.lock();
        if let Some(count) = pending.get_mut(self.part) {
            *count -= 1;
            if *count == 0 {
                pending.remove(self.part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_guard_is_gone() {
        let readiness = Readiness::new();
        let (first, second) = (
            readiness.wait_for("upstream"),
            readiness.wait_for("upstream"),
        );
        let identity = readiness.wait_for("identity");
        assert_eq!(readiness.pending(), ["identity", "upstream"]);
        drop(identity);
        drop(first);
        assert_eq!(readiness.pending(), ["upstream"]);
        drop(second);
        assert!(readiness.pending().is_empty());
    }
}
