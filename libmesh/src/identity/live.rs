//! The certificate in use: swapped under running listeners and dialers, which always present the newest.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer, sign::CertifiedKey};
use tokio::sync::watch;

use super::{
    CertificateSource, KeyError, Leaf, ServiceKey, SigningKeyPair, SourceError, SpiffeId, Trust,
    TrustError,
    tls::{self, Newest},
};
use crate::{
    error::{Blame, Retry},
    model::ServiceName,
};

/// Why a certificate cannot be used as ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// No random bytes, or a broken key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The authority gave nothing.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The chain does not lead to our roots, or has expired.
    #[error("cannot use this certificate as our own")]
    Trust(#[from] TrustError),
    /// The certificate is for another key.
    #[error("the certificate of {0} is for another key than ours")]
    KeyMismatch(SpiffeId),
    /// The certificate is for another identity than the one being renewed or asked for.
    #[error("the certificate is for {got}, not for {wanted}")]
    WrongIdentity {
        /// Whom the certificate names.
        got: SpiffeId,
        /// Whom it should name.
        wanted: String,
    },
}

impl IdentityError {
    /// Whom to blame.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Key(_) => Blame::Environment,
            Self::Source(_)
            | Self::Trust(_)
            | Self::KeyMismatch(_)
            | Self::WrongIdentity { .. } => Blame::Authority,
        }
    }

    /// Whether trying again helps.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Source(error) => error.retry(),
            _ => Retry::No,
        }
    }
}

/// A certificate with its key, renewed in place. Cheap to clone; all clones present the newest one.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    trust: Trust,
    current: ArcSwap<Current>,
    serials: watch::Sender<String>,
}

struct Current {
    key: Arc<CertifiedKey>,
    leaf: Leaf,
    chain: Vec<Vec<u8>>,
}

impl Identity {
    /// Uses `chain` (leaf first, DER) with `key`. Both must fit, and the chain must be valid now.
    pub fn new(
        trust: Trust,
        chain: Vec<Vec<u8>>,
        key: &dyn SigningKeyPair,
    ) -> Result<Self, IdentityError> {
        let current = Current::new(&trust, chain, key)?;
        let serials = watch::Sender::new(current.leaf.serial.clone());
        Ok(Self {
            inner: Arc::new(Inner {
                trust,
                current: ArcSwap::from_pointee(current),
                serials,
            }),
        })
    }

    /// Asks `source` for a certificate of `service` for a new key.
    pub async fn obtain(
        trust: Trust,
        source: &dyn CertificateSource,
        service: &ServiceName,
        ttl: Option<Duration>,
    ) -> Result<Self, IdentityError> {
        let key = ServiceKey::generate()?;
        let issued = source
            .sign_service(service.clone(), key.csr_der()?, ttl)
            .await?;
        let identity = Self::new(trust, issued.chain, &key)?;
        match identity.spiffe_id() {
            got if got.as_service() == Some(service) => Ok(identity),
            got => Err(IdentityError::WrongIdentity {
                got,
                wanted: format!("service {service}"),
            }),
        }
    }

    /// Swaps in a new chain and key for the same identity; handshakes from now on use it.
    pub fn install(
        &self,
        chain: Vec<Vec<u8>>,
        key: &dyn SigningKeyPair,
    ) -> Result<(), IdentityError> {
        let current = Current::new(&self.inner.trust, chain, key)?;
        let wanted = self.spiffe_id();
        if current.leaf.spiffe != wanted {
            return Err(IdentityError::WrongIdentity {
                got: current.leaf.spiffe,
                wanted: wanted.to_string(),
            });
        }
        let serial = current.leaf.serial.clone();
        self.inner.current.store(Arc::new(current));
        self.inner.serials.send_replace(serial);
        Ok(())
    }

    /// Who we are.
    pub fn spiffe_id(&self) -> SpiffeId {
        self.inner.current.load().leaf.spiffe.clone()
    }

    /// The leaf in use now.
    pub fn leaf(&self) -> Leaf {
        self.inner.current.load().leaf.clone()
    }

    /// The chain in use now: leaf first, DER.
    pub fn chain(&self) -> Vec<Vec<u8>> {
        self.inner.current.load().chain.clone()
    }

    /// The serial number of the leaf in use, in lower-case hexadecimal.
    pub fn serial(&self) -> String {
        self.inner.current.load().leaf.serial.clone()
    }

    /// Wakes with the new serial number after each renewal.
    pub fn watch_serial(&self) -> watch::Receiver<String> {
        self.inner.serials.subscribe()
    }

    /// When the leaf in use expires.
    pub fn not_after(&self) -> SystemTime {
        self.inner.current.load().leaf.not_after
    }

    /// Whom this identity believes.
    pub fn trust(&self) -> &Trust {
        &self.inner.trust
    }

    /// TLS 1.3 with client certificates required and judged by our trust, for one ALPN protocol.
    pub(crate) fn server_config(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        tls::server_config(&self.inner.trust, self.clone(), alpn)
    }

    /// TLS 1.3 that asks callers for no certificate and shows them our roots: for joining only.
    pub(crate) fn join_server_config(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        tls::join_server_config(&self.inner.trust, self.clone(), alpn)
    }

    /// TLS 1.3 with our certificate. The server must be of our mesh; *which* of its identities it must
    /// have is for the caller to check on [`Leaf::spiffe`] before it sends anything.
    pub(crate) fn client_config(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        tls::client_config(&self.inner.trust, self.clone(), alpn)
    }
}

impl Newest for Identity {
    fn newest(&self) -> Arc<CertifiedKey> {
        self.inner.current.load().key.clone()
    }

    fn with_roots(&self) -> Arc<CertifiedKey> {
        let current = self.inner.current.load();
        let mut chain = current.key.cert.clone();
        chain.extend(
            self.inner
                .trust
                .bundle()
                .roots
                .into_iter()
                .map(CertificateDer::from),
        );
        Arc::new(CertifiedKey::new(chain, current.key.key.clone()))
    }
}

impl Current {
    fn new(
        trust: &Trust,
        chain: Vec<Vec<u8>>,
        key: &dyn SigningKeyPair,
    ) -> Result<Self, IdentityError> {
        let leaf = trust.verify(&chain, SystemTime::now())?;
        let certificates = chain.iter().cloned().map(CertificateDer::from).collect();
        let certified = CertifiedKey::new(certificates, key.tls_key()?.0);
        if certified.keys_match().is_err() {
            return Err(IdentityError::KeyMismatch(leaf.spiffe));
        }
        Ok(Self {
            key: Arc::new(certified),
            leaf,
            chain,
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let current = self.inner.current.load();
        write!(
            f,
            "Identity({}, serial {})",
            current.leaf.spiffe, current.leaf.serial
        )
    }
}
