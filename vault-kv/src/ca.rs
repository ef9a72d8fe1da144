//! The mesh's certificate authority: one root, one intermediate for this datacenter, both inside the
//! barrier.
//!
//! It signs what the embedding program asks for and knows nothing of nodes or services: a [`Profile`] has
//! one URI (the identity), further names, a lifetime and extensions. Of the request only the key is taken,
//! after its own signature has proved that the requester holds it.
//!
//! Making the authority is a ledger entry. Issuing leaves is not: a fleet renews them all the time, and a
//! lost record of one loses nothing that could not be seen in the certificate itself. The audit of issuance
//! is the log line of the caller.
//!
//! Sealing drops the keys; what was issued stays valid until it expires.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData, SanType, SerialNumber, SigningKey,
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    core::{Change, Core, Error, Meta, Op},
    sys::{Locked, without_traces},
    vault::Vault,
};

pub(crate) const RECORD: &str = "ca/authority";
/// How long a root is valid: ten years.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// How long an intermediate is valid: a year.
pub const INTERMEDIATE_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Certificates start this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(30);

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authority has not been made yet.
    #[error("this store has no certificate authority yet")]
    Missing,
    /// The request is malformed, or not signed by its own key.
    #[error("the certificate request is malformed or not signed by its own key")]
    Request,
    /// A field of the profile cannot be put into a certificate.
    #[error("the certificate cannot be made: {0}")]
    Profile(String),
    /// Sealed, or storage fails.
    #[error(transparent)]
    Store(#[from] Error),
}

/// What a certificate says.
#[derive(Debug, Clone)]
pub struct Profile {
    /// The identity: the one URI among the subject's names.
    pub uri: String,
    /// Further names for clients that look at them. They never authorize anything.
    pub dns: Vec<String>,
    /// Further addresses, likewise.
    pub ips: Vec<IpAddr>,
    /// How long it is valid; never longer than the intermediate.
    pub ttl: Duration,
    /// Extensions that are not critical: object identifier and DER.
    pub extensions: Vec<(Vec<u64>, Vec<u8>)>,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub struct IssuedCert {
    /// Leaf, then intermediate (DER); no root.
    pub chain: Vec<Vec<u8>>,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
    /// When it stops being valid.
    pub not_after: SystemTime,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct Stored {
    root: Vec<u8>,
    root_key: Vec<u8>,
    intermediate: Vec<u8>,
    intermediate_key: Vec<u8>,
    intermediate_not_after: i64,
}

impl Stored {
    /// In a buffer that does not grow: growing would leave copies of the keys behind.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let parts = [
            &self.root,
            &self.root_key,
            &self.intermediate,
            &self.intermediate_key,
        ];
        let room = parts.iter().map(|part| part.len() + 5).sum::<usize>() + 10;
        let mut bytes = Zeroizing::new(vec![0; room]);
        let used = postcard::to_slice(self, &mut bytes)
            .expect("there is room for every part")
            .len();
        bytes.truncate(used);
        bytes
    }
}

/// The authority, ready to sign. Lives as long as the store is unsealed.
pub(crate) struct Signer {
    root: Vec<u8>,
    intermediate: Vec<u8>,
    not_after: OffsetDateTime,
    issuer: Issuer<'static, LockedKey>,
}

/// The intermediate's key, in locked memory.
struct LockedKey {
    key: Locked<EcdsaKeyPair>,
    /// The uncompressed point.
    public: Vec<u8>,
}

impl LockedKey {
    fn new(pkcs8: &[u8]) -> Option<Self> {
        without_traces(|| {
            let random = SystemRandom::new();
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &random);
            let key = Locked::new(key.ok()?);
            let public = key.public_key().as_ref().to_vec();
            Some(Self { key, public })
        })
    }
}

impl PublicKeyData for LockedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for LockedKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.key.sign(&SystemRandom::new(), message);
        let signature = signature.map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// The certificate authority of a store. Cheap to clone.
#[derive(Clone)]
pub struct Ca {
    vault: Vault,
}

impl Vault {
    /// The certificate authority.
    pub fn ca(&self) -> Ca {
        Ca {
            vault: self.clone(),
        }
    }
}

