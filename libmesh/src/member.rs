//! Membership: who is in the mesh, and who answers.
//!
//! SWIM, as `foca` implements it, decides who is alive. It scales flat (each node probes one other every half second
//! whatever the cluster's size) but is a kernel, not a system: alone it declares healthy nodes down after a lost packet
//! or a stalled process, lets islands form in a join storm, and takes minutes to heal a partition. What this module
//! adds around it, each with a test that fails without it, is listed in `core`.
//!
//! Layers, each knowing only the one below:
//!
//! * [`Membership`] is the handle: members, events, announce, leave. Cheap to clone.
//! * [`Driver`] is one task around a UDP socket: seals and opens datagrams with the [`Keyring`], keeps the clock, hands
//!   stream questions to a [`StreamTransport`] (mesh RPC implements it).
//! * `core` is the protocol without sockets or clock: inputs with a time go in, outputs come out. The simulator in
//!   `sim` (feature `sim`) drives the same core in virtual time.
//! * [`wire`], [`stream`] and [`keyring`] are the encodings, all versioned and bounded.
//!
//! What a quiet node costs, measured in the simulator and flat in the number of nodes: 4.1 datagrams with 573 bytes a
//! second, 4.6 and 644 at 5 % loss; comparing what is known with others adds 257, mostly TLS handshakes. A packet without
//! news is 132 bytes on the wire: 28 of IP and UDP, 33 of sealing, 71 of header. An update costs 36 bytes in packets
//! that are sent anyway; each member repeats it `5·log10(N)` times, ten at least.
//!
//! Every queue and table is bounded: 20,000 members of any state, 5,000 present (configurable), 2,048 seeds and candidates,
//! 64 open stream questions, 256 waiting answers, 256 commands, 4,096 events a subscriber, 16,384 replay windows, one budget
//! of claims a source, 256 suspected copies, 1,024 sources told of; a state is read up to 4 MiB, a datagram up to 1,200
//! bytes. What a stranger can make a member send is nothing, for nothing is answered that does not open with the key. What
//! a member can make another send is an answer of one datagram for each of its own, a question to another *member*, and
//! one full state over a stream that its certificate opened.
//!
//! Liveness found here never grants anything; it only takes away sooner.

mod candidates;
mod config;
pub mod core;
mod counters;
mod digest;
mod driver;
mod handle;
pub mod keyring;
pub(crate) mod meta;
pub mod stream;
pub mod wire;

use std::net::SocketAddr;

use crate::model::{Liveness, NodeId};

pub use candidates::decode as decode_candidates;
pub use config::{Config, Preset};
pub use counters::Counters;
#[cfg(any(test, feature = "sim"))]
pub(crate) use counters::count;
pub use driver::Driver;
pub use handle::{AnswerError, Membership, MembershipGone, Refusal};
pub use keyring::Keyring;
pub use meta::{MAX_RESTART, NodeMeta, PROTOCOLS};
pub use stream::{Peer, StreamReply, StreamTransport};

/// A member as others need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// Where it answers: UDP for membership, TCP for mesh RPC.
    pub addr: SocketAddr,
    /// Which of its lives this is: higher after a restart, and after it was declared down and came back.
    pub generation: u64,
}

/// A member and what is thought of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MemberState {
    /// Who it is.
    pub member: Member,
    /// What is thought of it.
    pub liveness: Liveness,
}

/// A change of the membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberEvent {
    /// A member is new, came back, restarted (higher generation) or moved (other address). Alive.
    Up(Member),
    /// A member does not answer: nothing new should be sent to it.
    Suspect(NodeId),
    /// A suspect answered.
    Alive(NodeId),
    /// A member is gone without a goodbye.
    Down(NodeId),
    /// A member said goodbye.
    Left(NodeId),
}

impl MemberEvent {
    /// The member that it is about.
    pub fn id(&self) -> NodeId {
        match self {
            Self::Up(member) => member.id,
            Self::Suspect(id) | Self::Alive(id) | Self::Down(id) | Self::Left(id) => *id,
        }
    }
}
