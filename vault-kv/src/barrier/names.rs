//! The ordered index of names, in memory only.
//!
//! Storage sees HMACs, so it cannot answer LIST, `recurse` or "what changed under this prefix". This
//! index can: it is built at unseal from the sealed names, and wiped at seal. A name costs what is new in it
//! beside the one before, and some ten bytes ([`coded`]).
//!
//! Deleted names leave a tombstone, so that a waiter for a name or prefix learns of the deletion. There
//! are at most [`TOMBSTONES`]; when the oldest go (and after a restart) their place is taken by a
//! *floor*: "something may have been deleted up to this index". A floor wakes a waiter once too often,
//! never once too few.

use std::{collections::BTreeMap, ops::Bound};

use zeroize::{Zeroize, Zeroizing};

mod coded;

use coded::Coded;

/// Deletions that are remembered by name.
pub(crate) const TOMBSTONES: usize = 65_536;

/// The ledger indexes of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// Names in order, with their stamps.
pub(crate) struct NameIndex {
    names: Coded,
    tombstones: BTreeMap<Box<str>, u64>,
    tombstones_by_age: BTreeMap<(u64, Box<str>), ()>,
    floor: u64,
    limit: usize,
}

impl NameIndex {
    /// An empty index of a store whose head is `floor`.
    pub(crate) fn new(floor: u64) -> Self {
        Self::with_limit(floor, TOMBSTONES)
    }

    /// The index of a store with these names, each once, whose head is `floor`.
    pub(crate) fn of(floor: u64, mut names: Vec<(Box<str>, Stamp)>) -> Self {
        // Made of all at once, in order: far less than inserting them one by one.
        names.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut index = Self::new(floor);
        index.names = Coded::of(names.iter().map(|(name, stamp)| (&**name, *stamp)));
        names.into_iter().for_each(|(name, _)| wipe(name));
        index
    }

    /// What [`NameIndex::to_bytes`] has made, for a store whose head is `floor`; `None`: these bytes are none.
    pub(crate) fn from_bytes(floor: u64, bytes: &[u8]) -> Option<Self> {
        let mut index = Self::new(floor);
        index.names = Coded::from_bytes(bytes)?;
        Some(index)
    }

    /// The names with their stamps, behind `head`.
    pub(crate) fn to_bytes(&self, head: &[u8]) -> Zeroizing<Vec<u8>> {
        self.names.to_bytes(head)
    }

    /// Names that are there.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// A name that was gone before this index began.
    pub(crate) fn drop_name(&mut self, name: &str) {
        self.names.remove(name);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.len() == 0
    }

