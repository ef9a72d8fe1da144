//! The answering side: any node takes a join request and passes it on to a server.

use std::{sync::Arc, time::Duration};

use http::StatusCode;

use super::{MAX_REQUEST, SERVER_PATH};
use crate::{
    identity::Identity,
    rpc::{Client, JoinCall, Peer, Reply, Request, Router, RpcError, Target},
};

/// Time for a server to answer.
const SERVER: Duration = Duration::from_secs(5);

/// The `/join` route. If `own` has the server's route it answers itself; else the servers are asked.
pub(crate) fn route(
    own: Router,
    identity: Identity,
    client: Client,
    servers: impl Fn() -> Vec<Target> + Send + Sync + 'static,
) -> Router {
    let servers = Arc::new(servers);
    Router::new().join(MAX_REQUEST, move |call| {
        let (own, identity, client, servers) = (
            own.clone(),
            identity.clone(),
            client.clone(),
            servers.clone(),
        );
        async move {
            if own.has(SERVER_PATH) {
                return here(&own, &identity, call).await;
            }
            relay(&client, &servers(), call).await
        }
    })
}

async fn here(own: &Router, identity: &Identity, call: JoinCall) -> Reply {
    match Peer::local(identity, call.addr) {
        Some(peer) => {
            let path = SERVER_PATH.to_owned();
            own.handle(Request {
                peer,
                path,
                query: String::new(),
                body: call.body,
            })
            .await
        }
        None => Reply::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "this process has no node identity",
        ),
    }
}

async fn relay(client: &Client, servers: &[Target], call: JoinCall) -> Reply {
    let mut last = "no server of the mesh is reachable".to_owned();
    for server in servers {
        match client
            .call(server, SERVER_PATH, call.body.clone(), SERVER)
            .await
        {
            Ok(body) => return Reply::ok(body),
            // A sealed server: another one may not be.
            Err(RpcError::Status {
                status: StatusCode::SERVICE_UNAVAILABLE,
                message,
                ..
            }) => last = message,
            Err(RpcError::Status {
                status, message, ..
            }) => return Reply::error(status, message),
            Err(error) => {
                tracing::debug!(server = %server.addr, joiner = %call.addr, %error, "join not relayed");
                last = format!("the server {} does not answer", server.addr);
            }
        }
    }
    Reply::error(StatusCode::SERVICE_UNAVAILABLE, last)
}
