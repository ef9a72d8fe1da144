//! A certificate authority and names for tests, all in memory.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libmesh::bundle::{Action, BundleStore, ConfigBundle, Intention, ServiceMatch, SignedBundle};
use libmesh::identity::{
    BoxFuture, CertificateSource, Identity, Issued, ServiceKey, SigningKeyPair, SourceError,
    SpiffeId, Trust, TrustBundle, TrustDomain,
};
use libmesh::model::{Datacenter, NodeName, ServiceName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use crate::routing::{self, Entry};

/// A mesh authority whose root signs leaves directly.
pub struct TestCa {
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
    pub domain: TrustDomain,
    pub datacenter: Datacenter,
}

impl TestCa {
    pub fn new(domain: &str) -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, format!("root of {domain}"));
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            issuer: Issuer::new(params, key),
            root,
            domain: TrustDomain::parse(domain).unwrap(),
            datacenter: Datacenter::default(),
        }
    }

    pub fn bundle(&self) -> TrustBundle {
        TrustBundle {
            roots: vec![self.root.clone()],
        }
    }

    pub fn trust(&self) -> Trust {
        Trust::new(self.domain.clone(), self.bundle()).unwrap()
    }

    pub fn spiffe(&self, service: &str) -> SpiffeId {
        SpiffeId::service(&self.domain, &self.datacenter, &name(service))
    }

    pub fn issue(&self, csr: Vec<u8>, spiffe: &SpiffeId, ttl: Duration) -> Issued {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let uri = spiffe.to_string().try_into().unwrap();
        request.params.subject_alt_names = vec![SanType::URI(uri)];
        let now = SystemTime::now();
        request.params.not_before = (now - Duration::from_secs(1)).into();
        request.params.not_after = (now + ttl).into();
        let leaf = request.signed_by(&self.issuer).unwrap();
        Issued {
            chain: vec![leaf.der().to_vec()],
            bundle: self.bundle(),
            not_after: now + ttl,
        }
    }

    pub fn sign_bundle(
        &self,
        index: u64,
        intentions: &[(&str, &str, Action)],
        default_action: Action,
    ) -> SignedBundle {
        let mut bundle = self.plain_bundle(index, default_action);
        let matching = |text: &str| match text {
            "*" => ServiceMatch::Any,
            other => ServiceMatch::Name(name(other)),
        };
        let intentions = intentions
            .iter()
            .map(|(source, destination, action)| Intention {
                source: matching(source),
                destination: matching(destination),
                action: *action,
            });
        bundle.intentions = intentions.collect();
        self.sign(&bundle)
    }

    /// A bundle that allows every call, with these config entries.
    pub fn sign_entries(&self, index: u64, entries: serde_json::Value) -> SignedBundle {
        let entries: Vec<Entry> = serde_json::from_value(entries).unwrap();
        let mut bundle = self.plain_bundle(index, Action::Allow);
        routing::into_bundle(&entries, &mut bundle);
        self.sign(&bundle)
    }

    fn plain_bundle(&self, index: u64, default_action: Action) -> ConfigBundle {
        let issued_at = SystemTime::now().duration_since(UNIX_EPOCH);
        ConfigBundle {
            index,
            head: [index as u8; 32],
            issued_at: issued_at.unwrap().as_secs(),
            trust_domain: self.domain.clone(),
            datacenter: self.datacenter.clone(),
            roots: Vec::new(),
            intentions: Vec::new(),
            default_action,
            revoked: Vec::new(),
            entries: Default::default(),
        }
    }

    fn sign(&self, bundle: &ConfigBundle) -> SignedBundle {
        let key = ServiceKey::generate().unwrap();
        let signer = SpiffeId::config_signer(&self.domain, &self.datacenter);
        let issued = self.issue(key.csr_der().unwrap(), &signer, Duration::from_secs(3600));
        SignedBundle::sign(bundle, &key, issued.chain).unwrap()
    }

    pub fn bundles(&self, trust: &Trust) -> BundleStore {
        BundleStore::open(trust.clone(), self.datacenter.clone(), None).unwrap()
    }

    pub async fn identity(&self, service: &str) -> Identity {
        Identity::obtain(self.trust(), self, &name(service), None)
            .await
            .unwrap()
    }
}

impl CertificateSource for TestCa {
    fn sign_node(&self, csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>> {
        let spiffe = SpiffeId::node(&self.domain, &NodeName::parse("node1").unwrap());
        let issued = self.issue(csr, &spiffe, Duration::from_secs(3600));
        Box::pin(async { Ok(issued) })
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        let issued = self.issue(
            csr,
            &self.spiffe(service.as_str()),
            ttl.unwrap_or(Duration::from_secs(3600)),
        );
        Box::pin(async { Ok(issued) })
    }
}

pub fn name(service: &str) -> ServiceName {
    ServiceName::parse(service).unwrap()
}
