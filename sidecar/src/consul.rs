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
mod agent_host;
mod agent_info;
mod agent_orders;
mod agent_services;
mod answers;
mod around;
mod blocking;
mod bound;
mod catalog;
mod chain;
pub mod connect;
mod coordinates;
pub(crate) mod decode;
pub mod definitions;
mod encoding;
pub(crate) mod events;
pub(crate) mod filter;
mod forwarded;
mod health;
mod metrics;
mod monitor;
mod openapi;
mod operator;
pub mod prepared;
mod registered;
pub(crate) mod render;
mod snapshot;
pub mod stored;
mod ui;

use std::{
    fmt, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use dns::Queries;
use http::{HeaderValue, Method, Request, StatusCode, header};
use libmesh::{
    bundle::{Action, BundleStore},
    catalog::Catalog,
    health::Scheduler,
    model::{Datacenter, Instance, InstanceId, NodeId, NodeName},
};
use serde_json::Value;
use tokio::time::{Instant, interval};
use zeroize::Zeroizing;

pub use acl::Acl;
use answers::Answers;
use around::Tokens;
pub use around::{Around, Order};
pub use bound::Binding;
pub use coordinates::Coordinates;
pub use events::Events;
use metrics::Figures;
use registered::Registered;

use crate::{
    forward::Forward,
    http::{BoxFuture, Call, ConnInfo, Reply, Routes, query, query::Query, text},
};

/// How long an answer is kept that nobody asks for, and up to twice as long.
const SWEEP: Duration = Duration::from_secs(60);
/// Largest KV value, in bytes.
pub const MAX_VALUE: usize = 512 << 10;
/// Largest request body of this interface, in bytes: a value or a transaction, and room around it.
pub const MAX_BODY: usize = 1 << 20;

/// The Consul version whose behaviour this interface has, for clients that look.
pub const COMPATIBLE: &str = "1.21.4";
/// The service that Consul's servers are instances of. Theirs is in the catalog, but not among an agent's own.
pub const SERVERS: &str = "consul";

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
    /// Whether anybody needs rights here; not in `mesh dev`.
    pub acls: bool,
    /// Whether all defaults are Consul's own (`--compat consul`).
    pub like_consul: bool,
}

impl About {
    fn default_action(&self) -> Action {
        match self.default_allow {
            true => Action::Allow,
            false => Action::Deny,
        }
    }
}

/// What an interface is made over.
pub struct Parts {
    /// Where the agent stands.
    pub about: About,
    /// Its catalog.
    pub catalog: Catalog,
    /// Its checks.
    pub checks: Scheduler,
    /// Without it every intention check is the default.
    pub bundles: Option<BundleStore>,
    /// Without it there are neither roots nor leaves.
    pub authority: Option<connect::Authority>,
    /// Who answers what needs the store.
    pub forward: Arc<dyn Forward>,
    /// The prepared queries.
    pub queries: Queries,
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
    authority: Option<connect::Authority>,
    forward: Arc<dyn Forward>,
    queries: Queries,
    /// No index is below this.
    birth: u64,
    registered: Registered,
    answers: Answers,
    around: OnceLock<Around>,
    tokens: Tokens,
    figures: Figures,
}

impl ConsulApi {
    /// The interface over an agent's parts.
    pub fn new(parts: Parts) -> ConsulApi {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let birth = since.map_or(1, |since| since.as_micros() as u64);
        let inner = Arc::new(Inner {
            about: parts.about,
            catalog: parts.catalog,
            checks: parts.checks,
            bundles: parts.bundles,
            authority: parts.authority,
            forward: parts.forward,
            queries: parts.queries,
            birth,
            registered: Registered::default(),
            answers: Answers::default(),
            around: OnceLock::new(),
            tokens: Tokens::default(),
            figures: Figures::default(),
        });
        let table = Routes::new()
            .fallback(|_| async { unknown_path() })
            .get("/", |_| async {
                redirected(StatusCode::MOVED_PERMANENTLY, "/ui/")
            })
            .merge(agent_services::routes(&inner))
            .merge(agent_checks::routes(&inner))
            .merge(agent_info::routes(&inner))
            .merge(agent_host::routes(&inner))
            .merge(agent_orders::routes(&inner))
            .merge(metrics::routes(&inner))
            .merge(monitor::routes(&inner))
            .merge(events::routes(&inner))
            .merge(coordinates::routes(&inner))
            .merge(operator::routes(&inner))
            .merge(snapshot::routes(&inner))
            .merge(ui::routes(&inner))
            .merge(catalog::routes(&inner))
            .merge(connect::routes(&inner))
            .merge(chain::routes(&inner))
            .merge(health::routes(&inner))
            .merge(bound::routes(&inner))
            .merge(prepared::routes(&inner))
            .merge(forwarded::routes(&inner));
        let own = openapi::routes(&table);
        let table = table.merge(own);
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
        let routes = acl::routes(&self.inner).merge(Routes::clone(&self.routes));
        ConsulApi {
            inner: self.inner,
            routes: Arc::new(routes),
            acl: Some(acl),
        }
    }

    /// Tells what the interface is part of; the first call counts. Without it, what needs it is refused.
    pub fn within(&self, around: Around) {
        let _ = self.inner.around.set(around);
    }

    /// Keeps what is registered here in `file` (0600), and registers again what it holds of the agent's last
    /// life; all but the instances in `others`, which somebody else registers. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the file cannot be read. A request in it that is not accepted any more is logged and dropped.
    pub fn resume(&self, file: &Path, others: &[InstanceId]) -> io::Result<()> {
        let requests = self.inner.registered.open(file, others)?;
        for (id, request) in requests.services {
            if let Err(refused) = agent_services::resume(&self.inner, &request) {
                tracing::warn!(instance = id, reason = %refused, "not registered again");
            }
        }
        for (id, body) in requests.checks {
            if let Err(refused) = agent_checks::resume(&self.inner, &body) {
                tracing::warn!(check = id, reason = %refused, "check not registered again");
            }
        }
        Ok(())
    }

