//! How a delta travels: `format byte ‖ Ed25519 signature (64) ‖ body`.
//!
//! The signature is over a label and the body as sent, so it survives being passed on. A replica keeps messages as they
//! came and reads records out of them when somebody asks, so the body is made for both: small, and every item can be
//! read alone, given where it begins.
//!
//! ```text
//! body  := node id (16) ‖ epoch ‖ from ‖ to ‖ part ‖ parts ‖ base stamp ‖ length of table ‖ table ‖ item*
//! table := (length ‖ text)*           texts that several records have; records name them by their offset
//! item  := head ‖ key ‖ to − version ‖ (length ‖ record)?
//! head  := varint(n << 3 | record << 1 | near)      record: 0 gone, 1 plain, 2 packed
//! key   := near = 0: n bytes;  near = 1: the last byte; the others are those of the key of the item n bytes before
//! ```
//!
//! Numbers are varints (LEB128). What is in keys and records is the `record` module's business, so that one bad
//! record never costs the others.

use std::collections::HashMap;

use bytes::Bytes;

use super::fields::{self, put_bytes, put_varint, take_bytes, take_varint};
use super::log::{Delta, Head, Item};
use super::verify::{Signer, VerifiedNode};
use crate::model::NodeId;

/// Longest message, in bytes.
pub const MESSAGE_MAX: usize = 1024 * 1024;
/// What a message's items are worth, in bytes, when there are many.
pub const PART_BYTES: usize = 256 * 1024;
/// Longest record, in bytes; with [`PART_BYTES`] this keeps every message below [`MESSAGE_MAX`].
pub const RECORD_MAX: usize = 64 * 1024;
/// Longest key of a record, in bytes.
pub const KEY_MAX: usize = 512;
/// Most items in a message.
pub const ITEMS_MAX: usize = 64 * 1024;
/// Most parts of a snapshot.
pub const PARTS_MAX: u32 = 4096;
/// The format that this version speaks. Format 1 was that of 0.1 before named ports: it cannot be read, as its records
/// have no room for what is new.
pub const FORMAT: u8 = 2;

const LABEL: &[u8] = b"mesh catalog delta 2\0";
const SIGNATURE: usize = 64;
/// What the records of a message may come to when texts are put in their places.
const UNPACKED_MAX: usize = 2 * MESSAGE_MAX;
/// Shorter keys are not worth referring to.
const NEAR_KEY_MIN: usize = 6;

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too long or too short.
    #[error("a message has {0} bytes, allowed are 66 to {MESSAGE_MAX}")]
    Length(usize),
    /// Made by a version that this one does not understand.
    #[error(
        "message format {0} is of another version of mesh than this one, which speaks format {FORMAT}: upgrade the older of the two"
    )]
    Format(u8),
    /// Not a well-formed body, or bytes after it.
    #[error("the message's body is not well formed")]
    Body,
    /// More of something than is allowed.
    #[error("the message has too many or too long {0}")]
    Bounds(&'static str),
    /// The numbers contradict each other.
    #[error("the message's range or part numbers make no sense")]
    Range,
}

/// A message taken apart, not yet believed.
#[derive(Debug, Clone)]
pub struct Message {
    pub(super) node: NodeId,
    pub(super) from: u64,
    pub(super) to: Head,
    pub(super) part: u32,
    pub(super) parts: u32,
    /// How many items it has.
    pub(super) items: usize,
    /// Its first item with the key of a certificate.
    pub(super) certificate: Option<u32>,
    pub(super) frame: Frame,
}

/// What it takes to read the items of a message.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    pub(super) raw: Bytes,
    to: u64,
    base: u64,
    table: (u32, u32),
}

/// One change, in a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct ItemRef<'a> {
    pub(super) key: KeyRef<'a>,
    pub(super) version: u64,
    body: Body<'a>,
    next: usize,
}

