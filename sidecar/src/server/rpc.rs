//! What other nodes ask a server over mesh RPC: joining, certificates, forwarded requests.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use http::StatusCode;
use libmesh::{
    identity::{
        PublishRights, SIGN_NODE_PATH, SIGN_SERVICE_PATH, SignRequest, SourceError, SpiffeId,
    },
    join::{self, JoinReply, JoinRequest},
    mesh::Mesh,
    rpc::{Reply, Request, Router},
};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::{
    Shared, external,
    records::{self, Node},
    whole,
};
use crate::{
    consul::Refused,
    forward::{self, ForwardReply, ForwardRequest},
};

/// Answers to changes kept, so that a repeated request gets the same one.
const REMEMBERED: usize = 1024;
const MAX_CSR: usize = 16 << 10;

/// The routes of a server.
pub fn routes(shared: &Arc<Shared>) -> Router {
    let signing = |shared: &Arc<Shared>| {
        let shared = Arc::clone(shared);
        move |request: Request| {
            let shared = Arc::clone(&shared);
            async move { sign(&shared, &request) }
        }
    };
    let joining = Arc::clone(shared);
    let forwarding = Arc::new(Forwarded {
        shared: Arc::clone(shared),
        answers: Mutex::default(),
    });
    Router::new()
        .route(SIGN_NODE_PATH, MAX_CSR, signing(shared))
        .route(SIGN_SERVICE_PATH, MAX_CSR, signing(shared))
        .route(join::SERVER_PATH, join::MAX_REQUEST, move |request| {
            let shared = Arc::clone(&joining);
            async move { join(&shared, &request).await }
        })
        .route(forward::PATH, forward::MAX_REQUEST, move |request| {
            let forwarding = Arc::clone(&forwarding);
            async move { forwarding.answer(request).await }
        })
}

fn sign(shared: &Shared, request: &Request) -> Reply {
    let Some(asked) = SignRequest::decode(&request.body) else {
        return Reply::error(StatusCode::BAD_REQUEST, "the sign request is malformed");
    };
    let Some(authority) = shared.authority() else {
        return sealed();
    };
    let peer = &request.peer;
    let issued = match &asked.service {
        Some(service) if peer.rights.allows(service) => {
            authority.service(service, &asked.csr, asked.ttl)
        }
        Some(service) => Err(SourceError::Refused(format!(
            "node {} may not publish {service}; its join token allowed {:?}",
            peer.node, peer.rights
        ))),
        None => authority.node(&peer.node, Some(peer.node_id), &peer.rights, &asked.csr),
    };
    match issued {
        Ok(issued) => Reply::ok(issued.encode()),
        Err(SourceError::Unavailable(reason)) => {
            Reply::error(StatusCode::SERVICE_UNAVAILABLE, reason)
        }
        Err(SourceError::Refused(reason)) => Reply::error(StatusCode::FORBIDDEN, reason),
    }
}

fn sealed() -> Reply {
    Reply::error(
        StatusCode::SERVICE_UNAVAILABLE,
        "the server's store is sealed; try again when it is unsealed",
    )
}

async fn join(shared: &Shared, request: &Request) -> Reply {
    let Some(asked) = JoinRequest::decode(&request.body) else {
        return Reply::error(StatusCode::BAD_REQUEST, "the join request is malformed");
    };
    match admit(shared, &asked).await {
        Ok(reply) => Reply::ok(reply.encode()),
        Err((status, reason)) => {
            tracing::warn!(node = %asked.node, addr = %asked.advertise, %status, reason, "join refused");
            Reply::error(status, reason)
        }
    }
}

type Refusal = (StatusCode, String);

