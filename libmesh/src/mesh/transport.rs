//! Membership, catalog and bundles over RPC: the calls out, and the routes in.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::StatusCode;

use crate::{
    identity::BoxFuture,
    member::{
        AnswerError, Member, Membership, Peer, Refusal, StreamReply, StreamTransport,
        stream::{StreamFuture, sender_of_ping, sender_of_sync},
    },
    model::NodeId,
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
                Err(RpcError::Status {
                    status: StatusCode::FORBIDDEN | StatusCode::CONFLICT,
                    message,
                    ..
                }) => denied(message),
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
            async move {
                match is_own_word(sender_of_ping(&request.body), &request) {
                    Ok(()) => answered(membership.answer_ping(request.body).await),
                    Err(refused) => refused,
                }
            }
        })
        .route(SYNC, SYNC_MAX, move |request| {
            let membership = sync.clone();
            async move {
                match is_own_word(sender_of_sync(&request.body), &request) {
                    Ok(()) => answered(membership.answer_sync(request.body).await),
                    Err(refused) => refused,
                }
            }
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

/// The gossip key says "a member"; here the certificate says which, and nobody speaks for another.
fn is_own_word(sender: Option<NodeId>, request: &Request) -> Result<(), Reply> {
    match sender {
        Some(sender) if sender != request.peer.node_id => {
            let message = format!("node {} speaks for another", request.peer.node);
            Err(Reply::error(StatusCode::FORBIDDEN, message))
        }
        // What is malformed is told so.
        _ => Ok(()),
    }
}

/// What goes before the address of whoever has the asker's key.
const COPY: &str = "copy at ";

fn copy_at(addr: SocketAddr) -> String {
    format!("{COPY}{addr}: {}", Refusal::Copy(addr))
}

fn denied(reason: String) -> StreamReply {
    let copy = reason
        .strip_prefix(COPY)
        .and_then(|rest| rest.split_once(": ")?.0.parse().ok());
    StreamReply::Denied { reason, copy }
}

fn answered(answer: Result<Bytes, AnswerError>) -> Reply {
    match answer {
        Ok(body) => Reply::ok(body),
        Err(error @ AnswerError::Gone(_)) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(AnswerError::Refused(Refusal::Copy(addr))) => {
            Reply::error(StatusCode::CONFLICT, copy_at(addr))
        }
        Err(error @ AnswerError::Refused(Refusal::Busy)) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        Err(error @ AnswerError::Refused(_)) => {
            Reply::error(StatusCode::FORBIDDEN, error.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_where_the_copy_is() {
        let addr = "192.0.2.1:8301".parse().unwrap();
        let StreamReply::Denied { copy, .. } = denied(copy_at(addr)) else {
            unreachable!()
        };
        assert_eq!(copy, Some(addr));
        let StreamReply::Denied { copy, .. } = denied("the pool is full: 5".to_owned()) else {
            unreachable!()
        };
        assert_eq!(copy, None);
    }
}
