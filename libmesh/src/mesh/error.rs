//! What can go wrong with a node.

use std::{io, net::SocketAddr};

use crate::{
    bundle::BundleError,
    catalog::LocalError,
    connect::ConnectError,
    identity::{IdentityError, TrustError},
    join::{DirectoryError, JoinError},
    model::NodeName,
};

/// Why a node cannot start or do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// Another process has the port.
    #[error("{what} port {} of {} is in use by another process; stop it or choose another port", addr.port(), addr.ip())]
    PortInUse {
        /// `UDP`, `TCP` or what listens.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened at.
    #[error("cannot listen at {what} {addr}")]
    Listen {
        /// `UDP`, `TCP` or what listens.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration lacks an address that others can reach.
    #[error("others cannot reach a node at {0}; set an advertise address")]
    Advertise(SocketAddr),
    /// There are no credentials, and no token to get them with.
    #[error(
        "node {0} has not joined a mesh yet: give it a join token (on a server: mesh join-token create)"
    )]
    NotJoined(NodeName),
    /// A join whose result could not be kept.
    #[error("node {0} needs a directory to keep its key and certificate in: set one")]
    NoDirectory(NodeName),
    /// The credentials in the node directory are of another node.
    #[error(
        "the node directory belongs to node {kept}, not to {wanted}; use another directory or the name {kept}"
    )]
    OtherNode {
        /// Whose they are.
        kept: NodeName,
        /// Whose they should be.
        wanted: NodeName,
    },
    /// The kept certificate is no longer valid.
    #[error(
        "the certificate of node {node} is no longer accepted: {reason}; join again with a new token (on a server: mesh \
         join-token create)"
    )]
    Certificate {
        /// The node.
        node: NodeName,
        /// What is wrong with it.
        reason: String,
    },
    /// The join failed.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The node directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A certificate could not be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The roots cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The config bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A record cannot be published.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Membership cannot start.
    #[error("membership cannot start: {0}")]
    Membership(String),
}

impl MeshError {
    pub(super) fn bind(what: &'static str, addr: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse { what, addr },
            _ => Self::Listen { what, addr, source },
        }
    }

    /// Whether the same may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Join(error) => error.is_temporary(),
            Self::Identity(IdentityError::Source(crate::identity::SourceError::Unavailable(_))) => {
                true
            }
            Self::Connect(ConnectError::Failed { .. }) => true,
            _ => false,
        }
    }
}