    fn with_limit(floor: u64, limit: usize) -> Self {
        Self {
            names: Coded::default(),
            tombstones: BTreeMap::new(),
            tombstones_by_age: BTreeMap::new(),
            floor,
            limit,
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Stamp> {
        self.names.get(name)
    }

    pub(crate) fn put(&mut self, name: &str, stamp: Stamp) {
        if !self.tombstones.is_empty() {
            self.bury_out(name);
        }
        self.names.put(name, stamp);
    }

    pub(crate) fn delete(&mut self, name: &str, index: u64) {
        if !self.names.remove(name) {
            return;
        }
        self.tombstones_by_age.insert((index, name.into()), ());
        self.tombstones.insert(name.into(), index);
        while self.tombstones.len() > self.limit {
            let Some(((age, name), ())) = self.tombstones_by_age.pop_first() else {
                break;
            };
            self.floor = self.floor.max(age);
            if let Some((buried, _)) = self.tombstones.remove_entry(&name) {
                wipe(buried);
            }
            wipe(name);
        }
    }

    fn bury_out(&mut self, name: &str) {
        let Some((name, index)) = self.tombstones.remove_entry(name) else {
            return;
        };
        let key = (index, name);
        self.tombstones_by_age.remove(&key);
        wipe(key.1);
    }

    /// The index of the last change to `name`, its deletion included.
    pub(crate) fn changed(&self, name: &str) -> u64 {
        match self.names.get(name) {
            Some(stamp) => stamp.modified,
            None => self.tombstones.get(name).copied().unwrap_or(self.floor),
        }
    }

    /// The index of the last change to a name that starts with `prefix`, deletions included.
    pub(crate) fn changed_under(&self, prefix: &str) -> u64 {
        let mut newest = self.floor;
        self.each_under(prefix, |_, stamp| newest = newest.max(stamp.modified));
        let dead = starting_with(&self.tombstones, prefix).map(|(_, index)| *index);
        dead.max().unwrap_or(0).max(newest)
    }

    /// Names that start with `prefix`, in order.
    pub(crate) fn each_under(&self, prefix: &str, mut visit: impl FnMut(&str, Stamp)) {
        let mut cursor = self.names.from(Bound::Included(prefix));
        while let Some(stamp) = cursor.next() {
            let name = cursor.name();
            if !name.starts_with(prefix) {
                return;
            }
            visit(name, stamp);
        }
    }

    /// The first `most` names that start with `prefix` and sort after `last`, in order.
    pub(crate) fn after(&self, prefix: &str, last: &str, most: usize) -> Vec<String> {
        let mut found = Vec::new();
        let mut cursor = self.names.from(Bound::Excluded(last.max(prefix)));
        while found.len() < most && cursor.next().is_some() && cursor.name().starts_with(prefix) {
            found.push(cursor.name().to_owned());
        }
        found
    }

    /// Names that start with `prefix`, cut after the first `separator` behind the prefix, each once.
    ///
    /// Whole folders are skipped over, so the cost is that of the answer, not of what is below it.
    pub(crate) fn level(&self, prefix: &str, separator: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut cursor = self.names.from(Bound::Included(prefix));
        while cursor.next().is_some() {
            let name = cursor.name();
            let Some(rest) = name.strip_prefix(prefix) else {
                break;
            };
            let folder = (!separator.is_empty())
                .then(|| rest.find(separator))
                .flatten()
                .map(|at| &name[..prefix.len() + at + separator.len()]);
            let Some(folder) = folder else {
                found.push(name.to_owned());
                continue;
            };
            let next = after_all_with(folder);
            found.push(folder.to_owned());
            match next {
                Some(next) => cursor = self.names.from(Bound::Included(&next)),
                None => break,
            }
        }
        found
    }
}

fn starting_with<'a, V>(
    map: &'a BTreeMap<Box<str>, V>,
    prefix: &'a str,
) -> impl Iterator<Item = (&'a Box<str>, &'a V)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(name, _)| name.starts_with(prefix))
}

/// The least string that sorts after everything that starts with `prefix`.
fn after_all_with(prefix: &str) -> Option<String> {
    let mut cut = prefix.to_owned();
    while let Some(last) = cut.pop() {
        let next = (last as u32 + 1..=char::MAX as u32).find_map(char::from_u32);
        if let Some(next) = next {
            cut.push(next);
            return Some(cut);
        }
    }
    None
}

fn wipe(name: Box<str>) {
    String::from(name).zeroize();
}

