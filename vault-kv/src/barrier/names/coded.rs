//! An ordered map from names to their stamps in little memory.
//!
//! Names are kept in order in blocks, each with only what it does not share with the one before it (front coding, as in
//! the dictionaries of search engines), and stamps as short numbers: a name costs what is new in it and some ten
//! bytes. Looking one up costs a search among the blocks and a walk over half a block, which lies in one piece of
//! memory; a change writes one block anew.
//!
//! ```text
//! block   = entry*            the first is coded against the block's key, which is not greater
//! entry   = shared length rest created age       numbers: seven bits a byte, the lowest first
//! ```

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use zeroize::{Zeroize, Zeroizing};

use super::Stamp;

/// Names in a block at most.
const FULL: u16 = 32;
/// Names in a block of many that are made at once.
const FILLED: u16 = 24;

/// Names in order, with their stamps. Wiped when dropped.
pub(super) struct Coded {
    /// By a name that is not greater than any in the block, and greater than all in the one before. There always is one
    /// with the empty name.
    blocks: BTreeMap<Box<str>, Block>,
    length: usize,
}

#[derive(Default)]
struct Block {
    bytes: Box<[u8]>,
    count: u16,
}

/// Where a name is, or would be.
enum Place {
    /// The entry, and where in it the stamp begins.
    Here {
        start: usize,
        stamp: usize,
        end: usize,
    },
    Between {
        /// Offset of the entry behind it, or the end.
        at: usize,
        /// Bytes in common with the name before it, and with the one behind it.
        before: usize,
        behind: usize,
    },
}

/// An entry as it is coded.
struct Entry<'a> {
    shared: usize,
    rest: &'a [u8],
    /// Offset of the stamp.
    stamp_at: usize,
    stamp: Stamp,
    /// Offset behind the entry.
    end: usize,
}

fn read_number(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_entry(out: &mut Vec<u8>, shared: usize, rest: &[&[u8]], stamp: Stamp) {
    push_number(out, shared as u64);
    push_number(out, rest.iter().map(|part| part.len() as u64).sum());
    rest.iter().for_each(|part| out.extend_from_slice(part));
    push_stamp(out, stamp);
}

fn push_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    push_number(out, stamp.created);
    push_number(out, stamp.modified.wrapping_sub(stamp.created));
}

fn entry(bytes: &[u8], mut at: usize) -> Option<Entry<'_>> {
    let shared = usize::try_from(read_number(bytes, &mut at)?).ok()?;
    let length = usize::try_from(read_number(bytes, &mut at)?).ok()?;
    let rest = bytes.get(at..at.checked_add(length)?)?;
    at += length;
    let stamp_at = at;
    let created = read_number(bytes, &mut at)?;
    let modified = created.wrapping_add(read_number(bytes, &mut at)?);
    Some(Entry {
        shared,
        rest,
        stamp_at,
        stamp: Stamp { created, modified },
        end: at,
    })
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Block {
    fn find(&self, key: &str, name: &str) -> Place {
        let name = name.as_bytes();
        let (mut at, mut before) = (0, common(key.as_bytes(), name));
        while let Some(entry) = entry(&self.bytes, at) {
            // Both lie behind the name before: the one that has more in common with it comes first.
            match entry.shared.cmp(&before) {
                Ordering::Greater => {}
                Ordering::Less => {
                    return Place::Between {
                        at,
                        before,
                        behind: entry.shared,
                    };
                }
                Ordering::Equal => {
                    let left = &name[before..];
                    let more = common(entry.rest, left);
                    match entry.rest[more..].cmp(&left[more..]) {
                        Ordering::Less => before += more,
                        Ordering::Equal => {
                            return Place::Here {
                                start: at,
                                stamp: entry.stamp_at,
                                end: entry.end,
                            };
                        }
                        Ordering::Greater => {
                            let behind = before + more;
                            return Place::Between { at, before, behind };
                        }
                    }
                }
            }
            at = entry.end;
        }
        Place::Between {
            at,
            before,
            behind: 0,
        }
    }

    /// Other bytes in the place of these.
    fn replace(&mut self, from: usize, to: usize, with: &[u8]) {
        let mut bytes = Vec::with_capacity(self.bytes.len() - (to - from) + with.len());
        for part in [&self.bytes[..from], with, &self.bytes[to..]] {
            bytes.extend_from_slice(part);
        }
        std::mem::replace(&mut self.bytes, bytes.into()).zeroize();
    }

    fn insert(&mut self, name: &str, stamp: Stamp, at: usize, before: usize, behind: usize) {
        let mut new = Vec::with_capacity(name.len() + 48);
        push_entry(&mut new, before, &[&name.as_bytes()[before..]], stamp);
        let mut to = at;
        if let Some(next) = entry(&self.bytes, at) {
            let rest = &next.rest[behind - next.shared..];
            push_entry(&mut new, behind, &[rest], next.stamp);
            to = next.end;
        }
        self.replace(at, to, &new);
        self.count += 1;
        new.zeroize();
    }

    fn remove(&mut self, start: usize, end: usize) {
        let mut new = Vec::new();
        let mut to = end;
        if let (Some(gone), Some(next)) = (entry(&self.bytes, start), entry(&self.bytes, end)) {
            let shared = gone.shared.min(next.shared);
            let of_gone = &gone.rest[..next.shared - shared];
            new.reserve(of_gone.len() + next.rest.len() + 40);
            push_entry(&mut new, shared, &[of_gone, next.rest], next.stamp);
            to = next.end;
        }
        self.replace(start, to, &new);
        self.count -= 1;
        new.zeroize();
    }

    /// Takes out all but the first names, of which it keeps so many; the first name of the rest, and the rest.
    fn split(&mut self, key: &str, keep: u16) -> (Box<str>, Block) {
        let mut walk = Walk::new(key, &self.bytes);
        for _ in 0..keep {
            walk.next();
        }
        let cut = walk.at;
        let first = walk.next();
        let name: Box<str> = walk.name().into();
        let mut bytes = Vec::with_capacity(self.bytes.len() - cut + 8);
        if let Some(stamp) = first {
            push_entry(&mut bytes, name.len(), &[], stamp);
        }
        bytes.extend_from_slice(&self.bytes[walk.at..]);
        let rest = Block {
            bytes: bytes.into(),
            count: self.count - keep,
        };
        let end = self.bytes.len();
        self.replace(cut, end, &[]);
        self.count = keep;
        (name, rest)
    }
}

