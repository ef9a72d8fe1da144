//! What a session is bound to: a node and its checks. Looked at by the agent before a session is made, and by the server as
//! long as there is one.

use std::sync::Arc;

use http::Method;
use libmesh::{catalog::Catalog, model::Health};

use super::{
    Inner, Refused, forwarded, handler, server_error,
    stored::{Kept, SessionRequest},
};
use crate::http::{Call, Reply, Routes};

/// The check that says whether a node is a member, under Consul's name.
pub const MEMBERSHIP: &str = "serfHealth";

/// Whether that which a session is bound to is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// All of it.
    Holds,
    /// There is no such node.
    NoNode,
    /// There is no such check on the node.
    NoCheck(String),
    /// A check is critical; or the node is not a member any more.
    Critical(String),
}

impl Binding {
    /// Looks.
    pub fn of(catalog: &Catalog, kept: &Kept) -> Self {
        let Some(node) = catalog.node(&kept.node) else {
            return Self::NoNode;
        };
        let node_checks = kept.node_checks.iter().flatten();
        let service_checks = kept.service_checks.iter().flatten();
        let wanted: Vec<_> = node_checks
            .chain(service_checks.map(|check| &check.id))
            .collect();
        if wanted.is_empty() {
            return Self::Holds;
        }
        let instances = catalog.instances_on(&node.record.id);
        let of_instances = instances.iter().flat_map(|instance| &instance.checks);
        let known: Vec<_> = node.checks.iter().chain(of_instances).collect();
        for id in wanted {
            let status = match id.as_str() {
                MEMBERSHIP if node.liveness.is_present() => Some(Health::Passing),
                MEMBERSHIP => Some(Health::Critical),
                id => known
                    .iter()
                    .find(|check| *check.id == *id)
                    .map(|check| check.status),
            };
            match status {
                None => return Self::NoCheck(id.clone()),
                Some(Health::Critical) => return Self::Critical(id.clone()),
                Some(_) => {}
            }
        }
        Self::Holds
    }
}

pub fn routes(inner: &Arc<Inner>) -> Routes {
    Routes::new().on(Method::PUT, "/v1/session/create", handler(inner, create))
}

/// Names the node that the client did not, and looks at what it is bound to: this agent knows both.
async fn create(inner: Arc<Inner>, mut call: Call) -> Result<Reply, Refused> {
    let mut request = SessionRequest::parse(call.body())?;
    if request.kept.node.is_empty() {
        request.kept.node = inner.about.node.to_string();
    }
    match Binding::of(&inner.catalog, &request.kept) {
        Binding::Holds => {}
        Binding::NoNode => return Err(server_error("apply failed: Missing node registration")),
        Binding::NoCheck(check) => {
            return Err(server_error(format!(
                "apply failed: Missing check '{check}' registration"
            )));
        }
        Binding::Critical(check) => {
            return Err(server_error(format!(
                "apply failed: Check '{check}' is in critical state"
            )));
        }
    }
    *call.request.body_mut() = request.to_body().into();
    forwarded::forward(inner, call).await
}
