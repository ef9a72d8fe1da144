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

/// Body of `/catalog/pull`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PullRequest {
    pub(super) wants: Vec<Want>,
}

/// Messages as they were signed, and what comes with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Messages {
    pub(super) messages: Vec<Bytes>,
    /// In a reply to `/catalog/pull`: what to ask for next.
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

pub(super) trait Frame: Sized {
    fn encode(&self) -> Bytes;
    fn decode(body: &Bytes) -> Result<Self, CodecError>;
}

fn framed(value: &impl Serialize) -> Bytes {
    postcard::to_extend(value, vec![FORMAT])
        .expect("plain data always encodes")
        .into()
}

fn open<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, CodecError> {
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

fn bounded(what: &'static str, len: usize, max: usize) -> Result<(), CodecError> {
    if len > max {
        Err(CodecError::Bounds(what))
    } else {
        Ok(())
    }
}

impl Frame for Digest {
    fn encode(&self) -> Bytes {
        framed(self)
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let digest: Self = open(body)?;
        bounded("nodes", digest.heads.len(), NODES_MAX)?;
        Ok(digest)
    }
}

impl Frame for PullRequest {
    fn encode(&self) -> Bytes {
        framed(self)
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let request: Self = open(body)?;
        bounded("nodes", request.wants.len(), NODES_MAX)?;
        Ok(request)
    }
}

impl Frame for DeltaReply {
    fn encode(&self) -> Bytes {
        framed(self)
    }

    fn decode(body: &Bytes) -> Result<Self, CodecError> {
        let reply: Self = open(body)?;
        bounded("nodes", reply.wants.len(), NODES_MAX)?;
        Ok(reply)
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
        bounded("messages", wire.messages.len(), MESSAGES_MAX)?;
        bounded("nodes", wire.next.len(), NODES_MAX)?;
        // Copies, not slices: what a catalog keeps of one message must not hold the whole body.
        Ok(Self {
            messages: wire
                .messages
                .into_iter()
                .map(Bytes::copy_from_slice)
                .collect(),
            next: wire.next,
        })
    }
}

/// Feeds arbitrary bytes to every decoder; for fuzzing.
#[doc(hidden)]
pub fn fuzz_frames(bytes: &[u8]) {
    let body = Bytes::copy_from_slice(bytes);
    if let Ok(digest) = Digest::decode(&body) {
        assert_eq!(Digest::decode(&digest.encode()), Ok(digest));
    }
    if let Ok(request) = PullRequest::decode(&body) {
        assert_eq!(PullRequest::decode(&request.encode()), Ok(request));
    }
    if let Ok(reply) = DeltaReply::decode(&body) {
        assert_eq!(DeltaReply::decode(&reply.encode()), Ok(reply));
    }
    if let Ok(messages) = Messages::decode(&body) {
        assert_eq!(Messages::decode(&messages.encode()), Ok(messages));
    }
}
