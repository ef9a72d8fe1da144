//! A node of the mesh in one handle: start, register, resolve, watch, connect, accept, leave.

mod advertise;
mod authority;
mod error;
mod external;
mod keys;
mod listener;
mod outbound;
mod problem;
mod sockets;
mod start;
mod transport;
mod upkeep;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::OnceCell, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    bundle::BundleStore,
    catalog::{Catalog, InstanceView, LocalLog, NodeView, Select, ServiceView},
    connect::{Acceptor, Connector, MeshStream},
    health::Scheduler,
    identity::{CertificateSource, Identity, Subject, Trust},
    join::{DirectoryLock, NodeDirectory},
    member::Membership,
    model::{Datacenter, Instance, InstanceId, NodeId, NodeName, ServiceName},
    rpc,
    sync::Plane,
    watch::Watch,
};

pub use crate::config::{Builder, Config, ConfigError, Credentials};
pub use error::MeshError;
pub use external::ExternalNode;
pub use keys::{KeyringChange, NodeKeys, RotationError};
pub use listener::Listener;
pub use problem::Problem;

use authority::Servers;
use outbound::Outbound;
use problem::Problems;

/// Time for one mesh connection, all attempts together, where the caller gives none.
const CONNECT: Duration = Duration::from_secs(5);
/// Time for what runs to end.
const END: Duration = Duration::from_secs(8);

/// This process as a node of the mesh. Cheap to clone. When the last handle is dropped the node ends
/// without a goodbye; [`Mesh::leave`] says it.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    name: NodeName,
    datacenter: Datacenter,
    advertise: SocketAddr,
    identity: Identity,
    catalog: Catalog,
    directory: Option<NodeDirectory>,
    /// Until the node has ended: then another process may have the directory.
    lock: Mutex<Option<DirectoryLock>>,
    membership: Membership,
    plane: Plane,
    bundles: BundleStore,
    client: rpc::Client,
    certificates: Arc<dyn CertificateSource>,
    service_ttl: Option<Duration>,
    services: Mutex<HashMap<ServiceName, Arc<OnceCell<Identity>>>>,
    outbound: Outbound,
    servers: Servers,
    problems: Problems,
    checks: Scheduler,
    tasks: TaskTracker,
    stop: CancellationToken,
    _end_with_last_handle: DropGuard,
}

impl Mesh {
    /// A node called `name`, to be configured by texts and started with [`Builder::start`].
    pub fn builder(name: impl AsRef<str>) -> Builder {
        Config::builder(name)
    }

    /// Starts a node: listens, joins if it must, announces itself, and follows the mesh from then on.
    ///
    /// Returns when the node answers others and has its credentials; the catalog of a node that has just
    /// started fills within a second of its first contact.
    ///
    /// # Errors
    /// [`MeshError`]: what is wrong, on what, and what to do.
    pub async fn start(config: Config) -> Result<Self, MeshError> {
        start::start(config).await
    }

    /// Publishes an instance on this node; it is seen here at once and elsewhere in milliseconds.
    ///
    /// # Errors
    /// A malformed field, or a name that the node's certificate does not allow.
    pub fn register(&self, instance: Instance) -> Result<(), MeshError> {
        Ok(self.local().put_service(instance)?)
    }

    /// Takes an instance of this node and its checks away. Returns whether it was there.
    pub fn deregister(&self, id: &InstanceId) -> bool {
        self.inner.checks.remove_service(id)
    }

    /// The checks of this node: what they find is published with its instances.
    pub fn checks(&self) -> &Scheduler {
        &self.inner.checks
    }

    /// The instances of a service to use now: passing and warning ones, the nearest to this node first, doubtful ones
    /// (see [`InstanceView::is_doubtful`]) only when there is nothing better. Empty for a service that nobody offers.
    ///
    /// One lookup and a pass over the service's instances; what is returned is shared, not copied.
    pub fn resolve(&self, service: &ServiceName) -> Vec<Arc<InstanceView>> {
        let own = self.catalog().node_by_id(&self.id());
        let select = own.map_or_else(Select::usable, |own| {
            Select::usable().near(Arc::clone(&own.record))
        });
        self.resolve_with(service, &select)
    }