/// Goes through the names of a block.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    name: Zeroizing<Vec<u8>>,
}

impl<'a> Walk<'a> {
    fn new(key: &str, bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            name: Zeroizing::new(key.into()),
        }
    }

    fn next(&mut self) -> Option<Stamp> {
        let entry = entry(self.bytes, self.at)?;
        self.name.truncate(entry.shared);
        self.name.extend_from_slice(entry.rest);
        self.at = entry.end;
        Some(entry.stamp)
    }

    fn name(&self) -> &str {
        std::str::from_utf8(&self.name).expect("what was put in was text")
    }
}

/// Goes through names in order.
pub(super) struct Cursor<'a> {
    blocks: btree_map::Range<'a, Box<str>, Block>,
    walk: Walk<'a>,
    /// The walk stands on a name that was not given yet.
    first: Option<Stamp>,
}

impl Cursor<'_> {
    /// Steps to the next name, which [`Cursor::name`] then gives.
    pub fn next(&mut self) -> Option<Stamp> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            if let Some(stamp) = self.walk.next() {
                return Some(stamp);
            }
            let (key, block) = self.blocks.next()?;
            self.walk = Walk::new(key, &block.bytes);
        }
    }

    pub fn name(&self) -> &str {
        self.walk.name()
    }
}

impl Default for Coded {
    fn default() -> Self {
        Self {
            blocks: BTreeMap::from([(Box::default(), Block::default())]),
            length: 0,
        }
    }
}