impl Ca {
    /// Makes root and intermediate if there are none; `name` is shown in their subjects.
    ///
    /// # Errors
    /// Sealed, or storage fails.
    pub async fn bootstrap(&self, meta: Meta, name: &str) -> Result<(), CaError> {
        let core = self.vault.unsealed()?.core.clone();
        if core.index_of(RECORD)?.is_some() {
            return Ok(());
        }
        let made = without_traces(|| make(name).map(|stored| stored.encode()));
        let value = made.map_err(|error| CaError::Profile(error.to_string()))?;
        let change = Change {
            meta,
            ops: vec![Op::Put {
                path: RECORD.to_owned(),
                value,
            }],
            expect: vec![(RECORD.to_owned(), None)],
        };
        match core.commit(change).await {
            // Somebody else made it meanwhile.
            Ok(_) | Err(Error::CasMismatch) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The root certificates to trust (DER).
    ///
    /// # Errors
    /// Sealed, or not made yet.
    pub fn roots(&self) -> Result<Vec<Vec<u8>>, CaError> {
        Ok(vec![self.signer()?.root.clone()])
    }

    /// Signs the key of a PKCS#10 request (DER).
    ///
    /// # Errors
    /// Sealed, a bad request, an impossible profile.
    pub fn sign(&self, csr: &[u8], profile: &Profile) -> Result<IssuedCert, CaError> {
        let request =
            CertificateSigningRequestParams::from_der(&csr.into()).map_err(|_| CaError::Request)?;
        let signer = self.signer()?;
        let impossible = |error: rcgen::Error| CaError::Profile(error.to_string());

        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = profile.uri.as_str().try_into().map_err(impossible)?;
        params.subject_alt_names.push(SanType::URI(uri));
        for name in &profile.dns {
            let name = name.as_str().try_into().map_err(impossible)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = profile.ips.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions = profile
            .extensions
            .iter()
            .map(|(oid, der)| CustomExtension::from_oid_content(oid, der.clone()))
            .collect();
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = whole_seconds((now + profile.ttl).min(signer.not_after));
        let serial = serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params
            .signed_by(&request.public_key, &signer.issuer)
            .map_err(impossible)?;
        Ok(IssuedCert {
            chain: vec![certificate.der().to_vec(), signer.intermediate.clone()],
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
            not_after: params.not_after.into(),
        })
    }

    fn signer(&self) -> Result<Arc<Signer>, CaError> {
        let open = self.vault.unsealed()?;
        if let Some(signer) = open.signer.get() {
            return Ok(Arc::clone(signer));
        }
        let signer = Arc::new(load(&open.core)?);
        Ok(Arc::clone(open.signer.get_or_init(|| signer)))
    }
}

fn load(core: &Core) -> Result<Signer, CaError> {
    let record = core.get(RECORD)?.ok_or(CaError::Missing)?;
    let stored: Stored =
        postcard::from_bytes(&record).map_err(|_| CaError::Store(Error::Unreadable))?;
    let unreadable = |_| CaError::Store(Error::Unreadable);
    let key = LockedKey::new(&stored.intermediate_key);
    let key = key.ok_or(CaError::Store(Error::Unreadable))?;
    let certificate = stored.intermediate.as_slice().into();
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(unreadable)?;
    let not_after = OffsetDateTime::from_unix_timestamp(stored.intermediate_not_after)
        .map_err(|_| CaError::Store(Error::Unreadable))?;
    Ok(Signer {
        root: stored.root.clone(),
        intermediate: stored.intermediate.clone(),
        not_after,
        issuer,
    })
}

fn make(name: &str) -> Result<Stored, rcgen::Error> {
    let now = OffsetDateTime::now_utc();
    let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let root_params = authority(&format!("{name} root"), now, ROOT_LIFE, None);
    let root = root_params.self_signed(&root_key)?;
    let root_der = root_key.serialize_der();
    let issuer = Issuer::new(root_params, root_key);

    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params = authority(
        &format!("{name} intermediate"),
        now,
        INTERMEDIATE_LIFE,
        Some(0),
    );
    let intermediate = params.signed_by(&key, &issuer)?;
    Ok(Stored {
        root: root.der().to_vec(),
        root_key: root_der,
        intermediate: intermediate.der().to_vec(),
        intermediate_key: key.serialize_der(),
        intermediate_not_after: params.not_after.unix_timestamp(),
    })
}

fn authority(
    name: &str,
    now: OffsetDateTime,
    life: Duration,
    path_length: Option<u8>,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(match path_length {
        Some(length) => BasicConstraints::Constrained(length),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - BACKDATE;
    params.not_after = whole_seconds(now + life);
    params.serial_number = Some(SerialNumber::from_slice(&serial()));
    params
}

/// Certificates have no fractions of a second.
fn whole_seconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}

/// 127 random bits: positive and never shorter in DER.
fn serial() -> [u8; 16] {
    let mut bytes: [u8; 16] = crate::barrier::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::*;

    use super::*;
    use crate::vault::{InitOptions, StoreConfig, VaultConfig};

    async fn ca() -> (Vault, Ca) {
        let vault = Vault::open(VaultConfig::new(StoreConfig::Memory)).unwrap();
        let options = InitOptions {
            shares: 1,
            threshold: 1,
        };
        let keys = vault.init(options).await.unwrap().keys;
        vault.submit_share(keys[0].clone()).await.unwrap();
        let ca = vault.ca();
        assert!(matches!(ca.roots(), Err(CaError::Missing)));
        ca.bootstrap(Meta::default(), "test").await.unwrap();
        (vault, ca)
    }

    fn request(names: Vec<String>) -> (KeyPair, Vec<u8>) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let params = CertificateParams::new(names).unwrap();
        let csr = params.serialize_request(&key).unwrap().der().to_vec();
        (key, csr)
    }

    fn profile() -> Profile {
        Profile {
            uri: "spiffe://test/ns/default/dc/dc1/svc/web".to_owned(),
            dns: vec!["web.service.mesh".to_owned()],
            ips: Vec::new(),
            ttl: Duration::from_secs(60),
            extensions: vec![(vec![2, 25, 7], vec![0x0c, 1, b'x'])],
        }
    }

    #[tokio::test]
    async fn a_leaf_chains_to_the_root_and_takes_only_the_key_of_the_request() {
        let (_vault, ca) = ca().await;
        let (key, csr) = request(vec!["evil.example".to_owned()]);
        let issued = ca.sign(&csr, &profile()).unwrap();
        let roots = ca.roots().unwrap();
        let (_, root) = X509Certificate::from_der(&roots[0]).unwrap();
        let (_, middle) = X509Certificate::from_der(&issued.chain[1]).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
        root.verify_signature(None).unwrap();
        middle.verify_signature(Some(root.public_key())).unwrap();
        leaf.verify_signature(Some(middle.public_key())).unwrap();
        assert_eq!(
            leaf.public_key().subject_public_key.data,
            key.public_key_raw()
        );
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [
                GeneralName::URI("spiffe://test/ns/default/dc/dc1/svc/web"),
                GeneralName::DNSName("web.service.mesh"),
            ]
        );
        assert!(!leaf.is_ca());
        assert_eq!(format!("{:x}", leaf.serial), issued.serial);
        let extension = leaf
            .extensions()
            .iter()
            .find(|e| e.value == [0x0c, 1, b'x']);
        assert!(!extension.unwrap().critical);
    }

    #[tokio::test]
    async fn a_request_signed_by_another_key_is_refused() {
        let (_vault, ca) = ca().await;
        let (_, mut csr) = request(Vec::new());
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(matches!(ca.sign(&csr, &profile()), Err(CaError::Request)));
        assert!(matches!(ca.sign(b"no", &profile()), Err(CaError::Request)));
    }

    #[tokio::test]
    async fn sealed_it_signs_nothing_and_afterwards_it_is_the_same() {
        let (vault, ca) = ca().await;
        let before = ca.roots().unwrap();
        ca.bootstrap(Meta::default(), "again").await.unwrap();
        assert_eq!(ca.roots().unwrap(), before);
        vault.seal();
        let (_, csr) = request(Vec::new());
        assert!(matches!(
            ca.sign(&csr, &profile()),
            Err(CaError::Store(Error::Sealed))
        ));
    }
}
