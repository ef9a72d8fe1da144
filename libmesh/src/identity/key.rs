//! Private keys, made where they are used: the node's Ed25519 key lives in its 0600 file, a service's
//! P-256 key only in memory. Both give a certificate request and a TLS signer.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair},
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};
use zeroize::Zeroizing;

use crate::{files, model::NodeId};

/// Why a key could not be made, read or used. Blames this machine; trying again does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The system gave no random bytes, or the key bytes are no key.
    #[error("the {0} key cannot be used: {1}")]
    Unusable(&'static str, String),
    /// The node key's file cannot be read or written.
    #[error("cannot use the node key file {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A private key as TLS signs with it; what is inside belongs to this crate.
#[derive(Clone)]
pub struct TlsKey(pub(super) Arc<dyn SigningKey>);

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey")
    }
}

/// A private key of this process: what [`super::Identity`] needs of it.
pub trait SigningKeyPair {
    /// A PKCS#10 request for this key (DER). It names nobody: the authority decides who may have what.
    fn csr_der(&self) -> Result<Vec<u8>, KeyError>;
    /// The key for TLS.
    fn tls_key(&self) -> Result<TlsKey, KeyError>;
    /// Signs `message`: Ed25519, or ECDSA P-256 with SHA-256 in ASN.1 form.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError>;
}

/// The long-lived Ed25519 key of a node; the hash of its public half is the node's id.
#[derive(Clone)]
pub struct NodeKey {
    pkcs8: Arc<Zeroizing<Vec<u8>>>,
    pair: Arc<Ed25519KeyPair>,
    id: NodeId,
}

impl NodeKey {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair =
            rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(|e| unusable("node", e))?;
        Self::from_pkcs8(Zeroizing::new(pair.serialize_der()))
    }

    /// The key in `path`, or a new one written there (mode 0600).
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let file = |source| KeyError::File {
            path: path.to_owned(),
            source,
        };
        match files::read_private(path).map_err(file)? {
            Some(pkcs8) => Self::from_pkcs8(pkcs8),
            None => {
                let key = Self::generate()?;
                files::write_private(path, &key.pkcs8).map_err(file)?;
                Ok(key)
            }
        }
    }

    /// The key in PKCS#8 (DER).
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        let pair =
            Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).map_err(|e| unusable("node", e))?;
        let public = rcgen_pair(&pkcs8, "node")?;
        let id = NodeId::from_public_key(&rcgen::PublicKeyData::subject_public_key_info(&public));
        Ok(Self {
            pkcs8: Arc::new(pkcs8),
            pair: Arc::new(pair),
            id,
        })
    }

    /// The key in PKCS#8 (DER), for keeping it elsewhere than in a file.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.pkcs8.to_vec())
    }

    /// The node id that belongs to this key.
    pub fn node_id(&self) -> NodeId {
        self.id
    }

    /// The Ed25519 signature of `message`.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.pair
            .sign(message)
            .as_ref()
            .try_into()
            .expect("an Ed25519 signature has 64 bytes")
    }
}

impl SigningKeyPair for NodeKey {
    fn csr_der(&self) -> Result<Vec<u8>, KeyError> {
        csr(&self.pkcs8, "node")
    }

    fn tls_key(&self) -> Result<TlsKey, KeyError> {
        tls_key(&self.pkcs8, "node")
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.sign_bytes(message).to_vec())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.id)
    }
}

/// A P-256 key of a service (or of a config signer); never written anywhere by this crate.
pub struct ServiceKey {
    pkcs8: Zeroizing<Vec<u8>>,
}

impl ServiceKey {
    /// A new random key.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| unusable("service", e))?;
        Ok(Self {
            pkcs8: Zeroizing::new(pair.serialize_der()),
        })
    }

    /// The key in PKCS#8 (DER), for a signer that keeps its key in a sealed store.
    pub fn from_pkcs8(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        rcgen_pair(&pkcs8, "service")?;
        Ok(Self { pkcs8 })
    }

    /// The key as PKCS#8 (DER): for a secret file that an operator asked for, or a sealed store.
    pub fn pkcs8(&self) -> &Zeroizing<Vec<u8>> {
        &self.pkcs8
    }
}

impl SigningKeyPair for ServiceKey {
    fn csr_der(&self) -> Result<Vec<u8>, KeyError> {
        csr(&self.pkcs8, "service")
    }

    fn tls_key(&self) -> Result<TlsKey, KeyError> {
        tls_key(&self.pkcs8, "service")
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &self.pkcs8, &random)
            .map_err(|e| unusable("service", e))?;
        Ok(pair
            .sign(&random, message)
            .map_err(|e| unusable("service", e))?
            .as_ref()
            .to_vec())
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceKey")
    }
}

fn rcgen_pair(pkcs8: &[u8], what: &'static str) -> Result<rcgen::KeyPair, KeyError> {
    rcgen::KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8)).map_err(|e| unusable(what, e))
}

fn csr(pkcs8: &[u8], what: &'static str) -> Result<Vec<u8>, KeyError> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params
        .serialize_request(&rcgen_pair(pkcs8, what)?)
        .map_err(|e| unusable(what, e))?;
    Ok(request.der().to_vec())
}

fn tls_key(pkcs8: &[u8], what: &'static str) -> Result<TlsKey, KeyError> {
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8));
    let key = any_supported_type(&der).map_err(|e| unusable(what, e))?;
    Ok(TlsKey(key))
}

/// `cause` describes the kind of failure, never key bytes: ring and rustls keep them out of their errors.
fn unusable(what: &'static str, cause: impl fmt::Display) -> KeyError {
    KeyError::Unusable(what, cause.to_string())
}
