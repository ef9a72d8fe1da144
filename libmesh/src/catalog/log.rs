//! The algebra of node logs, and its owner's side: how one writer's map reaches everybody, whatever the network does to
//! the messages.
//!
//! A node's records are a map of opaque keys to opaque bodies. Its owner numbers every change ([`NodeLog`]): `head` is
//! the number of the last one, and each key remembers the number of its last change. A [`Delta`] `(from, to]` holds
//! every key whose last change has a number in that range. From this follows the one rule of a [`Replica`](super::replica::Replica): *what the
//! owner last changed at or before `head` is exactly so in its map*. A delta with `from <= head` keeps the rule (what
//! is numbered up to `head` is known already and skipped); one with a gap before it does not, and is answered by a
//! pull. So messages may be lost, repeated and reordered, and a replica needs no tombstones. (A key that the owner
//! changed twice may be missing at the number of its first change, when that came in one of several messages made
//! after the second.)
//!
//! The owner keeps tombstones, so that a delta can say what went. When it drops old ones, `gc` rises to the newest
//! dropped number; who is behind `gc` gets the whole map: a *snapshot*, the message with `from = 0`, which replaces
//! what the replica has. A large snapshot comes in parts that are staged until all are there.
//!
//! Versions count within an *epoch*. An owner that lost its numbers (its disk, or the last seconds before a crash)
//! takes a greater epoch; the old epoch's view stays until the new one's snapshot is complete.
//!
//! A replica keeps the signed messages that made it, and so can pass them on. `base` bounds that: when the owner has
//! sent deltas worth more than its whole map, everybody gets a snapshot next, and forgets the deltas.
//!
//! Costs: `put`, `remove` O(log n); `since` O(changes); `apply` O(items · log n); a snapshot O(n).
//! No clock, no signatures, no records here.

use std::collections::BTreeMap;

use bytes::Bytes;
use ring::digest;

use crate::model::NodeId;

/// Deltas worth this much may pile up before the first snapshot.
const REBASE_BYTES_MIN: usize = 64 * 1024;
/// What a message costs everybody beside its items: signature, header, what a replica needs to keep it.
const MESSAGE_BYTES: usize = 240;

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Opaque here.
    pub key: Bytes,
    /// Number of this change.
    pub version: u64,
    /// Opaque here; `None` = the key is gone.
    pub body: Option<Bytes>,
}

/// What an item is worth in a message.
fn size(key: &Bytes, body: Option<&Bytes>) -> usize {
    // Two lengths and the version, as varints.
    key.len() + body.map_or(0, Bytes::len) + 8
}

/// What a message carries: see the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// Whose records.
    pub node: NodeId,
    /// Which numbering.
    pub epoch: u64,
    /// Everything after this number; 0 = everything there is, replacing what was.
    pub from: u64,
    /// Up to this number.
    pub to: u64,
    /// Which part of a snapshot, from 0.
    pub part: u32,
    /// How many parts the snapshot has; 1 for a delta.
    pub parts: u32,
    /// The changes.
    pub items: Vec<Item>,
}

/// Where a log stands. Orders by epoch, then head.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct Head {
    /// Which numbering.
    pub epoch: u64,
    /// Number of the last change.
    pub head: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    version: u64,
    /// `None` = tombstone.
    body: Option<Bytes>,
    /// When it changed: unix µs.
    at: u64,
}

/// The owner's side.
#[derive(Debug, Clone)]
pub struct NodeLog {
    node: NodeId,
    at: Head,
    gc: u64,
    base: u64,
    entries: BTreeMap<Bytes, Entry>,
    versions: BTreeMap<u64, Bytes>,
    content: Content,
    live: usize,
    live_bytes: usize,
    since_base: usize,
    /// Up to here others were told, at least one of them.
    told: u64,
}

impl NodeLog {
    /// An empty log.
    pub fn new(node: NodeId, epoch: u64) -> Self {
        Self {
            node,
            at: Head { epoch, head: 0 },
            gc: 0,
            base: 0,
            entries: BTreeMap::new(),
            versions: BTreeMap::new(),
            content: Content::default(),
            live: 0,
            live_bytes: 0,
            since_base: 0,
            told: 0,
        }
    }

    /// Where it stands.
    pub fn head(&self) -> Head {
        self.at
    }

