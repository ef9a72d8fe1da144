//! One ledger entry and its bytes.
//!
//! An entry has three parts. The *header* is in the clear: index, writer epoch, hash of the previous
//! entry, and for the meta and every operation its length and commitment. The *meta* and the *payload*
//! of each operation are sealed by the barrier. The chain runs over the headers alone, and a header
//! holds only commitments to its parts, so a part can be taken out later (redaction) and the chain
//! still verifies. Every part starts with 16 random bytes of salt, which go with it: what is left
//! behind does not help to guess what was there.

use bytes::{BufMut, Bytes, BytesMut};
use ring::digest;

use super::{FoldKey, Head};

/// Bytes of salt at the start of every part.
pub(crate) const SALT: usize = 16;
/// The greatest encoded entry in bytes.
pub(crate) const MAX_ENTRY: usize = 32 << 20;
/// The first byte of every entry.
pub(crate) const FORMAT: u8 = 1;
const FIXED_HEADER: usize = 1 + 8 + 8 + 32 + 4 + 32 + 4;
const OP_HEADER: usize = 1 + 32 + 8 + 8 + 4 + 32;

/// What an operation does to its fold key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpKind {
    /// A named value; its part is `salt ‖ u32 length ‖ sealed name ‖ sealed value`.
    Put,
    /// Takes a named value away; no part.
    Delete,
    /// A value that must be readable while sealed (seal configuration, wrapped keys); part `salt ‖ bytes`.
    Control,
}

/// A part of an entry: salt and sealed bytes, with the SHA-256 commitment that the header carries.
#[derive(Clone)]
pub(crate) struct Part {
    bytes: Bytes,
    commitment: [u8; 32],
}

impl Part {
    /// `bytes` start with the salt.
    pub(crate) fn new(bytes: Bytes) -> Self {
        let commitment = sha256(&bytes);
        Self { bytes, commitment }
    }

    fn empty() -> Self {
        Self {
            bytes: Bytes::new(),
            commitment: [0; 32],
        }
    }
}

/// One operation of an entry.
#[derive(Clone)]
pub(crate) struct EntryOp {
    pub(crate) kind: OpKind,
    pub(crate) key: FoldKey,
    /// Ledger index at which the value came into being (this entry's own for a new one).
    pub(crate) created: u64,
    /// Ledger index of the change to this key before this one; 0 = it did not exist.
    pub(crate) previous: u64,
    length: u32,
    commitment: [u8; 32],
    part: Option<Bytes>,
}

impl EntryOp {
    pub(crate) fn new(
        kind: OpKind,
        key: FoldKey,
        created: u64,
        previous: u64,
        part: Option<Part>,
    ) -> Self {
        let part = part.unwrap_or_else(Part::empty);
        Self {
            kind,
            key,
            created,
            previous,
            length: part.bytes.len() as u32,
            commitment: part.commitment,
            part: Some(part.bytes),
        }
    }

    /// The part after its salt; `None` when it was redacted.
    pub(crate) fn content(&self) -> Option<Bytes> {
        let part = self.part.as_ref()?;
        Some(part.slice(SALT.min(part.len())..))
    }

    /// The same as bytes of this operation's.
    pub(crate) fn content_bytes(&self) -> Option<&[u8]> {
        let part = self.part.as_ref()?;
        Some(&part[SALT.min(part.len())..])
    }

    /// Sealed name and sealed value of a [`OpKind::Put`]; `None` when redacted or malformed.
    pub(crate) fn name_and_value(&self) -> Option<(Bytes, Bytes)> {
        let (name, value) = self.name_and_value_bytes()?;
        let part = self.part.as_ref()?;
        Some((part.slice_ref(name), part.slice_ref(value)))
    }

    /// The same as bytes of this operation's.
    pub(crate) fn name_and_value_bytes(&self) -> Option<(&[u8], &[u8])> {
        let (length, rest) = self.content_bytes()?.split_first_chunk()?;
        rest.split_at_checked(u32::from_be_bytes(*length) as usize)
    }
}

/// One ledger entry.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) index: u64,
    pub(crate) epoch: u64,
    pub(crate) previous: [u8; 32],
    meta_length: u32,
    meta_commitment: [u8; 32],
    meta: Option<Bytes>,
    pub(crate) ops: Vec<EntryOp>,
    header: Bytes,
    hash: [u8; 32],
}

