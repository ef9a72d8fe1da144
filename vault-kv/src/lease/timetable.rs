//! Which lease ends when, and with whom: what there is of leases and tokens in memory.
//!
//! One takes some 80 bytes: its own name, the number of its path ([`Places`]), and its slot's number in three ordered sets. None of
//! these is ever copied as a whole, so a million make nobody wait.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use super::places::{Full, PlaceId, Places};

/// What tells those of one path from each other: as random as it is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Name(pub [u8; 24]);

/// Ends, paths and owners.
pub(crate) struct Timetable {
    places: Arc<Places>,
    /// In pieces, which stay where they are.
    slots: Vec<Box<[Slot]>>,
    unused: Vec<u32>,
    by_name: BTreeSet<(u32, u32)>,
    by_time: BTreeSet<(u32, u32)>,
    /// By a hash of the owner.
    by_owner: BTreeSet<(u32, u32)>,
    hasher: RandomState,
}

#[derive(Clone, Copy)]
struct Slot {
    name: Name,
    place: PlaceId,
    /// Unix seconds, or [`NEVER`].
    at: u32,
    /// A hash, or [`NOBODY`].
    owner: u32,
}

/// One that is to end.
pub(crate) struct Due {
    pub path: Arc<str>,
    pub name: Name,
    at: u32,
}

/// Slots of a piece.
const PIECE: usize = 1024;
/// Nothing happens to it by itself.
const NEVER: u32 = u32::MAX;
const NOBODY: u32 = 0;

impl Timetable {
    pub fn new(places: Arc<Places>) -> Self {
        Self {
            places,
            slots: Vec::new(),
            unused: Vec::new(),
            by_name: BTreeSet::new(),
            by_time: BTreeSet::new(),
            by_owner: BTreeSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// Puts one in, or has it end at another time (unix seconds; `None`: not by itself); whether it ends before all others. With
    /// `always` whatever quotas say.
    ///
    /// # Errors
    /// There are as many of this path as there may be.
    pub fn insert(
        &mut self,
        path: &str,
        name: Name,
        at: Option<i64>,
        owner: Option<&impl Hash>,
        always: bool,
    ) -> Result<bool, Full> {
        let at = at.map_or(NEVER, seconds);
        let first = self.by_time.first().is_none_or(|(first, _)| at < *first);
        let (hash, slot) = match self.find(path, name) {
            (_, Some(slot)) => {
                let old = self.slot(slot).at;
                self.by_time.remove(&(old, slot));
                self.slot_mut(slot).at = at;
                self.note_time(slot, at);
                return Ok(first);
            }
            (hash, None) => {
                let place = self.places.enter(path, always)?;
                let owner = owner.map_or(NOBODY, |owner| self.short_hash(owner).max(1));
                let slot = Slot {
                    name,
                    place,
                    at,
                    owner,
                };
                (hash, self.place(slot))
            }
        };
        let owner = self.slot(slot).owner;
        self.by_name.insert((hash, slot));
        self.note_time(slot, at);
        if owner != NOBODY {
            self.by_owner.insert((owner, slot));
        }
        Ok(first)
    }

    #[cfg(test)]
    fn contains(&self, path: &str, name: Name) -> bool {
        self.find(path, name).1.is_some()
    }

    /// It is no more.
    pub fn remove(&mut self, path: &str, name: Name) {
        let (hash, Some(slot)) = self.find(path, name) else {
            return;
        };
        let Slot {
            place, at, owner, ..
        } = *self.slot(slot);
        self.by_name.remove(&(hash, slot));
        self.by_time.remove(&(at, slot));
        self.by_owner.remove(&(owner, slot));
        self.unused.push(slot);
        self.places.leave(place);
    }

    /// Nothing happens to it at the time that it was due any more; one that was given another time since keeps that.
    pub fn strike(&mut self, due: &Due) {
        if let (_, Some(slot)) = self.find(&due.path, due.name)
            && self.by_time.remove(&(due.at, slot))
        {
            self.slot_mut(slot).at = NEVER;
        }
    }

    /// Those of this owner, and perhaps of another one.
    pub fn of(&self, owner: &impl Hash) -> Vec<(Arc<str>, Name)> {
        let owner = self.short_hash(owner).max(1);
        let slots = self.by_owner.range((owner, 0)..=(owner, u32::MAX));
        slots
            .map(|(_, slot)| self.slot(*slot))
            .map(|slot| (self.places.path(slot.place), slot.name))
            .collect()
    }

    /// What has to end now.
    pub fn due(&self, now: i64, most: usize) -> Vec<Due> {
        let now = seconds(now);
        let due = self.by_time.iter().take_while(|(at, _)| *at <= now);
        due.take(most)
            .map(|(at, slot)| {
                let slot = self.slot(*slot);
                Due {
                    path: self.places.path(slot.place),
                    name: slot.name,
                    at: *at,
                }
            })
            .collect()
    }

    /// How many end by themselves.
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// When the first one ends that does so after `now`, unix seconds.
    pub fn next_after(&self, now: i64) -> Option<i64> {
        let after = (seconds(now) + 1, 0);
        self.by_time
            .range(after..)
            .next()
            .map(|(at, _)| (*at).into())
    }

    /// When the first one ends.
    pub fn next(&self) -> Option<i64> {
        self.by_time.first().map(|(at, _)| (*at).into())
    }

    fn note_time(&mut self, slot: u32, at: u32) {
        if at != NEVER {
            self.by_time.insert((at, slot));
        }
    }

    /// The hash of a name, and the slot that has it.
    fn find(&self, path: &str, name: Name) -> (u32, Option<u32>) {
        let hash = self.short_hash(&name);
        let Some(place) = self.places.find(path) else {
            return (hash, None);
        };
        let mut slots = self.by_name.range((hash, 0)..=(hash, u32::MAX));
        let found = slots.find(|(_, slot)| {
            let slot = self.slot(*slot);
            slot.name == name && slot.place == place
        });
        (hash, found.map(|(_, slot)| *slot))
    }

    /// Puts it where there is room.
    fn place(&mut self, slot: Slot) -> u32 {
        let at = self.unused.pop().unwrap_or_else(|| {
            let first = self.slots.len() * PIECE;
            self.slots.push(vec![slot; PIECE].into_boxed_slice());
            let first = u32::try_from(first).expect("memory ends before 2^32 leases");
            // The lowest one is taken first.
            self.unused.extend((first + 1..first + PIECE as u32).rev());
            first
        });
        *self.slot_mut(at) = slot;
        at
    }

    fn slot(&self, at: u32) -> &Slot {
        &self.slots[at as usize / PIECE][at as usize % PIECE]
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize / PIECE][at as usize % PIECE]
    }

    fn short_hash(&self, of: &impl Hash) -> u32 {
        self.hasher.hash_one(of) as u32
    }
}

/// What is out of reach ends at the edge: whoever looks then sees that its time has not come.
fn seconds(at: i64) -> u32 {
    u32::try_from(at.max(0)).unwrap_or(NEVER).min(NEVER - 1)
}

#[cfg(test)]
mod tests;