impl Coded {
    /// Of names in order, each once.
    pub fn of<'a>(names: impl Iterator<Item = (&'a str, Stamp)>) -> Self {
        let mut coded = Self::default();
        let mut blocks = Vec::new();
        let (mut key, mut last, mut block) = (String::new(), String::new(), Vec::new());
        let mut count = 0;
        for (name, stamp) in names {
            if count == FILLED {
                blocks.push((std::mem::take(&mut key).into(), filled(&mut block, count)));
                (key, last, count) = (name.to_owned(), name.to_owned(), 0);
            }
            let shared = common(last.as_bytes(), name.as_bytes());
            push_entry(&mut block, shared, &[&name.as_bytes()[shared..]], stamp);
            last.clear();
            last.push_str(name);
            count += 1;
            coded.length += 1;
        }
        last.zeroize();
        blocks.push((key.into(), filled(&mut block, count)));
        coded.blocks = blocks.into_iter().collect();
        coded
    }

    pub fn len(&self) -> usize {
        self.length
    }

    fn block(&self, name: &str) -> (&str, &Block) {
        let before = (Bound::Unbounded, Bound::Included(name));
        let (key, block) = self
            .blocks
            .range::<str, _>(before)
            .next_back()
            .expect("there is one with the empty name");
        (key, block)
    }

    pub fn get(&self, name: &str) -> Option<Stamp> {
        let (key, block) = self.block(name);
        match block.find(key, name) {
            Place::Here { start, .. } => entry(&block.bytes, start).map(|entry| entry.stamp),
            Place::Between { .. } => None,
        }
    }

    pub fn put(&mut self, name: &str, stamp: Stamp) {
        let before = (Bound::Unbounded, Bound::Included(name));
        let (key, block) = self
            .blocks
            .range_mut::<str, _>(before)
            .next_back()
            .expect("there is one with the empty name");
        let (at, before, behind) = match block.find(key, name) {
            Place::Here { stamp: at, end, .. } => {
                let mut new = Vec::with_capacity(20);
                push_stamp(&mut new, stamp);
                match new.len() == end - at {
                    true => block.bytes[at..end].copy_from_slice(&new),
                    false => block.replace(at, end, &new),
                }
                return;
            }
            Place::Between { at, before, behind } => (at, before, behind),
        };
        self.length += 1;
        if block.count < FULL {
            block.insert(name, stamp, at, before, behind);
            return;
        }
        // Names that come in order leave well filled blocks behind.
        let keep = match at == block.bytes.len() {
            true => FILLED,
            false => FULL / 2,
        };
        let (first, rest) = block.split(key, keep);
        self.blocks.insert(first, rest);
        self.length -= 1;
        self.put(name, stamp);
    }

    /// Whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = (Bound::Unbounded, Bound::Included(name));
        let Some((key, block)) = self.blocks.range_mut::<str, _>(before).next_back() else {
            return false;
        };
        let Place::Here { start, end, .. } = block.find(key, name) else {
            return false;
        };
        block.remove(start, end);
        self.length -= 1;
        if block.count == 0 && !key.is_empty() {
            let key = key.clone();
            if let Some((gone, _)) = self.blocks.remove_entry(&*key) {
                String::from(gone).zeroize();
            }
            String::from(key).zeroize();
        }
        true
    }

    /// Before the first name that is within the bound.
    pub fn from(&self, start: Bound<&str>) -> Cursor<'_> {
        let name = match start {
            Bound::Included(name) | Bound::Excluded(name) => name,
            Bound::Unbounded => "",
        };
        let (key, block) = self.block(name);
        let mut cursor = Cursor {
            blocks: self
                .blocks
                .range::<str, _>((Bound::Excluded(key), Bound::Unbounded)),
            walk: Walk::new(key, &block.bytes),
            first: None,
        };
        let before = |found: &str| match start {
            Bound::Included(name) => found < name,
            Bound::Excluded(name) => found <= name,
            Bound::Unbounded => false,
        };
        while let Some(stamp) = cursor.next() {
            if !before(cursor.name()) {
                cursor.first = Some(stamp);
                break;
            }
        }
        cursor
    }

    /// All of it as bytes, behind `head`.
    pub fn to_bytes(&self, head: &[u8]) -> Zeroizing<Vec<u8>> {
        let blocks = self.blocks.iter();
        let lengths = blocks.map(|(key, block)| key.len() + block.bytes.len() + 16);
        let length: usize = lengths.sum();
        let mut out = Zeroizing::new(Vec::with_capacity(head.len() + length));
        out.extend_from_slice(head);
        for (key, block) in &self.blocks {
            push_number(&mut out, key.len() as u64);
            out.extend_from_slice(key.as_bytes());
            push_number(&mut out, block.count.into());
            push_number(&mut out, block.bytes.len() as u64);
            out.extend_from_slice(&block.bytes);
        }
        out
    }

    /// The reverse; `None`: these are none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut blocks: Vec<(Box<str>, Block)> = Vec::new();
        let mut last: Option<Zeroizing<Vec<u8>>> = None;
        let (mut at, mut names) = (0, 0);
        while at < bytes.len() {
            let part = |length: u64, at: &mut usize| {
                let end = at.checked_add(usize::try_from(length).ok()?)?;
                let part = bytes.get(*at..end)?;
                *at = end;
                Some(part)
            };
            let length = read_number(bytes, &mut at)?;
            let key = std::str::from_utf8(part(length, &mut at)?).ok()?;
            let count = u16::try_from(read_number(bytes, &mut at)?).ok()?;
            let length = read_number(bytes, &mut at)?;
            let block = Block {
                bytes: part(length, &mut at)?.into(),
                count,
            };
            if last.is_some_and(|last| last.as_slice() >= key.as_bytes()) {
                return None;
            }
            last = Some(block.last(key)?);
            names += usize::from(count);
            blocks.push((key.into(), block));
        }
        let starts = blocks.first().is_some_and(|(key, _)| key.is_empty());
        starts.then(|| Self {
            blocks: blocks.into_iter().collect(),
            length: names,
        })
    }
}