    /// The instances of a service that `select` chooses.
    pub fn resolve_with(&self, service: &ServiceName, select: &Select) -> Vec<Arc<InstanceView>> {
        let view = self.catalog().service(service.as_str());
        view.map(|view| view.select(select).into_iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Follows the instances of one service: first all of them, then what changes.
    pub fn watch(&self, service: &ServiceName) -> Watch<InstanceView> {
        Watch::service(self.catalog(), service, self.inner.stop.clone())
    }

    /// Follows the instances of all services.
    pub fn watch_services(&self) -> Watch<InstanceView> {
        Watch::services(self.catalog(), self.inner.stop.clone())
    }

    /// Follows the nodes.
    pub fn watch_nodes(&self) -> Watch<NodeView> {
        Watch::nodes(self.catalog(), self.inner.stop.clone())
    }

    /// All services that somebody offers, by name, as they are now.
    pub fn services(&self) -> Vec<Arc<ServiceView>> {
        self.catalog().services()
    }

    /// All nodes that did not leave, by name, as they are now.
    pub fn nodes(&self) -> Vec<Arc<NodeView>> {
        self.catalog().nodes()
    }

    /// Calls `service` as `caller`, a service that this node may act for: one connection, mutually
    /// authenticated, to an instance that the balancer picks. Takes at most five seconds.
    ///
    /// # Errors
    /// No certificate for `caller`, no instance, no intention, or nobody reachable.
    pub async fn connect(
        &self,
        caller: &ServiceName,
        service: &ServiceName,
    ) -> Result<MeshStream, MeshError> {
        Ok(self
            .connector(caller, service)
            .await?
            .connect(CONNECT)
            .await?)
    }

    /// What [`Mesh::connect`] uses: kept per pair, its endpoints follow the catalog.
    ///
    /// # Errors
    /// No certificate for `caller`.
    pub async fn connector(
        &self,
        caller: &ServiceName,
        service: &ServiceName,
    ) -> Result<Connector, MeshError> {
        let identity = self.identity_for(caller).await?;
        Ok(self.inner.outbound.connector(caller, identity, service))
    }

    /// Takes calls for `service` at `addr` (port 0: a free one). The listener's port belongs into the
    /// `mesh_port` of the instance that is registered.
    ///
    /// # Errors
    /// No certificate for `service`, or the address is in use.
    pub async fn accept(
        &self,
        service: &ServiceName,
        addr: SocketAddr,
    ) -> Result<Listener, MeshError> {
        let acceptor = self.acceptor(service).await?;
        let listener = Listener::bind(addr, acceptor, self.inner.stop.child_token()).await;
        listener.map_err(|source| MeshError::bind("mesh TCP", addr, source))
    }

    /// What [`Mesh::accept`] uses, for those who listen themselves.
    ///
    /// # Errors
    /// No certificate for `service`.
    pub async fn acceptor(&self, service: &ServiceName) -> Result<Acceptor, MeshError> {
        let identity = self.identity_for(service).await?;
        Ok(Acceptor::new(
            identity,
            self.inner.bundles.clone(),
            service.clone(),
        ))
    }

    /// The identity of a service that this node may act for: asked for once, then renewed.
    ///
    /// # Errors
    /// The authority refuses or cannot answer.
    pub async fn identity_for(&self, service: &ServiceName) -> Result<Identity, MeshError> {
        let inner = &self.inner;
        let cell = inner
            .services
            .lock()
            .entry(service.clone())
            .or_default()
            .clone();
        let obtain = || async {
            let trust = inner.identity.trust().clone();
            let identity =
                Identity::obtain(trust, &*inner.certificates, service, inner.service_ttl).await?;
            let subject = Subject::Service {
                name: service.clone(),
                ttl: inner.service_ttl,
            };
            let renewal = identity.clone().keep_renewed(
                inner.certificates.clone(),
                subject,
                inner.stop.clone(),
            );
            inner.tasks.spawn(renewal);
            Ok(identity)
        };
        cell.get_or_try_init(obtain).await.cloned()
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.inner.name
    }

    /// The node's id.
    pub fn id(&self) -> NodeId {
        self.inner.catalog.own()
    }

    /// The datacenter.
    pub fn datacenter(&self) -> &Datacenter {
        &self.inner.datacenter
    }

    /// Where others reach this node.
    pub fn addr(&self) -> SocketAddr {
        self.inner.advertise
    }

    /// The node's identity.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Whom this process trusts.
    pub fn trust(&self) -> &Trust {
        self.inner.identity.trust()
    }

    /// The records of all nodes.
    pub fn catalog(&self) -> &Catalog {
        &self.inner.catalog
    }

    /// Write access to this node's own records.
    pub fn local(&self) -> LocalLog {
        self.inner.catalog.local()
    }

    /// Who is in the mesh and who answers.
    pub fn membership(&self) -> &Membership {
        &self.inner.membership
    }

    /// Returns when this node has asked others for what they know, or found that there are none: from then on what its
    /// catalog does not show does not exist, as far as anybody knows.
    pub async fn caught_up(&self) {
        let mut caught_up = self.inner.plane.caught_up();
        // Who asks has the mesh, and with it the sender.
        let _ = caught_up.wait_for(|caught_up| *caught_up).await;
    }

    /// Takes in what was written to the log of a node that is no member since the last call, as if it had come from a
    /// peer, and passes it on. A log without a certificate of our CA for that node is dropped, as always.
    pub async fn introduce(&self, node: &mut ExternalNode) {
        self.inner.plane.introduce(node.news()).await;
    }

    /// What this node knows to be wrong with itself, for status pages; empty when all is well.
    pub fn problems(&self) -> Vec<Problem> {
        self.inner.problems.all()
    }

    /// The config bundle: intentions, revocations, entries.
    pub fn bundle(&self) -> &BundleStore {
        &self.inner.bundles
    }

    /// Calls to other nodes.
    pub fn rpc_client(&self) -> &rpc::Client {
        &self.inner.client
    }

    /// The servers that are present (right after the start: the seeds), as targets that only a server's
    /// certificate satisfies; in random order.
    pub fn servers(&self) -> Vec<rpc::Target> {
        self.inner.servers.targets()
    }

    /// Where certificates come from.
    pub fn certificates(&self) -> &Arc<dyn CertificateSource> {
        &self.inner.certificates
    }

    /// Says goodbye, so that others see [`Liveness::Left`](crate::model::Liveness::Left), and ends.
    pub async fn leave(self) {
        self.inner.membership.leave().await;
        self.end().await;
    }

    /// Ends without a goodbye, as before a restart: others see the node go down if it stays away.
    pub async fn stop(self) {
        self.end().await;
    }

    /// Announces that the node is back within `within` (15 s at most), and ends: until then nothing bad is shown of it
    /// anywhere, whatever others see, and its instances stay in every answer. Takes half a second longer than
    /// [`stop`](Self::stop).
    pub async fn restart(self, within: Duration) {
        self.inner.membership.restart(within).await;
        self.end().await;
    }

    /// Waits until the node cannot go on, and says why: another process with the same node key runs at another address
    /// and was there first. Never returns otherwise.
    pub async fn failed(&self) -> MeshError {
        match self.inner.membership.ended().await {
            Some(reason) => MeshError::Copy(reason),
            None => std::future::pending().await,
        }
    }

    async fn end(&self) {
        self.inner.membership.stop().await;
        self.inner.stop.cancel();
        self.inner.tasks.close();
        if timeout(END, self.inner.tasks.wait()).await.is_err() {
            return tracing::warn!("some work of the mesh did not end in time");
        }
        if let Some(directory) = &self.inner.directory {
            // Nothing is told to others any more: the next start goes on exactly here.
            upkeep::save_log(&self.inner.catalog, directory, true).await;
        }
        drop(self.inner.lock.lock().take());
    }
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mesh({} at {})", self.inner.name, self.inner.advertise)
    }
}