async fn admit(shared: &Shared, asked: &JoinRequest) -> Result<JoinReply, Refusal> {
    let later = |reason: String| (StatusCode::SERVICE_UNAVAILABLE, reason);
    let (Some(authority), Some(mesh)) = (shared.authority(), shared.mesh()) else {
        return Err(later("the server's store is sealed".to_owned()));
    };
    let id = records::hex(&asked.token);
    let records = &shared.records;
    let failed = |error: super::ServerError| later(error.to_string());
    let wrong = || {
        let reason = "the join token is not known; make one with `mesh join-token create`";
        (StatusCode::FORBIDDEN, reason.to_owned())
    };
    let (token, modified) = records.token(&id).map_err(failed)?.ok_or_else(wrong)?;
    if !token.has_secret(&asked.secret) {
        return Err(wrong());
    }
    if let Some(reason) = token.spent() {
        return Err((
            StatusCode::GONE,
            format!("the join token is of no use: {reason}"),
        ));
    }
    let rights = PublishRights::new(&token.publish)
        .map_err(|error| later(format!("the token's publish rights: {error}")))?;
    if external::is_kept(records.kv(), &asked.node).map_err(failed)? {
        return Err((
            StatusCode::CONFLICT,
            format!(
                "the name {} belongs to a node without an agent; take that away (catalog/deregister) or choose another node.name",
                asked.node
            ),
        ));
    }
    // Signing comes first: a request that cannot be signed uses nothing up.
    let issued = authority
        .node(&asked.node, None, &rights, &asked.csr)
        .map_err(|error| match error {
            SourceError::Unavailable(reason) => later(reason),
            SourceError::Refused(reason) => (StatusCode::FORBIDDEN, reason),
        })?;
    let leaf = libmesh::identity::Leaf::parse(&issued.chain[0])
        .map_err(|error| later(error.to_string()))?;
    let node = Node {
        id: leaf.node_id,
        publish: token.publish.clone(),
        token: id.clone(),
        joined: records::now(),
    };
    let taken = |_| {
        (
            StatusCode::CONFLICT,
            format!(
                "the name {} belongs to another node's key; choose another node.name",
                asked.node
            ),
        )
    };
    if records
        .node(&asked.node)
        .map_err(failed)?
        .is_some_and(|known| known.id != node.id)
    {
        return Err(taken(()));
    }
    if !records
        .use_token(&id, &token, modified, &asked.node)
        .await
        .map_err(failed)?
    {
        return Err(later(
            "another node used the same token just now; try again".to_owned(),
        ));
    }
    if !records
        .bind_node(&asked.node, &node)
        .await
        .map_err(failed)?
    {
        return Err(taken(()));
    }
    let keyring = records.keyring().await.map_err(failed)?;
    tracing::info!(node = %asked.node, id = %node.id, token = id, "node joined");
    Ok(JoinReply {
        chain: issued.chain,
        bundle: issued.bundle,
        datacenter: mesh.datacenter().clone(),
        keyring: keyring.to_bytes().to_vec(),
        seeds: seeds(&mesh),
        config: mesh.bundle().signed().map(|signed| (*signed).clone()),
    })
}

/// This server and a few others that are present.
fn seeds(mesh: &Mesh) -> Vec<std::net::SocketAddr> {
    let mut seeds = vec![mesh.addr()];
    let nodes = mesh.catalog().nodes();
    let present = nodes
        .iter()
        .filter(|node| node.record.is_member() && node.liveness.is_present());
    seeds.extend(present.map(|node| node.record.socket_addr()).take(8));
    seeds.dedup();
    seeds
}

/// Requests that agents forward.
struct Forwarded {
    shared: Arc<Shared>,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    by_id: HashMap<[u8; 16], Arc<OnceCell<Reply>>>,
    order: VecDeque<[u8; 16]>,
}

impl Forwarded {
    async fn answer(&self, request: Request) -> Reply {
        let Ok(asked) = postcard::from_bytes::<ForwardRequest>(&request.body) else {
            return Reply::error(
                StatusCode::BAD_REQUEST,
                "the forwarded request is malformed",
            );
        };
        if matches!(asked.method.as_str(), "GET" | "HEAD" | "LIST") {
            return self.carry_out(&request, asked).await;
        }
        // A change is carried out once: the same id again joins it, or gets the answer it had.
        let cell = self.answers.lock().cell(asked.request_id);
        cell.get_or_init(|| self.carry_out(&request, asked))
            .await
            .clone()
    }

    async fn carry_out(&self, request: &Request, asked: ForwardRequest) -> Reply {
        let identity = match &asked.identity {
            None => None,
            Some(text) => {
                let id = SpiffeId::parse(text).ok();
                let allowed = id.as_ref().and_then(SpiffeId::as_service);
                if !allowed.is_some_and(|service| request.peer.rights.allows(service)) {
                    let reason = format!("node {} may not act for {text}", request.peer.node);
                    return Reply::error(StatusCode::FORBIDDEN, reason);
                }
                id
            }
        };
        let api = asked.api;
        let Some(http) = asked.into_http() else {
            return Reply::error(StatusCode::BAD_REQUEST, "the forwarded request is no HTTP");
        };
        // Who is first gets every right to Consul's resources: no other host, whatever it is, may be that.
        if api == forward::Api::Consul && http.uri().path() == "/v1/acl/bootstrap" {
            let words = "Permission denied: ACL bootstrap is answered on loopback and the Unix socket of a server only";
            let refused = Refused::new(StatusCode::FORBIDDEN, words);
            return encoded(&whole(refused.into()).into());
        }
        encoded(&self.shared.answer(api, http, identity).await.into())
    }
}

fn encoded(reply: &ForwardReply) -> Reply {
    match postcard::to_stdvec(reply) {
        Ok(body) => Reply::ok(body),
        Err(error) => Reply::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

impl Answers {
    fn cell(&mut self, id: [u8; 16]) -> Arc<OnceCell<Reply>> {
        if let Some(known) = self.by_id.get(&id) {
            return Arc::clone(known);
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        self.order.push_back(id);
        Arc::clone(self.by_id.entry(id).or_default())
    }
}