#[derive(Debug, Clone, Copy)]
enum Body<'a> {
    Gone,
    Plain(&'a [u8]),
    Packed(&'a [u8]),
}

/// A key in two pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyRef<'a> {
    pub(super) head: &'a [u8],
    pub(super) last: &'a [u8],
}

impl KeyRef<'_> {
    pub(super) fn len(self) -> usize {
        self.head.len() + self.last.len()
    }

    pub(super) fn is(self, key: &[u8]) -> bool {
        self.len() == key.len() && key.starts_with(self.head) && key.ends_with(self.last)
    }

    /// Writes it in one piece.
    pub(super) fn write(self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(self.head);
        out.extend_from_slice(self.last);
    }

    pub(super) fn equals(self, other: KeyRef<'_>) -> bool {
        self.len() == other.len()
            && self
                .head
                .iter()
                .chain(self.last)
                .eq(other.head.iter().chain(other.last))
    }
}

impl ItemRef<'_> {
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.body, Body::Gone)
    }
}

impl Message {
    /// Takes a message apart. Bounded work: nothing is believed before `is_signed_by` held.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(raw: Bytes) -> Result<Self, WireError> {
        if raw.len() > MESSAGE_MAX || raw.len() <= 1 + SIGNATURE {
            return Err(WireError::Length(raw.len()));
        }
        if raw[0] != FORMAT {
            return Err(WireError::Format(raw[0]));
        }
        let mut message = Self::head(raw).ok_or(WireError::Body)?;
        let (from, to) = (message.from, message.to.head);
        if from >= to
            || message.part >= message.parts
            || message.parts > PARTS_MAX
            || message.to.epoch == 0
            || (from != 0 && message.parts != 1)
        {
            return Err(WireError::Range);
        }
        message.walk()?;
        Ok(message)
    }

    fn head(raw: Bytes) -> Option<Self> {
        let mut rest = &raw[1 + SIGNATURE..];
        let (node, after) = rest.split_first_chunk()?;
        let node = NodeId(*node);
        rest = after;
        let epoch = take_varint(&mut rest)?;
        let from = take_varint(&mut rest)?;
        let to = take_varint(&mut rest)?;
        let part = u32::try_from(take_varint(&mut rest)?).ok()?;
        let parts = u32::try_from(take_varint(&mut rest)?).ok()?;
        let base = take_varint(&mut rest)?;
        let table = take_bytes(&mut rest)?.len();
        let end = raw.len() - rest.len();
        Some(Self {
            node,
            from,
            to: Head { epoch, head: to },
            part,
            parts,
            items: 0,
            certificate: None,
            frame: Frame {
                to,
                base,
                table: ((end - table) as u32, end as u32),
                raw,
            },
        })
    }

    /// Looks at every item once, so that reading one later cannot fail.
    fn walk(&mut self) -> Result<(), WireError> {
        let mut at = self.frame.first();
        let mut unpacked = Vec::new();
        let mut total = 0;
        while at < self.frame.raw.len() {
            let item = self.frame.item(at).ok_or(WireError::Body)?;
            if item.key.len() > KEY_MAX || item.key.len() == 0 {
                return Err(WireError::Bounds("keys"));
            }
            let lowest = if self.from == 0 { 1 } else { self.from + 1 };
            if item.version < lowest {
                return Err(WireError::Range);
            }
            match item.body {
                Body::Gone => {}
                Body::Plain(body) if body.len() > RECORD_MAX => {
                    return Err(WireError::Bounds("records"));
                }
                Body::Plain(body) => total += body.len(),
                Body::Packed(packed) => {
                    let (table, base) = (self.frame.table(), self.frame.base);
                    fields::unpack(packed, table, base, RECORD_MAX, &mut unpacked)
                        .map_err(|_| WireError::Body)?;
                    total += unpacked.len();
                }
            }
            if total > UNPACKED_MAX {
                return Err(WireError::Bounds("records"));
            }
            if item.key.is(super::record::CERTIFICATE) && self.certificate.is_none() {
                self.certificate = Some(at as u32);
            }
            self.items += 1;
            if self.items > ITEMS_MAX {
                return Err(WireError::Bounds("items"));
            }
            at = item.next;
        }
        Ok(())
    }

    /// What its owner made it of.
    pub(super) fn delta(&self) -> Delta {
        let items = self.frame.items().map(|(_, item)| {
            let (mut key, mut body) = (Vec::new(), Vec::new());
            item.key.write(&mut key);
            let there = self.frame.record(&item, &mut body);
            Item {
                key: key.into(),
                version: item.version,
                body: there.then(|| body.into()),
            }
        });
        Delta {
            node: self.node,
            epoch: self.to.epoch,
            from: self.from,
            to: self.to.head,
            part: self.part,
            parts: self.parts,
            items: items.collect(),
        }
    }

    pub(super) fn is_signed_by(&self, node: &VerifiedNode) -> bool {
        let (signature, body) = self.frame.raw[1..]
            .split_first_chunk()
            .expect("decode checked the length");
        node.has_signed(&signed_bytes(body), signature)
    }
}

