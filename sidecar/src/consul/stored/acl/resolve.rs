//! What a token may do, for agents to decide by ([`PATH`]), and decisions one by one (`/v1/internal/acl/authorize`).

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vault_kv::{Capability, Grant};

use super::{Desk, Opener, on};
use crate::{
    consul::{Refused, bad_request, decode::Fields},
    http::{Call, Reply, Routes, json as json_reply},
};

/// Where agents ask.
pub const PATH: &str = "/v1/mesh/acl/rights";

/// Most questions in one request.
const MOST: usize = 64;

/// What a server says of a token.
#[derive(Serialize, Deserialize)]
pub struct Answered {
    /// Its accessor.
    pub accessor: String,
    /// When it expires, in unix seconds.
    pub expires: Option<i64>,
    /// Whether it may do everything.
    pub root: bool,
    /// What else it may do with Consul's resources.
    pub rules: Vec<Grant>,
}

pub fn routes(open: &Opener) -> Routes {
    Routes::new().get(PATH, on(open, rights)).on(
        Method::POST,
        "/v1/internal/acl/authorize",
        on(open, authorize),
    )
}

/// Whoever has a token may know what it is good for. Nobody's token has no rules.
async fn rights(desk: Desk, _: Call) -> Result<Reply, Refused> {
    let answered = match desk.asker.grants()? {
        Some(grants) => Answered {
            accessor: grants.accessor().to_owned(),
            expires: grants.expires(),
            root: grants.is_root(),
            rules: grants.rules(&["consul/", "mesh/"]),
        },
        None => Answered {
            accessor: String::new(),
            expires: None,
            root: false,
            rules: Vec::new(),
        },
    };
    Ok(json_reply(StatusCode::OK, &answered))
}

async fn authorize(desk: Desk, call: Call) -> Result<Reply, Refused> {
    let asked: Vec<Value> = serde_json::from_slice(call.body())
        .map_err(|error| bad_request(format!("Failed to decode request body: {error}")))?;
    if asked.len() > MOST {
        return Err(bad_request(format!(
            "Refusing to process more than {MOST} authorizations at once"
        )));
    }
    let grants = desk.asker.grants()?;
    let decided = asked.into_iter().map(|asked| {
        let mut fields = Fields::of(asked)?;
        let (resource, segment) = (fields.text("Resource")?, fields.text("Segment")?);
        let access = fields.text("Access")?;
        fields.finish()?;
        let capability = match access.as_str() {
            "read" => Capability::Read,
            "list" => Capability::List,
            "write" => Capability::Update,
            _ => return Err(bad_request(format!("Invalid access level: {access:?}"))),
        };
        let path = match resource.as_str() {
            "acl" | "operator" | "mesh" | "peering" => format!("consul/{resource}"),
            "keyring" => "mesh/keyring".to_owned(),
            "key" => format!("consul/kv/{segment}"),
            "intention" => format!("mesh/intention/{segment}/"),
            "agent" | "event" | "node" | "query" | "service" | "session" => {
                format!("consul/{resource}/{}", segment.to_ascii_lowercase())
            }
            _ => return Err(bad_request(format!("Invalid resource: {resource:?}"))),
        };
        let otherwise = desk.default_allow && has_default(&resource);
        let says = grants.as_ref().and_then(|grants| grants.says(&path, capability));
        Ok(json!({
            "Resource": resource, "Segment": segment, "Access": access, "Allow": says.unwrap_or(otherwise),
        }))
    });
    let decided = decided.collect::<Result<Vec<_>, _>>()?;
    Ok(json_reply(StatusCode::OK, &decided))
}

/// Whether `acl.default_policy` speaks for it: the store is closed unless a rule opens it.
fn has_default(resource: &str) -> bool {
    matches!(resource, "agent" | "event" | "node" | "service")
}