    /// Numbers up to this one may be missing deletions.
    pub fn gc(&self) -> u64 {
        self.gc
    }

    /// Hash of the live records; equal to a replica's at the same [`Head`].
    pub fn content(&self) -> u128 {
        self.content.0
    }

    /// Whether a key has a record.
    pub fn has(&self, key: &Bytes) -> bool {
        self.entries
            .get(key)
            .is_some_and(|entry| entry.body.is_some())
    }

    /// How many live records there are.
    pub fn records(&self) -> usize {
        self.live
    }

    /// What they are worth, in bytes.
    pub fn bytes(&self) -> usize {
        self.live_bytes
    }

    /// The live records, by key.
    pub fn live(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.entries
            .iter()
            .filter_map(|(key, entry)| Some((key, entry.body.as_ref()?)))
    }

    /// Sets a record; the number of the change, or `None` when it was there already.
    pub fn put(&mut self, key: Bytes, body: Bytes, now: u64) -> Option<u64> {
        if self
            .entries
            .get(&key)
            .is_some_and(|known| known.body.as_ref() == Some(&body))
        {
            return None;
        }
        Some(self.write(key, Some(body), now))
    }

    /// Takes a record away; the number of the change, or `None` when there was none.
    pub fn remove(&mut self, key: &Bytes, now: u64) -> Option<u64> {
        self.entries.get(key)?.body.as_ref()?;
        Some(self.write(key.clone(), None, now))
    }

    fn write(&mut self, key: Bytes, body: Option<Bytes>, now: u64) -> u64 {
        self.at.head += 1;
        let version = self.at.head;
        let size = size(&key, body.as_ref());
        self.since_base += size;
        if let Some(body) = &body {
            self.content.add(&key, version, body);
            self.live_bytes += size;
            self.live += 1;
        }
        if let Some(old) = self.entries.insert(
            key.clone(),
            Entry {
                version,
                body,
                at: now,
            },
        ) {
            self.versions.remove(&old.version);
            if let Some(body) = &old.body {
                self.content.remove(&key, old.version, body);
                self.live_bytes -= self::size(&key, Some(body));
                self.live -= 1;
            }
        }
        self.versions.insert(version, key);
        if self.since_base > REBASE_BYTES_MIN.max(self.live_bytes) {
            self.base = version;
            self.since_base = 0;
        }
        version
    }

    /// Notes that the changes so far were made a message: it counts for `base`, once.
    pub fn tell(&mut self) {
        if self.told < self.at.head {
            self.told = self.at.head;
            self.since_base += MESSAGE_BYTES;
        }
    }

    /// The keys that were taken away after `since` and not set again; `None` when that is not remembered any more. Costs
    /// one look at each key that changed since.
    pub fn gone_since(&self, since: Head) -> Option<impl Iterator<Item = &Bytes>> {
        let remembered = since.epoch == self.at.epoch && since.head >= self.gc;
        let gone = |key: &&Bytes| {
            let entry = self.entries.get(*key);
            entry.is_some_and(|entry| entry.body.is_none())
        };
        remembered.then(|| {
            let later = self.versions.range(since.head.saturating_add(1)..);
            later.map(|(_, key)| key).filter(gone)
        })
    }

