//! `/v1/coordinate/…` and `near=`: where nodes are in the network, as estimated from round trips.
//!
//! Each agent has a Vivaldi coordinate ([`vivaldi`]). Every quarter of a minute it measures the time of an empty mesh RPC to
//! one other agent, and both tell each other their own coordinate and what they lately heard of others ([`exchange`]). Nothing
//! of it is in the catalog, so that it wakes no watcher. What is told of third nodes is not proved: a coordinate decides
//! about the order of answers and about nothing else.

mod exchange;
mod vivaldi;

use std::{cmp::Ordering, sync::Arc};

use http::{HeaderValue, StatusCode};
use libmesh::model::{NodeId, NodeName};
use serde_json::{Value, json};

use super::{
    Inner, Refused, around::Right, bad_request, blocking::Blocking, decode::Fields, done, handler,
    server_error,
};
use crate::http::{Call, Reply, Routes, empty, json as json_reply};

pub use exchange::Coordinates;
use vivaldi::Coordinate;

/// The name that stands for the asked agent's node.
const AGENT: &str = "_agent";

pub(super) fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/coordinate/datacenters", handler(inner, datacenters))
        .get("/v1/coordinate/nodes", handler(inner, nodes))
        .get("/v1/coordinate/node/:name", handler(inner, node))
        .put("/v1/coordinate/update", handler(inner, update))
}

/// Orders `list` by the estimated round trip from the node that `near=` names; of what is equally far, or of which
/// nothing is known, the order stays, the unknown last.
pub(super) fn sort_near<T>(
    inner: &Inner,
    call: &Call,
    list: &mut [T],
    node: impl Fn(&T) -> NodeId,
) {
    let Some(near) = call.query.filled("near") else {
        return;
    };
    let from = match near {
        AGENT => Some(inner.about.id),
        name => inner.catalog.node(name).map(|node| node.record.id),
    };
    let around = inner.around.get();
    let (Some(from), Some(around)) = (from, around) else {
        return;
    };
    let known = around.coordinates.snapshot();
    let Some(origin) = known.get(&from) else {
        return;
    };
    let distance = |id: &NodeId| match *id == from {
        true => Some(0.0),
        false => known.get(id).map(|there| origin.distance(there)),
    };
    list.sort_by(|a, b| match (distance(&node(a)), distance(&node(b))) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    });
}

/// The asked agent's own coordinate.
pub(super) fn own(inner: &Inner) -> Option<Value> {
    let around = inner.around.get()?;
    let known = around.coordinates.snapshot();
    known.get(&inner.about.id).map(show)
}

fn show(coordinate: &Coordinate) -> Value {
    json!({
        "Vec": coordinate.vec,
        "Error": coordinate.error,
        "Adjustment": coordinate.adjustment,
        "Height": coordinate.height,
    })
}

fn entry(name: &str, coordinate: &Coordinate) -> Value {
    json!({"Node": name, "Segment": "", "Coord": show(coordinate)})
}

/// Those of servers, by the names that Consul's pool of datacenters has.
async fn datacenters(inner: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    let known = inner.around()?.coordinates.snapshot();
    let datacenter = inner.about.datacenter.as_str();
    let nodes = inner.catalog.nodes();
    let servers = nodes.iter().filter(|node| node.record.roles.server);
    let shown: Vec<_> = servers
        .filter_map(|node| {
            let coordinate = known.get(&node.record.id)?;
            Some(entry(
                &format!("{}.{datacenter}", node.record.name),
                coordinate,
            ))
        })
        .collect();
    let value = json!([{"Datacenter": datacenter, "AreaID": "wan", "Coordinates": shown}]);
    Ok(json_reply(StatusCode::OK, &value))
}

async fn nodes(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let (blocking, index) = wait(&inner, &call).await?;
    let known = inner.around()?.coordinates.snapshot();
    let nodes = inner.catalog.nodes();
    let shown: Vec<_> = nodes
        .iter()
        .filter_map(|node| {
            Some(entry(
                node.record.name.as_str(),
                known.get(&node.record.id)?,
            ))
        })
        .collect();
    Ok(answer(&blocking, index, &shown))
}

async fn node(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let (blocking, index) = wait(&inner, &call).await?;
    let known = inner.around()?.coordinates.snapshot();
    let node = inner.catalog.node(call.params.get("name"));
    let found = node.and_then(|node| {
        let coordinate = known.get(&node.record.id)?;
        Some(entry(node.record.name.as_str(), coordinate))
    });
    match found {
        Some(found) => Ok(answer(&blocking, index, &[found])),
        None => Ok(empty(StatusCode::NOT_FOUND)),
    }
}

/// Waits for anything about coordinates to change.
async fn wait(inner: &Inner, call: &Call) -> Result<(Blocking, u64), Refused> {
    let blocking = Blocking::of(call)?;
    let coordinates = &inner.around()?.coordinates;
    let mut changes = coordinates.changes();
    let now = || inner.floor(coordinates.index());
    if let Some(wait) = blocking.wait_beyond(now()) {
        let changed = async {
            while now() <= blocking.index && changes.changed().await.is_ok() {}
            0
        };
        blocking.until(call, wait, changed).await;
    }
    let index = now();
    Ok((blocking, index))
}

fn answer(blocking: &Blocking, index: u64, shown: &[Value]) -> Reply {
    let mut reply = blocking.reply(index, shown);
    let headers = reply.headers_mut();
    headers.remove("x-consul-effective-consistency");
    headers.insert(
        "x-consul-query-backend",
        HeaderValue::from_static("blocking-query"),
    );
    reply
}

/// Of nodes without an agent, whose coordinate somebody else has measured.
async fn update(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let (name, segment) = (fields.text("Node")?, fields.text("Segment")?);
    let coordinate = fields.take("Coord");
    fields.ignore(&["Datacenter", "Partition"]);
    fields.finish()?;
    if !segment.is_empty() {
        return Err(server_error("network segments are not supported"));
    }
    let coordinate = coordinate
        .and_then(|value| read(&value))
        .filter(Coordinate::is_valid)
        .ok_or_else(|| bad_request("invalid coordinate"))?;
    let name = NodeName::parse(&name).map_err(|error| bad_request(error.to_string()))?;
    inner
        .may(&call, Right::Update, &format!("consul/node/{name}"))
        .await?;
    let node = inner.catalog.node(name.as_str());
    let node = node.ok_or_else(|| server_error(format!("unknown node {name}")))?;
    if node.record.is_member() {
        return Err(server_error(format!(
            "node {name} has an agent, which measures its coordinate itself"
        )));
    }
    inner.around()?.coordinates.put(node.record.id, coordinate);
    Ok(done())
}

fn read(value: &Value) -> Option<Coordinate> {
    let number = |name: &str| value.get(name).map_or(Some(0.0), Value::as_f64);
    let vec: Vec<f64> = value
        .get("Vec")?
        .as_array()?
        .iter()
        .map(Value::as_f64)
        .collect::<Option<_>>()?;
    Some(Coordinate {
        vec: vec.try_into().ok()?,
        error: number("Error")?,
        adjustment: number("Adjustment")?,
        height: number("Height")?,
    })
}
