//! The routes that an agent serves on its socket for sidecars and local callers.
//!
//! Every route first asks who calls ([`Callers`](super::callers::Callers)); nothing else is looked at before. Refusals
//! are RFC 9457 problem details whose `detail` says what to do.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::{Method, StatusCode, Uri, header};
use libmesh::identity::{SourceError, SpiffeId};
use libmesh::model::{Host, Instance, InstanceId, ServiceName};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::callers::Caller;
use super::endpoints;
use super::host::AttachHost;
use super::leases::{Attachment, Granted, Leases};
use super::pem;
use super::wire::{
    AboutReply, AttachReply, AttachRequest, BundleReply, LEASE, SERVICE_HEADER, SignReply,
    SignRequest, TOKEN_HEADER, encode_bundle,
};
use crate::http::{Call, Reply, Routes, empty, json};
use crate::routing::Followed;

/// How long a long poll waits when it does not say.
const WAIT: Duration = Duration::from_secs(60);
/// The longest a long poll may wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The attach API of one agent. Cheap to clone.
pub struct AttachServer<H> {
    inner: Arc<Inner<H>>,
}

struct Inner<H> {
    host: Arc<H>,
    lease: Duration,
    leases: Mutex<Leases>,
    routing: Followed,
    changed: Notify,
}

impl<H> Clone for AttachServer<H> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

/// A refusal on its way to the caller.
struct Problem {
    status: StatusCode,
    detail: String,
}

impl<H: AttachHost> AttachServer<H> {
    /// Serves for `host`. [`AttachServer::expire_leases`] has to run beside it.
    pub fn new(host: Arc<H>) -> Self {
        Self::with_lease(host, LEASE)
    }

