//! What a sidecar tells about itself over HTTP, on loopback.
//!
//! `GET /connections` open and recent connections with both SPIFFE IDs and the totals; `/identity` the certificate
//! in use; `/health/live`; `/health/ready` (503 with the parts that are still missing).

use std::time::SystemTime;

use http::StatusCode;
use libmesh::bundle::BundleStore;
use libmesh::identity::Identity;
use serde::Serialize;

use super::connections::{Connections, rfc3339};
use super::readiness::Readiness;
use crate::http::{Reply, Routes, json, text};

/// `/identity` as JSON. Times are RFC 3339.
#[derive(Debug, Serialize)]
struct IdentityReport {
    spiffe_id: String,
    serial: String,
    not_before: String,
    not_after: String,
    trust_domain: String,
    /// Index of the config bundle that decides who may call; 0 before the first.
    bundle_index: u64,
    /// How long ago that bundle was signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle_age_seconds: Option<u64>,
}

/// The routes of the admin listener.
pub fn routes(
    connections: Connections,
    identity: Identity,
    bundles: BundleStore,
    readiness: Readiness,
) -> Routes {
    Routes::new()
        .get("/connections", move |_| {
            let reply = json(StatusCode::OK, &connections.snapshot());
            async move { reply }
        })
        .get("/identity", move |_| {
            let reply = report(&identity, &bundles);
            async move { reply }
        })
        .get("/health/live", |_| async { text(StatusCode::OK, "live\n") })
        .get("/health/ready", move |_| {
            let pending = readiness.pending();
            async move {
                match pending.is_empty() {
                    true => text(StatusCode::OK, "ready\n"),
                    false => text(
                        StatusCode::SERVICE_UNAVAILABLE,
                        format!("waiting for: {}\n", pending.join(", ")),
                    ),
                }
            }
        })
}

fn report(identity: &Identity, bundles: &BundleStore) -> Reply {
    let leaf = identity.leaf();
    json(
        StatusCode::OK,
        &IdentityReport {
            spiffe_id: leaf.spiffe.to_string(),
            not_before: rfc3339(leaf.not_before),
            not_after: rfc3339(leaf.not_after),
            serial: leaf.serial,
            trust_domain: identity.trust().domain().to_string(),
            bundle_index: bundles.index(),
            bundle_age_seconds: bundles.age(SystemTime::now()).map(|age| age.as_secs()),
        },
    )
}
