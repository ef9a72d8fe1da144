//! Answers without what a token may not see: entries about a service need the right to read that, and the one to read the
//! node that it is on.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use vault_kv::Capability::Read;

use super::Rights;
use crate::{
    consul::JSON,
    http::{Reply, text},
};

/// What an answer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `[{Node: {Node}, Service: {Service}}]`
    HealthEntries,
    /// `[{Node, ServiceName}]`
    CatalogEntries,
    /// `[{Node}]`
    Nodes,
    /// `{name: tags}`
    ServiceNames,
    /// `[{Node, ServiceName}]`, the latter empty for checks of nodes
    Checks,
    /// `{id: {Service}}`
    AgentServices,
    /// `{id: {Node, ServiceName}}`
    AgentChecks,
    /// `{Node: {Node}, Services: {id: {Service}}}`
    NodeServices,
    /// `{Node: {Node}, Services: [{Service}]}`
    NodeServiceList,
    /// `[{Name}]`, of nodes
    Members,
    /// `{Nodes: [health entries]}`
    Executed,
    /// `{Query: {Name}}`
    Explained,
    /// `[{Name}]`, of events
    Events,
    /// `[{Node}]`
    Coordinates,
}

impl Shape {
    /// The answer as the token may see it.
    pub fn filter(self, rights: &Rights, reply: Reply, shown: bool) -> Reply {
        let json = reply.headers().get(header::CONTENT_TYPE) == Some(&JSON);
        if !json || reply.status() != StatusCode::OK || self.is_whole(rights) {
            return reply;
        }
        let (mut head, body) = reply.into_parts();
        let body = body.into_bytes().unwrap_or_default();
        // What cannot be looked through is not shown.
        let Ok(mut value) = serde_json::from_slice::<Value>(&body) else {
            return text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be filtered",
            );
        };
        let mut dropped = false;
        self.reduce(rights, &mut value, &mut dropped);
        if !dropped {
            return Reply::from_parts(head, body.into());
        }
        if shown {
            head.headers.insert(
                "x-consul-results-filtered-by-acls",
                HeaderValue::from_static("true"),
            );
        }
        head.headers.remove(header::CONTENT_LENGTH);
        let body = Bytes::from(value.to_string());
        Reply::from_parts(head, body.into())
    }

    fn is_whole(self, rights: &Rights) -> bool {
        let (services, nodes) = rights.sees;
        match self {
            Self::Nodes | Self::Members | Self::Coordinates => nodes,
            Self::ServiceNames | Self::AgentServices => services,
            Self::Events | Self::Explained => false,
            _ => services && nodes,
        }
    }

    fn reduce(self, rights: &Rights, value: &mut Value, dropped: &mut bool) {
        let name = |value: &Value| value.as_str().unwrap_or_default().to_ascii_lowercase();
        let service = |value: &Value| rights.may(Read, &format!("consul/service/{}", name(value)));
        let node = |value: &Value| rights.may(Read, &format!("consul/node/{}", name(value)));
        let check = |entry: &Value| match entry["ServiceName"].as_str().unwrap_or_default() {
            "" => node(&entry["Node"]),
            _ => service(&entry["ServiceName"]) && node(&entry["Node"]),
        };
        let health =
            |entry: &Value| service(&entry["Service"]["Service"]) && node(&entry["Node"]["Node"]);
        match self {
            Self::HealthEntries => keep(value, dropped, health),
            Self::CatalogEntries => keep(value, dropped, |entry| {
                service(&entry["ServiceName"]) && node(&entry["Node"])
            }),
            Self::Nodes | Self::Coordinates => keep(value, dropped, |entry| node(&entry["Node"])),
            Self::ServiceNames => {
                let Value::Object(names) = value else { return };
                let before = names.len();
                names.retain(|name, _| service(&name.as_str().into()));
                *dropped |= names.len() < before;
            }
            Self::Checks | Self::AgentChecks => keep(value, dropped, check),
            Self::AgentServices => keep(value, dropped, |entry| service(&entry["Service"])),
            Self::NodeServices | Self::NodeServiceList => {
                if value.is_null() {
                    return;
                }
                if !node(&value["Node"]["Node"]) {
                    *dropped = true;
                    *value = Value::Null;
                    return;
                }
                keep(&mut value["Services"], dropped, |entry| {
                    service(&entry["Service"])
                });
            }
            Self::Members => keep(value, dropped, |entry| node(&entry["Name"])),
            Self::Executed => keep(&mut value["Nodes"], dropped, health),
            Self::Explained => {
                let query = &value["Query"];
                let path = match name(&query["Name"]).as_str() {
                    "" if query["Template"]["Type"]
                        .as_str()
                        .unwrap_or_default()
                        .is_empty() =>
                    {
                        format!("mesh/query/{}", name(&query["ID"]))
                    }
                    name => format!("consul/query/{name}"),
                };
                if !rights.may(Read, &path) {
                    *dropped = true;
                    *value = json!({});
                }
            }
            Self::Events => keep(value, dropped, |entry| {
                let name = entry["Name"].as_str().unwrap_or_default();
                rights.may(Read, &format!("consul/event/{name}"))
            }),
        }
    }
}

/// Keeps entries of a list or of an object.
fn keep(value: &mut Value, dropped: &mut bool, may: impl Fn(&Value) -> bool) {
    match value {
        Value::Array(list) => {
            let before = list.len();
            list.retain(|entry| may(entry));
            *dropped |= list.len() < before;
        }
        Value::Object(fields) => {
            let before = fields.len();
            fields.retain(|_, entry| may(entry));
            *dropped |= fields.len() < before;
        }
        _ => {}
    }
}
