//! Why an agent does not start: what failed, on what, and which key changes it.

use std::{io, net::SocketAddr, path::PathBuf};

use libmesh::mesh::MeshError;
use thiserror::Error;

use crate::{
    config::{Config, Place},
    ports,
};

/// Why an agent does not start.
#[derive(Debug, Error)]
pub enum AgentError {
    /// A port is taken.
    #[error(
        "port {} on {} is in use by {owner}; stop it, or set `{key}` to another port", addr.port(), addr.ip()
    )]
    PortInUse {
        /// Who has it, as far as this user may know.
        owner: String,
        /// The address.
        addr: SocketAddr,
        /// The configuration key.
        key: &'static str,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr} (`{key}`): {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Others cannot reach the node.
    #[error(
        "others cannot reach a node at {addr}: {reason}; set `node.advertise` to an address that they can reach"
    )]
    Advertise {
        /// The address that others would be told.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The Unix socket cannot be made.
    #[error("{0}; set `addresses.socket` to another path")]
    Socket(io::Error),
    /// The Unix socket cannot be given away.
    #[error("cannot change the owner of {}: {source}; see `addresses.socket_user` and `socket_group`", path.display())]
    SocketOwner {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data directory cannot be made.
    #[error("cannot make the data directory {}: {source}; set `node.data_dir`", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with the token of requests that bring none.
    #[error("cannot use the token in {}: {source}; see `acl.default_token_file`", path.display())]
    AclToken {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file with what was registered over HTTP cannot be read.
    #[error("cannot use {}: {source}; remove it to begin without what was registered over HTTP", path.display())]
    Registered {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The join token cannot be had.
    #[error("no join token in {} (`join.token_file`): {reason}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An attach token cannot be had.
    #[error("{place}: no attach token in {}: {reason}", path.display())]
    AttachToken {
        /// Where the service is declared.
        place: Place,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A seed is no address.
    #[error("`join.seeds` has {seed:?}: {reason}")]
    Seed {
        /// The seed.
        seed: String,
        /// What is wrong.
        reason: String,
    },
    /// A service of the configuration cannot be registered.
    #[error("{place}: {reason}")]
    Service {
        /// Where it is declared.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// A check of the configuration cannot be run.
    #[error("[[check]] {0}")]
    Check(String),
    /// The certificate or key for HTTPS cannot be used.
    #[error("[tls] {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// DNS does not start.
    #[error("DNS does not start: {0}")]
    Dns(dns::Error),
    /// The mesh node does not start.
    #[error(transparent)]
    Mesh(MeshError),
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

impl AgentError {
    /// Whether the same may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        matches!(self, AgentError::Mesh(error) if error.retry().is_worthwhile())
    }

    pub(super) fn mesh(error: MeshError, config: &Config) -> AgentError {
        match error {
            MeshError::PortInUse { addr, .. } => AgentError::PortInUse {
                owner: ports::owner(addr),
                addr,
                key: "ports.gossip",
            },
            MeshError::Listen { source, .. } => AgentError::Listen {
                addr: SocketAddr::new(config.node.bind, config.ports.gossip),
                key: "node.bind",
                source,
            },
            MeshError::Advertise { addr, reason } => AgentError::Advertise { addr, reason },
            other => AgentError::Mesh(other),
        }
    }

    pub(super) fn dns(error: dns::Error) -> AgentError {
        match error {
            dns::Error::Listen {
                address,
                protocol: "tls",
                source,
            } => AgentError::bind(address, "ports.dns_tls", source),
            dns::Error::Listen {
                address, source, ..
            } => AgentError::bind(address, "ports.dns", source),
            other => AgentError::Dns(other),
        }
    }

    pub(super) fn bind(addr: SocketAddr, key: &'static str, source: io::Error) -> AgentError {
        match source.kind() {
            io::ErrorKind::AddrInUse => AgentError::PortInUse {
                owner: ports::owner(addr),
                addr,
                key,
            },
            _ => AgentError::Listen { addr, key, source },
        }
    }
}
