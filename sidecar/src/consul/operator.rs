//! `/v1/operator/`: how much there is, from this agent's own catalog; the rest is the server's to tell.

use std::{collections::BTreeMap, sync::Arc};

use http::Method;
use libmesh::model::Kind;
use serde_json::json;

use super::{Inner, Refused, blocking::Blocking, forwarded::forward, handler};
use crate::http::{Call, Reply, Routes};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    let mut routes = Routes::new().get("/v1/operator/usage", handler(inner, usage));
    for (methods, path) in [
        ("GET", "/v1/operator/raft/configuration"),
        ("DELETE", "/v1/operator/raft/peer"),
        ("PUT POST", "/v1/operator/raft/transfer-leader"),
        ("GET PUT", "/v1/operator/autopilot/configuration"),
        ("GET", "/v1/operator/autopilot/health"),
        ("GET", "/v1/operator/autopilot/state"),
        ("GET POST PUT DELETE", "/v1/operator/keyring"),
    ] {
        for method in methods.split(' ') {
            let method = Method::from_bytes(method.as_bytes()).expect("the names are tokens");
            routes = routes.on(method, path, handler(inner, forward));
        }
    }
    routes
}

async fn usage(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let blocking = Blocking::of(&call)?;
    let index = blocking.table(&inner, &call).await;
    let nodes = inner.catalog.nodes();
    let instances = nodes
        .iter()
        .flat_map(|node| inner.catalog.instances_on(&node.record.id));
    let mut connected: BTreeMap<&str, u64> = [
        "api-gateway",
        "connect-native",
        "connect-proxy",
        "ingress-gateway",
        "mesh-gateway",
        "terminating-gateway",
    ]
    .into_iter()
    .map(|kind| (kind, 0))
    .collect();
    let (mut all, mut typical) = (0, 0);
    for view in instances {
        all += 1;
        let kind = match view.instance.kind {
            Kind::Typical => {
                typical += 1;
                "connect-native"
            }
            kind => kind.as_str(),
        };
        let counts = view.instance.kind != Kind::Typical || view.instance.mesh_port.is_some();
        if counts && let Some(count) = connected.get_mut(kind) {
            *count += 1;
        }
    }
    let datacenter = inner.about.datacenter.as_str();
    let value = json!({
        "Usage": {datacenter: {
            "Nodes": nodes.len(),
            "Services": inner.catalog.service_names().len(),
            "ServiceInstances": all,
            "ConnectServiceInstances": connected,
            "BillableServiceInstances": typical,
        }},
        "Index": index,
        "LastContact": 0,
        "KnownLeader": true,
        "ConsistencyLevel": "leader",
        "NotModified": false,
        "Backend": 0,
        "ResultsFilteredByACLs": false,
    });
    Ok(blocking.reply(index, &value))
}