    /// Drops tombstones from before `before` (unix µs); `gc` rises over them.
    pub fn collect(&mut self, before: u64) {
        let old: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.body.is_none() && entry.at < before)
            .map(|(key, entry)| (key.clone(), entry.version))
            .collect();
        for (key, version) in old {
            self.entries.remove(&key);
            self.versions.remove(&version);
            self.gc = self.gc.max(version);
        }
    }

    /// Goes on in a greater epoch: everybody takes the whole map anew.
    pub fn renew(&mut self, epoch: u64) {
        debug_assert!(epoch > self.at.epoch, "epochs only grow");
        self.at.epoch = epoch;
    }

    /// What someone at `have` lacks, in messages whose items are worth about `part_bytes` each. Empty when nothing.
    pub fn since(&self, have: Head, part_bytes: usize) -> Vec<Delta> {
        if have >= self.at || self.at.head == 0 {
            return Vec::new();
        }
        if self.needs_snapshot(have) {
            self.snapshot(part_bytes)
        } else {
            self.deltas(have.head, part_bytes)
        }
    }

    /// Whether someone at `have` can only be helped with the whole map.
    pub fn needs_snapshot(&self, have: Head) -> bool {
        have.epoch != self.at.epoch || have.head < self.gc.max(self.base).max(1)
    }

    fn snapshot(&self, part_bytes: usize) -> Vec<Delta> {
        let live = self.entries.iter().filter_map(|(key, entry)| {
            Some(Item {
                key: key.clone(),
                version: entry.version,
                body: Some(entry.body.clone()?),
            })
        });
        let groups = in_groups(live, part_bytes);
        let parts = groups.len() as u32;
        let message = |(part, items)| Delta {
            node: self.node,
            epoch: self.at.epoch,
            from: 0,
            to: self.at.head,
            part: part as u32,
            parts,
            items,
        };
        groups.into_iter().enumerate().map(message).collect()
    }

    fn deltas(&self, mut from: u64, part_bytes: usize) -> Vec<Delta> {
        let changes = self.versions.range(from + 1..).map(|(version, key)| Item {
            key: key.clone(),
            version: *version,
            body: self.entries.get(key).and_then(|entry| entry.body.clone()),
        });
        let mut messages = Vec::new();
        for items in in_groups(changes, part_bytes) {
            let to = items.last().map_or(self.at.head, |last| last.version);
            messages.push(Delta {
                node: self.node,
                epoch: self.at.epoch,
                from,
                to,
                part: 0,
                parts: 1,
                items,
            });
            from = to;
        }
        // The last change is always the last item, so the chain ends at the head.
        debug_assert_eq!(from, self.at.head);
        messages
    }

    /// All there is to remember, tombstones too: for [`restore`](Self::restore).
    pub(super) fn entries(&self) -> impl Iterator<Item = (Item, u64)> {
        self.entries.iter().map(|(key, entry)| {
            (
                Item {
                    key: key.clone(),
                    version: entry.version,
                    body: entry.body.clone(),
                },
                entry.at,
            )
        })
    }

    /// A log as it was; who is behind its head gets a snapshot first.
    pub(super) fn restore(
        node: NodeId,
        at: Head,
        entries: impl Iterator<Item = (Item, u64)>,
    ) -> Self {
        let mut log = Self::new(node, at.epoch);
        for (item, changed) in entries {
            if let Some(body) = &item.body {
                log.content.add(&item.key, item.version, body);
                log.live_bytes += size(&item.key, Some(body));
                log.live += 1;
            }
            log.at.head = log.at.head.max(item.version);
            log.versions.insert(item.version, item.key.clone());
            log.entries.insert(
                item.key,
                Entry {
                    version: item.version,
                    body: item.body,
                    at: changed,
                },
            );
        }
        log.at.head = log.at.head.max(at.head);
        (log.gc, log.base) = (log.at.head, log.at.head);
        log
    }
}

/// Cuts items into groups worth about `bytes` each; one empty group when there are none.
fn in_groups(items: impl Iterator<Item = Item>, bytes: usize) -> Vec<Vec<Item>> {
    let mut groups = vec![Vec::new()];
    let mut size = 0;
    for item in items {
        let more = self::size(&item.key, item.body.as_ref());
        if size > 0 && size + more > bytes {
            groups.push(Vec::new());
            size = 0;
        }
        size += more;
        groups
            .last_mut()
            .expect("starts with one group and only grows")
            .push(item);
    }
    groups
}

/// Hash of a set of items that does not depend on their order: the sum of the items' hashes. It finds a replica that
/// silently differs; it is no protection from its owner, who signs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content(pub(super) u128);

impl Content {
    pub(super) fn add(&mut self, key: &[u8], version: u64, body: &[u8]) {
        self.0 = self.0.wrapping_add(Self::hash(key, version, body));
    }

    pub(super) fn remove(&mut self, key: &[u8], version: u64, body: &[u8]) {
        self.0 = self.0.wrapping_sub(Self::hash(key, version, body));
    }

    fn hash(key: &[u8], version: u64, body: &[u8]) -> u128 {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(&(key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(&version.to_le_bytes());
        hash.update(body);
        let hash = hash.finish();
        let (first, _) = hash
            .as_ref()
            .split_first_chunk()
            .expect("SHA-256 has 32 bytes");
        u128::from_le_bytes(*first)
    }
}
