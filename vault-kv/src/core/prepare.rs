//! What can be done for a change before its place in the ledger is known: nearly everything. Callers do
//! it on their own threads; the one writer only puts the parts in order.

use bytes::Bytes;

use super::{Change, META, Meta, Op, salted};
use crate::{
    barrier::{Barrier, sealed_length},
    store::{FoldKey, OpKind, Part},
};

/// A change whose names and values are sealed.
pub(super) struct Prepared {
    pub(super) meta: Part,
    pub(super) ops: Vec<PreparedOp>,
    pub(super) expect: Vec<(String, Option<u64>)>,
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
        let prepare = |op| match op {
            Op::Put { path, value } => {
                bytes += value.len();
                let key = barrier.fold_key(&path);
                PreparedOp {
                    kind: OpKind::Put,
                    part: Some(named_part(barrier, &key, &path, &value)),
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
                    part: Some(control_part(&value)),
                }
            }
        };
        Self {
            ops: change.ops.into_iter().map(prepare).collect(),
            meta: meta_part(barrier, &change.meta),
            expect: change.expect,
            bytes,
        }
    }
}

/// `salt ‖ u32 length ‖ sealed name ‖ sealed value`. The name is sealed for its fold key, the value for
/// its name: neither opens anywhere else.
fn named_part(barrier: &Barrier, key: &FoldKey, name: &str, value: &[u8]) -> Part {
    let name_length = sealed_length(name.len());
    let mut out = salted(4 + name_length + sealed_length(value.len()));
    let length = u32::try_from(name_length).expect("names are far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    barrier.seal(&key.0, name.as_bytes(), &mut out);
    barrier.seal(name.as_bytes(), value, &mut out);
    Part::new(Bytes::from(out))
}

/// A control record's bytes behind fresh salt.
fn control_part(bytes: &[u8]) -> Part {
    let mut out = salted(bytes.len());
    out.extend_from_slice(bytes);
    Part::new(Bytes::from(out))
}

/// The sealed meta of an entry.
fn meta_part(barrier: &Barrier, meta: &Meta) -> Part {
    let plain = postcard::to_stdvec(meta).expect("plain data always encodes");
    let mut out = salted(sealed_length(plain.len()));
    barrier.seal(META, &plain, &mut out);
    Part::new(Bytes::from(out))
}
