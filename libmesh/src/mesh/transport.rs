//! Membership, catalog and bundles over RPC: the calls out, and the routes in.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;

use crate::{
    identity::BoxFuture,
    member::{
        AnswerError, Member, Membership, Peer, StreamReply, StreamTransport, stream::StreamFuture,
    },
    rpc::{Client, Reply, Request, Router, RpcError, Target},
    sync::{
        CallFailed, CodecError, FRAME_MAX, Plane, SubscribeError, SyncCall, SyncTransport,
        subscription::SUBSCRIBE,
    },
};

const PING: &str = "/member/ping";
const SYNC: &str = "/member/sync";
/// A membership question: a packet, or the whole state of 20,000 members.
const PING_MAX: usize = 4 << 10;
const SYNC_MAX: usize = 4 << 20;
/// Time for a catalog call.
const CATALOG: Duration = Duration::from_secs(5);

/// Carries the questions of membership and catalog. What a peer says of the catalog is signed by its
/// owner, and who answered a ping is in the answer: so any node of the mesh may answer.
#[derive(Clone)]
pub(super) struct Transport(pub(super) Client);

impl Transport {
    fn ask(&self, to: Peer, path: &'static str, body: Bytes, deadline: Duration) -> StreamFuture {
        let client = self.0.clone();
        Box::pin(async move {
            match client
                .call(&Target::any(to.addr), path, body, deadline)
                .await
            {
                Ok(answer) => StreamReply::Acked(answer),
                Err(RpcError::Refused { .. }) => StreamReply::Refused,
                Err(error) => {
                    tracing::debug!(peer = %to.addr, %error, "no answer to a membership question");
                    StreamReply::Timeout
                }
            }
        })
    }
}

impl StreamTransport for Transport {
    fn ping(&self, to: Peer, body: Bytes, deadline: Duration) -> StreamFuture {
        self.ask(to, PING, body, deadline)
    }

    fn sync(&self, to: Peer, body: Bytes, deadline: Duration) -> StreamFuture {
        self.ask(to, SYNC, body, deadline)
    }
}

impl SyncTransport for Transport {
    fn call(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, CallFailed>> {
        Box::pin(async move {
            let answer = self
                .0
                .call(&Target::any(peer.addr), call.path(), body, CATALOG)
                .await;
            answer.map_err(|error| CallFailed {
                call,
                peer,
                unsupported: error.status() == Some(StatusCode::NOT_FOUND),
                reason: error.to_string(),
            })
        })
    }
}

/// The routes that answer other nodes' membership and catalog.
pub(super) fn routes(membership: &Membership, plane: &Plane) -> Router {
    let (ping, sync) = (membership.clone(), membership.clone());
    Router::new()
        .route(PING, PING_MAX, move |request| {
            let membership = ping.clone();
            async move { answered(membership.answer_ping(request.body).await) }
        })
        .route(SYNC, SYNC_MAX, move |request| {
            let membership = sync.clone();
            async move { answered(membership.answer_sync(request.body).await) }
        })
        .merge(catalog_routes(plane))
}

fn catalog_routes(plane: &Plane) -> Router {
    let route = |router: Router, call: SyncCall| {
        let plane = plane.clone();
        router.route(
            call.path(),
            FRAME_MAX,
            move |Request { peer, body, .. }| {
                let (plane, from) = (plane.clone(), peer.node_id);
                async move {
                    understood(match call {
                        SyncCall::Push => plane.handle_push(from, body).await,
                        SyncCall::Heads => plane.handle_heads(from, body).await,
                        SyncCall::Graft => plane.handle_graft(from, body).await,
                        SyncCall::Compare => plane.handle_compare(body).await,
                        SyncCall::Pull => plane.handle_pull(body).await,
                        SyncCall::Delta => plane.handle_delta(from, body).await,
                        SyncCall::Digest => plane.handle_digest(from, body).await,
                    })
                }
            },
        )
    };
    let calls = [
        SyncCall::Push,
        SyncCall::Heads,
        SyncCall::Graft,
        SyncCall::Compare,
        SyncCall::Pull,
        SyncCall::Delta,
        SyncCall::Digest,
    ];
    let subscriptions = plane.clone();
    let routes = Router::new().route(SUBSCRIBE, FRAME_MAX, move |request| {
        let plane = subscriptions.clone();
        async move { subscribed(&plane, &request) }
    });
    calls.into_iter().fold(routes, route)
}

fn answered(answer: Result<Bytes, AnswerError>) -> Reply {
    match answer {
        Ok(body) => Reply::ok(body),
        Err(error @ AnswerError::Gone(_)) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(error) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
    }
}

fn subscribed(plane: &Plane, request: &Request) -> Reply {
    let (reply, frames) = Reply::frames();
    let refused = match plane.handle_subscribe(request.peer.node_id, &request.body, frames) {
        Ok(()) => return reply,
        Err(refused) => refused,
    };
    let status = match &refused {
        SubscribeError::Malformed(_) => StatusCode::BAD_REQUEST,
        SubscribeError::TooMany(..) => StatusCode::TOO_MANY_REQUESTS,
        SubscribeError::Early => StatusCode::SERVICE_UNAVAILABLE,
    };
    Reply::error(status, refused.to_string())
}

fn understood(answer: Result<Bytes, CodecError>) -> Reply {
    match answer {
        Ok(body) => Reply::ok(body),
        Err(error) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
    }
}
