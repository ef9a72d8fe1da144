//! What a subscriber and a replica say to each other.
//!
//! The unit is what one node has of one service: it comes whole, with the head of its owner's log at which it was so.
//! Since a log has one writer, of two such parts the one with the greater head is the newer one, whoever told it.

use serde::{Deserialize, Serialize};

use super::codec::{CodecError, Frame, bounded, framed, open};
use super::tree::mix;
use crate::catalog::log::Head;
use crate::model::{CheckRecord, Health, Instance, Liveness, NodeId, NodeRecord, ServiceName};

/// Most services of one subscription.
pub const SERVICES_MAX: usize = 4096;
/// Longest frame of a subscription, in bytes.
pub(super) const UPDATE_MAX: usize = 4 * 1024 * 1024;
/// Most parts that a subscriber names, all services together.
const PARTS_MAX: usize = 256 * 1024;

/// Body of `/catalog/subscribe`: what to follow, and what is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subscribe {
    /// The life of the replica that the revisions are of; 0 = none.
    pub(super) life: u64,
    pub(super) follows: Vec<Follow>,
}

/// A service to follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Follow {
    pub(super) service: ServiceName,
    /// Its revision at the replica when it was last told.
    pub(super) revision: u64,
    /// The parts that are there, and their hashes.
    pub(super) parts: Vec<(NodeId, u64)>,
}

/// A frame of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Update {
    /// The first one: which life of the replica answers.
    Hello {
        life: u64,
    },
    /// Nothing has changed for a while.
    Quiet,
    Service(ServiceUpdate),
}

/// Changes of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ServiceUpdate {
    pub(super) service: ServiceName,
    pub(super) revision: u64,
    pub(super) parts: Vec<Part>,
    pub(super) gone: Vec<Gone>,
    /// More of the same change follows: only with that it is complete.
    pub(super) more: bool,
}

/// What a node has of a service; when it is very much, in several of these in one change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) at: Head,
    pub(super) hash: u64,
    pub(super) node: NodeRecord,
    pub(super) liveness: Liveness,
    pub(super) instances: Vec<Shown>,
}

/// An instance as a replica shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) instance: Instance,
    pub(super) checks: Vec<CheckRecord>,
    pub(super) health: Health,
    pub(super) stale: bool,
}

/// A node that has nothing of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gone {
    pub(super) node: NodeId,
    /// The head of its log that says so; `None`: the replica believes the node to be away, and others may not.
    pub(super) at: Option<Head>,
}

impl Part {
    /// Hash of what is shown, equal at all replicas that show the same; and how many bytes that is.
    pub(super) fn content(&self) -> (u64, usize) {
        let shown = (&self.node, self.liveness, &self.instances);
        let bytes = postcard::to_stdvec(&shown).expect("plain data always encodes");
        (mix(bytes.iter()), bytes.len())
    }
}

impl Frame for Subscribe {
    fn encode(&self) -> bytes::Bytes {
        framed(self)
    }

    fn decode(body: &bytes::Bytes) -> Result<Self, CodecError> {
        let frame: Self = open(body)?;
        bounded("services", frame.follows.len(), SERVICES_MAX)?;
        let parts = frame.follows.iter().map(|follow| follow.parts.len()).sum();
        bounded("parts", parts, PARTS_MAX)?;
        Ok(frame)
    }
}

impl Frame for Update {
    fn encode(&self) -> bytes::Bytes {
        framed(self)
    }

    fn decode(body: &bytes::Bytes) -> Result<Self, CodecError> {
        open(body)
    }
}
