//! `/v1/connect/ca/roots` and `/v1/agent/connect/…`: the mesh's certificates in Consul's shapes, for proxies that are not ours.
//!
//! Roots and decisions come from what this agent holds, so they are answered while no server is. A leaf is another matter:
//! its key is made here and handed out, so each request for one needs the right to `update` the policy path
//! `consul/service/<name>`, and the node has to be one that may publish the service.

mod authorize;
mod leaf;
mod roots;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use http::Method;
use libmesh::{
    identity::{CertificateSource, Trust, TrustBundle},
    model::ServiceName,
};
use parking_lot::Mutex;

pub(super) use authorize::decide;

use super::{Inner, Refused, forwarded, handler, server_error};
use crate::http::Routes;

/// What the agent has of the mesh's authority.
pub struct Authority {
    trust: Trust,
    certificates: Arc<dyn CertificateSource>,
    roots: Mutex<Seen>,
    leaves: Mutex<HashMap<ServiceName, leaf::Place>>,
}

/// The roots, and the index since when they are these.
#[derive(Default)]
struct Seen {
    bundle: TrustBundle,
    index: u64,
}

impl Authority {
    /// Believes as `trust` does; leaves are signed by `certificates`.
    pub fn new(trust: Trust, certificates: Arc<dyn CertificateSource>) -> Authority {
        Authority {
            trust,
            certificates,
            roots: Mutex::default(),
            leaves: Mutex::default(),
        }
    }

    /// The roots, and their index: an own one, as the trust has none.
    fn roots(&self) -> (TrustBundle, u64) {
        let now = self.trust.bundle();
        let mut seen = self.roots.lock();
        if seen.index == 0 || seen.bundle != now {
            *seen = Seen {
                bundle: now,
                index: stamp(seen.index),
            };
        }
        (seen.bundle.clone(), seen.index)
    }
}

/// An index for what changes now.
fn stamp(last: u64) -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(1, |since| since.as_micros() as u64);
    now.max(last + 1)
}

pub(super) fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new()
        .get("/v1/connect/ca/roots", handler(inner, roots::of_server))
        .get(
            "/v1/agent/connect/ca/roots",
            handler(inner, roots::of_agent),
        )
        .get(
            "/v1/agent/connect/ca/leaf/:service",
            handler(inner, leaf::leaf),
        )
        .on(
            Method::POST,
            "/v1/agent/connect/authorize",
            handler(inner, authorize::authorize),
        )
        .get(
            "/v1/connect/ca/configuration",
            handler(inner, forwarded::forward),
        )
        .put(
            "/v1/connect/ca/configuration",
            handler(inner, forwarded::forward),
        )
}

fn authority(inner: &Inner) -> Result<&Authority, Refused> {
    let authority = inner.authority.as_ref();
    authority.ok_or_else(|| server_error("Connect must be enabled in order to use this endpoint"))
}

/// As Consul writes serial numbers and fingerprints: `a1:b2:…`.
fn colon_hex(bytes: &[u8]) -> String {
    let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests;
