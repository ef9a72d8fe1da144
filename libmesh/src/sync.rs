//! How node logs reach every full replica.
//!
//! Two ways, and either alone would do in the end. *Push*: an owner tells every live peer its changes at once, one
//! delta in flight per peer; the first change after a quiet time leaves immediately, what follows within the next
//! 20–250 ms goes as one signed batch; what turned critical or went never waits. *Anti-entropy*: every ten seconds or
//! so, and when a peer comes up, two nodes compare how far they are with every log (a version vector, 47 bytes a
//! node at most) and one fetches what it lacks; what a peer passes on is signed by its owner, so one connection
//! brings everything. Once a minute the heads come with a hash of the contents, which finds what silently differs.
//!
//! [`exchange`] decides without I/O; [`Plane`] is the one task around it; [`SyncTransport`] carries the calls (mesh
//! RPC implements it). Nothing here knows what is in a record.
//!
//! Costs: an idle pair exchanges two heads lists every ten seconds. A change costs its owner one signature and one
//! call per live peer.

mod codec;
pub mod exchange;
mod pace;
mod plane;

#[doc(hidden)]
pub use codec::fuzz_frames;
pub use codec::{CodecError, FRAME_MAX};
pub use plane::{Config, Members, Plane};

use bytes::Bytes;

use crate::identity::BoxFuture;
use crate::member::Member;

/// A call to a peer's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncCall {
    /// Messages for it to take in; the reply says what it lacks before them.
    Delta,
    /// How far we are; the reply says how far it is.
    Digest,
    /// What we lack; the reply brings it.
    Pull,
}

impl SyncCall {
    /// The RPC path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Delta => "/catalog/delta",
            Self::Digest => "/catalog/digest",
            Self::Pull => "/catalog/pull",
        }
    }
}

/// A call that got no answer; anti-entropy makes up for it.
#[derive(Debug, thiserror::Error)]
#[error("{path} of {peer}: {reason}", path = call.path(), peer = peer.addr)]
pub struct CallFailed {
    /// What was called.
    pub call: SyncCall,
    /// Whom.
    pub peer: Member,
    /// What went wrong.
    pub reason: String,
}

/// Carries calls to peers. Implemented over mesh RPC; a dropped future cancels its call.
pub trait SyncTransport: Send + Sync + 'static {
    /// POSTs `body` (at most [`FRAME_MAX`] bytes) and returns the reply's body (the same limit). Must end by itself,
    /// within five seconds or so.
    fn call(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, CallFailed>>;
}

#[cfg(test)]
mod tests;
