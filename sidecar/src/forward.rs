//! What only a server can answer, handed to one: the seam between an agent's interfaces and the store.
//!
//! An agent passes on the request as it came, with what it knows of the caller: the token in the
//! request's own headers, and the service identity it has verified. A server answers itself
//! ([`Forward`] is then the store's own routes); an agent asks a live server over mesh RPC
//! ([`RpcForward`]).

mod rpc;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, Uri};
use libmesh::identity::{BoxFuture, SpiffeId};
use serde::{Deserialize, Serialize};

use crate::http::{Call, Reply};

pub use rpc::RpcForward;

/// The RPC path on servers.
pub const PATH: &str = "/server/forward";
/// How long a server may take to answer, waiting for a change not counted.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// The largest request, in bytes: the Vault interface's limit and room for the envelope.
pub const MAX_REQUEST: usize = (32 << 20) + (64 << 10);

/// A header of answers to changes of what agents are told: the index of the config bundle that has it.
pub const CONFIG_INDEX: &str = "x-mesh-config-index";

/// Headers that mean something to the server; all others stay behind.
const PASSED_ON: [&str; 8] = [
    "content-type",
    "x-vault-token",
    "authorization",
    "x-vault-wrap-ttl",
    "x-vault-request",
    "x-vault-namespace",
    "x-consul-token",
    "accept",
];

/// The interface a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Api {
    /// The Consul-compatible interface: KV, sessions, intentions, and `/v1/mesh/` of our own.
    Consul,
    /// The Vault-compatible interface.
    Vault,
}

/// A request on its way to a server.
#[derive(Clone, Serialize, Deserialize)]
pub struct ForwardRequest {
    /// Chosen once per request of the client: a server that sees it again gives the same answer and
    /// carries nothing out twice.
    pub request_id: [u8; 16],
    /// The interface.
    pub api: Api,
    /// The method.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// The headers that matter to a server.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The service that the agent has verified to be the caller.
    pub identity: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// A server's answer.
#[derive(Clone, Serialize, Deserialize)]
pub struct ForwardReply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Answers what needs the store.
pub trait Forward: Send + Sync + 'static {
    /// The answer to `request` in the name of `identity` (besides any token in its headers). It always
    /// is an HTTP answer: without a reachable, unsealed server a 500 or 503 that says so.
    fn forward(
        &self,
        api: Api,
        request: http::Request<Bytes>,
        identity: Option<SpiffeId>,
    ) -> BoxFuture<'_, http::Response<Bytes>>;

    /// The same for a call of the Consul-compatible interface, in nobody's name; where the store is, what was read of it is
    /// not read again.
    fn forward_call(&self, call: Call) -> BoxFuture<'_, Reply> {
        let answer = self.forward(Api::Consul, call.request, None);
        Box::pin(async move { answer.await.map(Into::into) })
    }
}

impl ForwardRequest {
    fn new(api: Api, request: http::Request<Bytes>, identity: Option<SpiffeId>) -> Self {
        let (parts, body) = request.into_parts();
        let headers = PASSED_ON
            .iter()
            .filter_map(|name| {
                let value = parts.headers.get(*name)?;
                Some(((*name).to_owned(), value.as_bytes().to_vec()))
            })
            .collect();
        Self {
            request_id: rand::random(),
            api,
            method: parts.method.to_string(),
            uri: parts
                .uri
                .path_and_query()
                .map_or_else(|| "/".to_owned(), ToString::to_string),
            headers,
            identity: identity.map(|id| id.to_string()),
            body: body.into(),
        }
    }

    /// The request as it came to the agent; `None` when a field is not HTTP.
    pub fn into_http(self) -> Option<http::Request<Bytes>> {
        let mut request = http::Request::new(Bytes::from(self.body));
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).ok()?;
        *request.uri_mut() = self.uri.parse::<Uri>().ok()?;
        for (name, value) in self.headers {
            if PASSED_ON.contains(&name.as_str()) {
                request.headers_mut().insert(
                    http::HeaderName::from_bytes(name.as_bytes()).ok()?,
                    http::HeaderValue::from_bytes(&value).ok()?,
                );
            }
        }
        Some(request)
    }
}

impl From<http::Response<Bytes>> for ForwardReply {
    fn from(response: http::Response<Bytes>) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status.as_u16(),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                .collect(),
            body: body.into(),
        }
    }
}

impl ForwardReply {
    fn into_http(self) -> Option<http::Response<Bytes>> {
        let mut response = http::Response::new(Bytes::from(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).ok()?;
        for (name, value) in self.headers {
            response.headers_mut().append(
                http::HeaderName::from_bytes(name.as_bytes()).ok()?,
                http::HeaderValue::from_bytes(&value).ok()?,
            );
        }
        Some(response)
    }
}
