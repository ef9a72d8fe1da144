//! Which lease ends when, and with whom: what there is of leases in memory.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::Owner;

/// Ends and owners of leases, and those that nobody can end.
#[derive(Default)]
pub(super) struct Timetable {
    by_time: BTreeSet<(i64, Arc<str>)>,
    /// By a hash of the owner, which is far shorter than the owner.
    by_owner: BTreeSet<(u64, Arc<str>)>,
    /// How often taking back failed, where it did.
    attempts: BTreeMap<Arc<str>, u8>,
    irrevocable: BTreeMap<Arc<str>, String>,
    hasher: RandomState,
}

impl Timetable {
    /// Whether it ends before all others.
    pub fn insert(&mut self, id: &str, at: i64, owner: &Owner) -> bool {
        let id: Arc<str> = id.into();
        let first = self.by_time.first().is_none_or(|(first, _)| at < *first);
        if *owner != Owner::Nobody {
            let owner = self.hasher.hash_one(owner);
            self.by_owner.insert((owner, Arc::clone(&id)));
        }
        self.by_time.insert((at, id));
        first
    }

    pub fn remove(&mut self, id: &str, at: i64, owner: &Owner) {
        let id: Arc<str> = id.into();
        self.by_owner
            .remove(&(self.hasher.hash_one(owner), Arc::clone(&id)));
        self.by_time.remove(&(at, id));
    }

    /// It has ended.
    pub fn forget(&mut self, id: &str) {
        self.attempts.remove(id);
        self.irrevocable.remove(id);
    }

    /// Nothing happens to it at that time any more.
    pub fn strike(&mut self, id: &str, at: i64) {
        self.by_time.remove(&(at, id.into()));
    }

    /// Leases of this owner, and perhaps of another one.
    pub fn of(&self, owner: &Owner) -> Vec<String> {
        let owner = self.hasher.hash_one(owner);
        self.by_owner
            .range((owner, Arc::from(""))..)
            .take_while(|(hash, _)| *hash == owner)
            .map(|(_, id)| id.to_string())
            .collect()
    }

    /// What has to end now, and since when.
    pub fn due(&self, now: i64, most: usize) -> Vec<(i64, String)> {
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now);
        due.take(most)
            .map(|(at, id)| (*at, id.to_string()))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// When the first one ends.
    pub fn next(&self) -> Option<i64> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Taking back failed; how often so far.
    pub fn failed(&mut self, id: &str) -> u8 {
        let attempts = self.attempts.entry(id.into()).or_default();
        *attempts += 1;
        *attempts
    }

    /// Nobody tries any more.
    pub fn give_up(&mut self, id: &str, why: String) {
        self.attempts.remove(id);
        self.irrevocable.insert(id.into(), why);
    }

    pub fn irrevocable(&self) -> Vec<(String, String)> {
        let all = self.irrevocable.iter();
        all.map(|(id, why)| (id.to_string(), why.clone())).collect()
    }
}
