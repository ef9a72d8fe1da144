//! What can go wrong with a node.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{
    bundle::BundleError,
    catalog::LocalError,
    config::ConfigError,
    connect::ConnectError,
    error::{Blame, Retry},
    identity::{IdentityError, TrustError},
    join::{DirectoryError, JoinError},
    model::{Datacenter, NodeName},
};

/// Why a node cannot start or do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// Settings that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process has the port.
    #[error(
        "{what} port {port} of {} is in use by another process; stop it or choose another port (who it is: ss -ltunp 'sport = :{port}')",
        addr.ip(), port = addr.port()
    )]
    PortInUse {
        /// `UDP`, `TCP` or what listens.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened at.
    #[error("cannot listen at {what} {addr}; is it an address of this machine? (see: ip addr)")]
    Listen {
        /// `UDP`, `TCP` or what listens.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration lacks an address that others can reach.
    #[error(
        "others cannot reach a node at {addr}: {reason}; set an advertise address that they can reach"
    )]
    Advertise {
        /// The address that others would be told.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
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
    /// The credentials are for another datacenter than the configuration says.
    #[error(
        "the node's credentials are for datacenter {kept}, not for {wanted}; use a token of {wanted} with an empty \
         directory, or set the datacenter to {kept}"
    )]
    OtherDatacenter {
        /// What they are for.
        kept: Datacenter,
        /// What the configuration says.
        wanted: Datacenter,
    },
    /// The join token is of another mesh than the one that the node directory belongs to.
    #[error(
        "the join token is for another mesh than {domain}, which the node directory {} belongs to; use another \
         directory, or leave the token away to go on as that node",
        directory.display()
    )]
    OtherMesh {
        /// The directory.
        directory: PathBuf,
        /// The trust domain of the mesh that it belongs to.
        domain: String,
    },
    /// The key in the node directory is not the one that the certificate was made for.
    #[error(
        "the node key {} is not the one that the certificate of node {node} was made for; put that key back, or empty \
         the directory and join again with a new token (on a server: mesh join-token create)",
        path.display()
    )]
    OtherKey {
        /// The key's file, or what holds it.
        path: PathBuf,
        /// The node.
        node: NodeName,
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
    /// The same node key is in use at another address; the text names both.
    #[error("{0}")]
    Copy(String),
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

    /// Whom to blame.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Config(_)
            | Self::Advertise { .. }
            | Self::NotJoined(_)
            | Self::NoDirectory(_)
            | Self::OtherNode { .. }
            | Self::OtherDatacenter { .. }
            | Self::OtherMesh { .. }
            | Self::OtherKey { .. }
            | Self::Copy(_)
            | Self::Certificate { .. } => Blame::Configuration,
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Blame::Configuration
            }
            Self::PortInUse { .. } | Self::Listen { .. } | Self::Membership(_) => {
                Blame::Environment
            }
            Self::Join(error) => error.blame(),
            Self::Directory(_) => Blame::Environment,
            Self::Identity(error) => error.blame(),
            Self::Trust(error) => error.blame(),
            Self::Bundle(error) => error.blame(),
            Self::Local(error) => error.blame(),
            Self::Connect(error) => error.blame(),
        }
    }

    /// Whether the same may succeed later without anybody changing anything.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Join(error) => error.retry(),
            Self::Identity(error) => error.retry(),
            Self::Local(error) => error.retry(),
            Self::Connect(error) => error.retry(),
            _ => Retry::No,
        }
    }
}