    /// With another length of the leases than [`LEASE`].
    pub fn with_lease(host: Arc<H>, lease: Duration) -> Self {
        let inner = Inner {
            routing: Followed::new(host.bundles().clone()),
            host,
            lease,
            leases: Mutex::new(Leases::new(lease)),
            changed: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The routes, for the agent's Unix socket.
    pub fn routes(&self) -> Routes {
        let vault = ["GET", "POST", "PUT", "DELETE", "PATCH", "LIST"];
        let routes = Routes::new()
            .put(
                "/v1/mesh/attach",
                self.handler(|server, call| async move { server.attach(&call) }),
            )
            .on(
                Method::DELETE,
                "/v1/mesh/attach/:instance",
                self.handler(|server, call| async move { server.detach(&call) }),
            )
            .on(
                Method::POST,
                "/v1/mesh/sign",
                self.handler(|server, call| async move { server.sign(&call).await }),
            )
            .get(
                "/v1/mesh/about",
                self.handler(|server, call| async move { server.about(&call) }),
            )
            .get(
                "/v1/mesh/endpoints/:service",
                self.handler(|server, call| async move { server.endpoints(&call).await }),
            )
            .get(
                "/v1/mesh/bundle",
                self.handler(|server, call| async move { server.bundle(&call).await }),
            );
        vault.into_iter().fold(routes, |routes, method| {
            let method = Method::from_bytes(method.as_bytes()).expect("the names are tokens");
            let forward = self.handler(|server, call| async move { server.vault(call).await });
            routes.on(method, "/v1/mesh/vault/*path", forward)
        })
    }

    /// Withdraws what sidecars published that have gone without a word, until `stop`.
    pub async fn expire_leases(self, stop: CancellationToken) {
        loop {
            // Asked for before looking, so that a lease granted in between is not slept past.
            let changed = self.inner.changed.notified();
            let next = self.inner.leases.lock().next_expiry();
            tokio::select! {
                () = stop.cancelled() => return,
                () = changed => continue,
                () = async { match next { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {}
            }
            let gone = self.inner.leases.lock().expire(Instant::now());
            for (id, attachment) in gone {
                tracing::warn!(
                    instance = %id, service = %attachment.service, mesh_port = attachment.request.mesh_port,
                    "a sidecar has not been heard of for {:?}: withdrawing it", self.inner.lease
                );
                self.withdraw(&id, &attachment);
            }
        }
    }

    fn handler<F, R>(
        &self,
        run: F,
    ) -> impl Fn(Call) -> std::pin::Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync + 'static
    where
        F: Fn(Self, Call) -> R + Copy + Send + Sync + 'static,
        R: Future<Output = Result<Reply, Problem>> + Send + 'static,
    {
        let server = self.clone();
        move |call| {
            let answer = run(server.clone(), call);
            Box::pin(async move { answer.await.unwrap_or_else(Problem::reply) })
        }
    }

    fn attach(&self, call: &Call) -> Result<Reply, Problem> {
        let caller = self.caller(call)?;
        let request: AttachRequest = body(call)?;
        let service = ServiceName::parse(&request.service).map_err(bad)?;
        caller.require(&service).map_err(denied)?;
        for check in &request.checks {
            if !check.address().ip().is_loopback() {
                return Err(bad(format!(
                    "a check may only look at the loopback interface, not at {}: checks of other hosts belong into the \
                     agent's configuration",
                    check.address()
                )));
            }
        }
        let name = request.instance.as_deref().unwrap_or(service.as_str());
        let id = InstanceId::parse(name).map_err(bad)?;
        let instance = instance(&id, &service, &request)?;

        let mut leases = self.inner.leases.lock();
        let granted = leases
            .attach(Instant::now(), id.clone(), service, request.clone())
            .map_err(|busy| Problem {
                status: StatusCode::CONFLICT,
                detail: busy.to_string(),
            })?;
        let published = self.publish(&mut leases, granted, instance, &request);
        if let Err(problem) = published {
            leases.detach(&id, &request.holder);
            return Err(problem);
        }
        drop(leases);
        self.inner.changed.notify_one();
        if granted != Granted::Same {
            tracing::info!(instance = %id, service = %request.service, mesh_port = request.mesh_port, "sidecar attached");
        }

        let reply = AttachReply {
            instance: id.as_str().into(),
            lease: self.inner.lease.as_secs(),
        };
        Ok(json(StatusCode::OK, &reply))
    }

    fn about(&self, call: &Call) -> Result<Reply, Problem> {
        self.caller(call)?;
        let about = self.inner.host.about();
        let trust = self.inner.host.trust();
        let reply = AboutReply {
            node: about.node.as_str().into(),
            datacenter: about.datacenter.as_str().into(),
            trust_domain: trust.domain().to_string().into(),
            bundle_pem: pem::certificates(&trust.bundle().roots),
        };
        Ok(json(StatusCode::OK, &reply))
    }

    /// Brings the catalog to what the attachment says; also repairs what somebody else changed since.
    fn publish(
        &self,
        leases: &mut Leases,
        granted: Granted,
        mut instance: Instance,
        request: &AttachRequest,
    ) -> Result<(), Problem> {
        let host = &self.inner.host;
        let registered = host.catalog().local().service(&instance.id);
        if let Some(found) = &registered
            && found.service != instance.service
        {
            let detail = format!(
                "instance {} belongs to service {}",
                instance.id, found.service
            );
            return Err(Problem {
                status: StatusCode::CONFLICT,
                detail,
            });
        }
        if granted == Granted::New && registered.is_some() {
            leases.adopt(&instance.id);
        }
        let adopted = leases
            .get(&instance.id)
            .is_some_and(|attachment| attachment.adopted);
        match registered {
            Some(found) if adopted => {
                if found.mesh_port == request.mesh_port {
                    return Ok(());
                }
                instance = Instance {
                    mesh_port: request.mesh_port,
                    ..Instance::clone(&found)
                };
                host.catalog().local().put_service(instance).map_err(bad)
            }
            Some(found) if granted == Granted::Same && found.mesh_port == request.mesh_port => {
                Ok(())
            }
            _ => host
                .register(instance, &request.checks)
                .map_err(|detail| Problem {
                    status: StatusCode::FORBIDDEN,
                    detail,
                }),
        }
    }

    fn detach(&self, call: &Call) -> Result<Reply, Problem> {
        let caller = self.caller(call)?;
        let id = InstanceId::parse(call.params.get("instance")).map_err(bad)?;
        let mut leases = self.inner.leases.lock();
        if let Some(attachment) = leases.get(&id) {
            caller.require(&attachment.service).map_err(denied)?;
        }
        let holder = call.query.get("holder").unwrap_or_default();
        if let Some(attachment) = leases.detach(&id, holder) {
            tracing::info!(instance = %id, service = %attachment.service, "sidecar detached");
            self.withdraw(&id, &attachment);
        }
        Ok(empty(StatusCode::NO_CONTENT))
    }

    fn withdraw(&self, id: &InstanceId, attachment: &Attachment) {
        let host = &self.inner.host;
        if !attachment.adopted {
            return host.deregister(id);
        }
        let local = host.catalog().local();
        if let Some(found) = local.service(id) {
            let without = Instance {
                mesh_port: None,
                ..Instance::clone(&found)
            };
            if let Err(error) = local.put_service(without) {
                tracing::warn!(instance = %id, error = &error as &dyn std::error::Error, "mesh port not withdrawn");
            }
        }
    }

    async fn sign(&self, call: &Call) -> Result<Reply, Problem> {
        let caller = self.caller(call)?;
        let request: SignRequest = body(call)?;
        let service = ServiceName::parse(&request.service).map_err(bad)?;
        caller.require(&service).map_err(denied)?;
        let csr = pem::read_request(&request.csr_pem).map_err(bad)?;
        let ttl = request
            .ttl
            .as_deref()
            .map(humantime::parse_duration)
            .transpose();
        let ttl = ttl.map_err(|error| bad(format!("ttl: {error}")))?;
        let issued = self
            .inner
            .host
            .sign_service(service, csr, ttl)
            .await
            .map_err(|error| Problem {
                status: match error {
                    SourceError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                    SourceError::Refused(_) => StatusCode::FORBIDDEN,
                },
                detail: error.to_string(),
            })?;
        Ok(json(
            StatusCode::OK,
            &SignReply {
                chain_pem: pem::certificates(&issued.chain),
                bundle_pem: pem::certificates(&issued.bundle.roots),
                not_after: issued
                    .not_after
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default()
                    .as_secs(),
            },
        ))
    }

    async fn endpoints(&self, call: &Call) -> Result<Reply, Problem> {
        self.caller(call)?;
        let service = ServiceName::parse(call.params.get("service")).map_err(bad)?;
        let (index, wait) = poll(call)?;
        let answer = endpoints::answer(
            self.inner.host.catalog(),
            &self.inner.routing,
            &service,
            index,
            wait,
        );
        let reply = tokio::select! {
            reply = answer => reply,
            () = call.conn.shutdown.cancelled() => return Err(Problem {
                status: StatusCode::SERVICE_UNAVAILABLE,
                detail: "the agent is shutting down".to_owned(),
            }),
        };
        Ok(json(StatusCode::OK, &reply))
    }

    async fn bundle(&self, call: &Call) -> Result<Reply, Problem> {
        self.caller(call)?;
        let (after, wait) = poll(call)?;
        let bundles = self.inner.host.bundles();
        if let Some(after) = after {
            let mut changes = bundles.watch();
            tokio::select! {
                _ = timeout(wait, changes.wait_for(|_| bundles.index() > after)) => {}
                () = call.conn.shutdown.cancelled() => {}
            }
        }
        // Taken before the bundle: one that is newer than its index only makes the next poll return at once.
        let index = bundles.index();
        let bundle = bundles.signed().map(|signed| encode_bundle(&signed));
        Ok(json(StatusCode::OK, &BundleReply { index, bundle }))
    }

    async fn vault(&self, call: Call) -> Result<Reply, Problem> {
        let caller = self.caller(&call)?;
        let named = call
            .header(SERVICE_HEADER)
            .map(ServiceName::parse)
            .transpose()
            .map_err(bad)?;
        let service = caller.one(named.as_ref()).map_err(denied)?;
        let identity = SpiffeId::service(
            self.inner.host.trust().domain(),
            &self.inner.host.about().datacenter,
            &service,
        );
        let (mut head, body) = call.request.into_parts();
        let path = head.uri.path_and_query().map_or("", |p| p.as_str());
        let inner = path.strip_prefix("/v1/mesh/vault/").unwrap_or_default();
        let inner = inner.strip_prefix("v1/").unwrap_or(inner);
        head.uri = format!("/v1/{inner}").parse::<Uri>().map_err(bad)?;
        for own in [
            TOKEN_HEADER,
            SERVICE_HEADER,
            header::HOST.as_str(),
            header::CONNECTION.as_str(),
        ] {
            head.headers.remove(own);
        }
        let answer = self
            .inner
            .host
            .vault(http::Request::from_parts(head, body), identity)
            .await;
        Ok(answer.map(Into::into))
    }

    fn caller(&self, call: &Call) -> Result<Caller, Problem> {
        // What is no text is no token of ours, but it is not "no token" either.
        let token = call
            .request
            .headers()
            .get(TOKEN_HEADER)
            .map(|shown| shown.to_str().unwrap_or_default());
        self.inner
            .host
            .callers()
            .identify(&call.conn.remote, token)
            .map_err(denied)
    }
}

impl Problem {
    fn reply(self) -> Reply {
        #[derive(Serialize)]
        struct Details<'a> {
            title: &'a str,
            status: u16,
            detail: &'a str,
        }
        let title = self.status.canonical_reason().unwrap_or_default();
        let details = Details {
            title,
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        let mut reply = json(self.status, &details);
        let kind = header::HeaderValue::from_static("application/problem+json");
        reply.headers_mut().insert(header::CONTENT_TYPE, kind);
        reply
    }
}

fn bad(detail: impl fmt::Display) -> Problem {
    Problem {
        status: StatusCode::BAD_REQUEST,
        detail: detail.to_string(),
    }
}

fn denied(detail: impl fmt::Display) -> Problem {
    Problem {
        status: StatusCode::FORBIDDEN,
        detail: detail.to_string(),
    }
}

fn body<T: DeserializeOwned>(call: &Call) -> Result<T, Problem> {
    serde_json::from_slice(call.body()).map_err(|error| {
        bad(format!(
            "the body is not what {} takes: {error}",
            call.request.uri().path()
        ))
    })
}

/// `?index=` and `?wait=` of a long poll; without an index it does not wait.
fn poll(call: &Call) -> Result<(Option<u64>, Duration), Problem> {
    let index = call.query.filled("index").map(str::parse).transpose();
    let index = index.map_err(|_| bad("index: a number is expected"))?;
    let wait = call
        .query
        .filled("wait")
        .map(humantime::parse_duration)
        .transpose();
    let wait = wait.map_err(|error| bad(format!("wait: {error}")))?;
    Ok((index, wait.unwrap_or(WAIT).min(WAIT_MAX)))
}

fn instance(
    id: &InstanceId,
    service: &ServiceName,
    request: &AttachRequest,
) -> Result<Instance, Problem> {
    let mut instance = Instance::new(service.clone(), request.port).map_err(bad)?;
    instance.id = id.clone();
    instance.tags = request.tags.clone();
    instance.meta = request.meta.clone().into();
    instance.address = request.address.map(Host::Ip);
    instance.mesh_port = request.mesh_port;
    instance.version = request.version.clone();
    instance.validate().map_err(bad)?;
    Ok(instance)
}
