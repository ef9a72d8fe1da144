//! The Consul-compatible HTTP interface, over the agent's own catalog replica.
//!
//! Shapes, status codes and error texts are Consul 1.21's, as its clients depend on them; where ours
//! differ on purpose it says so at the place. Reads of catalog and health never leave the process. What
//! only a server knows (KV, intentions, join tokens, the ledger) is passed on through [`Forward`].
//!
//! An index is a revision of the catalog (unix µs, see [`Catalog::revision`]). No answer carries an index
//! below the time this interface was made, so that a client that comes back after a restart with an old
//! index is answered at once, and one that asks for a service nobody ever had does not spin.

mod acl;
mod agent_checks;
mod agent_info;
mod agent_services;
mod blocking;
mod bound;
mod catalog;
mod decode;
mod filter;
mod forwarded;
mod health;
pub mod prepared;
mod registered;
mod render;
pub mod stored;

use std::{
    fmt, io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use dns::Queries;
use http::{HeaderValue, Method, Request, StatusCode, header};
use libmesh::{
    bundle::BundleStore,
    catalog::Catalog,
    health::Scheduler,
    model::{Datacenter, InstanceId, NodeId, NodeName},
};
use serde_json::Value;

pub use acl::Acl;
pub use bound::Binding;
use registered::Registered;

use crate::{
    forward::Forward,
    http::{BoxFuture, Call, ConnInfo, Reply, Routes, query, query::Query, text},
};

/// Largest KV value, in bytes.
pub const MAX_VALUE: usize = 512 << 10;
/// Largest request body of this interface, in bytes: a value or a transaction, and room around it.
pub const MAX_BODY: usize = 1 << 20;

/// Where the agent stands, for `agent/self` and its neighbours.
#[derive(Debug, Clone)]
pub struct About {
    /// Its node's name.
    pub node: NodeName,
    /// Its node's id.
    pub id: NodeId,
    /// Its datacenter.
    pub datacenter: Datacenter,
    /// Whether the sealed store is in this process.
    pub server: bool,
    /// Where other nodes reach it.
    pub advertise: SocketAddr,
    /// Where DNS answers, if it does.
    pub dns: Option<SocketAddr>,
    /// What calls without an intention do.
    pub default_allow: bool,
    /// Whether checks that run programs may be registered here.
    pub exec_checks: bool,
}

/// The interface of one agent. Cheap to clone.
#[derive(Clone)]
pub struct ConsulApi {
    inner: Arc<Inner>,
    routes: Arc<Routes>,
    /// When tokens are asked for.
    acl: Option<Arc<Acl>>,
}

pub(crate) struct Inner {
    about: About,
    catalog: Catalog,
    checks: Scheduler,
    bundles: Option<BundleStore>,
    forward: Arc<dyn Forward>,
    queries: Queries,
    /// No index is below this.
    birth: u64,
    registered: Registered,
}

impl ConsulApi {
    /// The interface over an agent's parts. Without `bundles` every intention check is the default.
    pub fn new(
        about: About,
        catalog: Catalog,
        checks: Scheduler,
        bundles: Option<BundleStore>,
        forward: Arc<dyn Forward>,
        queries: Queries,
    ) -> ConsulApi {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let birth = since.map_or(1, |since| since.as_micros() as u64);
        let inner = Arc::new(Inner {
            about,
            catalog,
            checks,
            bundles,
            forward,
            queries,
            birth,
            registered: Registered::default(),
        });
        let table = Routes::new()
            .fallback(|_| async { unknown_path() })
            .merge(agent_services::routes(&inner))
            .merge(agent_checks::routes(&inner))
            .merge(agent_info::routes(&inner))
            .merge(catalog::routes(&inner))
            .merge(health::routes(&inner))
            .merge(bound::routes(&inner))
            .merge(prepared::routes(&inner))
            .merge(forwarded::routes(&inner));
        ConsulApi {
            inner,
            routes: Arc::new(table),
            acl: None,
        }
    }

    /// The same, asking for tokens.
    #[must_use]
    pub fn with_acl(self, acl: Acl) -> ConsulApi {
        let acl = Arc::new(acl);
        let routes = acl::routes(&self.inner, &acl).merge(Routes::clone(&self.routes));
        ConsulApi {
            inner: self.inner,
            routes: Arc::new(routes),
            acl: Some(acl),
        }
    }

    /// Keeps what is registered here in `file` (0600), and registers again what it holds of the agent's last
    /// life; all but the instances in `others`, which somebody else registers. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be read. A request in it that is not accepted any more is logged and dropped.
    pub fn resume(&self, file: &Path, others: &[InstanceId]) -> io::Result<()> {
        let requests = self.inner.registered.open(file, others)?;
        for (id, request) in requests.services {
            if let Err(refused) = agent_services::resume(&self.inner, request) {
                tracing::warn!(instance = id, reason = %refused, "not registered again");
            }
        }
        for (id, body) in requests.checks {
            if let Err(refused) = agent_checks::resume(&self.inner, body) {
                tracing::warn!(check = id, reason = %refused, "check not registered again");
            }
        }
        Ok(())
    }

    /// Forgets in the file of [`resume`](Self::resume) what is taken away by other means than a request here.
    pub async fn follow(self) {
        let local = self.inner.catalog.local();
        let mut head = local.watch();
        loop {
            if let Err(refused) = self.inner.registered.forget_gone(local.clone()).await {
                tracing::warn!(reason = %refused, "the file of registrations");
            }
            if head.changed().await.is_err() {
                return;
            }
        }
    }

    /// The same with further routes, for listeners that serve more than this.
    #[must_use]
    pub fn with(&self, routes: Routes) -> ConsulApi {
        ConsulApi {
            inner: Arc::clone(&self.inner),
            routes: Arc::new(Routes::clone(&self.routes).merge(routes)),
            acl: self.acl.clone(),
        }
    }

    /// Answers one request.
    pub async fn handle(self, request: Request<Bytes>, conn: Arc<ConnInfo>) -> Reply {
        let query = Query::parse(request.uri().query());
        let options = request.method() == Method::OPTIONS;
        let mut reply = match self.inner.refuse_early(&request, &query) {
            Some(refused) => refused,
            None => match &self.acl {
                None => self.routes.dispatch(request, conn).await,
                Some(acl) => Box::pin(self.with_rights(acl, request, &query, conn)).await,
            },
        };
        if query.has("pretty") {
            reply = pretty(reply);
        }
        let headers = reply.headers_mut();
        if options {
            headers.insert(header::CONTENT_TYPE, JSON);
        }
        let policy = self
            .acl
            .as_ref()
            .map_or("allow", |acl| acl.default_policy());
        headers.insert(
            "x-consul-default-acl-policy",
            HeaderValue::from_static(policy),
        );
        reply
    }

    async fn with_rights(
        &self,
        acl: &Acl,
        mut request: Request<Bytes>,
        query: &Query,
        conn: Arc<ConnInfo>,
    ) -> Reply {
        match acl.admit(&self.inner, &mut request, query).await {
            Ok(admitted) => admitted.filter(self.routes.dispatch(request, conn).await),
            Err(refused) => refused.into(),
        }
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Inner {
    /// What holds for every path: Consul answers these before it looks at the endpoint.
    fn refuse_early(&self, request: &Request<Bytes>, query: &Query) -> Option<Reply> {
        let path = request.uri().path();
        if path.contains("//") {
            let mut clean = path.to_owned();
            while clean.contains("//") {
                clean = clean.replace("//", "/");
            }
            let mut reply = text(StatusCode::TEMPORARY_REDIRECT, "");
            let location = HeaderValue::try_from(clean).ok()?;
            reply.headers_mut().insert(header::LOCATION, location);
            return Some(reply);
        }
        if path.contains('%') && query::decode(path).chars().any(char::is_control) {
            return Some(text(StatusCode::BAD_REQUEST, ""));
        }
        for (name, what) in [("ns", "Namespaces"), ("partition", "Partitions")] {
            if query.filled(name).is_some_and(|value| value != "default") {
                return Some(text(
                    StatusCode::BAD_REQUEST,
                    format!(
                        "Invalid query parameter: \"{name}\" - {what} are a Consul Enterprise feature"
                    ),
                ));
            }
        }
        let asked = query.filled("datacenter").or(query.filled("dc"))?;
        (!asked.eq_ignore_ascii_case(self.about.datacenter.as_str())).then(|| {
            // One agent, one datacenter, until regions come.
            text(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter")
        })
    }
}

fn unknown_path() -> Reply {
    text(
        StatusCode::NOT_FOUND,
        "Invalid URL path: not a recognized HTTP API endpoint\n",
    )
}

/// A handler on the interface's state.
fn handler<F, R>(
    inner: &Arc<Inner>,
    run: F,
) -> impl Fn(Call) -> BoxFuture<Reply> + Send + Sync + 'static
where
    F: Fn(Arc<Inner>, Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Reply, Refused>> + Send + 'static,
{
    let inner = Arc::clone(inner);
    move |call| {
        let answer = run(Arc::clone(&inner), call);
        Box::pin(async move { answer.await.unwrap_or_else(Reply::from) })
    }
}

/// What a handler refuses with: a status and Consul's words as plain text.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    status: StatusCode,
    message: String,
}

impl Refused {
    /// A refusal.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refused {
        Refused {
            status,
            message: message.into(),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Refused> for Reply {
    fn from(refused: Refused) -> Reply {
        text(refused.status, refused.message)
    }
}

/// A `400` with Consul's words.
fn bad_request(message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::BAD_REQUEST, message)
}

/// A `500` with Consul's words; Consul uses it for many mistakes of the client, too.
fn server_error(message: impl Into<String>) -> Refused {
    Refused::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

/// Consul answers a successful change without a result as JSON of no bytes.
fn done() -> Reply {
    let mut reply = crate::http::empty(StatusCode::OK);
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}

fn pretty(reply: Reply) -> Reply {
    if reply.headers().get(header::CONTENT_TYPE) != Some(&JSON) {
        return reply;
    }
    let (head, body) = reply.into_parts();
    let body = body.into_bytes().unwrap_or_default();
    let indented = serde_json::from_slice::<Value>(&body)
        .and_then(|value| serde_json::to_vec_pretty(&value))
        .map(|mut bytes| {
            bytes.push(b'\n');
            Bytes::from(bytes)
        });
    Reply::from_parts(head, indented.unwrap_or(body).into())
}

#[cfg(test)]
mod tests;
