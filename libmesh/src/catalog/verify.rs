//! Who may say what: the seams to the identity side.
//!
//! A node's log is believed because it is signed with the key whose hash is the node's id, and because the
//! certificate that carries this key (a record of the log itself) was issued by our CA. What the node may publish is
//! in the certificate too. The catalog neither knows certificates nor keeps private keys: a [`Verifier`] reads the
//! former, a [`Signer`] uses the latter.

use std::fmt;
use std::sync::Arc;

use ring::signature;

use crate::model::{NodeId, NodeName, ServiceName};

/// Reads node certificates.
pub trait Verifier: Send + Sync {
    /// Verifies a chain (DER, leaf first) up to the trust bundle's roots, now.
    ///
    /// # Errors
    /// Why it is not believed, for the log; it must quote no secret.
    fn verify(&self, chain: &[Vec<u8>]) -> Result<VerifiedNode, String>;
}

/// Signs with the node key.
pub trait Signer: Send + Sync {
    /// The Ed25519 signature of `message` (RFC 8032).
    fn sign(&self, message: &[u8]) -> [u8; 64];
}

impl Signer for signature::Ed25519KeyPair {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(signature::Ed25519KeyPair::sign(self, message).as_ref());
        bytes
    }
}

/// What a verified certificate says of its node.
#[derive(Clone)]
pub struct VerifiedNode {
    /// The node, by the certificate's public key.
    pub id: NodeId,
    /// Its name, by the SPIFFE ID.
    pub name: NodeName,
    /// The raw Ed25519 public key.
    pub public_key: [u8; 32],
    /// Its certificate is for one that is no member: it counts as alive, and its record has to say so, too.
    pub external: bool,
    /// The certificate counts up to here: unix seconds.
    pub not_after: u64,
    /// Whether it may publish instances of a service.
    pub may_publish: Arc<dyn Fn(&ServiceName) -> bool + Send + Sync>,
}

impl VerifiedNode {
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        signature::UnparsedPublicKey::new(&signature::ED25519, &self.public_key)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Debug for VerifiedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedNode")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