impl Frame {
    /// Where the first item begins.
    fn first(&self) -> usize {
        self.table.1 as usize
    }

    fn table(&self) -> &[u8] {
        &self.raw[self.table.0 as usize..self.table.1 as usize]
    }

    /// The items and where each begins.
    pub(super) fn items(&self) -> impl Iterator<Item = (u32, ItemRef<'_>)> {
        let mut at = self.first();
        std::iter::from_fn(move || {
            if at >= self.raw.len() {
                return None;
            }
            let item = self.item(at)?;
            let began = std::mem::replace(&mut at, item.next);
            Some((began as u32, item))
        })
    }

    /// The item that begins at `at`; `None` when none does.
    pub(super) fn item(&self, at: usize) -> Option<ItemRef<'_>> {
        let mut rest = self.raw.get(at..)?;
        let head = take_varint(&mut rest)?;
        let n = usize::try_from(head >> 3).ok()?;
        let key = if head & 1 == 0 {
            let (key, after) = rest.split_at_checked(n)?;
            rest = after;
            KeyRef {
                head: key,
                last: &[],
            }
        } else {
            let near = at
                .checked_sub(n)
                .filter(|near| n > 0 && *near >= self.first())?;
            let mut near = self.raw.get(near..)?;
            let head = take_varint(&mut near)?;
            let len = usize::try_from(head >> 3).ok()?;
            let key = near.get(..len).filter(|_| head & 1 == 0 && len > 0)?;
            let (last, after) = rest.split_at_checked(1)?;
            rest = after;
            KeyRef {
                head: &key[..len - 1],
                last,
            }
        };
        let version = self.to.checked_sub(take_varint(&mut rest)?)?;
        let body = match head >> 1 & 3 {
            0 => Body::Gone,
            1 => Body::Plain(take_bytes(&mut rest)?),
            2 => Body::Packed(take_bytes(&mut rest)?),
            _ => return None,
        };
        Some(ItemRef {
            key,
            version,
            body,
            next: self.raw.len() - rest.len(),
        })
    }

    /// Writes the item's record into `out` as its owner has it; `false` = the key is gone.
    pub(super) fn record(&self, item: &ItemRef<'_>, out: &mut Vec<u8>) -> bool {
        match item.body {
            Body::Gone => return false,
            Body::Plain(body) => {
                out.clear();
                out.extend_from_slice(body);
            }
            Body::Packed(packed) => {
                let unpacked = fields::unpack(packed, self.table(), self.base, RECORD_MAX, out);
                debug_assert!(unpacked.is_ok(), "checked when the message was taken apart");
            }
        }
        true
    }
}

/// Whose message this claims to be, of whatever format; `None` when it is none.
pub(super) fn node_of(raw: &[u8]) -> Option<NodeId> {
    raw.get(1 + SIGNATURE..)?.first_chunk().copied().map(NodeId)
}

