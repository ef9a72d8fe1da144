//! Whom this process believes: the roots of the mesh and what was revoked. One [`Trust`] is shared by
//! every identity of a process and changes under running connections.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use ring::digest::{SHA256, digest};
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, UnixTime},
    server::{ParsedCertificate, WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Leaf, LeafError, TrustDomain};
use crate::error::Blame;

/// The root certificates (DER) of a mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TrustBundle {
    /// One DER certificate each; the newest first.
    pub roots: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// SHA-256 of each root: what a join token pins.
    pub fn hashes(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        self.roots.iter().map(|root| sha256(root))
    }
}

/// Certificates and identities that are no longer accepted although they have not expired.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revoked {
    /// Serial numbers in lower-case hexadecimal.
    pub serials: HashSet<String>,
    /// SPIFFE IDs, as text.
    pub identities: HashSet<String>,
}

impl Revoked {
    /// Whether this certificate is revoked, by its serial or its identity.
    pub fn covers(&self, leaf: &Leaf) -> bool {
        self.serials.contains(&leaf.serial)
            || (!self.identities.is_empty() && self.identities.contains(&leaf.spiffe.to_string()))
    }
}

/// Why a chain is not believed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// There is no certificate, or the leaf gives no identity.
    #[error("the peer's certificate gives no identity")]
    Leaf(#[from] LeafError),
    /// No path to the roots, expired, or a bad signature.
    #[error("the certificate of {spiffe} is not trusted: {reason}")]
    Path {
        /// Who the certificate says it is.
        spiffe: String,
        /// What webpki found.
        reason: String,
    },
    /// The identity is of another mesh.
    #[error("{0} is not of the trust domain {1}")]
    Domain(String, TrustDomain),
    /// The certificate or identity was revoked.
    #[error("the certificate {serial} of {spiffe} is revoked")]
    Revoked {
        /// Whose.
        spiffe: String,
        /// Its serial number.
        serial: String,
    },
    /// The chain does not hold the root certificate that a join token pins.
    #[error(
        "the peer belongs to another mesh: its chain does not hold the CA certificate that the join token names"
    )]
    Pin,
    /// The peer is something else than a node.
    #[error("{0} is not a node of the mesh")]
    NoNode(String),
    /// A trust bundle without a usable root.
    #[error("the trust bundle holds no usable root certificate")]
    NoRoots,
}

impl TrustError {
    /// Whom to blame: for the roots the authority, for everything else whoever showed the chain. Trying again does not
    /// help.
    pub fn blame(&self) -> Blame {
        match self {
            Self::NoRoots => Blame::Authority,
            _ => Blame::Peer,
        }
    }
}

/// The trust of a process. Cheap to clone; all clones change together.
#[derive(Clone)]
pub struct Trust {
    inner: Arc<Inner>,
}

struct Inner {
    domain: TrustDomain,
    roots: ArcSwap<Roots>,
    revoked: ArcSwap<Revoked>,
    changes: watch::Sender<u64>,
    provider: Arc<CryptoProvider>,
}

struct Roots {
    bundle: TrustBundle,
    store: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// The end of a TLS connection that a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    Client,
    Server,
}

impl Trust {
    /// Trusts `bundle` for identities of `domain`, with nothing revoked.
    pub fn new(domain: TrustDomain, bundle: TrustBundle) -> Result<Self, TrustError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Roots::new(bundle, &provider)?;
        let inner = Inner {
            domain,
            roots: ArcSwap::from_pointee(roots),
            revoked: ArcSwap::default(),
            changes: watch::Sender::new(0),
            provider,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The trust domain.
    pub fn domain(&self) -> &TrustDomain {
        &self.inner.domain
    }

    /// The roots trusted now.
    pub fn bundle(&self) -> TrustBundle {
        self.inner.roots.load().bundle.clone()
    }

    /// Replaces the roots. The caller answers for them: they come from the authority in this process
    /// or from a verified config bundle.
    pub fn set_bundle(&self, bundle: TrustBundle) -> Result<(), TrustError> {
        if self.inner.roots.load().bundle == bundle {
            return Ok(());
        }
        self.inner
            .roots
            .store(Arc::new(Roots::new(bundle, &self.inner.provider)?));
        self.changed();
        Ok(())
    }

    /// Replaces what is revoked; open connections of whoever is newly revoked are closed.
    pub fn set_revoked(&self, revoked: Revoked) {
        if **self.inner.revoked.load() != revoked {
            self.inner.revoked.store(Arc::new(revoked));
            self.changed();
        }
    }

    /// What is revoked now.
    pub fn revoked(&self) -> Arc<Revoked> {
        self.inner.revoked.load_full()
    }

    /// Wakes when roots or revocations change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Verifies a chain (leaf first, DER) at `now` and returns its identity.
    pub fn verify<C: AsRef<[u8]>>(&self, chain: &[C], now: SystemTime) -> Result<Leaf, TrustError> {
        let chain: Vec<CertificateDer<'_>> = chain
            .iter()
            .map(|der| CertificateDer::from(der.as_ref()))
            .collect();
        let [leaf, intermediates @ ..] = &chain[..] else {
            return Err(LeafError::Malformed.into());
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        self.verify_for(Usage::Client, leaf, intermediates, now)
    }

    pub(crate) fn verify_for(
        &self,
        usage: Usage,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Leaf, TrustError> {
        let leaf = Leaf::parse(certificate)?;
        let roots = self.inner.roots.load();
        let path = match usage {
            Usage::Client => roots
                .clients
                .verify_client_cert(certificate, intermediates, now)
                .map(|_| ()),
            Usage::Server => ParsedCertificate::try_from(certificate).and_then(|parsed| {
                let algorithms = self.inner.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(
                    &parsed,
                    &roots.store,
                    intermediates,
                    now,
                    algorithms,
                )
            }),
        };
        let spiffe = || leaf.spiffe.to_string();
        path.map_err(|reason| TrustError::Path {
            spiffe: spiffe(),
            reason: reason.to_string(),
        })?;
        if leaf.spiffe.trust_domain() != self.domain() {
            return Err(TrustError::Domain(spiffe(), self.domain().clone()));
        }
        if self.inner.revoked.load().covers(&leaf) {
            return Err(TrustError::Revoked {
                spiffe: spiffe(),
                serial: leaf.serial,
            });
        }
        Ok(leaf)
    }

    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.inner.provider
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|n| *n += 1);
    }
}

impl Roots {
    fn new(bundle: TrustBundle, provider: &Arc<CryptoProvider>) -> Result<Self, TrustError> {
        let mut store = RootCertStore::empty();
        for root in &bundle.roots {
            store
                .add(CertificateDer::from(root.as_slice()))
                .map_err(|_| TrustError::NoRoots)?;
        }
        let store = Arc::new(store);
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider.clone())
            .build()
            .map_err(|_| TrustError::NoRoots)?;
        Ok(Self {
            bundle,
            store,
            clients,
        })
    }
}

/// SHA-256 of a certificate.
pub(crate) fn sha256(der: &[u8]) -> [u8; 32] {
    digest(&SHA256, der)
        .as_ref()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}