impl Drop for NameIndex {
    fn drop(&mut self) {
        std::mem::take(&mut self.tombstones)
            .into_keys()
            .for_each(wipe);
        std::mem::take(&mut self.tombstones_by_age)
            .into_keys()
            .for_each(|(_, name)| wipe(name));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn index(names: &[&str]) -> NameIndex {
        let mut index = NameIndex::new(0);
        for (at, name) in names.iter().enumerate() {
            let at = at as u64 + 1;
            index.put(
                name,
                Stamp {
                    created: at,
                    modified: at,
                },
            );
        }
        index
    }

    #[test]
    fn a_level_shows_folders_once() {
        let index = index(&[
            "a",
            "a/b",
            "a/c/d",
            "a/c/e",
            "a0",
            "b/\u{10ffff}/x",
            "b/\u{10ffff}/y",
        ]);
        assert_eq!(index.level("", "/"), ["a", "a/", "a0", "b/"]);
        assert_eq!(index.level("a/", "/"), ["a/b", "a/c/"]);
        assert_eq!(index.level("b/", "\u{10ffff}"), ["b/\u{10ffff}"]);
        assert_eq!(index.level("a", ""), ["a", "a/b", "a/c/d", "a/c/e", "a0"]);
        assert!(index.level("z", "/").is_empty());
    }

    #[test]
    fn a_prefix_is_read_in_pieces() {
        let index = index(&["a", "a/b", "a/c", "a/d", "b"]);
        let after = |last| index.after("a/", last, 9);
        assert_eq!(index.after("a/", "", 2), ["a/b", "a/c"]);
        assert_eq!(after(""), ["a/b", "a/c", "a/d"]);
        assert_eq!(after("a/b"), ["a/c", "a/d"]);
        assert!(after("a/d").is_empty() && after("z").is_empty());
    }

    #[test]
    fn deletions_are_seen_by_name_and_prefix() {
        let mut index = index(&["a/x", "a/y"]);
        assert_eq!(index.changed_under("a/"), 2);
        index.delete("a/x", 9);
        assert_eq!((index.changed("a/x"), index.changed_under("a/")), (9, 9));
        assert_eq!((index.changed("a/y"), index.changed("b")), (2, 0));
        index.put(
            "a/x",
            Stamp {
                created: 10,
                modified: 10,
            },
        );
        assert_eq!(index.changed("a/x"), 10);
    }

    #[test]
    fn forgotten_tombstones_raise_the_floor() {
        let mut index = NameIndex::with_limit(5, 2);
        for (at, name) in ["a", "b", "c"].iter().enumerate() {
            index.put(
                name,
                Stamp {
                    created: 6,
                    modified: 6,
                },
            );
            index.delete(name, 10 + at as u64);
        }
        assert_eq!(
            index.changed("a"),
            10,
            "the floor stands in for the forgotten one"
        );
        assert_eq!((index.changed("b"), index.changed("c")), (11, 12));
        assert_eq!(index.changed("never there"), 10);
        assert_eq!(index.tombstones.len(), index.tombstones_by_age.len());
    }

    fn name() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "/", "é", "\u{10ffff}"], 0..6)
            .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn behaves_as_an_ordered_map(
            steps in proptest::collection::vec((name(), any::<bool>()), 0..60),
            prefix in name(),
            separator in prop_oneof!["/", "a", "é", "\u{10ffff}", "", "/a"],
        ) {
            let mut index = NameIndex::with_limit(0, 8);
            let mut model = BTreeMap::new();
            let mut last = BTreeMap::new();
            for (at, (name, put)) in steps.iter().enumerate() {
                let at = at as u64 + 1;
                if *put {
                    let created = model.get(name).map_or(at, |stamp: &Stamp| stamp.created);
                    let stamp = Stamp { created, modified: at };
                    index.put(name, stamp);
                    model.insert(name.clone(), stamp);
                    last.insert(name.clone(), at);
                } else {
                    index.delete(name, at);
                    if model.remove(name).is_some() {
                        last.insert(name.clone(), at);
                    }
                }
            }
            prop_assert_eq!(index.names.len(), model.len());
            let under: Vec<_> = model.iter().filter(|(name, _)| name.starts_with(&prefix)).collect();
            let mut got = Vec::new();
            index.each_under(&prefix, |name, stamp| got.push((name.to_owned(), stamp)));
            let want: Vec<_> = under.iter().map(|(name, stamp)| ((*name).clone(), **stamp)).collect();
            prop_assert_eq!(got, want);
            let level: BTreeSet<String> = under.iter().map(|(name, _)| {
                let rest = &name[prefix.len()..];
                match rest.find(&separator) {
                    Some(at) if !separator.is_empty() => name[..prefix.len() + at + separator.len()].to_owned(),
                    _ => (*name).clone(),
                }
            }).collect();
            prop_assert_eq!(index.level(&prefix, &separator), level.into_iter().collect::<Vec<_>>());
            // A waiter is never woken too late: what the index says is at least the truth.
            for (name, at) in &last {
                prop_assert!(index.changed(name) >= *at);
            }
            let newest = last.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, at)| *at).max();
            prop_assert!(index.changed_under(&prefix) >= newest.unwrap_or(0));
        }
    }
}
