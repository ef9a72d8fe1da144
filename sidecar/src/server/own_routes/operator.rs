//! `/v1/operator/` of the Consul interface: the server as its clients expect to see one.
//!
//! There is one, and it has no Raft: it leads, and what is asked as an index is the ledger's. Nothing is to be decided by
//! an autopilot, whose configuration is therefore shown as Consul's defaults, and cannot be changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use http::{Method, StatusCode};
use libmesh::{
    catalog::NodeView,
    mesh::{Mesh, NodeKeys},
    model::{Liveness, NodeId},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use vault_kv::Capability;

use super::{Outcome, Refused, asker, with};
use crate::{
    http::{Call, Routes, json as json_reply},
    server::Shared,
};

/// What of all this a right is asked for, in policies.
const PATH: &str = "consul/operator";

pub(super) fn routes(shared: &Arc<Shared>) -> Routes {
    let (raft, autopilot) = ("/v1/operator/raft", "/v1/operator/autopilot");
    Routes::new()
        .get(
            &format!("{raft}/configuration"),
            with(shared, raft_configuration),
        )
        .on(
            Method::DELETE,
            &format!("{raft}/peer"),
            with(shared, remove_peer),
        )
        .put(
            &format!("{raft}/transfer-leader"),
            with(shared, transfer_leader),
        )
        .on(
            Method::POST,
            &format!("{raft}/transfer-leader"),
            with(shared, transfer_leader),
        )
        .get(
            &format!("{autopilot}/configuration"),
            with(shared, autopilot_configuration),
        )
        .put(
            &format!("{autopilot}/configuration"),
            with(shared, configure_autopilot),
        )
        .get(&format!("{autopilot}/health"), with(shared, health))
        .get(&format!("{autopilot}/state"), with(shared, state))
        .merge(keyring_routes(shared))
}

fn keyring_routes(shared: &Arc<Shared>) -> Routes {
    let path = "/v1/operator/keyring";
    let mut routes = Routes::new().get(path, with(shared, keyring));
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        routes = routes.on(method, path, with(shared, change_keyring));
    }
    routes
}

fn failed(message: impl Into<String>) -> Refused {
    Refused(StatusCode::INTERNAL_SERVER_ERROR, message.into())
}

fn node(shared: &Shared) -> Result<Mesh, Refused> {
    let mesh = shared.mesh();
    mesh.ok_or_else(|| failed("No cluster leader: this server is not a node of its mesh yet"))
}

/// As the rest of the Consul interface shows node ids.
fn uuid(id: &NodeId) -> String {
    uuid::Uuid::from_bytes(*id.as_bytes()).to_string()
}

/// The servers in the catalog, and whether it is this one, which leads.
fn servers(mesh: &Mesh) -> Vec<(Arc<NodeView>, bool)> {
    let nodes = mesh.nodes();
    let servers = nodes.into_iter().filter(|node| node.record.roles.server);
    servers
        .map(|node| {
            let leads = node.record.id == mesh.id();
            (node, leads)
        })
        .collect()
}

async fn raft_configuration(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, PATH)?;
    let mesh = node(&shared)?;
    let index = shared.vault.ledger().head().index;
    let servers = servers(&mesh).into_iter().map(|(node, leads)| {
        let record = &node.record;
        json!({
            "ID": uuid(&record.id),
            "Node": record.name.as_str(),
            "Address": record.socket_addr().to_string(),
            "Leader": leads,
            "ProtocolVersion": "3",
            "Voter": leads,
            "LastIndex": if leads { index } else { 0 },
        })
    });
    let value = json!({"Servers": servers.collect::<Vec<_>>(), "Index": index});
    Ok(json_reply(StatusCode::OK, &value))
}

async fn remove_peer(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, PATH)?;
    let mesh = node(&shared)?;
    let own = [uuid(&mesh.id()), mesh.addr().to_string()];
    let (what, named) = match (call.query.filled("id"), call.query.filled("address")) {
        (Some(_), Some(_)) => {
            return Err(super::bad("Must specify only one of ?id or ?address"));
        }
        (Some(id), None) => ("id", id),
        (None, Some(address)) => ("address", address),
        (None, None) => {
            return Err(super::bad(
                "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove",
            ));
        }
    };
    Err(match own.iter().any(|own| own == named) {
        true => failed(format!(
            "{what} {named:?} is the only server: it cannot be removed"
        )),
        false => failed(format!(
            "{what} {named:?} was not found in the Raft configuration"
        )),
    })
}

async fn transfer_leader(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, PATH)?;
    Err(failed("cannot find peer: this is the only server"))
}

