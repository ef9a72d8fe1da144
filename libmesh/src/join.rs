//! How a node becomes one: a token from an operator, one call to any node of the mesh, and what is kept
//! of the answer.
//!
//! The joiner has nobody's trust yet and trusts nobody but the certificate authority whose hash is in
//! its token: whoever answers must show a chain to that very root. The answering node only passes the
//! request on to a server. Of the answer, only what the pinned root vouches for is believed: another
//! root comes later, with a signed config bundle.

mod directory;
mod joiner;
mod lock;
mod relay;
mod seeds;
mod token;

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    bundle::SignedBundle,
    identity::{NodeKey, TrustBundle, TrustDomain},
    member::Keyring,
    model::{Datacenter, NodeName},
};

pub use directory::{DirectoryError, NodeDirectory};
pub use joiner::{JoinError, join};
pub use seeds::{Seed, SeedError};
pub use token::{JoinToken, TokenError};

pub(crate) use lock::DirectoryLock;
pub(crate) use relay::route;

/// The largest join request, in bytes.
pub const MAX_REQUEST: usize = 16 << 10;
/// The route of a server that answers join requests: the body is an encoded [`JoinRequest`].
pub const SERVER_PATH: &str = "/server/join";

/// What a joiner asks with.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct JoinRequest {
    /// The token's id.
    pub token: [u8; 8],
    /// The token's secret.
    pub secret: [u8; 32],
    /// The name it wants; bound to its key when the certificate is issued.
    #[zeroize(skip)]
    pub node: NodeName,
    /// A certificate request (PKCS#10, DER) for its node key.
    pub csr: Vec<u8>,
    /// Where it will answer.
    #[zeroize(skip)]
    pub advertise: SocketAddr,
}

/// What it gets.
#[derive(Serialize, Deserialize)]
pub struct JoinReply {
    /// The node certificate: leaf first, intermediates, DER.
    pub chain: Vec<Vec<u8>>,
    /// The roots of the mesh.
    pub bundle: TrustBundle,
    /// The datacenter.
    pub datacenter: Datacenter,
    /// The gossip keyring, as [`Keyring::to_bytes`] gives it.
    pub keyring: Vec<u8>,
    /// Nodes to announce to.
    pub seeds: Vec<SocketAddr>,
    /// The newest config bundle.
    pub config: Option<SignedBundle>,
}

impl Drop for JoinReply {
    fn drop(&mut self) {
        self.keyring.zeroize();
    }
}

/// What makes a process a node: all of it is kept in the node directory.
#[derive(Clone)]
pub struct NodeCredentials {
    /// The node's key.
    pub key: NodeKey,
    /// Its name.
    pub name: NodeName,
    /// Its datacenter.
    pub datacenter: Datacenter,
    /// Its mesh.
    pub trust_domain: TrustDomain,
    /// Its certificate: leaf first, intermediates, DER.
    pub chain: Vec<Vec<u8>>,
    /// Whom it trusts.
    pub bundle: TrustBundle,
    /// The gossip keyring.
    pub keyring: Keyring,
    /// Nodes to announce to at the first start.
    pub seeds: Vec<SocketAddr>,
    /// The config bundle that came with the join.
    pub config: Option<SignedBundle>,
}

impl JoinRequest {
    /// The request as it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain types encode")
    }

    /// The request in a body; `None` if it is none.
    pub fn decode(body: &[u8]) -> Option<Self> {
        postcard::from_bytes(body).ok()
    }
}

impl JoinReply {
    /// The reply as it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain types encode")
    }

    /// The reply in a body; `None` if it is none.
    pub fn decode(body: &[u8]) -> Option<Self> {
        postcard::from_bytes(body).ok()
    }
}
