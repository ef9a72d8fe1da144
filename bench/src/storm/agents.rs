//! Agents of one mesh in this process, with sockets on loopback and certificates of their own.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use libmesh::identity::{
    NodeKey, PublishRights, SigningKeyPair, SpiffeId, TrustBundle, TrustDomain,
};
use libmesh::join::NodeCredentials;
use libmesh::member::Keyring;
use libmesh::mesh::{Config, Credentials, Mesh};
use libmesh::model::{Datacenter, Liveness, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};

/// Time for all agents to know each other.
const TOGETHER: Duration = Duration::from_secs(60);

/// Who signs for the agents of one mesh, and what they all know.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    bundle: TrustBundle,
    domain: TrustDomain,
    keyring: Keyring,
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let bundle = TrustBundle {
            roots: vec![params.self_signed(&key)?.der().to_vec()],
        };
        Ok(Self {
            issuer: Issuer::new(params, key),
            bundle,
            domain: TrustDomain::parse("bench.mesh")?,
            keyring: Keyring::generate()?,
        })
    }

    /// What the agent of this name needs.
    pub fn credentials(&self, name: &NodeName, seeds: Vec<SocketAddr>) -> Result<NodeCredentials> {
        let key = NodeKey::generate()?;
        let id = SpiffeId::node(&self.domain, name);
        let chain = vec![certificate(&self.issuer, &key, &id)?];
        Ok(NodeCredentials {
            key,
            name: name.clone(),
            datacenter: Datacenter::default(),
            trust_domain: self.domain.clone(),
            chain,
            bundle: self.bundle.clone(),
            keyring: self.keyring.clone(),
            seeds,
            config: None,
        })
    }
}

/// Starts `count` agents that know each other; the first one is the seed of the others.
pub async fn start(count: usize) -> Result<Vec<Mesh>> {
    let authority = Authority::new()?;
    let mut agents: Vec<Mesh> = Vec::with_capacity(count);
    for n in 0..count {
        let name = NodeName::parse(&format!("agent-{n}"))?;
        let seeds = agents.first().map(Mesh::addr).into_iter().collect();
        let credentials = authority.credentials(&name, seeds)?;
        let mut config = Config::new(name, Credentials::Given(Box::new(credentials)));
        config.bind = "127.0.0.1:0".parse()?;
        agents.push(
            Mesh::start(config)
                .await
                .context("an agent does not start")?,
        );
    }
    together(agents.iter()).await?;
    Ok(agents)
}

/// Waits until all of them know each other.
pub async fn together<'a>(agents: impl ExactSizeIterator<Item = &'a Mesh>) -> Result<()> {
    let count = agents.len();
    let together = async {
        for agent in agents {
            let mut changes = agent.catalog().watch_all();
            let alive = || {
                let nodes = agent.catalog().nodes();
                let alive = nodes.iter().filter(|node| node.liveness == Liveness::Alive);
                alive.count()
            };
            while alive() < count && changes.changed().await.is_ok() {}
        }
    };
    tokio::time::timeout(TOGETHER, together)
        .await
        .context("the agents do not find each other")
}

/// Ends agents.
pub async fn stop(agents: Vec<Mesh>) {
    let mut ending = tokio::task::JoinSet::new();
    for agent in agents {
        ending.spawn(agent.leave());
    }
    ending.join_all().await;
}

fn certificate(issuer: &Issuer<'_, KeyPair>, key: &NodeKey, id: &SpiffeId) -> Result<Vec<u8>> {
    let request = key.csr_der()?.into();
    let mut request = CertificateSigningRequestParams::from_der(&request)?;
    let params = &mut request.params;
    params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(24 * 3600)).into();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    let (oid, value) = PublishRights::all().to_extension();
    params.custom_extensions = vec![CustomExtension::from_oid_content(&oid, value)];
    Ok(request.signed_by(issuer)?.der().to_vec())
}
