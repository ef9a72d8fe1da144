//! What can be done for a change before its place in the ledger is known: nearly everything. Callers do
//! it on their own threads; the one writer only puts the parts in order.

use bytes::Bytes;

use super::{Change, META, Meta, Op};
use crate::{
    barrier::{Barrier, NONCE, Randomness, sealed_length},
    store::{FoldKey, OpKind, Part, SALT},
};

/// A change whose names and values are sealed.
pub(super) struct Prepared {
    pub(super) meta: Part,
    pub(super) ops: Vec<PreparedOp>,
    /// Records that must still be at this index, by fold key and name.
    pub(super) expect: Vec<(FoldKey, String, Option<u64>)>,
    /// Bytes of the values, for the size of a group.
    pub(super) bytes: usize,
}

pub(super) struct PreparedOp {
    pub(super) kind: OpKind,
    /// Empty for a control record.
    pub(super) path: String,
    pub(super) key: FoldKey,
    /// `None`: the record is taken away.
    pub(super) part: Option<Part>,
}

impl Prepared {
    pub(super) fn new(barrier: &Barrier, change: Change) -> Self {
        let mut bytes = 0;
        let random = &mut Randomness::of(random_bytes(&change.ops));
        let meta = meta_part(barrier, random, &change.meta);
        let prepare = |op| match op {
            Op::Put { path, value } => {
                bytes += value.len();
                let key = barrier.fold_key(&path);
                PreparedOp {
                    kind: OpKind::Put,
                    part: Some(named_part(barrier, random, &key, &path, &value)),
                    path,
                    key,
                }
            }
            Op::Delete { path } => PreparedOp {
                kind: OpKind::Delete,
                key: barrier.fold_key(&path),
                path,
                part: None,
            },
            Op::Control { name, value } => {
                bytes += value.len();
                PreparedOp {
                    kind: OpKind::Control,
                    key: FoldKey::control(name),
                    path: String::new(),
                    part: Some(control_part(random, &value)),
                }
            }
        };
        let expect = |(path, index): (String, _)| (barrier.fold_key(&path), path, index);
        Self {
            ops: change.ops.into_iter().map(prepare).collect(),
            meta,
            expect: change.expect.into_iter().map(expect).collect(),
            bytes,
        }
    }
}

/// `salt ‖ u32 length ‖ sealed name ‖ sealed value`. The name is sealed for its fold key, the value for
/// its name: neither opens anywhere else.
fn named_part(
    barrier: &Barrier,
    random: &mut Randomness,
    key: &FoldKey,
    name: &str,
    value: &[u8],
) -> Part {
    let name_length = sealed_length(name.len());
    let mut out = salted(random, 4 + name_length + sealed_length(value.len()));
    let length = u32::try_from(name_length).expect("names are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    barrier.seal(random, &key.0, name.as_bytes(), &mut out);
    barrier.seal(random, name.as_bytes(), value, &mut out);
    Part::new(Bytes::from(out))
}

/// A control record's bytes behind fresh salt.
fn control_part(random: &mut Randomness, bytes: &[u8]) -> Part {
    let mut out = salted(random, bytes.len());
    out.extend_from_slice(bytes);
    Part::new(Bytes::from(out))
}

/// The sealed meta of an entry.
fn meta_part(barrier: &Barrier, random: &mut Randomness, meta: &Meta) -> Part {
    let plain = postcard::to_stdvec(meta).expect("plain data always encodes");
    let mut out = salted(random, sealed_length(plain.len()));
    barrier.seal(random, META, &plain, &mut out);
    Part::new(Bytes::from(out))
}

/// Random bytes that a change with its meta takes.
fn random_bytes(ops: &[Op]) -> usize {
    let of = |op: &Op| match op {
        Op::Put { .. } => SALT + 2 * NONCE,
        Op::Control { .. } => SALT,
        Op::Delete { .. } => 0,
    };
    SALT + NONCE + ops.iter().map(of).sum::<usize>()
}

/// Salt, with room for a part's bytes behind it.
fn salted(random: &mut Randomness, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(SALT + capacity);
    out.extend_from_slice(&random.take::<SALT>());
    out
}