/// What a message claims about itself, before anything of it is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Whose log.
    pub(crate) node: NodeId,
    /// How far it brings one.
    pub(crate) at: Head,
    /// Whether it is one of several parts of a snapshot.
    pub(crate) partial: bool,
}

/// The header of a message; `None` when it is none.
pub(crate) fn header_of(raw: &[u8]) -> Option<Header> {
    if raw.first() != Some(&FORMAT) {
        return None;
    }
    let mut rest = raw.get(1 + SIGNATURE + 16..)?;
    let mut number = || take_varint(&mut rest);
    let (epoch, _from, head, _part, parts) =
        (number()?, number()?, number()?, number()?, number()?);
    Some(Header {
        node: node_of(raw)?,
        at: Head { epoch, head },
        partial: parts > 1,
    })
}

/// Signs and encodes.
pub(super) fn encode(delta: &Delta, signer: &dyn Signer) -> Bytes {
    let (table, places, base) = table_of(delta);
    let mut body = Vec::new();
    body.extend_from_slice(delta.node.as_bytes());
    for number in [
        delta.epoch,
        delta.from,
        delta.to,
        delta.part.into(),
        delta.parts.into(),
        base,
    ] {
        put_varint(&mut body, number);
    }
    put_bytes(&mut body, &table);
    let mut near: Option<(usize, &Bytes)> = None;
    let mut packed = Vec::new();
    for item in &delta.items {
        let at = body.len();
        packed.clear();
        let shared = |text: &str| places.get(text).copied();
        let record =
            item.body.as_ref().map(
                |plain| match fields::pack(plain, shared, base, &mut packed) {
                    Ok(()) => (2, &packed[..]),
                    Err(_) => (1, &plain[..]),
                },
            );
        let kind = record.map_or(0, |(kind, _)| kind);
        let like = |(_, key): &(usize, &Bytes)| {
            key.len() == item.key.len()
                && key.len() >= NEAR_KEY_MIN
                && key[..key.len() - 1] == item.key[..key.len() - 1]
        };
        if let Some((before, key)) = near.filter(like) {
            put_varint(&mut body, ((at - before) as u64) << 3 | kind << 1 | 1);
            body.push(item.key[key.len() - 1]);
        } else {
            put_varint(&mut body, (item.key.len() as u64) << 3 | kind << 1);
            body.extend_from_slice(&item.key);
            near = Some((at, &item.key));
        }
        put_varint(&mut body, delta.to - item.version);
        if let Some((_, bytes)) = record {
            put_bytes(&mut body, bytes);
        }
    }
    let mut raw = Vec::with_capacity(1 + SIGNATURE + body.len());
    raw.push(FORMAT);
    raw.extend_from_slice(&signer.sign(&signed_bytes(&body)));
    raw.extend_from_slice(&body);
    Bytes::from(raw)
}

/// The table of a message, where in it each text is, and the least stamp.
fn table_of(delta: &Delta) -> (Vec<u8>, HashMap<&str, usize>, u64) {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut base = u64::MAX;
    for body in delta.items.iter().filter_map(|item| item.body.as_deref()) {
        // What is not made of fields has neither texts nor stamps.
        let _ = fields::visit(
            body,
            |text| *counts.entry(text).or_default() += 1,
            |stamp| base = base.min(stamp),
        );
    }
    let mut shared: Vec<_> = counts
        .into_iter()
        .filter(|(text, count)| *count > 1 && fields::SHARED.contains(&text.len()))
        .collect();
    // The most frequent first: their places are short numbers.
    shared.sort_unstable_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.cmp(b)));
    let mut table = Vec::new();
    let mut places = HashMap::new();
    for (text, _) in shared {
        places.insert(text, table.len());
        put_bytes(&mut table, text.as_bytes());
    }
    (table, places, if base == u64::MAX { 0 } else { base })
}

fn signed_bytes(body: &[u8]) -> Vec<u8> {
    [LABEL, body].concat()
}
