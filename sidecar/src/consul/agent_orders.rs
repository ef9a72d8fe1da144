//! What a client tells the agent to do: join, leave, force-leave, reload, and which token to use.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use libmesh::{join::Seed, model::NodeName};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use zeroize::Zeroizing;

use super::{
    Inner, Refused,
    around::{Order, Right},
    bad_request,
    decode::Fields,
    done, handler, server_error,
};
use crate::http::{Call, Reply, Routes};

/// How long a node may take to be let in.
const JOIN: Duration = Duration::from_secs(8);
/// Between two looks whether it was.
const LOOK: Duration = Duration::from_millis(50);
/// How long reading the configuration may take.
const RELOAD: Duration = Duration::from_secs(10);

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .put("/v1/agent/join/*address", handler(inner, join))
        .put("/v1/agent/leave", handler(inner, leave))
        .put("/v1/agent/force-leave/*node", handler(inner, force_leave))
        .put("/v1/agent/reload", handler(inner, reload))
        .put("/v1/agent/token/:kind", handler(inner, token))
}

/// Announces this node to another one and waits until that is a member.
async fn join(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    inner.may(&call, Right::Update, &inner.own_path()).await?;
    let given = call.params.get("address");
    if given.is_empty() {
        return Err(bad_request("Missing address to join"));
    }
    if call.query.has("wan") {
        return Err(server_error(
            "agent: there is no pool of several datacenters to join",
        ));
    }
    let mesh = &inner.around()?.mesh;
    let failed = |reason: &str| {
        server_error(format!(
            "1 error occurred:\n\t* Failed to join {given}: {reason}\n\n"
        ))
    };
    let seed: Seed = given.parse().map_err(|error| failed(&format!("{error}")))?;
    let found = seed.resolve().await;
    let found = found.map_err(|error| failed(&error.to_string()))?;
    let membership = mesh.membership();
    for addr in &found {
        let announced = membership.announce(*addr).await;
        announced.map_err(|error| failed(&error.to_string()))?;
    }
    let known = || {
        let members = membership.members();
        members
            .iter()
            .any(|state| state.liveness.is_present() && found.contains(&state.member.addr))
            || found.contains(&mesh.addr())
    };
    let joined = async {
        while !known() {
            sleep(LOOK).await;
        }
    };
    match timeout(JOIN, joined).await {
        Ok(()) => Ok(done()),
        Err(_) => Err(failed(
            "it did not let this node in; is it of the same mesh? See the log of both.",
        )),
    }
}

/// Answers first: the listeners close with the rest.
async fn leave(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    inner.may(&call, Right::Update, &inner.own_path()).await?;
    give(&inner, Order::Leave).await?;
    Ok(done())
}

async fn give(inner: &Inner, order: Order) -> Result<(), Refused> {
    let given = inner.around()?.orders.send(order).await;
    given.map_err(|_| server_error("the agent is ending already"))
}

/// Has every agent forget a node that is down. One that is there stays, as with Consul, where it refutes.
async fn force_leave(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    inner.may(&call, Right::Update, &inner.own_path()).await?;
    let name = call.params.get("node");
    let unknown = || server_error(format!("agent: No node found with name '{name}'"));
    let node = NodeName::parse(name).map_err(|_| unknown())?;
    let known = inner.catalog.node(node.as_str());
    let node = known.filter(|node| node.record.is_member());
    let node = node.ok_or_else(unknown)?;
    if !node.liveness.is_present() {
        inner.around()?.events.forget(node.record.id);
    }
    Ok(done())
}

async fn reload(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    inner.may(&call, Right::Update, &inner.own_path()).await?;
    let (sender, outcome) = oneshot::channel();
    give(&inner, Order::Reload(sender)).await?;
    match timeout(RELOAD, outcome).await {
        Ok(Ok(Ok(()))) => Ok(done()),
        Ok(Ok(Err(reason))) => Err(server_error(format!("reload failed: {reason}"))),
        Ok(Err(_)) | Err(_) => Err(server_error("reload failed: the agent is busy or ending")),
    }
}

/// Which token requests without one are taken to have.
async fn token(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    if !inner.about.acls {
        return Err(Refused::new(
            StatusCode::UNAUTHORIZED,
            "ACL support disabled",
        ));
    }
    inner.may(&call, Right::Update, &inner.own_path()).await?;
    let mut fields = Fields::parse(call.body())?;
    let token = Zeroizing::new(fields.text("Token")?);
    fields.finish()?;
    match call.params.get("kind") {
        "default" | "acl_token" => inner.tokens.set_default(token),
        // What an agent does by itself it does with its certificate.
        kind @ ("agent"
        | "acl_agent_token"
        | "agent_recovery"
        | "agent_master"
        | "acl_agent_master_token"
        | "replication"
        | "acl_replication_token"
        | "config_file_service_registration"
        | "dns") => {
            tracing::info!(
                kind,
                "this agent has no use for such a token and does not keep it"
            );
        }
        kind => {
            return Err(Refused::new(
                StatusCode::NOT_FOUND,
                format!("Token {kind:?} is unknown"),
            ));
        }
    }
    Ok(done())
}
