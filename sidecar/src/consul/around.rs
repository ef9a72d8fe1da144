//! What the interface is part of: the node, and the process that runs it.

use std::{future::Future, path::PathBuf, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use libmesh::mesh::Mesh;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::{Inner, Refused, coordinates::Coordinates, events::Events, server_error};
use crate::{
    forward::Api,
    http::{Call, Remote, query::encode},
};

/// The node around the interface.
pub struct Around {
    /// The node.
    pub mesh: Mesh,
    /// Takes orders to the process.
    pub orders: mpsc::Sender<Order>,
    /// The user events of this agent.
    pub events: Events,
    /// Where this node and others are in the network.
    pub coordinates: Coordinates,
    /// Where this agent keeps its state.
    pub directory: PathBuf,
    /// What DNS answered so far, if it is served here.
    pub dns: Option<Arc<dyn Fn() -> dns::Counts + Send + Sync>>,
}

/// What a client asks of the process.
pub enum Order {
    /// To leave the mesh and end.
    Leave,
    /// To read its configuration again; the answer says what is wrong with it.
    Reload(oneshot::Sender<Result<(), String>>),
}

/// A right over something of this agent's.
#[derive(Debug, Clone, Copy)]
pub enum Right {
    /// To look.
    Read,
    /// To change.
    Update,
}

/// Tokens that an agent was given to use, in memory only.
#[derive(Default)]
pub struct Tokens {
    /// For requests that come without one.
    default: RwLock<Option<Zeroizing<String>>>,
}

impl Tokens {
    /// Uses `token` from now on; an empty one: none.
    pub fn set_default(&self, token: Zeroizing<String>) {
        *self.default.write() = (!token.is_empty()).then_some(token);
    }

    /// Adds the token to a request that has none.
    pub fn lend(&self, request: &mut Request<Bytes>) {
        let own = [
            HeaderName::from_static("x-consul-token"),
            HeaderName::from_static("x-vault-token"),
            header::AUTHORIZATION,
        ];
        let query = request.uri().query().unwrap_or_default();
        let given = own.iter().any(|name| request.headers().contains_key(name))
            || query.split('&').any(|pair| pair.starts_with("token="));
        if given {
            return;
        }
        if let Some(token) = &*self.default.read()
            && let Ok(mut value) = HeaderValue::from_str(token)
        {
            value.set_sensitive(true);
            request.headers_mut().insert("x-consul-token", value);
        }
    }
}

impl Inner {
    /// The node around the interface.
    pub fn around(&self) -> Result<&Around, Refused> {
        let around = self.around.get();
        around.ok_or_else(|| server_error("this interface is not part of a running node"))
    }

    /// Whether the caller has a right over `path` (in policies): the agent's own user and root over its socket have every
    /// one; about others' tokens the server decides.
    pub fn may(
        &self,
        call: &Call,
        right: Right,
        path: &str,
    ) -> impl Future<Output = Result<(), Refused>> + Send {
        let own = nix::unistd::geteuid().as_raw();
        let local = matches!(call.conn.remote, Remote::Unix { uid, .. } if uid == own || uid == 0);
        let right = match right {
            Right::Read => "read",
            Right::Update => "update",
        };
        let mut uri = format!("/v1/mesh/may?right={right}&path={}", encode(path));
        if let Some(token) = call.query.filled("token") {
            uri.push_str("&token=");
            uri.push_str(&encode(token));
        }
        let headers = call.request.headers().clone();
        async move {
            match local {
                true => Ok(()),
                false => self.ask_server(&uri, headers).await,
            }
        }
    }

    async fn ask_server(&self, uri: &str, headers: HeaderMap) -> Result<(), Refused> {
        let mut request = Request::new(Bytes::new());
        *request.uri_mut() = uri
            .parse()
            .map_err(|_| server_error("the name is too long to decide about"))?;
        *request.headers_mut() = headers;
        self.tokens.lend(&mut request);
        let answer = self.forward.forward(Api::Consul, request, None).await;
        match answer.status() {
            StatusCode::OK => Ok(()),
            status => {
                let reason = String::from_utf8_lossy(answer.body()).into_owned();
                Err(Refused::new(status, reason))
            }
        }
    }

    /// What of this agent's a right is asked for, in policies.
    pub fn own_path(&self) -> String {
        format!("consul/agent/{}", self.about.node)
    }
}
