//! Who is who in the mesh: SPIFFE IDs, keys made here, certificates made elsewhere, and the TLS
//! configurations that tie them to connections.
//!
//! Invariants of this module:
//!
//! * A peer's identity is the one URI SAN of its *leaf* certificate, a SPIFFE ID of our trust domain,
//!   after a path to the trust bundle was found. Other certificates of the chain, common names, DNS and
//!   IP SANs grant nothing.
//! * Path building and signatures are rustls' (webpki); only the identity check on top is ours.
//! * Sessions are never resumed, so that every connection is a full handshake that meets the current
//!   trust bundle and revocations.
//! * Private keys never leave the process, except the node key in its 0600 file.

mod key;
mod leaf;
mod live;
mod open;
mod renew;
mod rights;
mod source;
mod spiffe;
mod tls;
mod trust;

pub use key::{KeyError, NodeKey, ServiceKey, SigningKeyPair, TlsKey};
pub use leaf::{Leaf, LeafError, verify_signature};
pub use live::{Identity, IdentityError};
pub use open::OpenStream;
pub use renew::Subject;
pub use rights::{PublishRights, RightsError};
pub use source::{
    BoxFuture, CertificateSource, Issued, SIGN_NODE_PATH, SIGN_SERVICE_PATH, SignRequest,
    SourceError,
};
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
pub use trust::{Revoked, Trust, TrustBundle, TrustError};

pub(crate) use leaf::hex;
pub(crate) use tls::{explain, join_client_config};
pub(crate) use trust::sha256;
