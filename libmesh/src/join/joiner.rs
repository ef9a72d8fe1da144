//! The joiner: asks the seeds in turn until one answers, then checks the answer against the token.

use std::{
    fmt::Write,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::StatusCode;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use super::{JoinReply, JoinRequest, JoinToken, NodeCredentials, Seed};
use crate::{
    error::{Blame, Retry},
    identity::{KeyError, Leaf, NodeKey, SigningKeyPair, Trust, TrustBundle, sha256},
    member::Keyring,
    model::NodeName,
    rpc::{RpcError, call_join},
};

/// Time for one node to answer (it may have to ask a server).
const ONE_CALL: Duration = Duration::from_secs(10);
/// The pause after a round without success, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Why the node is not in the mesh.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The mesh does not know the token.
    #[error(
        "the mesh refuses the join token: {0}; make a new one on a server with: mesh join-token create"
    )]
    Refused(String),
    /// The token was good once.
    #[error(
        "the join token is no longer valid: {0}; make a new one on a server with: mesh join-token create"
    )]
    Expired(String),
    /// The node name belongs to another key.
    #[error(
        "the node name {name} cannot be had: {message}; choose another name, or see who has it with: mesh members"
    )]
    Name {
        /// The name.
        name: NodeName,
        /// What the server says.
        message: String,
    },
    /// Who answers is of another mesh than the token.
    #[error(
        "{addr} is not of the mesh that the join token is for: {reason}; take a seed of that mesh, or make a token in \
         this one with: mesh join-token create"
    )]
    OtherMesh {
        /// Who answered.
        addr: SocketAddr,
        /// What was seen.
        reason: String,
    },
    /// The mesh is there, but cannot admit anybody now (sealed, no server): worth trying later.
    #[error("the mesh cannot admit nodes now: {0}; try later")]
    Later(String),
    /// Nobody answered.
    #[error(
        "no mesh node answers: {0}; check the seeds, and that port 8301 (UDP and TCP) is open between the nodes"
    )]
    Unreachable(String),
    /// No seeds were given.
    #[error("no address of a mesh node is given to join with: set a seed, like 10.0.0.1:8301")]
    NoSeeds,
    /// The answer does not hold what it should.
    #[error("the answer of {addr} cannot be used: {reason}")]
    Answer {
        /// Who answered.
        addr: SocketAddr,
        /// What is wrong.
        reason: String,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl JoinError {
    /// Whom to blame.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Refused(_)
            | Self::Expired(_)
            | Self::Name { .. }
            | Self::OtherMesh { .. }
            | Self::NoSeeds => Blame::Configuration,
            Self::Later(_) => Blame::Authority,
            Self::Unreachable(_) | Self::Answer { .. } => Blame::Peer,
            Self::Key(_) => Blame::Environment,
        }
    }

    /// Whether the same join may succeed later without anybody changing anything.
    pub fn retry(&self) -> Retry {
        Retry::later_if(matches!(self, Self::Later(_) | Self::Unreachable(_)))
    }
}

/// Joins through the first seed that answers. Temporary failures are tried again with back-off until
/// `patience` has passed; what waiting cannot mend ends it at once.
pub async fn join(
    token: &JoinToken,
    seeds: &[Seed],
    node: &NodeName,
    key: &NodeKey,
    advertise: SocketAddr,
    patience: Duration,
) -> Result<NodeCredentials, JoinError> {
    if seeds.is_empty() {
        return Err(JoinError::NoSeeds);
    }
    let request = JoinRequest {
        token: token.id(),
        secret: *token.secret(),
        node: node.clone(),
        csr: key.csr_der()?,
        advertise,
    };
    let body = Bytes::from(request.encode());
    let until = Instant::now() + patience;
    let mut pause = PAUSE.0;
    loop {
        let failure = match round(token, seeds, node, key, &body).await {
            Err(error) if error.retry().is_worthwhile() => error,
            ended => return ended,
        };
        let wait = pause.mul_f64(rand::random_range(0.5..1.0));
        if Instant::now() + wait >= until {
            return Err(failure);
        }
        tracing::warn!(error = %failure, retry_in = ?wait, "not joined yet");
        sleep(wait).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Asks every address behind the seeds once, in random order, until one answers.
async fn round(
    token: &JoinToken,
    seeds: &[Seed],
    node: &NodeName,
    key: &NodeKey,
    body: &Bytes,
) -> Result<NodeCredentials, JoinError> {
    let mut addresses = Vec::new();
    let mut silent = String::new();
    let mut later = None;
    for seed in seeds {
        match seed.resolve().await {
            Ok(found) => addresses.extend(found),
            Err(error) => note(&mut silent, seed, error),
        }
    }
    addresses.shuffle(&mut rand::rng());
    for addr in addresses {
        match call_join(addr, token.ca_hash(), body.clone(), ONE_CALL).await {
            Ok(answer) => return accept(addr, token, node, key, &answer),
            Err(RpcError::Status {
                status, message, ..
            }) => match status {
                StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                    return Err(JoinError::Refused(message));
                }
                StatusCode::GONE => return Err(JoinError::Expired(message)),
                StatusCode::CONFLICT => {
                    return Err(JoinError::Name {
                        name: node.clone(),
                        message,
                    });
                }
                StatusCode::BAD_REQUEST => {
                    return Err(JoinError::Answer {
                        addr,
                        reason: message,
                    });
                }
                _ => later = Some(message),
            },
            Err(RpcError::Handshake { reason, .. }) => {
                return Err(JoinError::OtherMesh { addr, reason });
            }
            Err(error) => note(&mut silent, addr, error),
        }
    }
    Err(later.map_or(JoinError::Unreachable(silent), JoinError::Later))
}

/// Believes of the answer what the pinned root vouches for.
fn accept(
    addr: SocketAddr,
    token: &JoinToken,
    node: &NodeName,
    key: &NodeKey,
    answer: &[u8],
) -> Result<NodeCredentials, JoinError> {
    let unusable = |reason: String| JoinError::Answer { addr, reason };
    let mut reply =
        JoinReply::decode(answer).ok_or_else(|| unusable("it is malformed".to_owned()))?;
    let mut bundle = std::mem::take(&mut reply.bundle);
    bundle.roots.retain(|root| sha256(root) == token.ca_hash());
    let domain = match reply.chain.first().map(|der| Leaf::parse(der)) {
        Some(Ok(leaf)) => leaf.spiffe.trust_domain().clone(),
        _ => return Err(unusable("its certificate is malformed".to_owned())),
    };
    let trusted = Trust::new(domain.clone(), TrustBundle::clone(&bundle));
    let trusted = trusted.and_then(|trust| trust.verify(&reply.chain, SystemTime::now()));
    let leaf = trusted.map_err(|error| unusable(error.to_string()))?;
    if leaf.spiffe.as_node() != Some(node) || leaf.node_id != key.node_id() {
        return Err(unusable(format!("the certificate is for {}", leaf.spiffe)));
    }
    let keyring =
        Keyring::from_bytes(&reply.keyring).map_err(|error| unusable(error.to_string()))?;
    Ok(NodeCredentials {
        key: key.clone(),
        name: node.clone(),
        datacenter: reply.datacenter.clone(),
        trust_domain: domain,
        chain: std::mem::take(&mut reply.chain),
        bundle,
        keyring,
        seeds: std::mem::take(&mut reply.seeds),
        config: reply.config.take(),
    })
}

fn note(list: &mut String, place: impl std::fmt::Display, error: impl std::fmt::Display) {
    let separator = if list.is_empty() { "" } else { "; " };
    let _ = write!(list, "{separator}{place}: {error}");
}
