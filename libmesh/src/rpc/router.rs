//! Which handler answers which path, and what it is told of its caller.

use std::{collections::HashMap, fmt, future::Future, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;

use super::stream::{self, Frames, Waiting};
use crate::{
    identity::{BoxFuture, Identity, Leaf, PublishRights, SpiffeId},
    model::{NodeId, NodeName},
};

/// The verified caller of a request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its identity; always a node's.
    pub spiffe: SpiffeId,
    /// Its node name.
    pub node: NodeName,
    /// Its node id: the hash of its key.
    pub node_id: NodeId,
    /// What it may publish.
    pub rights: PublishRights,
    /// SHA-256 of its certificate.
    pub certificate: [u8; 32],
    /// Where the connection comes from.
    pub addr: SocketAddr,
}

impl Peer {
    /// The peer behind a verified leaf; `None` if it is not a node's.
    pub(crate) fn from_leaf(leaf: Leaf, addr: SocketAddr) -> Option<Self> {
        let node = leaf.spiffe.as_node()?.clone();
        let Leaf {
            spiffe,
            rights,
            sha256: certificate,
            node_id,
            ..
        } = leaf;
        Some(Self {
            spiffe,
            node,
            node_id,
            rights,
            certificate,
            addr,
        })
    }

    /// This process as a peer of itself, for handlers called without a connection.
    pub(crate) fn local(identity: &Identity, addr: SocketAddr) -> Option<Self> {
        Self::from_leaf(identity.leaf(), addr)
    }
}

/// A call as a handler gets it.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who calls.
    pub peer: Peer,
    /// The path, without the query.
    pub path: String,
    /// What follows `?`, empty without.
    pub query: String,
    /// The body, at most as long as the route allows.
    pub body: Bytes,
}

/// A call of somebody who has no certificate yet.
#[derive(Debug, Clone)]
pub struct JoinCall {
    /// Where the connection comes from.
    pub addr: SocketAddr,
    /// The body, bounded.
    pub body: Bytes,
}

/// A handler's answer. With a status of 400 and more the body is a message for people.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body; empty when the answer goes on.
    pub body: Bytes,
    /// Frames instead of a body; of several copies, the one that is sent first has them.
    pub(super) frames: Option<Arc<Mutex<Option<Waiting>>>>,
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self {
            status: StatusCode::OK,
            body: body.into(),
            frames: None,
        }
    }

    /// 200 with frames that are written to the other half, until that is dropped: to be read with
    /// [`Client::open`](super::Client::open).
    pub fn frames() -> (Self, Frames) {
        let (frames, waiting) = stream::channel();
        let reply = Self {
            status: StatusCode::OK,
            body: Bytes::new(),
            frames: Some(Arc::new(Mutex::new(Some(waiting)))),
        };
        (reply, frames)
    }

    /// An error with a message.
    pub fn error(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            body: message.into().into(),
            frames: None,
        }
    }
}

type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Reply> + Send + Sync>;
type JoinHandler = Arc<dyn Fn(JoinCall) -> BoxFuture<'static, Reply> + Send + Sync>;

/// Handlers by exact path. Cheap to clone.
#[derive(Clone, Default)]
pub struct Router {
    routes: HashMap<&'static str, Route>,
    join: Option<(usize, JoinHandler)>,
}

#[derive(Clone)]
struct Route {
    limit: usize,
    handler: Handler,
}

impl Router {
    /// A router without routes: everything is answered 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers `path` (mutually authenticated callers only) with `handler`; bodies over `limit` bytes
    /// are answered 413 before the handler sees anything. A later route for the same path wins.
    #[must_use]
    pub fn route<F, R>(mut self, path: &'static str, limit: usize, handler: F) -> Self
    where
        F: Fn(Request) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.routes.insert(path, Route { limit, handler });
        self
    }

    /// Answers `/join` for callers without a certificate.
    #[must_use]
    pub fn join<F, R>(mut self, limit: usize, handler: F) -> Self
    where
        F: Fn(JoinCall) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        self.join = Some((limit, Arc::new(move |call| Box::pin(handler(call)))));
        self
    }

    /// These routes and those of `other`, which win.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.routes.extend(other.routes);
        self.join = other.join.or(self.join);
        self
    }

    /// Whether `path` has a route.
    pub fn has(&self, path: &str) -> bool {
        self.routes.contains_key(path)
    }

    /// The body limit of `path`, if it has a route.
    pub(crate) fn limit(&self, path: &str) -> Option<usize> {
        self.routes.get(path).map(|route| route.limit)
    }

    /// The body limit of the join, if it is answered here.
    pub(crate) fn join_limit(&self) -> Option<usize> {
        self.join.as_ref().map(|(limit, _)| *limit)
    }

    /// Calls the handler of the request's path.
    pub(crate) async fn handle(&self, request: Request) -> Reply {
        match self.routes.get(request.path.as_str()) {
            Some(route) => (route.handler)(request).await,
            None => not_found(&request.path),
        }
    }

    /// Calls the join's handler.
    pub(crate) async fn handle_join(&self, call: JoinCall) -> Reply {
        match &self.join {
            Some((_, handler)) => handler(call).await,
            None => not_found(super::JOIN_PATH),
        }
    }
}

/// The answer for a path without a route.
pub(crate) fn not_found(path: &str) -> Reply {
    let path: String = path.chars().take(80).collect();
    Reply::error(StatusCode::NOT_FOUND, format!("this node has no {path}"))
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}
