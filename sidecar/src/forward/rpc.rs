//! An agent's way to a server.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode};
use libmesh::{
    catalog::Catalog,
    identity::{BoxFuture, SpiffeId},
    rpc::{self, RpcError, Target},
};

use super::{Api, DEADLINE, Forward, ForwardReply, ForwardRequest, PATH};
use crate::{config::parse_duration, http::query::Query};

/// The longest a blocking query may wait, as Consul has it.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Hands requests to a live server of the datacenter.
pub struct RpcForward {
    catalog: Catalog,
    client: rpc::Client,
}

impl RpcForward {
    /// Finds servers in `catalog` and calls them through `client`.
    pub fn new(catalog: Catalog, client: rpc::Client) -> Self {
        Self { catalog, client }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        self.catalog
            .nodes()
            .iter()
            .filter(|node| node.record.roles.server && node.liveness.is_present())
            .map(|node| SocketAddr::new(node.record.address, node.record.port))
            .collect()
    }

    /// Asks one server after the other until one has surely taken the request.
    async fn ask(&self, request: &ForwardRequest, wait: Duration) -> Result<ForwardReply, String> {
        let body = postcard::to_stdvec(request).map_err(|error| error.to_string())?;
        let body = Bytes::from(body);
        let mut reason =
            "no server of this datacenter is known to be alive; see `mesh members`".to_owned();
        for server in self.servers() {
            let target = Target::server(server);
            let call = || {
                self.client
                    .call(&target, PATH, body.clone(), DEADLINE + wait)
            };
            let mut answer = call().await;
            if matches!(answer, Err(RpcError::Closed { .. })) {
                // It may have been carried out; the request id makes asking again safe.
                answer = call().await;
            }
            match answer {
                Ok(reply) => {
                    return postcard::from_bytes(&reply).map_err(|_| {
                        format!("server {server} sent an answer that is not understood")
                    });
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(reason)
    }
}

impl Forward for RpcForward {
    fn forward(
        &self,
        api: Api,
        request: http::Request<Bytes>,
        identity: Option<SpiffeId>,
    ) -> BoxFuture<'_, Response<Bytes>> {
        Box::pin(async move {
            let wait = blocking_time(request.uri().query());
            let request = ForwardRequest::new(api, request, identity);
            let reply = self.ask(&request, wait).await;
            reply
                .and_then(|reply| {
                    reply
                        .into_http()
                        .ok_or_else(|| "the server's answer is no HTTP".to_owned())
                })
                .unwrap_or_else(|reason| unavailable(api, &reason))
        })
    }
}

/// How long the request asks to be held.
fn blocking_time(query: Option<&str>) -> Duration {
    let query = Query::parse(query);
    if query.filled("index").is_none() {
        return Duration::ZERO;
    }
    let asked = query
        .filled("wait")
        .and_then(|wait| parse_duration(wait).ok())
        .unwrap_or(Duration::from_secs(300));
    // The server adds up to a sixteenth.
    asked.min(MAX_WAIT).mul_f32(1.07)
}

/// The answer without a server, in the words of the interface: clients match on them.
fn unavailable(api: Api, reason: &str) -> Response<Bytes> {
    let (status, kind, body) = match api {
        Api::Consul => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain; charset=utf-8",
            format!("No cluster leader: {reason}"),
        ),
        Api::Vault => (
            StatusCode::SERVICE_UNAVAILABLE,
            "application/json",
            serde_json::json!({ "errors": [format!("no server can answer: {reason}")] })
                .to_string(),
        ),
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static(kind),
    );
    response
}
