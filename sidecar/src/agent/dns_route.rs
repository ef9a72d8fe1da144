//! `/v1/mesh/dns/explain`: why a name is answered as it is.

use std::net::SocketAddr;

use dns::{Explainer, client::record_type};
use http::StatusCode;
use serde_json::json;

use crate::http::{Call, Reply, Routes, json as json_reply, text};

/// The route, for the DNS server on `addr`.
pub fn routes(explainer: Explainer, addr: SocketAddr) -> Routes {
    Routes::new().get("/v1/mesh/dns/explain", move |call: Call| {
        let reply = explain(&explainer, addr, &call);
        async move { reply }
    })
}

fn explain(explainer: &Explainer, addr: SocketAddr, call: &Call) -> Reply {
    let name = call.query.filled("name").unwrap_or_default();
    let kind = call.query.filled("type").unwrap_or("A");
    let Some(rtype) = record_type(kind) else {
        let message = format!("type: {kind:?} is no record type");
        return text(StatusCode::BAD_REQUEST, message);
    };
    let Some(explanation) = explainer.explain(name, rtype) else {
        let message = format!(
            "name: {name:?} is no domain name: labels of 1 to 63 octets between dots, 255 in all"
        );
        return text(StatusCode::BAD_REQUEST, message);
    };
    let instances = explanation.instances.iter().map(|one| {
        json!({
            "node": one.node,
            "id": one.id,
            "address": one.address,
            "port": one.port,
            "shown": one.shown,
            "why": one.why,
        })
    });
    let value = json!({
        "server": addr.to_string(),
        "reading": explanation.reading,
        "instances": instances.collect::<Vec<_>>(),
    });
    json_reply(StatusCode::OK, &value)
}
