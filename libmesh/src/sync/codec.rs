//! Bodies of the catalog's calls: a format byte, then postcard.
//!
//! Decoding is bounded before it begins (bytes), while it goes on (no type nests) and after (items).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::catalog::log::Head;
use crate::model::NodeId;

/// Longest body of a call or a reply, in bytes.
pub const FRAME_MAX: usize = 4 * 1024 * 1024;
/// Most nodes named in a body.
const NODES_MAX: usize = 64 * 1024;
/// Most messages in a body.
const MESSAGES_MAX: usize = 64 * 1024;
/// Most buckets of a comparison.
pub(super) const BUCKETS_MAX: usize = 256;

const FORMAT: u8 = 1;

/// Why a body is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Too long.
    #[error("the body has {0} bytes, the most is {FRAME_MAX}")]
    Length(usize),
    /// Made by a version that this one does not understand.
    #[error("the body's format is not known")]
    Format,
    /// Not well formed, or bytes after its end.
    #[error("the body is not well formed")]
    Body,
    /// More items than allowed.
    #[error("the body has too many {0}")]
    Bounds(&'static str),
}

/// How far someone is with one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestEntry {
    /// Whose log.
    pub node: NodeId,
    /// How far.
    pub at: Head,
    /// Hash of its records, in every sixth digest or so.
    pub content: Option<u128>,
}

/// What someone lacks of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Whose log.
    pub node: NodeId,
    /// What is there already.
    pub have: Head,
    /// So many messages of the answer are there already, too.
    pub skip: u32,
}

/// Body of `/catalog/digest` and of its reply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Digest {
    pub(super) heads: Vec<DigestEntry>,
}

/// Body of `/catalog/pull` and `/catalog/graft`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PullRequest {
    pub(super) wants: Vec<Want>,
}

/// Body of `/catalog/delta`, and reply to `/catalog/pull` and `/catalog/graft`: messages as they were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Messages {
    pub(super) messages: Vec<Bytes>,
    /// In a reply: what to ask for next.
    pub(super) next: Vec<Want>,
}

/// Reply to `/catalog/delta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DeltaReply {
    /// What is missing before the messages.
    pub(super) wants: Vec<Want>,
    /// How many messages were not believed.
    pub(super) rejected: u32,
}

/// Body of `/catalog/push`: messages as they were signed, in the order in which they are to be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Push {
    /// The owner sends this to all itself: not to be passed on.
    pub(super) direct: bool,
    pub(super) messages: Vec<Bytes>,
}

/// Reply to `/catalog/push`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PushReply {
    /// What comes from there is known here already: tell, do not push.
    pub(super) prune: bool,
    /// How many messages were not believed.
    pub(super) rejected: u32,
}

/// Body of `/catalog/heads`: what is to be had from the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Heads {
    /// Told over a link of the tree, and not because a comparison found it.
    pub(super) link: bool,
    pub(super) heads: Vec<(NodeId, Head)>,
}

/// Body of `/catalog/compare`: a hash of the heads of the nodes in each bucket, by the first byte of their ids. The
/// number of buckets is the caller's choice, a power of two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Compare {
    /// Whether the hashes of the contents are in.
    pub(super) content: bool,
    pub(super) buckets: Vec<u64>,
}

/// Reply to `/catalog/compare`: the buckets that differ, and all heads in them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Differences {
    pub(super) buckets: Vec<u8>,
    pub(super) heads: Vec<DigestEntry>,
}

pub(super) trait Frame: Sized {
    fn encode(&self) -> Bytes;
    fn decode(body: &Bytes) -> Result<Self, CodecError>;
}

pub(super) fn framed(value: &impl Serialize) -> Bytes {
    postcard::to_extend(value, vec![FORMAT])
        .expect("plain data always encodes")
        .into()
}

pub(super) fn open<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CodecError> {
    if body.len() > FRAME_MAX {
        return Err(CodecError::Length(body.len()));
    }
    let Some((&FORMAT, rest)) = body.split_first() else {
        return Err(CodecError::Format);
    };
    match postcard::take_from_bytes(rest) {
        Ok((value, [])) => Ok(value),
        _ => Err(CodecError::Body),
    }
}