impl Block {
    /// Its last name, or its key if it has none; `None`: it does not hold as many names as it says, or they do not
    /// ascend from its key on or are no text.
    fn last(&self, key: &str) -> Option<Zeroizing<Vec<u8>>> {
        let mut walk = Walk::new(key, &self.bytes);
        let mut count = 0;
        while walk.at < self.bytes.len() {
            let Entry { shared, rest, .. } = entry(&self.bytes, walk.at)?;
            let ascends = match (walk.name.get(shared..)?.first(), rest.first()) {
                (Some(old), Some(new)) => new > old,
                (None, Some(_)) => true,
                // The first may be the key itself.
                (old, None) => old.is_none() && count == 0,
            };
            if !ascends {
                return None;
            }
            walk.next();
            std::str::from_utf8(&walk.name).ok()?;
            count += 1;
        }
        (count == self.count).then_some(walk.name)
    }
}

fn filled(bytes: &mut Vec<u8>, count: u16) -> Block {
    let block = Block {
        bytes: bytes.as_slice().into(),
        count,
    };
    bytes.zeroize();
    block
}

impl Drop for Coded {
    fn drop(&mut self) {
        for (key, mut block) in std::mem::take(&mut self.blocks) {
            String::from(key).zeroize();
            block.bytes.zeroize();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "logical/f3/metadata/",
            "logical/f3/value/1/",
            "k[0-9]{0,3}",
            "é",
            "è",
            "/",
            "\u{10ffff}"
        ];
        proptest::collection::vec(part, 0..4).prop_map(|parts| parts.concat())
    }

    fn contents(coded: &Coded, start: Bound<&str>) -> Vec<(String, Stamp)> {
        let mut found = Vec::new();
        let mut cursor = coded.from(start);
        while let Some(stamp) = cursor.next() {
            found.push((cursor.name().to_owned(), stamp));
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn behaves_as_an_ordered_map(
            steps in proptest::collection::vec((name(), 0_u8..4, any::<u64>()), 0..400),
            start in name(),
        ) {
            let (mut coded, mut model) = (Coded::default(), BTreeMap::new());
            for (name, what, number) in steps {
                match what {
                    0 => prop_assert_eq!(coded.remove(&name), model.remove(&name).is_some()),
                    _ => {
                        let stamp = Stamp { created: number / 3, modified: number };
                        coded.put(&name, stamp);
                        model.insert(name.clone(), stamp);
                    }
                }
                prop_assert_eq!(coded.get(&name), model.get(&name).copied());
            }
            prop_assert_eq!(coded.len(), model.len());
            for bound in [Bound::Unbounded, Bound::Included(&*start), Bound::Excluded(&*start)] {
                let want: Vec<_> = model
                    .range::<str, _>((bound, Bound::Unbounded))
                    .map(|(name, stamp)| (name.clone(), *stamp))
                    .collect();
                prop_assert_eq!(contents(&coded, bound), want);
            }
            let at_once = Coded::of(model.iter().map(|(name, stamp)| (&**name, *stamp)));
            for coded in [&coded, &at_once] {
                let again = Coded::from_bytes(&coded.to_bytes(b"head")[4..]).unwrap();
                prop_assert_eq!(again.len(), model.len());
                let all: Vec<_> = model.iter().map(|(name, stamp)| (name.clone(), *stamp)).collect();
                prop_assert_eq!(contents(&again, Bound::Unbounded), all);
            }
        }

        #[test]
        fn reading_outside_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(coded) = Coded::from_bytes(&bytes) {
                contents(&coded, Bound::Unbounded);
            }
        }
    }

    #[test]
    fn a_name_costs_little_more_than_what_is_new_in_it() {
        let mut coded = Coded::default();
        for n in 0..10_000_u64 {
            let number = n * 7919 % 10_000;
            let name = format!("logical/8f14e45f-ceea-467f-a8d8-0a6c3e5b7d21/metadata/k{number}");
            coded.put(
                &name,
                Stamp {
                    created: n,
                    modified: n,
                },
            );
        }
        let bytes = coded.to_bytes(&[]).len();
        assert!(bytes < 10_000 * 20, "{bytes}");
    }
}
