//! Which payloads of a ledger are still of use.
//!
//! The state of a ledger is made by the last entry that touched each key. Everything else is history:
//! kept for a time when a value was overwritten, and not at all when its record was deleted (that is what
//! *destroy* means) or when it is a control record (an old wrapped key would keep old shares working).
//!
//! Costs about 60 bytes of memory for every key that was ever written.

use std::collections::HashMap;

use super::{Entry, EntryOp, FoldKey, OpKind};

/// The last change and the last deletion of every key.
#[derive(Default)]
pub(crate) struct Liveness {
    keys: HashMap<[u8; 16], Seen>,
}

#[derive(Default)]
struct Seen {
    changed: u64,
    deleted: u64,
}

impl Liveness {
    /// Takes in the next entry.
    pub(crate) fn add(&mut self, entry: &Entry) {
        for op in &entry.ops {
            let seen = self.keys.entry(slot(op.kind, &op.key)).or_default();
            seen.changed = entry.index;
            if op.kind == OpKind::Delete {
                seen.deleted = entry.index;
            }
        }
    }

    /// Whether operation `at` of `entry` made the state of its key, as far as entries were added.
    pub(crate) fn is_live(&self, entry: &Entry, at: usize) -> bool {
        let op = &entry.ops[at];
        op.kind != OpKind::Delete
            && later_in(entry, at).next().is_none()
            && self.seen(op).is_none_or(|seen| seen.changed <= entry.index)
    }

    /// Takes out what nobody needs of `entry`; values that were overwritten stay from `keep_from` on.
    /// Returns how many payloads that were.
    pub(crate) fn redact(&self, entry: &mut Entry, keep_from: u64) -> u64 {
        let mut redacted = 0;
        for at in 0..entry.ops.len() {
            let needless = match entry.ops[at].kind {
                OpKind::Delete => false,
                OpKind::Control => !self.is_live(entry, at),
                OpKind::Put => {
                    self.is_deleted(entry, at)
                        || (entry.index < keep_from && !self.is_live(entry, at))
                }
            };
            if needless && entry.redact(at) {
                redacted += 1;
            }
        }
        redacted
    }

    fn is_deleted(&self, entry: &Entry, at: usize) -> bool {
        let later = self.seen(&entry.ops[at]);
        later.is_some_and(|seen| seen.deleted > entry.index)
            || later_in(entry, at).any(|op| op.kind == OpKind::Delete)
    }

    fn seen(&self, op: &EntryOp) -> Option<&Seen> {
        self.keys.get(&slot(op.kind, &op.key))
    }
}

/// Operations on the same key behind `at` in the same entry.
fn later_in(entry: &Entry, at: usize) -> impl Iterator<Item = &EntryOp> {
    let op = &entry.ops[at];
    let control = op.kind == OpKind::Control;
    entry.ops[at + 1..]
        .iter()
        .filter(move |later| later.key == op.key && (later.kind == OpKind::Control) == control)
}

/// Named keys are HMACs and control names are short, so half of the bytes tell them apart.
fn slot(kind: OpKind, key: &FoldKey) -> [u8; 16] {
    let mut slot = [0; 16];
    for (at, byte) in key.0.iter().enumerate() {
        slot[at % 16] ^= byte.rotate_left(u32::from(at >= 16));
    }
    if kind == OpKind::Control {
        slot[15] ^= 0xff;
    }
    slot
}