pub(super) fn bounded(what: &'static str, len: usize, max: usize) -> Result<(), CodecError> {
    if len > max {
        Err(CodecError::Bounds(what))
    } else {
        Ok(())
    }
}

/// Frames that are plain data, and what in them is bounded.
macro_rules! plain {
    ($($frame:ident: $($what:literal $list:ident <= $max:expr),*;)*) => {$(
        impl Frame for $frame {
            fn encode(&self) -> Bytes {
                framed(self)
            }

            fn decode(body: &Bytes) -> Result<Self, CodecError> {
                let frame: Self = open(body)?;
                $(bounded($what, frame.$list.len(), $max)?;)*
                Ok(frame)
            }
        }
    )*};
}

plain! {
    Digest: "nodes" heads <= NODES_MAX;
    PullRequest: "nodes" wants <= NODES_MAX;
    DeltaReply: "nodes" wants <= NODES_MAX;
    PushReply: ;
    Heads: "nodes" heads <= NODES_MAX;
    Differences: "buckets" buckets <= BUCKETS_MAX, "nodes" heads <= NODES_MAX;
}

impl Frame for Compare {
    fn encode(&self) -> Bytes {
        framed(self)
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let frame: Self = open(body)?;
        bounded("buckets", frame.buckets.len(), BUCKETS_MAX)?;
        if frame.buckets.len().is_power_of_two() {
            Ok(frame)
        } else {
            Err(CodecError::Body)
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireMessages<'a> {
    #[serde(borrow)]
    messages: Vec<&'a [u8]>,
    next: Vec<Want>,
}

impl Frame for Messages {
    fn encode(&self) -> Bytes {
        framed(&WireMessages {
            messages: self.messages.iter().map(|raw| &**raw).collect(),
            next: self.next.clone(),
        })
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let wire: WireMessages<'_> = open(body)?;
        bounded("nodes", wire.next.len(), NODES_MAX)?;
        Ok(Self {
            messages: copied(wire.messages)?,
            next: wire.next,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct WirePush<'a> {
    direct: bool,
    #[serde(borrow)]
    messages: Vec<&'a [u8]>,
}

impl Frame for Push {
    fn encode(&self) -> Bytes {
        framed(&WirePush {
            direct: self.direct,
            messages: self.messages.iter().map(|raw| &**raw).collect(),
        })
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let wire: WirePush<'_> = open(body)?;
        Ok(Self {
            direct: wire.direct,
            messages: copied(wire.messages)?,
        })
    }
}

/// Copies, not slices: what a catalog keeps of one message must not hold the whole body.
fn copied(messages: Vec<&[u8]>) -> Result<Vec<Bytes>, CodecError> {
    bounded("messages", messages.len(), MESSAGES_MAX)?;
    Ok(messages.into_iter().map(Bytes::copy_from_slice).collect())
}

/// Feeds arbitrary bytes to every decoder; for fuzzing.
#[doc(hidden)]
pub fn fuzz_frames(bytes: &[u8]) {
    fn round_trip<T: Frame + PartialEq + std::fmt::Debug>(body: &Bytes) {
        if let Ok(frame) = T::decode(body) {
            assert_eq!(T::decode(&frame.encode()), Ok(frame));
        }
    }

    let body = Bytes::copy_from_slice(bytes);
    round_trip::<Digest>(&body);
    round_trip::<PullRequest>(&body);
    round_trip::<DeltaReply>(&body);
    round_trip::<Messages>(&body);
    round_trip::<Push>(&body);
    round_trip::<PushReply>(&body);
    round_trip::<Heads>(&body);
    round_trip::<Compare>(&body);
    round_trip::<Differences>(&body);
    round_trip::<super::follow_wire::Subscribe>(&body);
    round_trip::<super::follow_wire::Update>(&body);
}
