//! Where certificates come from: the seam between the mesh and its authority.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{Leaf, TrustBundle};
use crate::{error::Retry, model::ServiceName};

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A certificate as the authority gives it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// The leaf, then the intermediates (DER); no root.
    pub chain: Vec<Vec<u8>>,
    /// The roots to trust. Believed only at join (where the token pins it) and from the authority in
    /// this process; later changes come with the signed config bundle.
    pub bundle: TrustBundle,
    /// When the leaf stops being valid.
    pub not_after: SystemTime,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = self.chain.first().and_then(|der| Leaf::parse(der).ok());
        write!(
            f,
            "Issued({:?})",
            leaf.map(|leaf| (leaf.spiffe, leaf.serial))
        )
    }
}

/// Why no certificate was issued. Blames the authority. There are just these two, so that every [`CertificateSource`]
/// says whether asking again helps.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SourceError {
    /// The authority cannot answer now: sealed, restarting, unreachable. Trying later is right.
    #[error("the certificate authority cannot answer now: {0}")]
    Unavailable(String),
    /// The authority refused; asking the same again will not help.
    #[error("the certificate authority refused: {0}")]
    Refused(String),
}

impl SourceError {
    /// Whether trying again helps.
    pub fn retry(&self) -> Retry {
        Retry::later_if(matches!(self, Self::Unavailable(_)))
    }
}

/// Signs certificate requests: the mesh authority itself (in a server) or a call to it (in an agent).
pub trait CertificateSource: Send + Sync + 'static {
    /// A certificate for this node. The request (PKCS#10 DER) proves the key; the name is the one the
    /// caller is already known by.
    fn sign_node(&self, csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>>;

    /// A certificate for a service that this node may publish. `ttl`: `None` means the authority's
    /// default (24 h); the authority may shorten it.
    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>>;
}

/// The server route that signs a node's certificate: a [`SignRequest`] without service.
pub const SIGN_NODE_PATH: &str = "/server/sign-node";
/// The server route that signs a service's certificate: a [`SignRequest`] with one.
pub const SIGN_SERVICE_PATH: &str = "/server/sign-service";

/// What a node asks a server to sign. The answer is a postcard-encoded [`Issued`]; refusals are 4xx,
/// "not now" (sealed) is 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignRequest {
    /// For which service; `None`: for the calling node itself.
    pub service: Option<ServiceName>,
    /// The certificate request (PKCS#10, DER).
    pub csr: Vec<u8>,
    /// The life to ask for.
    pub ttl: Option<Duration>,
}

impl SignRequest {
    /// The request as it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain types encode")
    }

    /// The request in a body; `None` if it is none.
    pub fn decode(body: &[u8]) -> Option<Self> {
        postcard::from_bytes(body).ok()
    }
}

impl Issued {
    /// The certificate as it travels.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain types encode")
    }
}
