//! What is committed but not yet folded: reads look here first.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    super::{EntryOp, KeyHasher},
    Entry, FoldKey, Head, OpKind, SALT,
};

/// A sealed value longer than this stays in the log, and overlay and fold hold its place: written once, kept in memory
/// by the system's page cache and not twice over, and read with one `pread`.
pub(super) const INLINE: usize = 256;
/// What a change costs in memory beside its name and value, about.
const OVERHEAD: usize = 200;

/// A key of the fold: one byte for the kind, then the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct FoldId(pub(super) [u8; 33]);

impl Hash for FoldId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl FoldId {
    pub(super) const NAMED: u8 = 1;
    pub(super) const CONTROL: u8 = 2;

    pub(super) fn named(key: &FoldKey) -> Self {
        Self::new(Self::NAMED, key)
    }

    pub(super) fn control(key: &FoldKey) -> Self {
        Self::new(Self::CONTROL, key)
    }

    fn new(kind: u8, key: &FoldKey) -> Self {
        let mut id = [kind; 33];
        id[1..].copy_from_slice(&key.0);
        Self(id)
    }

    /// What an operation changes.
    pub(super) fn of(op: &EntryOp) -> Self {
        match op.kind {
            OpKind::Put | OpKind::Delete => Self::named(&op.key),
            OpKind::Control => Self::control(&op.key),
        }
    }

    pub(super) fn kind(&self) -> OpKind {
        if self.0[0] == Self::CONTROL {
            OpKind::Control
        } else {
            OpKind::Put
        }
    }

    pub(super) fn key(&self) -> FoldKey {
        let mut key = [0; 32];
        key.copy_from_slice(&self.0[1..]);
        FoldKey(key)
    }
}

/// A record as the fold holds it.
#[derive(Clone)]
pub(super) struct Folded {
    pub(super) created: u64,
    pub(super) modified: u64,
    /// Sealed; empty for a control record.
    pub(super) name: Bytes,
    pub(super) value: Value,
}

#[derive(Clone)]
pub(super) enum Value {
    Here(Bytes),
    InLog(Place),
}

/// Where a large value was when its record was written: in the segment that starts with `first`.
/// Compaction may have moved it since; the checksum tells, and the entry is looked up then.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) first: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) crc: u32,
}

impl Folded {
    /// What it costs in memory, about.
    pub(super) fn bytes(&self) -> usize {
        let value = match &self.value {
            Value::Here(value) => value.len(),
            Value::InLog(_) => 0,
        };
        OVERHEAD + self.name.len() + value
    }

    /// What operation `at` of `entry` makes of its key, and the key; `None` when its payload was taken
    /// out. `part` is the offset of the payload in the segment that starts with `first`.
    pub(super) fn of(entry: &Entry, at: usize, first: u64, part: u64) -> (FoldId, Option<Self>) {
        let op = &entry.ops[at];
        let content = part + SALT as u64;
        let folded = |name: Bytes, value| Self {
            created: op.created,
            modified: entry.index,
            name,
            value,
        };
        match op.kind {
            OpKind::Put => {
                let folded = op.name_and_value_bytes().map(|(name, value)| {
                    let value = place(value, first, content + 4 + name.len() as u64);
                    folded(Bytes::copy_from_slice(name), value)
                });
                (FoldId::named(&op.key), folded)
            }
            OpKind::Delete => (FoldId::named(&op.key), None),
            OpKind::Control => {
                let value = op.content_bytes();
                let value = value.map(|value| place(value, first, content));
                let folded = value.map(|value| folded(Bytes::new(), value));
                (FoldId::control(&op.key), folded)
            }
        }
    }
}

/// The newest state of every key that some row of entries touched; `None` is a deleted one.
#[derive(Clone, Default)]
pub(super) struct Changes {
    map: HashMap<FoldId, Option<Folded>, BuildHasherDefault<KeyHasher>>,
    pub(super) bytes: usize,
    /// The last of those entries.
    pub(super) head: Head,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.head.index == 0
    }

    pub(super) fn get(&self, id: &FoldId) -> Option<&Option<Folded>> {
        self.map.get(id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&FoldId, Option<&Folded>)> {
        self.map.iter().map(|(id, folded)| (id, folded.as_ref()))
    }

    /// Takes `entry` in; `parts` are the offsets of its parts in the segment that starts with `first`.
    pub(super) fn apply(&mut self, entry: &Entry, first: u64, parts: &[u64]) {
        for (at, part) in parts.iter().enumerate() {
            // Only a payload that a later entry makes needless was taken out.
            let (id, folded) = Folded::of(entry, at, first, *part);
            self.set(id, folded);
        }
        self.head = entry.head();
    }

    fn set(&mut self, id: FoldId, folded: Option<Folded>) {
        self.bytes += folded.as_ref().map_or(OVERHEAD, Folded::bytes);
        if let Some(old) = self.map.insert(id, folded) {
            self.bytes -= old.as_ref().map_or(OVERHEAD, Folded::bytes);
        }
    }
}

/// Small values are copied: a slice would keep the whole entry it is part of.
pub(super) fn place(value: &[u8], first: u64, offset: u64) -> Value {
    if value.len() > INLINE {
        return Value::InLog(Place {
            first,
            offset,
            length: value.len() as u32,
            crc: crc32fast::hash(value),
        });
    }
    Value::Here(Bytes::copy_from_slice(value))
}

/// Changes in two layers: those that come in, over those that are being folded.
#[derive(Clone, Default)]
pub(super) struct Overlay {
    pub(super) active: Changes,
    pub(super) folding: Option<Arc<Changes>>,
    /// The last entry that is in here or folded.
    pub(super) head: Head,
}

impl Overlay {
    /// See [`Changes::apply`].
    pub(super) fn apply(&mut self, entry: &Entry, first: u64, parts: &[u64]) {
        self.active.apply(entry, first, parts);
        self.head = self.active.head;
    }

    /// The state of `id`, or nothing when only the fold knows it.
    pub(super) fn get(&self, id: &FoldId) -> Option<Option<Folded>> {
        let folding = || self.folding.as_ref()?.get(id);
        self.active.get(id).or_else(folding).cloned()
    }

    pub(super) fn bytes(&self) -> usize {
        self.active.bytes + self.folding.as_ref().map_or(0, |changes| changes.bytes)
    }

    /// What is to be folded next: a layer whose folding failed before, or the one that came in.
    pub(super) fn cut(&mut self) -> Option<Arc<Changes>> {
        if self.folding.is_none() && !self.active.is_empty() {
            self.folding = Some(Arc::new(std::mem::take(&mut self.active)));
        }
        self.folding.clone()
    }
}
