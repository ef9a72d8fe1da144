//! `/v1/agent/self`, `members`, `version`.

use std::sync::Arc;

use http::StatusCode;
use libmesh::{catalog::NodeView, model::Liveness};
use serde_json::{Value, json};

use super::{
    COMPATIBLE, Inner, Refused, coordinates,
    filter::{self, Filter},
    handler, render, server_error,
};
use crate::http::{Call, Reply, Routes, json as json_reply};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/agent/self", handler(inner, own))
        .get("/v1/agent/members", handler(inner, members))
        .get("/v1/agent/version", handler(inner, version))
}

async fn own(inner: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    let about = &inner.about;
    let node = inner.catalog.node_by_id(&about.id);
    let member = node.as_ref().map_or(Value::Null, |node| member(node));
    let meta = node.as_ref().map(|node| render::node_meta(node));
    let dns = about.dns.map(|addr| format!("udp://{addr}"));
    let value = json!({
        "Config": {
            "Datacenter": about.datacenter.as_str(),
            "PrimaryDatacenter": about.datacenter.as_str(),
            "NodeName": about.node.as_str(),
            "NodeID": render::uuid(&about.id),
            "Revision": "",
            "Server": about.server,
            "Version": COMPATIBLE,
            "BuildDate": "1970-01-01T00:00:01Z",
        },
        "DebugConfig": {
            "ConnectEnabled": true,
            "DNSAddrs": dns.iter().collect::<Vec<_>>(),
            "EnableDebug": false,
            "DNSPort": about.dns.map_or(-1, |addr| i32::from(addr.port())),
            "GRPCPort": -1,
            "GRPCTLSPort": -1,
            "Datacenter": about.datacenter.as_str(),
            "NodeName": about.node.as_str(),
            "ServerMode": about.server,
            "Version": COMPATIBLE,
        },
        "Coord": coordinates::own(&inner),
        "Member": member,
        "Stats": {
            "agent": {
                "services": inner.own_services().len().to_string(),
                "checks": inner.catalog.local().checks().len().to_string(),
            },
            "build": { "version": COMPATIBLE, "prerelease": "", "revision": "" },
            "consul": { "server": about.server.to_string() },
            "mesh": { "version": env!("CARGO_PKG_VERSION") },
        },
        "Meta": meta,
        "xDS": { "SupportedProxies": {}, "Port": -1, "Ports": { "Plaintext": -1, "TLS": -1 } },
    });
    Ok(json_reply(StatusCode::OK, &value))
}

async fn members(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let filter = Filter::of(&call, filter::MEMBER)?;
    let segment = call.query.filled("segment").unwrap_or("_all");
    if segment != "_all" {
        return Err(server_error(format!(
            "segment {segment:?} does not exist: there are no network segments"
        )));
    }
    // Consul's servers are in a second pool, under these names.
    let wan = call.query.has("wan");
    let nodes = inner.catalog.nodes();
    let members = nodes.iter().filter(|node| {
        let record = &node.record;
        record.is_member() && (!wan || record.roles.server)
    });
    let list: Vec<_> = members
        .map(|node| {
            let mut value = member(node);
            if wan {
                let name = format!("{}.{}", node.record.name, node.record.datacenter);
                value["Name"] = name.into();
            }
            value
        })
        .collect();
    Ok(json_reply(StatusCode::OK, &filter.keep(list)))
}

async fn version(_: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    let value = json!({
        "SHA": "",
        "BuildDate": "1970-01-01T00:00:01Z",
        "HumanVersion": COMPATIBLE,
        "FIPS": "",
    });
    Ok(json_reply(StatusCode::OK, &value))
}

/// A member as Serf describes one; the protocol numbers are Serf's and mean nothing here. Of what a server's tags
/// say of ports and features, there is what is here, and `0` or `-1` for what is not.
fn member(node: &NodeView) -> Value {
    let record = &node.record;
    let mut tags = json!({
        "acls": "0",
        "build": &record.version,
        "dc": record.datacenter.as_str(),
        "id": render::uuid(&record.id),
        "port": record.port.to_string(),
        // Clients tell servers from agents by this word.
        "role": if record.roles.server { "consul" } else { "node" },
        "segment": "",
        "vsn": "2",
        "vsn_max": "3",
        "vsn_min": "2",
    });
    if record.roles.server {
        for (tag, value) in [
            ("ft_fs", "0"),
            ("ft_si", "1"),
            ("grpc_port", "-1"),
            ("grpc_tls_port", "-1"),
            ("raft_vsn", "0"),
            ("wan_join_port", "-1"),
        ] {
            tags[tag] = value.into();
        }
    }
    json!({
        "Name": record.name.as_str(),
        "Addr": record.address,
        "Port": record.port,
        "Tags": tags,
        "Status": match node.liveness {
            Liveness::Alive | Liveness::Suspect => 1,
            Liveness::Left => 3,
            Liveness::Down => 4,
        },
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}
