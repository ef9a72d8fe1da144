//! Who waits for what. A change wakes those who wait for its name or for a prefix of it, and nobody else.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Waiters by name and by prefix. Costs one map entry per name or prefix waited for, shared by all who
/// wait for the same.
#[derive(Default)]
pub(super) struct Waiters {
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    names: BTreeMap<Box<str>, Arc<Notify>>,
    prefixes: BTreeMap<Box<str>, Arc<Notify>>,
}

/// A place to wait at; it is given up on drop.
pub(super) struct Waiter {
    places: Arc<Mutex<Places>>,
    key: Box<str>,
    prefix: bool,
    notify: Arc<Notify>,
}

impl Waiters {
    pub(super) fn on_name(&self, name: &str) -> Waiter {
        self.on(name, false)
    }

    pub(super) fn on_prefix(&self, prefix: &str) -> Waiter {
        self.on(prefix, true)
    }

    fn on(&self, key: &str, prefix: bool) -> Waiter {
        let mut places = self.places.lock();
        let notify = Arc::clone(places.map(prefix).entry(key.into()).or_default());
        drop(places);
        Waiter {
            places: Arc::clone(&self.places),
            key: key.into(),
            prefix,
            notify,
        }
    }

    /// Wakes those whom changes of `names` concern.
    pub(super) fn wake<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let places = self.places.lock();
        if places.names.is_empty() && places.prefixes.is_empty() {
            return;
        }
        for name in names {
            if let Some(notify) = places.names.get(name) {
                notify.notify_waiters();
            }
            if places.prefixes.is_empty() {
                continue;
            }
            for end in (0..=name.len()).filter(|end| name.is_char_boundary(*end)) {
                if let Some(notify) = places.prefixes.get(&name[..end]) {
                    notify.notify_waiters();
                }
            }
        }
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        let places = self.places.lock();
        for notify in places.names.values().chain(places.prefixes.values()) {
            notify.notify_waiters();
        }
    }
}

impl Places {
    fn map(&mut self, prefix: bool) -> &mut BTreeMap<Box<str>, Arc<Notify>> {
        if prefix {
            &mut self.prefixes
        } else {
            &mut self.names
        }
    }
}

impl Deref for Waiter {
    type Target = Notify;

    fn deref(&self) -> &Notify {
        &self.notify
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        // The map's and this one: nobody else waits here.
        if Arc::strong_count(&self.notify) == 2 {
            places.map(self.prefix).remove(&self.key);
        }
    }
}