    /// Forgets in the file of [`resume`](Self::resume) what is taken away by other means than a request here; and answers
    /// that nobody asks for.
    pub async fn follow(self) {
        let local = self.inner.catalog.local();
        let mut head = local.watch();
        let mut sweep = interval(SWEEP);
        loop {
            if let Err(refused) = self.inner.registered.forget_gone(local.clone()).await {
                tracing::warn!(reason = %refused, "the file of registrations");
            }
            tokio::select! {
                changed = head.changed() => if changed.is_err() {
                    return;
                },
                _ = sweep.tick() => self.inner.answers.sweep(),
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

    /// The token of requests that bring none, until another is set.
    pub fn use_token(&self, token: Zeroizing<String>) {
        self.inner.tokens.set_default(token);
    }

    /// Answers one request.
    pub async fn handle(self, request: Request<Bytes>, conn: Arc<ConnInfo>) -> Reply {
        let query = Query::parse(request.uri().query());
        let options = request.method() == Method::OPTIONS;
        let indented = query.has("pretty");
        let waits = query.filled("index").is_some() || query.filled("hash").is_some();
        let compressed = encoding::wanted(request.headers());
        let began = Instant::now();
        let mut reply = match self.inner.refuse_early(&request, &query) {
            Some(refused) => refused,
            None => match &self.acl {
                None => self.routes.dispatch_with(request, query, conn).await,
                Some(acl) => Box::pin(self.with_rights(acl, request, query, conn)).await,
            },
        };
        if waits {
            self.inner.figures.waited(reply.status());
        } else {
            let took = Instant::now().duration_since(began);
            self.inner.figures.answered(reply.status(), took);
        }
        if reply.extensions_mut().remove::<NoEndpoint>().is_some() {
            return reply;
        }
        if indented {
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
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        match compressed {
            true => encoding::compress(reply).await,
            false => reply,
        }
    }

    async fn with_rights(
        &self,
        acl: &Acl,
        mut request: Request<Bytes>,
        query: Query,
        conn: Arc<ConnInfo>,
    ) -> Reply {
        match acl.admit(&self.inner, &mut request, &query).await {
            Ok(admitted) => {
                let reply = self.routes.dispatch_with(request, query, conn).await;
                admitted.filter(reply)
            }
            Err(refused) => refused.into(),
        }
    }
}

/// Marks the answer of no endpoint, which has none of the headers that all of those have.
#[derive(Clone)]
struct NoEndpoint;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

impl Inner {
    /// The agent's own instances: all but a server itself.
    fn own_services(&self) -> Vec<Arc<Instance>> {
        let mut services = self.catalog.local().services();
        services.retain(|it| !self.is_server(it));
        services
    }

    /// One of them.
    fn own_service(&self, id: &InstanceId) -> Option<Arc<Instance>> {
        let service = self.catalog.local().service(id);
        service.filter(|it| !self.is_server(it))
    }

    fn is_server(&self, instance: &Instance) -> bool {
        self.about.server && instance.service == SERVERS && instance.id == SERVERS
    }

    /// What holds for every path: Consul answers these before it looks at the endpoint.
    fn refuse_early(&self, request: &Request<Bytes>, query: &Query) -> Option<Reply> {
        let path = request.uri().path();
        if path.contains("//") {
            let mut clean = path.to_owned();
            while clean.contains("//") {
                clean = clean.replace("//", "/");
            }
            return Some(redirected(StatusCode::TEMPORARY_REDIRECT, &clean));
        }
        if path.contains('%') && query::decode(path).chars().any(char::is_control) {
            return Some(no_endpoint(crate::http::empty(StatusCode::BAD_REQUEST)));
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
        if asked.eq_ignore_ascii_case(self.about.datacenter.as_str()) {
            return None;
        }
        // One agent, one datacenter, until regions come.
        let refused = server_error("No path to datacenter");
        let read = request.method() == Method::GET;
        let of_catalog = path.starts_with("/v1/catalog/") || path.starts_with("/v1/health/");
        Some(match read && of_catalog {
            true => blocking::unanswered(refused),
            false => refused.into(),
        })
    }
}

fn unknown_path() -> Reply {
    no_endpoint(text(
        StatusCode::NOT_FOUND,
        "Invalid URL path: not a recognized HTTP API endpoint\n",
    ))
}

/// As Go's own multiplexer answers.
fn redirected(status: StatusCode, to: &str) -> Reply {
    let reason = status.canonical_reason().unwrap_or_default();
    let mut reply = text(
        status,
        format!("<a href=\"{}\">{reason}</a>.\n\n", escaped(to)),
    );
    let Ok(location) = HeaderValue::try_from(to) else {
        return unknown_path();
    };
    let headers = reply.headers_mut();
    headers.insert(header::LOCATION, location);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    no_endpoint(reply)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

fn no_endpoint(mut reply: Reply) -> Reply {
    reply.extensions_mut().insert(NoEndpoint);
    reply
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

/// The same for reads of the catalog: what fails then has the headers of an answer, too.
fn reading<F, R>(
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
        Box::pin(async move {
            answer.await.unwrap_or_else(|refused| {
                match refused.status == StatusCode::INTERNAL_SERVER_ERROR {
                    true => blocking::unanswered(refused),
                    false => refused.into(),
                }
            })
        })
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
    let Some(body) = body.into_bytes() else {
        unreachable!("JSON is never sent piece by piece")
    };
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
