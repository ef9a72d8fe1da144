//! What the attach API needs of the agent that serves it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libmesh::bundle::BundleStore;
use libmesh::catalog::Catalog;
use libmesh::identity::{BoxFuture, Issued, SourceError, SpiffeId, Trust};
use libmesh::model::{Datacenter, Instance, InstanceId, NodeName, ServiceName};

use super::callers::Callers;
use super::wire::CheckSpec;

/// Where the agent stands.
#[derive(Debug, Clone)]
pub struct About {
    /// Its node.
    pub node: NodeName,
    /// Its datacenter.
    pub datacenter: Datacenter,
}

/// The agent, as the attach API sees it.
pub trait AttachHost: Send + Sync + 'static {
    /// Where it stands.
    fn about(&self) -> About;

    /// The declared services and who may act as them; asked at each request, so that a reload counts at once.
    fn callers(&self) -> Arc<Callers>;

    /// The catalog that the agent replicates.
    fn catalog(&self) -> &Catalog;

    /// Whom the agent believes.
    fn trust(&self) -> &Trust;

    /// Publishes an instance of this node and runs `checks` for it, in place of what was there under its id.
    ///
    /// # Errors
    /// A text for the caller: the node may not publish this service, or a field is invalid.
    fn register(&self, instance: Instance, checks: &[CheckSpec]) -> Result<(), String>;

    /// Takes the instance and its checks away.
    fn deregister(&self, id: &InstanceId);

    /// A certificate for a service's key. The caller has proved to be that service.
    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>>;

    /// The config bundles that the agent has verified.
    fn bundles(&self) -> &BundleStore;

    /// Answers a request of the Vault API in the name of `identity`.
    fn vault(
        &self,
        request: http::Request<Bytes>,
        identity: SpiffeId,
    ) -> BoxFuture<'_, http::Response<Bytes>>;
}
