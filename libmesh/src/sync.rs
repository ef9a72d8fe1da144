//! How node logs reach every full replica.
//!
//! Two ways, and either alone would do in the end. *Push*: an owner sends its changes over a few links, whose ends pass
//! them on at once ([`tree`]); the first change after a quiet time leaves immediately, what follows within the next
//! 20–250 ms (by rate) goes as one signed batch; what turned critical or went never waits. *Anti-entropy*: every ten
//! seconds or so, and when a peer comes up, two nodes compare how far they are with every log (hashes of buckets first,
//! then the heads in those that differ), one fetches what it lacks and tells the other what that lacks; what a peer
//! passes on is signed by its owner, so one connection brings everything. Once a minute the heads come with a hash of
//! the contents, which finds what silently differs.
//!
//! [`tree`] and [`exchange`] decide without I/O; [`Plane`] is one task and the handlers around them; [`SyncTransport`]
//! carries the calls (mesh RPC implements it). Nothing here knows what is in a record.
//!
//! Costs: an idle pair exchanges hashes every ten seconds, 8 bytes for sixteen nodes and 2 KiB at most; heads that
//! differ cost 26 bytes a node. A change costs its owner one signature, and each node about one call out and one in,
//! whatever the size of the mesh.
//!
//! Who does not want all of it keeps a [`Subscription`] to some services.
//!
//! Peers of the first version (`/catalog/delta`, `/catalog/digest`, `/catalog/pull`) are found out and served as they
//! expect it.

mod codec;
pub mod exchange;
mod follow_wire;
mod pace;
mod plane;
mod publisher;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod subscription;
mod thin;
pub mod tree;
mod worker;

#[doc(hidden)]
pub use codec::fuzz_frames;
pub use codec::{CodecError, DigestEntry, FRAME_MAX, Want};
pub use plane::{Config, Members, Plane};
pub use publisher::{SUBSCRIPTIONS_MAX, SUBSCRIPTIONS_PER_PEER, SubscribeError};
pub use subscription::{FollowedInstance, FollowedService, Subscription};

use bytes::Bytes;

use crate::identity::BoxFuture;
use crate::member::Member;

/// A call to a peer's catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncCall {
    /// Messages for it to take in and pass on; the reply says whether to go on pushing.
    Push,
    /// What is to be had here.
    Heads,
    /// What we lack and a digest told us of; the reply brings it, and from now on it comes by itself.
    Graft,
    /// Hashes of how far we are; the reply says how far it is, where that differs.
    Compare,
    /// What we lack; the reply brings it.
    Pull,
    /// First version: messages for it to take in; the reply says what it lacks before them.
    Delta,
    /// First version: how far we are; the reply says how far it is.
    Digest,
}

impl SyncCall {
    /// The RPC path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Push => "/catalog/push",
            Self::Heads => "/catalog/heads",
            Self::Graft => "/catalog/graft",
            Self::Compare => "/catalog/compare",
            Self::Pull => "/catalog/pull",
            Self::Delta => "/catalog/delta",
            Self::Digest => "/catalog/digest",
        }
    }
}

/// A call that got no answer; anti-entropy makes up for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{path} of {peer}: {reason}", path = call.path(), peer = peer.addr)]
pub struct CallFailed {
    /// What was called.
    pub call: SyncCall,
    /// Whom.
    pub peer: Member,
    /// It answered that it does not know the call: it is of an earlier version.
    pub unsupported: bool,
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