impl Entry {
    pub(crate) fn new(
        index: u64,
        epoch: u64,
        previous: [u8; 32],
        meta: Part,
        ops: Vec<EntryOp>,
    ) -> Self {
        let mut entry = Self {
            index,
            epoch,
            previous,
            meta_length: meta.bytes.len() as u32,
            meta_commitment: meta.commitment,
            meta: Some(meta.bytes),
            ops,
            header: Bytes::new(),
            hash: [0; 32],
        };
        entry.header = entry.encode_header();
        entry.hash = sha256(&entry.header);
        entry
    }

    /// The chain hash: SHA-256 of the header, which holds the previous entry's hash.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// This entry as the head of a ledger.
    pub(crate) fn head(&self) -> Head {
        Head {
            index: self.index,
            epoch: self.epoch,
            hash: self.hash,
        }
    }

    /// The sealed meta; `None` when redacted.
    pub(crate) fn meta(&self) -> Option<Bytes> {
        self.meta
            .as_ref()
            .map(|meta| meta.slice(SALT.min(meta.len())..))
    }

    /// Whether every part that is still there matches its commitment.
    pub(crate) fn commitments_hold(&self) -> bool {
        let holds = |part: &Option<Bytes>, commitment: &[u8; 32]| match part {
            Some(part) if part.is_empty() => *commitment == [0; 32],
            Some(part) => sha256(part) == *commitment,
            None => true,
        };
        holds(&self.meta, &self.meta_commitment)
            && self.ops.iter().all(|op| holds(&op.part, &op.commitment))
    }

    /// Parts that were taken out.
    pub(crate) fn redacted_parts(&self) -> usize {
        usize::from(self.meta.is_none()) + self.ops.iter().filter(|op| op.part.is_none()).count()
    }

    fn encode_header(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(FIXED_HEADER + OP_HEADER * self.ops.len());
        out.put_u8(FORMAT);
        out.put_u64(self.index);
        out.put_u64(self.epoch);
        out.put_slice(&self.previous);
        out.put_u32(self.meta_length);
        out.put_slice(&self.meta_commitment);
        out.put_u32(self.ops.len() as u32);
        for op in &self.ops {
            out.put_u8(match op.kind {
                OpKind::Put => 1,
                OpKind::Delete => 2,
                OpKind::Control => 3,
            });
            out.put_slice(&op.key.0);
            out.put_u64(op.created);
            out.put_u64(op.previous);
            out.put_u32(op.length);
            out.put_slice(&op.commitment);
        }
        out.freeze()
    }

    /// Bytes that [`Entry::encode`] will write.
    pub(crate) fn encoded_length(&self) -> usize {
        let parts = self.meta.as_ref().map_or(0, Bytes::len)
            + self
                .ops
                .iter()
                .map(|op| op.part.as_ref().map_or(0, Bytes::len))
                .sum::<usize>();
        self.header.len() + 1 + self.ops.len() + parts
    }

