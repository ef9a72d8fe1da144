//! The config bundle: what the store decides for everybody (intentions, revocations, roots, entries),
//! signed once and passed on by anybody.
//!
//! A bundle is believed for its signature, never for who handed it over: its signer's certificate names
//! `spiffe://<trust-domain>/dc/<dc>/config`, leads to our roots and was valid when the bundle was
//! issued. A node keeps the newest it saw in its directory and never goes back to a lower index, so that
//! a store restored from an old copy is noticed. While the server is away the last one holds.

mod exchange;
mod intentions;
mod store;
mod virtual_ips;

use std::{
    collections::BTreeMap,
    time::{Duration, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::Blame,
    identity::{
        KeyError, SigningKeyPair, SpiffeId, Trust, TrustDomain, TrustError, verify_signature,
    },
    model::Datacenter,
};

pub use intentions::{Action, Decision, Intention, Intentions, ServiceMatch};
pub use store::{BundleStore, Offered};

pub(crate) use exchange::{Peers, follow, routes};

/// What is signed is this, then the bundle's bytes: the signature is good for nothing else.
const CONTEXT: &[u8] = b"mesh config bundle\0";
/// The first byte of an encoded bundle.
const FORMAT: u8 = 1;
/// The largest encoded bundle, with its signature.
pub(crate) const MAX_BUNDLE: usize = 32 << 20;

/// What the ledger says to every node of a datacenter, at one index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigBundle {
    /// The ledger index it was made at.
    pub index: u64,
    /// The ledger's head hash at that index.
    pub head: [u8; 32],
    /// When it was signed, in seconds since 1970.
    pub issued_at: u64,
    /// The mesh it is for.
    pub trust_domain: TrustDomain,
    /// The datacenter it is for.
    pub datacenter: Datacenter,
    /// The root certificates to trust from now on (DER); empty changes nothing.
    pub roots: Vec<Vec<u8>>,
    /// Who may call whom.
    pub intentions: Vec<Intention>,
    /// What holds where no intention matches. Deny, except in `mesh dev`.
    pub default_action: Action,
    /// What is no longer accepted.
    pub revoked: Vec<Revocation>,
    /// Other entries, opaque here.
    pub entries: BTreeMap<String, Vec<u8>>,
}

/// One revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Revocation {
    /// A certificate, by its serial number in lower-case hexadecimal.
    Serial(String),
    /// Every certificate of an identity.
    Identity(SpiffeId),
}

/// A bundle as it travels and is kept.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBundle {
    /// The encoded [`ConfigBundle`].
    pub bytes: Vec<u8>,
    /// The signature over it.
    pub signature: Vec<u8>,
    /// The signer's chain: leaf first, DER.
    pub chain: Vec<Vec<u8>>,
}

/// Why a bundle is not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It does not decode, or is of a later format.
    #[error("the config bundle is malformed or of a later version")]
    Malformed,
    /// It is larger than nodes take.
    #[error("the config bundle has {0} bytes; nodes take at most {MAX_BUNDLE}")]
    TooLarge(usize),
    /// The signer is not trusted.
    #[error("the signer of the config bundle is not trusted")]
    Signer(#[from] TrustError),
    /// The signer's certificate is for something else.
    #[error("{0} may not sign config bundles of this datacenter")]
    NotASigner(SpiffeId),
    /// The signature is wrong.
    #[error("the signature of the config bundle is wrong")]
    Signature,
    /// The signing key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is for another mesh or datacenter.
    #[error("the config bundle is for {0}, not for this datacenter")]
    Elsewhere(String),
    /// It is older than what was seen already: the store it comes from may have been rolled back.
    #[error(
        "the config bundle has index {offered}, but index {seen} was seen already: was the store restored from an \
         older copy?"
    )]
    Older {
        /// Its index.
        offered: u64,
        /// The index held.
        seen: u64,
    },
    /// It has the index of the bundle held, but another history.
    #[error(
        "two different histories of the store exist at index {0}: was it restored and written again?"
    )]
    Forked(u64),
    /// The cache file cannot be read or written.
    #[error("cannot use the bundle cache {path}")]
    Cache {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BundleError {
    /// Whom to blame. Trying again with the same bundle does not help.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Malformed | Self::Signer(_) | Self::NotASigner(_) | Self::Signature => {
                Blame::Peer
            }
            Self::TooLarge(_) | Self::Elsewhere(_) | Self::Older { .. } | Self::Forked(_) => {
                Blame::Authority
            }
            Self::Key(_) | Self::Cache { .. } => Blame::Environment,
        }
    }
}

impl SignedBundle {
    /// Signs a bundle with the key of `chain`, the certificate of the datacenter's config signer.
    pub fn sign(
        bundle: &ConfigBundle,
        key: &dyn SigningKeyPair,
        chain: Vec<Vec<u8>>,
    ) -> Result<Self, BundleError> {
        let bytes =
            postcard::to_extend(bundle, vec![FORMAT]).map_err(|_| BundleError::Malformed)?;
        if bytes.len() > MAX_BUNDLE / 2 {
            return Err(BundleError::TooLarge(bytes.len()));
        }
        let signature = key.sign(&signing_input(&bytes))?;
        Ok(Self {
            bytes,
            signature,
            chain,
        })
    }

    /// The bundle, if its signer may sign for `datacenter` and did.
    pub fn verify(
        &self,
        trust: &Trust,
        datacenter: &Datacenter,
    ) -> Result<ConfigBundle, BundleError> {
        // The signer was valid at the time that the bundle states, so the bundle is decoded (bounded by
        // its own length) before it is believed.
        let bundle = self.decode()?;
        let issued_at = UNIX_EPOCH
            .checked_add(Duration::from_secs(bundle.issued_at))
            .ok_or(BundleError::Malformed)?;
        let signer = trust.verify(&self.chain, issued_at)?;
        if signer.spiffe.as_config_signer() != Some(datacenter) {
            return Err(BundleError::NotASigner(signer.spiffe));
        }
        if !verify_signature(&signer, &signing_input(&self.bytes), &self.signature) {
            return Err(BundleError::Signature);
        }
        if bundle.trust_domain != *trust.domain() || bundle.datacenter != *datacenter {
            return Err(BundleError::Elsewhere(format!(
                "{} of {}",
                bundle.datacenter, bundle.trust_domain
            )));
        }
        Ok(bundle)
    }

    /// Index and head of the ledger that it claims to be of, before anything is verified: enough to ask a question,
    /// not to answer one. `None` if it is malformed.
    pub fn claimed_head(&self) -> Option<(u64, [u8; 32])> {
        let bundle = self.decode().ok()?;
        Some((bundle.index, bundle.head))
    }

    fn decode(&self) -> Result<ConfigBundle, BundleError> {
        match self.bytes.split_first() {
            Some((&FORMAT, bytes)) => {
                postcard::from_bytes(bytes).map_err(|_| BundleError::Malformed)
            }
            _ => Err(BundleError::Malformed),
        }
    }
}

impl std::fmt::Debug for SignedBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedBundle({} bytes)", self.bytes.len())
    }
}

fn signing_input(bytes: &[u8]) -> Vec<u8> {
    [CONTEXT, bytes].concat()
}
