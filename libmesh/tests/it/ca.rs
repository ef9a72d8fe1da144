//! A certificate authority for tests: a root, and leaves for whatever name is asked for.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use libmesh::{
    identity::{
        BoxFuture, CertificateSource, Identity, Issued, NodeKey, PublishRights, ServiceKey,
        SigningKeyPair, SourceError, SpiffeId, Trust, TrustBundle, TrustDomain,
    },
    model::{Datacenter, NodeName, ServiceName},
};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension,
    DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateSigningRequestDer;

/// What a leaf should say.
pub struct Leaf<'a> {
    pub uris: Vec<String>,
    pub dns: Vec<&'a str>,
    pub rights: Option<PublishRights>,
    pub life: Duration,
}

pub struct TestCa {
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
    next_serial: AtomicU64,
    backdated: Duration,
}

impl TestCa {
    pub fn new(domain: &str) -> Arc<Self> {
        Self::backdating(domain, Duration::from_secs(1))
    }

    /// An authority whose certificates begin this long before they are made.
    pub fn backdating(domain: &str, backdated: Duration) -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, format!("root of {domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Arc::new(Self {
            domain: TrustDomain::parse(domain).unwrap(),
            issuer: Issuer::new(params, key),
            root,
            next_serial: AtomicU64::new(1000),
            backdated,
        })
    }

    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    pub fn bundle(&self) -> TrustBundle {
        TrustBundle {
            roots: vec![self.root.clone()],
        }
    }

    pub fn trust(&self) -> Trust {
        Trust::new(self.domain.clone(), self.bundle()).unwrap()
    }

    pub fn sign(&self, csr: &[u8], leaf: &Leaf<'_>) -> Issued {
        let request = CertificateSigningRequestDer::from(csr.to_vec());
        let mut request = CertificateSigningRequestParams::from_der(&request).unwrap();
        let now = SystemTime::now();
        let params = &mut request.params;
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from(
            self.next_serial.fetch_add(1, Ordering::Relaxed),
        ));
        params.not_before = (now - self.backdated).into();
        params.not_after = (now + leaf.life).into();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.subject_alt_names = leaf
            .uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.subject_alt_names.extend(
            leaf.dns
                .iter()
                .map(|name| SanType::DnsName((*name).try_into().unwrap())),
        );
        if let Some(rights) = &leaf.rights {
            let (oid, value) = rights.to_extension();
            params.custom_extensions = vec![CustomExtension::from_oid_content(&oid, value)];
        }
        let certificate = request.signed_by(&self.issuer).unwrap();
        Issued {
            chain: vec![certificate.der().to_vec()],
            bundle: self.bundle(),
            not_after: now + leaf.life,
        }
    }

    pub fn sign_for(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        rights: Option<PublishRights>,
        life: Duration,
    ) -> Issued {
        self.sign(
            csr,
            &Leaf {
                uris: vec![id.to_string()],
                dns: vec![],
                rights,
                life,
            },
        )
    }

    /// A node's identity with a new key.
    pub fn node(&self, name: &str, rights: PublishRights) -> (NodeKey, Identity) {
        self.node_in(&self.trust(), name, rights)
    }

    pub fn node_in(&self, trust: &Trust, name: &str, rights: PublishRights) -> (NodeKey, Identity) {
        let key = NodeKey::generate().unwrap();
        let id = SpiffeId::node(&self.domain, &NodeName::parse(name).unwrap());
        let issued = self.sign_for(
            &key.csr_der().unwrap(),
            &id,
            Some(rights),
            Duration::from_secs(3600),
        );
        let identity = Identity::new(trust.clone(), issued.chain, &key).unwrap();
        (key, identity)
    }

    /// A service's identity with a new key.
    pub fn service(&self, trust: &Trust, name: &str) -> Identity {
        let key = ServiceKey::generate().unwrap();
        let id = self.service_id(name);
        let issued = self.sign_for(
            &key.csr_der().unwrap(),
            &id,
            None,
            Duration::from_secs(3600),
        );
        Identity::new(trust.clone(), issued.chain, &key).unwrap()
    }

    pub fn service_id(&self, name: &str) -> SpiffeId {
        SpiffeId::service(
            &self.domain,
            &Datacenter::default(),
            &ServiceName::parse(name).unwrap(),
        )
    }

    /// The authority as seen by the node `name`.
    pub fn source(
        self: &Arc<Self>,
        name: &str,
        rights: PublishRights,
        life: Duration,
    ) -> Arc<TestSource> {
        let node = SpiffeId::node(&self.domain, &NodeName::parse(name).unwrap());
        Arc::new(TestSource {
            ca: self.clone(),
            node,
            rights,
            life: Mutex::new(life),
            away: AtomicBool::new(false),
        })
    }
}

/// The authority behind the seam that identities are renewed through.
pub struct TestSource {
    ca: Arc<TestCa>,
    node: SpiffeId,
    rights: PublishRights,
    life: Mutex<Duration>,
    away: AtomicBool,
}

impl TestSource {
    /// Whether the authority cannot answer, as when it is sealed.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    fn issue(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        rights: Option<PublishRights>,
    ) -> Result<Issued, SourceError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(SourceError::Unavailable("sealed".to_owned()));
        }
        Ok(self.ca.sign_for(csr, id, rights, *self.life.lock()))
    }
}

impl CertificateSource for TestSource {
    fn sign_node(&self, csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(ready(self.issue(
            &csr,
            &self.node,
            Some(self.rights.clone()),
        )))
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        _ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        let id = self.ca.service_id(service.as_str());
        Box::pin(ready(self.issue(&csr, &id, None)))
    }
}