async fn autopilot_configuration(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, PATH)?;
    let value = json!({
        "CleanupDeadServers": true,
        "LastContactThreshold": "200ms",
        "MaxTrailingLogs": 250,
        "MinQuorum": 0,
        "ServerStabilizationTime": "10s",
        "RedundancyZoneTag": "",
        "DisableUpgradeMigration": false,
        "UpgradeVersionTag": "",
        "CreateIndex": 1,
        "ModifyIndex": 1,
    });
    Ok(json_reply(StatusCode::OK, &value))
}

async fn configure_autopilot(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, PATH)?;
    Err(failed(
        "autopilot cannot be configured: with one server there is nothing for it to decide",
    ))
}

/// This server, in both answers about its health.
struct Own {
    id: String,
    name: String,
    address: String,
    version: String,
    index: u64,
    healthy: bool,
    since: String,
    status: &'static str,
}

fn own(shared: &Shared) -> Result<Own, Refused> {
    let mesh = node(shared)?;
    let node = mesh.catalog().node_by_id(&mesh.id());
    let alive = node
        .as_ref()
        .is_some_and(|node| node.liveness == Liveness::Alive);
    let since = OffsetDateTime::from(shared.since);
    Ok(Own {
        id: uuid(&mesh.id()),
        name: mesh.name().to_string(),
        address: mesh.addr().to_string(),
        version: node.map_or_else(String::new, |node| node.record.version.to_string()),
        index: shared.vault.ledger().head().index,
        healthy: alive && !shared.vault.is_sealed(),
        since: since.format(&Rfc3339).unwrap_or_default(),
        status: if alive { "alive" } else { "failed" },
    })
}

async fn health(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, PATH)?;
    let own = own(&shared)?;
    let value = json!({
        "Healthy": own.healthy,
        "FailureTolerance": 0,
        "Servers": [{
            "ID": own.id,
            "Name": own.name,
            "Address": own.address,
            "SerfStatus": own.status,
            "Version": own.version,
            "Leader": true,
            "LastContact": "0s",
            "LastTerm": 0,
            "LastIndex": own.index,
            "Healthy": own.healthy,
            "Voter": true,
            "StableSince": own.since,
        }],
    });
    let status = match own.healthy {
        true => StatusCode::OK,
        false => StatusCode::TOO_MANY_REQUESTS,
    };
    Ok(json_reply(status, &value))
}

async fn state(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, PATH)?;
    let own = own(&shared)?;
    let value = json!({
        "Healthy": own.healthy,
        "FailureTolerance": 0,
        "OptimisticFailureTolerance": 0,
        "Servers": {&own.id: {
            "ID": own.id,
            "Name": own.name,
            "Address": own.address,
            "NodeStatus": own.status,
            "Version": own.version,
            "LastContact": "0s",
            "LastTerm": 0,
            "LastIndex": own.index,
            "Healthy": own.healthy,
            "StableSince": own.since,
            "ReadReplica": false,
            "Status": "leader",
            "Meta": null,
            "NodeType": "voter",
        }},
        "Leader": own.id,
        "Voters": [own.id],
    });
    Ok(json_reply(StatusCode::OK, &value))
}

/// The names of the keys: the keys themselves leave no node.
async fn keyring(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "mesh/keyring")?;
    let mesh = node(&shared)?;
    let nodes = mesh.keyrings().await;
    let (mut keys, mut primary) = (BTreeMap::new(), BTreeMap::new());
    let mut messages = BTreeMap::new();
    let answered: BTreeSet<_> = nodes
        .iter()
        .map(|NodeKeys { node, .. }| node.to_string())
        .collect();
    for NodeKeys { node, keys: found } in &nodes {
        match found {
            Ok(found) => {
                for (at, key) in found.iter().enumerate() {
                    *keys.entry(key.to_string()).or_insert(0) += 1;
                    if at == 0 {
                        *primary.entry(key.to_string()).or_insert(0) += 1;
                    }
                }
            }
            Err(reason) => {
                messages.insert(node.to_string(), reason.clone());
            }
        }
    }
    let messages: Value = match messages.is_empty() {
        true => Value::Null,
        false => json!(messages),
    };
    let value = json!([{
        "WAN": false,
        "Datacenter": mesh.datacenter().as_str(),
        "Segment": "",
        "Messages": messages,
        "Keys": keys,
        "PrimaryKeys": primary,
        "NumNodes": answered.len(),
    }]);
    Ok(json_reply(StatusCode::OK, &value))
}

async fn change_keyring(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, "mesh/keyring")?;
    Err(failed(
        "keys are made here and never given: change them with `mesh operator keyring`",
    ))
}
