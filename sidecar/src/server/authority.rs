//! The mesh's certificate authority, in terms of nodes and services.
//!
//! What may be signed for whom is decided by the callers (the RPC routes for other nodes); here names
//! become profiles. Issuance is logged with serial and lifetime.

use std::time::Duration;

use libmesh::{
    identity::{
        BoxFuture, CertificateSource, Issued, Leaf, PublishRights, SourceError, SpiffeId,
        TrustBundle,
    },
    model::{NodeId, NodeName, ServiceName},
};
use vault_kv::{Ca, CaError, Error, Profile};

use super::records::Cluster;

/// A config signer's certificate outlives the server's restarts by far; a new one is made at each.
const SIGNER_TTL: Duration = Duration::from_secs(90 * 86_400);
/// Shortest life that may be asked for.
const SHORTEST: Duration = Duration::from_secs(2);

/// Signs for one cluster. Cheap to clone.
#[derive(Clone)]
pub struct Authority {
    ca: Ca,
    cluster: Cluster,
    own_name: NodeName,
    node_ttl: Duration,
    service_ttl: Duration,
}

impl Authority {
    /// `own_name` is the server's node; the lives are those given unless shorter ones are asked for.
    pub fn new(
        ca: Ca,
        cluster: Cluster,
        own_name: NodeName,
        node_ttl: Duration,
        service_ttl: Duration,
    ) -> Self {
        Self {
            ca,
            cluster,
            own_name,
            node_ttl,
            service_ttl,
        }
    }

    /// How long a service's certificate lives at most.
    pub fn service_ttl(&self) -> Duration {
        self.service_ttl
    }

    /// The roots to trust.
    pub fn bundle(&self) -> Result<TrustBundle, SourceError> {
        let roots = self.ca.roots().map_err(refusal)?;
        Ok(TrustBundle { roots })
    }

    /// A certificate for a node; the request must be for the key that `id` is the hash of.
    pub fn node(
        &self,
        name: &NodeName,
        id: Option<NodeId>,
        rights: &PublishRights,
        csr: &[u8],
    ) -> Result<Issued, SourceError> {
        let uri = SpiffeId::node(&self.cluster.trust_domain, name);
        let issued = self.sign(&uri, self.node_ttl, vec![rights.to_extension()], csr)?;
        let leaf = issued.chain.first().and_then(|der| Leaf::parse(der).ok());
        if id.is_some() && leaf.map(|leaf| leaf.node_id) != id {
            return Err(SourceError::Refused(format!(
                "the request for node {name} is not for that node's key"
            )));
        }
        Ok(issued)
    }

    /// A certificate for the key that speaks for a node that is no member.
    pub fn external(&self, name: &NodeName, csr: &[u8]) -> Result<Issued, SourceError> {
        let uri = SpiffeId::external(&self.cluster.trust_domain, name);
        let rights = PublishRights::all().to_extension();
        self.sign(&uri, self.node_ttl, vec![rights], csr)
    }

    /// A certificate for a service.
    pub fn service(
        &self,
        service: &ServiceName,
        csr: &[u8],
        ttl: Option<Duration>,
    ) -> Result<Issued, SourceError> {
        let Cluster {
            trust_domain,
            datacenter,
        } = &self.cluster;
        let uri = SpiffeId::service(trust_domain, datacenter, service);
        let ttl = ttl.unwrap_or(self.service_ttl).min(self.service_ttl);
        self.sign(&uri, ttl.max(SHORTEST), Vec::new(), csr)
    }

    /// A certificate for the key that signs config bundles.
    pub fn config_signer(&self, csr: &[u8]) -> Result<Issued, SourceError> {
        let uri = SpiffeId::config_signer(&self.cluster.trust_domain, &self.cluster.datacenter);
        self.sign(&uri, SIGNER_TTL, Vec::new(), csr)
    }

    fn sign(
        &self,
        uri: &SpiffeId,
        ttl: Duration,
        extensions: Vec<(Vec<u64>, Vec<u8>)>,
        csr: &[u8],
    ) -> Result<Issued, SourceError> {
        let profile = Profile {
            uri: uri.to_string(),
            dns: Vec::new(),
            ips: Vec::new(),
            ttl,
            extensions,
        };
        let issued = self.ca.sign(csr, &profile).map_err(refusal)?;
        tracing::info!(spiffe = %uri, serial = %issued.serial, ttl = ?ttl, "certificate issued");
        Ok(Issued {
            chain: issued.chain,
            bundle: self.bundle()?,
            not_after: issued.not_after,
        })
    }
}

/// Sealed is "later"; everything else is the request's fault.
fn refusal(error: CaError) -> SourceError {
    match error {
        CaError::Store(Error::Sealed) | CaError::Missing => {
            SourceError::Unavailable("the server's store is sealed".to_owned())
        }
        error => SourceError::Refused(error.to_string()),
    }
}

/// For the server's own node and the services beside it.
impl CertificateSource for Authority {
    fn sign_node(&self, csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(async move { self.node(&self.own_name, None, &server_rights(), &csr) })
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(async move { self.service(&service, &csr, ttl) })
    }
}

/// A server may publish everything: it is the authority.
pub fn server_rights() -> PublishRights {
    PublishRights::all().with_server()
}
