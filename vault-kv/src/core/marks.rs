//! Whether a name has changed since, for those who keep what they read of it.
//!
//! Names share so many marks by their hash. A mark is the ledger index of the last change to one of its names, so
//! one that is as it was says that none has changed; one that is not says little.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering},
};

/// So many that what is read often seldom shares one with what is written often: 128 KiB.
const MARKS: usize = 16_384;
/// No entry has this index.
const SEALED: u64 = u64::MAX;

pub(super) struct Marks {
    hasher: RandomState,
    marks: Box<[AtomicU64]>,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            marks: (0..MARKS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Marks {
    /// `None`: sealed.
    pub fn of(&self, name: &str) -> Option<u64> {
        let mark = self.mark(name).load(Ordering::Acquire);
        (mark != SEALED).then_some(mark)
    }

    /// `name` was changed at `index`, and readers get to see it.
    pub fn changed(&self, name: &str, index: u64) {
        // A late writer does not undo the seal.
        self.mark(name).fetch_max(index, Ordering::AcqRel);
    }

    /// What was kept is worth nothing any more.
    pub fn seal(&self) {
        for mark in &self.marks {
            mark.store(SEALED, Ordering::Release);
        }
    }

    fn mark(&self, name: &str) -> &AtomicU64 {
        let slot = self.hasher.hash_one(name) % MARKS as u64;
        &self.marks[slot as usize]
    }
}
