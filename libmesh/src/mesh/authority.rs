//! The node's dealings with certificates: reading other nodes', signing with its own key, and getting new
//! ones from a server.

use std::{sync::Arc, time::Duration, time::SystemTime, time::UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use rand::seq::SliceRandom;

use crate::{
    catalog::{Catalog, Signer, VerifiedNode, Verifier},
    identity::{
        BoxFuture, CertificateSource, Issued, NodeKey, SIGN_NODE_PATH, SIGN_SERVICE_PATH,
        SignRequest, SourceError, Trust,
    },
    model::ServiceName,
    rpc::{Client, RpcError, Target},
};

/// Time for a server to sign.
const SIGN: Duration = Duration::from_secs(10);

/// Reads node certificates for the catalog.
pub(super) struct NodeVerifier(pub(super) Trust);

impl Verifier for NodeVerifier {
    fn verify(&self, chain: &[Vec<u8>]) -> Result<VerifiedNode, String> {
        let leaf = self
            .0
            .verify(chain, SystemTime::now())
            .map_err(|error| error.to_string())?;
        let (node, external) = (leaf.spiffe.as_node(), leaf.spiffe.as_external());
        let name = node
            .or(external)
            .ok_or_else(|| format!("{} is not a node", leaf.spiffe))?;
        let (name, external) = (name.clone(), external.is_some());
        let public_key = leaf
            .ed25519()
            .ok_or_else(|| format!("the key of {} is not Ed25519", leaf.spiffe))?;
        let not_after = leaf
            .not_after
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        let rights = leaf.rights;
        Ok(VerifiedNode {
            id: leaf.node_id,
            name,
            public_key,
            external,
            not_after,
            may_publish: Arc::new(move |service| rights.allows(service)),
        })
    }
}

/// Signs the node's records.
pub(super) struct NodeSigner(pub(super) NodeKey);

impl Signer for NodeSigner {
    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign_bytes(message)
    }
}

/// The servers of the mesh as RPC targets.
#[derive(Clone)]
pub(super) struct Servers {
    pub(super) catalog: Catalog,
    /// Asked while the catalog knows no server: right after a join.
    pub(super) seeds: Arc<[std::net::SocketAddr]>,
}

impl Servers {
    /// Live servers in random order; that one has the role is checked on its certificate by the call.
    pub(super) fn targets(&self) -> Vec<Target> {
        let own = self.catalog.own();
        let nodes = self.catalog.nodes();
        let servers = nodes
            .iter()
            .filter(|node| node.record.roles.server && node.record.is_member())
            .filter(|node| node.record.id != own);
        let present = servers.filter(|node| node.liveness.is_present());
        let mut targets: Vec<Target> = present
            .map(|node| Target {
                addr: node.record.socket_addr(),
                node: Some(node.record.name.clone()),
                server: true,
            })
            .collect();
        if targets.is_empty() {
            targets = self.seeds.iter().copied().map(Target::server).collect();
        }
        targets.shuffle(&mut rand::rng());
        targets
    }

    /// Other live nodes, in no order.
    pub(super) fn others(&self) -> Vec<Target> {
        let own = self.catalog.own();
        let nodes = self.catalog.nodes();
        let others = nodes
            .iter()
            .filter(|node| node.record.id != own && node.record.is_member())
            .filter(|node| node.liveness.is_present());
        others
            .map(|node| Target::node(node.record.socket_addr(), node.record.name.clone()))
            .collect()
    }
}

/// Certificates from whichever server answers.
pub(super) struct RemoteSource {
    pub(super) client: Client,
    pub(super) servers: Servers,
}

impl RemoteSource {
    async fn sign(&self, path: &str, request: SignRequest) -> Result<Issued, SourceError> {
        let body = Bytes::from(request.encode());
        let mut last = "no server of the mesh is known here".to_owned();
        for server in self.servers.targets() {
            match self.client.call(&server, path, body.clone(), SIGN).await {
                Ok(answer) => {
                    return postcard::from_bytes(&answer).map_err(|_| {
                        SourceError::Unavailable(format!("{} answers malformed", server.addr))
                    });
                }
                Err(RpcError::Status {
                    status, message, ..
                }) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                    return Err(SourceError::Refused(message));
                }
                Err(error) => last = error.to_string(),
            }
        }
        Err(SourceError::Unavailable(last))
    }
}

impl CertificateSource for RemoteSource {
    fn sign_node(&self, csr: Vec<u8>) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(self.sign(
            SIGN_NODE_PATH,
            SignRequest {
                service: None,
                csr,
                ttl: None,
            },
        ))
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(self.sign(
            SIGN_SERVICE_PATH,
            SignRequest {
                service: Some(service),
                csr,
                ttl,
            },
        ))
    }
}
