//! How a delta travels: `format byte ‖ Ed25519 signature (64) ‖ postcard body`.
//!
//! The signature is over a label and the body as sent, so it survives being passed on. Keys and bodies are byte
//! strings here and point into the message; what is in them is the `record` module's business, so that one bad
//! record never costs the others.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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

const FORMAT: u8 = 1;
const LABEL: &[u8] = b"mesh catalog delta 1\0";
const SIGNATURE: usize = 64;

#[derive(Serialize, Deserialize)]
struct WireDelta<'a> {
    node: NodeId,
    epoch: u64,
    from: u64,
    to: u64,
    part: u32,
    parts: u32,
    #[serde(borrow)]
    items: Vec<WireItem<'a>>,
}

#[derive(Serialize, Deserialize)]
struct WireItem<'a> {
    key: &'a [u8],
    version: u64,
    body: Option<&'a [u8]>,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Too long or too short.
    #[error("a message has {0} bytes, allowed are 66 to {MESSAGE_MAX}")]
    Length(usize),
    /// Made by a version that this one does not understand.
    #[error("message format {0} is not known")]
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
#[derive(Debug)]
pub(super) struct Message {
    pub(super) delta: Delta,
    pub(super) raw: Bytes,
}

impl Message {
    pub(super) fn decode(raw: Bytes) -> Result<Self, WireError> {
        if raw.len() > MESSAGE_MAX || raw.len() <= 1 + SIGNATURE {
            return Err(WireError::Length(raw.len()));
        }
        if raw[0] != FORMAT {
            return Err(WireError::Format(raw[0]));
        }
        let (wire, rest) = postcard::take_from_bytes::<WireDelta<'_>>(&raw[1 + SIGNATURE..])
            .map_err(|_| WireError::Body)?;
        if !rest.is_empty() {
            return Err(WireError::Body);
        }
        if wire.items.len() > ITEMS_MAX {
            return Err(WireError::Bounds("items"));
        }
        if wire.from >= wire.to
            || wire.part >= wire.parts
            || wire.parts > PARTS_MAX
            || wire.epoch == 0
        {
            return Err(WireError::Range);
        }
        if wire.from != 0 && wire.parts != 1 {
            return Err(WireError::Range);
        }
        let mut items = Vec::with_capacity(wire.items.len());
        for item in &wire.items {
            if item.key.len() > KEY_MAX {
                return Err(WireError::Bounds("keys"));
            }
            if item.body.is_some_and(|body| body.len() > RECORD_MAX) {
                return Err(WireError::Bounds("records"));
            }
            let lowest = if wire.from == 0 { 1 } else { wire.from + 1 };
            if item.version < lowest || item.version > wire.to {
                return Err(WireError::Range);
            }
            items.push(Item {
                key: raw.slice_ref(item.key),
                version: item.version,
                body: item.body.map(|body| raw.slice_ref(body)),
            });
        }
        let WireDelta {
            node,
            epoch,
            from,
            to,
            part,
            parts,
            ..
        } = wire;
        Ok(Self {
            delta: Delta {
                node,
                epoch,
                from,
                to,
                part,
                parts,
                items,
            },
            raw,
        })
    }

    pub(super) fn is_signed_by(&self, node: &VerifiedNode) -> bool {
        let (signature, body) = self.raw[1..]
            .split_first_chunk()
            .expect("decode checked the length");
        node.has_signed(&signed_bytes(body), signature)
    }
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
    #[derive(Deserialize)]
    struct Start {
        node: NodeId,
        epoch: u64,
        _from: u64,
        to: u64,
        _part: u32,
        parts: u32,
    }

    if raw.first() != Some(&FORMAT) {
        return None;
    }
    let (start, _) = postcard::take_from_bytes::<Start>(raw.get(1 + SIGNATURE..)?).ok()?;
    Some(Header {
        node: start.node,
        at: Head {
            epoch: start.epoch,
            head: start.to,
        },
        partial: start.parts > 1,
    })
}

/// Signs and encodes.
pub(super) fn encode(delta: &Delta, signer: &dyn Signer) -> Bytes {
    let items = delta
        .items
        .iter()
        .map(|item| WireItem {
            key: &item.key,
            version: item.version,
            body: item.body.as_deref(),
        })
        .collect();
    let Delta {
        node,
        epoch,
        from,
        to,
        part,
        parts,
        ..
    } = *delta;
    let wire = WireDelta {
        node,
        epoch,
        from,
        to,
        part,
        parts,
        items,
    };
    let body = postcard::to_stdvec(&wire).expect("plain data always encodes");
    let mut raw = Vec::with_capacity(1 + SIGNATURE + body.len());
    raw.push(FORMAT);
    raw.extend_from_slice(&signer.sign(&signed_bytes(&body)));
    raw.extend_from_slice(&body);
    Bytes::from(raw)
}

fn signed_bytes(body: &[u8]) -> Vec<u8> {
    [LABEL, body].concat()
}
