//! What the mesh reads of a certificate: who, what rights, until when.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::{
    digest::{SHA256, digest},
    signature::{ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm},
};
use x509_parser::{
    extensions::GeneralName,
    oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519, Oid},
    prelude::{FromDer, X509Certificate},
};

use super::{PublishRights, RightsError, SpiffeError, SpiffeId, rights};
use crate::model::NodeId;

/// Why a certificate gives no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    /// The bytes are no X.509 certificate.
    #[error("the certificate is malformed")]
    Malformed,
    /// The certificate does not have exactly one URI name.
    #[error("the certificate has {0} URI names; an identity is exactly one")]
    UriNames(usize),
    /// The one URI name is no SPIFFE ID of a mesh.
    #[error("the certificate's URI name is no identity")]
    Spiffe(#[from] SpiffeError),
    /// The publish-rights extension is malformed.
    #[error(transparent)]
    Rights(#[from] RightsError),
}

/// The parsed leaf of a chain. Parsing proves nothing: only [`super::Trust::verify`] does.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The one SPIFFE ID.
    pub spiffe: SpiffeId,
    /// What may be published with it; nothing without the extension.
    pub rights: PublishRights,
    /// The serial number in lower-case hexadecimal.
    pub serial: String,
    /// When the certificate starts to be valid.
    pub not_before: SystemTime,
    /// When it stops.
    pub not_after: SystemTime,
    /// SHA-256 of the certificate (DER).
    pub sha256: [u8; 32],
    /// The node id that belongs to the certificate's key.
    pub node_id: NodeId,
    key: PublicKey,
}

#[derive(Debug, Clone)]
enum PublicKey {
    Ed25519(Vec<u8>),
    P256(Vec<u8>),
    Other,
}

impl Leaf {
    /// Reads a certificate (DER) without verifying anything.
    pub fn parse(der: &[u8]) -> Result<Self, LeafError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| LeafError::Malformed)?;
        if !rest.is_empty() {
            return Err(LeafError::Malformed);
        }
        let names = certificate
            .subject_alternative_name()
            .map_err(|_| LeafError::Malformed)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        let [uri] = uris[..] else {
            return Err(LeafError::UriNames(uris.len()));
        };
        let rights_oid = Oid::from(rights::OID).expect("the constant is an object identifier");
        let rights = match certificate
            .get_extension_unique(&rights_oid)
            .map_err(|_| LeafError::Malformed)?
        {
            Some(extension) => PublishRights::from_extension(extension.value)?,
            None => PublishRights::default(),
        };
        let spki = certificate.public_key();
        let bits = spki.subject_public_key.data.to_vec();
        let curve = spki
            .algorithm
            .parameters
            .as_ref()
            .and_then(|p| p.as_oid().ok());
        let key = if spki.algorithm.algorithm == OID_SIG_ED25519 {
            PublicKey::Ed25519(bits)
        } else if spki.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve == Some(OID_EC_P256)
        {
            PublicKey::P256(bits)
        } else {
            PublicKey::Other
        };
        Ok(Self {
            spiffe: SpiffeId::parse(uri)?,
            rights,
            serial: hex(certificate.raw_serial()),
            not_before: time(certificate.validity().not_before.timestamp()),
            not_after: time(certificate.validity().not_after.timestamp()),
            sha256: digest(&SHA256, der)
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
            node_id: NodeId::from_public_key(spki.raw),
            key,
        })
    }
}

impl Leaf {
    /// The raw public key, if it is an Ed25519 key (as every node's is).
    pub fn ed25519(&self) -> Option<[u8; 32]> {
        match &self.key {
            PublicKey::Ed25519(key) => key.as_slice().try_into().ok(),
            PublicKey::P256(_) | PublicKey::Other => None,
        }
    }
}

/// Whether `signature` over `message` was made with the key of `leaf` (Ed25519, or ECDSA P-256 with
/// SHA-256 in ASN.1 form).
pub fn verify_signature(leaf: &Leaf, message: &[u8], signature: &[u8]) -> bool {
    let (algorithm, key): (&dyn VerificationAlgorithm, &[u8]) = match &leaf.key {
        PublicKey::Ed25519(key) => (&ED25519, key),
        PublicKey::P256(key) => (&ECDSA_P256_SHA256_ASN1, key),
        PublicKey::Other => return false,
    };
    UnparsedPublicKey::new(algorithm, key)
        .verify(message, signature)
        .is_ok()
}

fn time(unix: i64) -> SystemTime {
    match u64::try_from(unix) {
        Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds),
        Err(_) => UNIX_EPOCH,
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;

    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
