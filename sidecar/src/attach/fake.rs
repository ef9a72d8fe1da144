//! An agent for tests, as the attach API and sidecars see it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use libmesh::bundle::BundleStore;
use libmesh::catalog::{Catalog, Options};
use libmesh::identity::{BoxFuture, Issued, SourceError, SpiffeId, Trust};
use libmesh::model::{
    Datacenter, Instance, InstanceId, Liveness, NodeId, NodeName, NodeRecord, ServiceName,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::callers::Callers;
use super::host::{About, AttachHost};
use super::server::AttachServer;
use super::wire::CheckSpec;
use crate::http::{Limits, bind_unix, serve};
use crate::testing::TestCa;

/// Stands for the agent: everything but the attach API itself is in memory and done at once.
pub struct FakeAgent {
    pub ca: TestCa,
    trust: Trust,
    pub catalog: Catalog,
    pub callers: Mutex<Arc<Callers>>,
    pub checks: Mutex<Vec<(InstanceId, CheckSpec)>>,
    pub bundles: BundleStore,
    pub sealed: watch::Sender<bool>,
}

impl FakeAgent {
    pub fn new(callers: Callers) -> Self {
        let ca = TestCa::new("attach.mesh");
        let own = NodeId([1; 16]);
        let catalog = Catalog::open(own, Options::default());
        let name = NodeName::parse("node1").unwrap();
        let record = NodeRecord::new(own, name, [127, 0, 0, 1].into(), 8301);
        catalog.local().put_node(record).unwrap();
        catalog.set_liveness(own, Liveness::Alive);
        let trust = ca.trust();
        Self {
            bundles: ca.bundles(&trust),
            trust,
            ca,
            catalog,
            callers: Mutex::new(Arc::new(callers)),
            checks: Mutex::default(),
            sealed: watch::Sender::new(false),
        }
    }
}

impl AttachHost for FakeAgent {
    fn about(&self) -> About {
        About {
            node: NodeName::parse("node1").unwrap(),
            datacenter: Datacenter::default(),
        }
    }

    fn callers(&self) -> Arc<Callers> {
        self.callers.lock().clone()
    }

    fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn trust(&self) -> &Trust {
        &self.trust
    }

    fn register(&self, instance: Instance, checks: &[CheckSpec]) -> Result<(), String> {
        let mut all = self.checks.lock();
        all.retain(|(id, _)| *id != instance.id);
        all.extend(
            checks
                .iter()
                .map(|check| (instance.id.clone(), check.clone())),
        );
        self.catalog
            .local()
            .put_service(instance)
            .map_err(|error| error.to_string())
    }

    fn deregister(&self, id: &InstanceId) {
        self.catalog.local().remove_service(id);
    }

    fn sign_service(
        &self,
        service: ServiceName,
        csr: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<Issued, SourceError>> {
        Box::pin(async move {
            if *self.sealed.borrow() {
                return Err(SourceError::Unavailable("the store is sealed".to_owned()));
            }
            Ok(self.ca.issue(
                csr,
                &self.ca.spiffe(service.as_str()),
                ttl.unwrap_or(Duration::from_secs(60)),
            ))
        })
    }

    fn bundles(&self) -> &BundleStore {
        &self.bundles
    }

    fn vault(&self, request: Request<Bytes>, identity: SpiffeId) -> BoxFuture<'_, Response<Bytes>> {
        let mut said = format!("{} {} {identity}", request.method(), request.uri());
        for header in ["x-mesh-attach", "x-mesh-service", "x-vault-token"] {
            if request.headers().contains_key(header) {
                said += &format!(" {header}");
            }
        }
        Box::pin(async {
            Response::builder()
                .status(StatusCode::IM_A_TEAPOT)
                .body(said.into())
                .unwrap()
        })
    }
}

/// Serves the attach API of `agent` on `socket` until the guard is dropped.
pub fn serve_attach(agent: &Arc<FakeAgent>, socket: &Path, lease: Duration) -> DropGuard {
    let server = AttachServer::with_lease(Arc::clone(agent), lease);
    let stop = CancellationToken::new();
    let listener = bind_unix(socket, 0o600).unwrap();
    let routes = server.routes();
    tokio::spawn(serve(
        listener,
        Limits::default(),
        stop.clone(),
        move |request, conn| {
            let routes = routes.clone();
            async move { routes.dispatch(request, conn).await }
        },
    ));
    tokio::spawn(server.expire_leases(stop.clone()));
    stop.drop_guard()
}