    /// Appends the header and then each part behind one byte that says whether it is there.
    ///
    /// Tells `placed` for each operation the offset of its part in `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>, placed: impl FnMut(usize)) {
        out.extend_from_slice(&self.header);
        let mut put = |part: &Option<Bytes>| {
            out.push(u8::from(part.is_some()));
            let offset = out.len();
            if let Some(part) = part {
                out.extend_from_slice(part);
            }
            offset
        };
        put(&self.meta);
        self.ops.iter().map(|op| put(&op.part)).for_each(placed);
    }

    /// Reads what [`Entry::encode`] wrote; `None` when the bytes are not exactly one entry.
    ///
    /// Also returns the offset of each operation's part. Commitments are not checked here.
    pub(crate) fn decode(bytes: &Bytes) -> Option<(Self, Vec<usize>)> {
        let mut reader = Reader { bytes, at: 0 };
        if reader.take(1)?[0] != FORMAT {
            return None;
        }
        let index = reader.u64()?;
        let epoch = reader.u64()?;
        let previous = reader.array()?;
        let meta_length = reader.u32()?;
        let meta_commitment = reader.array()?;
        let count = reader.u32()? as usize;
        if count > bytes.len() / OP_HEADER {
            return None;
        }
        let mut ops = Vec::with_capacity(count);
        for _ in 0..count {
            ops.push(EntryOp {
                kind: match reader.take(1)?[0] {
                    1 => OpKind::Put,
                    2 => OpKind::Delete,
                    3 => OpKind::Control,
                    _ => return None,
                },
                key: FoldKey(reader.array()?),
                created: reader.u64()?,
                previous: reader.u64()?,
                length: reader.u32()?,
                commitment: reader.array()?,
                part: None,
            });
        }
        let header = bytes.slice(..reader.at);
        let meta = reader.part(meta_length)?.0;
        let mut offsets = Vec::with_capacity(count);
        for op in &mut ops {
            let (part, offset) = reader.part(op.length)?;
            op.part = part;
            offsets.push(offset);
        }
        if reader.at != bytes.len() {
            return None;
        }
        let hash = sha256(&header);
        Some((
            Self {
                index,
                epoch,
                previous,
                meta_length,
                meta_commitment,
                meta,
                ops,
                header,
                hash,
            },
            offsets,
        ))
    }

    /// Takes the payload of operation `op` out; whether there was one.
    pub(crate) fn redact(&mut self, op: usize) -> bool {
        let part = &mut self.ops[op].part;
        let held = part.as_ref().is_some_and(|part| !part.is_empty());
        if held {
            *part = None;
        }
        held
    }
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn part(&mut self, length: u32) -> Option<(Option<Bytes>, usize)> {
        let present = match self.take(1)?[0] {
            0 => false,
            1 => true,
            _ => return None,
        };
        let offset = self.at;
        if !present {
            // Nothing was never taken out.
            return (length > 0).then_some((None, offset));
        }
        self.take(length as usize)?;
        Some((Some(self.bytes.slice(offset..self.at)), offset))
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(content: &[u8]) -> Part {
        Part::new([&[9; SALT], content].concat().into())
    }

    fn sample() -> Entry {
        let mut named = 3u32.to_be_bytes().to_vec();
        named.extend_from_slice(b"keyvalue");
        Entry::new(
            7,
            2,
            [5; 32],
            part(b"meta"),
            vec![
                EntryOp::new(OpKind::Put, FoldKey([1; 32]), 7, 0, Some(part(&named))),
                EntryOp::new(OpKind::Delete, FoldKey([2; 32]), 3, 4, None),
                EntryOp::new(
                    OpKind::Control,
                    FoldKey([3; 32]),
                    1,
                    1,
                    Some(part(b"control")),
                ),
            ],
        )
    }

    fn bytes(entry: &Entry) -> Bytes {
        let mut out = Vec::new();
        entry.encode(&mut out, |_| {});
        assert_eq!(out.len(), entry.encoded_length());
        out.into()
    }

    #[test]
    fn comes_back_from_its_bytes() {
        let entry = sample();
        let (back, offsets) = Entry::decode(&bytes(&entry)).unwrap();
        assert_eq!(back.hash(), entry.hash());
        assert!(back.commitments_hold());
        assert_eq!((back.index, back.epoch), (7, 2));
        let (name, value) = back.ops[0].name_and_value().unwrap();
        assert_eq!((&name[..], &value[..]), (&b"key"[..], &b"value"[..]));
        assert_eq!(&bytes(&entry)[offsets[0] + SALT + 4..][..8], b"keyvalue");
    }

    #[test]
    fn verifies_after_redaction_and_not_after_a_change() {
        let entry = sample();
        let mut redacted = entry.clone();
        redacted.redact(0);
        let (back, _) = Entry::decode(&bytes(&redacted)).unwrap();
        assert_eq!(back.hash(), entry.hash());
        assert!(back.commitments_hold());
        assert_eq!(back.redacted_parts(), 1);

        let mut changed = bytes(&entry).to_vec();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        let (back, _) = Entry::decode(&changed.into()).unwrap();
        assert!(!back.commitments_hold());
    }

    fn is_noticed(changed: Vec<u8>) -> bool {
        Entry::decode(&changed.into())
            .is_none_or(|(entry, _)| !entry.commitments_hold() || entry.hash() != sample().hash())
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = bytes(&sample());
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut changed = good.to_vec();
                changed[position] ^= 1 << bit;
                assert!(is_noticed(changed), "bit {bit} of byte {position}");
            }
        }
    }

    proptest! {
        #[test]
        fn decoding_outside_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Entry::decode(&bytes.into());
        }
    }
}
