//! Membership, catalog and bundles over RPC: the calls out, and the routes in.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;

use crate::{
    identity::BoxFuture,
    member::{
        AnswerError, Member, Membership, Peer, StreamReply, StreamTransport, stream::StreamFuture,
    },
    rpc::{Client, Reply, Router, RpcError, Target},
    sync::{CallFailed, CodecError, FRAME_MAX, Plane, SyncCall, SyncTransport},
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
                reason: error.to_string(),
            })
        })
    }
}

/// The routes that answer other nodes' membership and catalog.
pub(super) fn routes(membership: &Membership, plane: &Plane) -> Router {
    let (ping, sync) = (membership.clone(), membership.clone());
    let plane = Arc::new(plane.clone());
    let (delta, digest, pull) = (plane.clone(), plane.clone(), plane);
    Router::new()
        .route(PING, PING_MAX, move |request| {
            let membership = ping.clone();
            async move { answered(membership.answer_ping(request.body).await) }
        })
        .route(SYNC, SYNC_MAX, move |request| {
            let membership = sync.clone();
            async move { answered(membership.answer_sync(request.body).await) }
        })
        .route(SyncCall::Delta.path(), FRAME_MAX, move |request| {
            let plane = delta.clone();
            async move { understood(plane.handle_delta(request.body).await) }
        })
        .route(SyncCall::Digest.path(), FRAME_MAX, move |request| {
            let plane = digest.clone();
            async move { understood(plane.handle_digest(request.body).await) }
        })
        .route(SyncCall::Pull.path(), FRAME_MAX, move |request| {
            let plane = pull.clone();
            async move { understood(plane.handle_pull(request.body).await) }
        })
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

fn understood(answer: Result<Bytes, CodecError>) -> Reply {
    match answer {
        Ok(body) => Reply::ok(body),
        Err(error) => Reply::error(StatusCode::BAD_REQUEST, error.to_string()),
    }
}
