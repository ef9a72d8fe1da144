//! Where leases were made, how many there are at each such path, and how many there may be.
//!
//! A lease counts for the quota with the longest path that it is at or below, and for no other: so a mount can be given more than the
//! rest, or less, without either taking from the other. Counting is done where leases come and go; nobody walks over
//! them. Paths are few beside leases, and only they are looked at when quotas change.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::quota::is_below;

/// There are as many leases as there may be.
#[derive(Debug, PartialEq)]
pub(crate) struct Full;

/// A path that has leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlaceId(u32);

pub(crate) struct Places {
    inner: Mutex<Inner>,
    /// How many still read what leases there are.
    reading: watch::Sender<usize>,
}

#[derive(Default)]
struct Inner {
    by_path: HashMap<Arc<str>, PlaceId>,
    places: Vec<Place>,
    unused: Vec<PlaceId>,
    /// The longest path first.
    limits: Vec<Limit>,
}

struct Place {
    path: Arc<str>,
    leases: u64,
    limit: Option<usize>,
}

struct Limit {
    path: String,
    most: u64,
    leases: u64,
}

/// Somebody reads what leases there are, until this is dropped.
pub(crate) struct Reading(Arc<Places>);

impl Default for Places {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            reading: watch::Sender::new(0),
        }
    }
}

impl Places {
    /// Until it is dropped nobody can tell how many leases there are.
    pub fn reading(self: &Arc<Self>) -> Reading {
        self.reading.send_modify(|reading| *reading += 1);
        Reading(Arc::clone(self))
    }

    /// Waits until it is known how many leases there are, if there is a quota for `path`.
    pub async fn counted(&self, path: &str) {
        if self.inner.lock().limit_of(path).is_some() {
            // It fails only without a sender, which is here.
            let _ = self.reading.subscribe().wait_for(|left| *left == 0).await;
        }
    }

    /// Whether there may be one more lease of `path`.
    pub fn has_room(&self, path: &str) -> bool {
        let inner = self.inner.lock();
        let limit = inner.limit_of(path);
        limit.is_none_or(|at| inner.limits[at].has_room())
    }

    /// One more lease of `path`; with `always` whatever quotas say.
    ///
    /// # Errors
    /// There are as many as there may be.
    pub fn enter(&self, path: &str, always: bool) -> Result<PlaceId, Full> {
        let inner = &mut *self.inner.lock();
        let known = inner.by_path.get(path).copied();
        let limit = match known {
            Some(id) => inner.places[id.0 as usize].limit,
            None => inner.limit_of(path),
        };
        if let Some(at) = limit {
            let limit = &mut inner.limits[at];
            if !always && !limit.has_room() {
                return Err(Full);
            }
            limit.leases += 1;
        }
        let id = known.unwrap_or_else(|| inner.add(path, limit));
        inner.places[id.0 as usize].leases += 1;
        Ok(id)
    }

    /// One less.
    pub fn leave(&self, id: PlaceId) {
        let inner = &mut *self.inner.lock();
        let place = &mut inner.places[id.0 as usize];
        place.leases -= 1;
        if let Some(at) = place.limit {
            inner.limits[at].leases -= 1;
        }
        if place.leases == 0 {
            let path = std::mem::take(&mut place.path);
            inner.by_path.remove(&path);
            inner.unused.push(id);
        }
    }

    pub fn find(&self, path: &str) -> Option<PlaceId> {
        self.inner.lock().by_path.get(path).copied()
    }

    pub fn path(&self, id: PlaceId) -> Arc<str> {
        Arc::clone(&self.inner.lock().places[id.0 as usize].path)
    }

    /// The quotas from now on: paths, each once, and how many leases there may be.
    pub fn limit(&self, quotas: impl Iterator<Item = (String, u64)>) {
        let inner = &mut *self.inner.lock();
        inner.limits = quotas
            .map(|(path, most)| Limit {
                path,
                most,
                leases: 0,
            })
            .collect();
        inner
            .limits
            .sort_by_key(|limit| std::cmp::Reverse(limit.path.len()));
        for at in 0..inner.places.len() {
            let limit = inner.limit_of(&inner.places[at].path);
            let place = &mut inner.places[at];
            place.limit = limit;
            if let Some(limit) = limit {
                inner.limits[limit].leases += place.leases;
            }
        }
    }

    /// How many leases count for the quota of this path.
    pub fn counted_at(&self, path: &str) -> u64 {
        let inner = self.inner.lock();
        let limit = inner.limits.iter().find(|limit| limit.path == path);
        limit.map_or(0, |limit| limit.leases)
    }
}

impl Inner {
    fn limit_of(&self, path: &str) -> Option<usize> {
        self.limits
            .iter()
            .position(|limit| is_below(path, &limit.path))
    }

    fn add(&mut self, path: &str, limit: Option<usize>) -> PlaceId {
        let place = Place {
            path: path.into(),
            leases: 0,
            limit,
        };
        let path = Arc::clone(&place.path);
        let id = match self.unused.pop() {
            Some(id) => {
                self.places[id.0 as usize] = place;
                id
            }
            None => {
                self.places.push(place);
                PlaceId(u32::try_from(self.places.len() - 1).expect("far fewer than 2^32 paths"))
            }
        };
        self.by_path.insert(path, id);
        id
    }
}

impl Limit {
    fn has_room(&self) -> bool {
        self.leases < self.most
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.reading.send_modify(|reading| *reading -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_for_the_longest_path() {
        let places = Places::default();
        let quotas = |all: &[(&str, u64)]| {
            places.limit(all.iter().map(|(path, most)| ((*path).to_owned(), *most)));
        };
        let before = places.enter("ssh/creds/a", false).unwrap();
        quotas(&[("", 2), ("ssh", 3)]);
        assert_eq!((places.counted_at(""), places.counted_at("ssh")), (0, 1));
        let all: Vec<_> = (0..2)
            .map(|_| places.enter("auth/token/create", false).unwrap())
            .collect();
        assert_eq!(places.enter("auth/token/create", false), Err(Full));
        assert_eq!(places.enter("sshd/creds/a", false), Err(Full));
        assert!(!places.has_room("auth/x") && places.has_room("ssh/creds/b"));
        places.enter("auth/token/create", true).unwrap();
        assert_eq!(places.counted_at(""), 3);
        places.leave(all[0]);
        places.leave(all[1]);
        places.enter("auth/token/create", false).unwrap();
        places.leave(before);
        assert_eq!(places.counted_at("ssh"), 0);
        assert_eq!(places.find("ssh/creds/a"), None);
        // Without the shorter one's quota nobody counts what is not below the other.
        quotas(&[("ssh", 0)]);
        assert_eq!(places.enter("ssh/creds/a", false), Err(Full));
        places.enter("auth/token/create", false).unwrap();
        quotas(&[("", 10)]);
        assert_eq!(places.counted_at(""), 3);
    }

    #[test]
    fn a_quota_for_a_start_of_names() {
        let places = Places::default();
        places.limit([("auth/userpass/login/ci-*".to_owned(), 1)].into_iter());
        places.enter("auth/userpass/login/ci-1", false).unwrap();
        assert_eq!(places.enter("auth/userpass/login/ci-2", false), Err(Full));
        places.enter("auth/userpass/login/ann", false).unwrap();
    }
}
