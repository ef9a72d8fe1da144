//! Who waits for what. A change wakes those who wait for its name or for a prefix of it, and nobody else.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

/// Waiters by name and by prefix. Costs one map entry per name or prefix waited for, shared by all who
/// wait for the same; a change is looked up once, and once for each length that a prefix waited for has.
#[derive(Default)]
pub(super) struct Waiters {
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    names: BTreeMap<Box<str>, Arc<Place>>,
    prefixes: BTreeMap<Box<str>, Arc<Place>>,
    /// How many prefixes have a length.
    lengths: BTreeMap<usize, usize>,
}

#[derive(Default)]
struct Place {
    notify: Notify,
    /// Index of the last change since somebody waits here: those who are woken need not look for it.
    changed: AtomicU64,
}

/// A place to wait at; it is given up on drop.
pub(super) struct Waiter {
    places: Arc<Mutex<Places>>,
    key: Box<str>,
    prefix: bool,
    place: Arc<Place>,
}

impl Waiters {
    pub(super) fn on_name(&self, name: &str) -> Waiter {
        self.on(name, false)
    }

    pub(super) fn on_prefix(&self, prefix: &str) -> Waiter {
        self.on(prefix, true)
    }

    fn on(&self, key: &str, prefix: bool) -> Waiter {
        let place = self.places.lock().take(key, prefix);
        Waiter {
            places: Arc::clone(&self.places),
            key: key.into(),
            prefix,
            place,
        }
    }

    /// Wakes those whom changes of names, at these indexes, concern.
    pub(super) fn wake<'a>(&self, changes: impl Iterator<Item = (&'a str, u64)>) {
        let places = self.places.lock();
        if places.names.is_empty() && places.prefixes.is_empty() {
            return;
        }
        for (name, index) in changes {
            if let Some(place) = places.names.get(name) {
                place.wake(index);
            }
            for length in places.lengths.keys() {
                // None: beyond its end, or within a letter.
                if let Some(prefix) = name.get(..*length)
                    && let Some(place) = places.prefixes.get(prefix)
                {
                    place.wake(index);
                }
            }
        }
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        let places = self.places.lock();
        for place in places.names.values().chain(places.prefixes.values()) {
            place.notify.notify_waiters();
        }
    }
}

impl Place {
    fn wake(&self, index: u64) {
        self.changed.fetch_max(index, Ordering::Release);
        self.notify.notify_waiters();
    }
}

impl Places {
    fn take(&mut self, key: &str, prefix: bool) -> Arc<Place> {
        let map = match prefix {
            true => &mut self.prefixes,
            false => &mut self.names,
        };
        if let Some(place) = map.get(key) {
            return Arc::clone(place);
        }
        let place = Arc::default();
        map.insert(key.into(), Arc::clone(&place));
        if prefix {
            *self.lengths.entry(key.len()).or_default() += 1;
        }
        place
    }

    fn give_up(&mut self, key: &str, prefix: bool) {
        if !prefix {
            self.names.remove(key);
        } else if self.prefixes.remove(key).is_some()
            && let Some(count) = self.lengths.get_mut(&key.len())
        {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&key.len());
            }
        }
    }
}

impl Waiter {
    /// Ends with the next change after this call, or when all are woken.
    pub(super) fn notified(&self) -> Notified<'_> {
        self.place.notify.notified()
    }

    /// Index of the last change that this place was woken for; 0: of none.
    pub(super) fn changed(&self) -> u64 {
        self.place.changed.load(Ordering::Acquire)
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        // The map's and this one: nobody else waits here.
        if Arc::strong_count(&self.place) == 2 {
            places.give_up(&self.key, self.prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_reaches_its_name_and_its_prefixes() {
        let waiters = Waiters::default();
        let name = waiters.on_name("a/bé");
        let [root, folder, letter] = ["", "a/", "a/bé"].map(|prefix| waiters.on_prefix(prefix));
        let others = ["b", "a/bc", "a/bé/"].map(|prefix| waiters.on_prefix(prefix));
        waiters.wake([("a/bé", 7), ("a", 5)].into_iter());
        for woken in [&name, &root, &folder, &letter] {
            assert_eq!(woken.changed(), 7);
        }
        for other in &others {
            assert_eq!(other.changed(), 0, "{}", other.key);
        }
        let same = waiters.on_prefix("a/");
        drop(folder);
        assert_eq!(same.changed(), 7, "the place is shared");
        drop((name, root, letter, others, same));
        let places = waiters.places.lock();
        assert!(places.names.is_empty() && places.prefixes.is_empty() && places.lengths.is_empty());
    }
}
