//! Requests as entries: what is not followed here is refused by its name.

use libmesh::bundle::Action;
use serde_json::{Map, Value, json};

use super::INTENTIONS;
use crate::{
    consul::{
        Refused, bad_request,
        decode::{Fields, go_format},
        filter::{self, Filter},
        server_error,
    },
    routing::Entry,
};

/// What a request wants kept.
pub enum Asked {
    Entry(Entry),
    Intentions(Intentions),
}

/// `service-intentions`.
pub struct Intentions {
    pub destination: String,
    pub sources: Vec<Source>,
}

pub struct Source {
    pub name: String,
    pub action: Action,
    pub description: String,
}

/// Kinds that there are here.
const KINDS: [&str; 5] = [
    "proxy-defaults",
    "service-defaults",
    "service-resolver",
    "service-splitter",
    INTENTIONS,
];
/// Kinds that Consul has besides.
const OTHERS: [&str; 16] = [
    "service-router",
    "ingress-gateway",
    "terminating-gateway",
    "api-gateway",
    "bound-api-gateway",
    "http-route",
    "tcp-route",
    "inline-certificate",
    "file-system-certificate",
    "mesh",
    "exported-services",
    "sameness-group",
    "control-plane-request-limit",
    "rate-limit",
    "jwt-provider",
    "partition-exports",
];
const PROTOCOLS: [&str; 4] = ["tcp", "http", "http2", "grpc"];

/// A kind of Consul's, whether there can be entries of it here or not.
pub fn known(kind: &str) -> Result<&str, String> {
    match KINDS.contains(&kind) || OTHERS.contains(&kind) {
        true => Ok(kind),
        false => Err(format!("invalid config entry kind: {kind}")),
    }
}

pub fn parse(mut fields: Fields) -> Result<Asked, Refused> {
    if !fields.given("Kind") {
        return Err(undecodable(
            "Payload does not contain a kind/Kind key at the top level",
        ));
    }
    let kind = fields.text("Kind")?;
    known(&kind).map_err(|reason| undecodable(&reason))?;
    if !KINDS.contains(&kind.as_str()) {
        return Err(bad_request(format!(
            "config entries of the kind {kind:?} are not supported by this version of mesh"
        )));
    }
    let name = fields.text("Name")?;
    let meta = fields.pairs("Meta")?;
    fields.ignore(&[
        "CreateIndex",
        "ModifyIndex",
        "Hash",
        "Namespace",
        "Partition",
    ]);
    if kind == INTENTIONS {
        return intentions(name, fields).map(Asked::Intentions);
    }
    if name.is_empty() {
        return Err(server_error("Name is required"));
    }
    let mut entry = Map::from_iter([
        ("Kind".to_owned(), json!(kind)),
        ("Name".to_owned(), json!(name.to_ascii_lowercase())),
        ("Meta".to_owned(), json!(meta)),
    ]);
    match kind.as_str() {
        "proxy-defaults" => proxy_defaults(&name, &mut fields, &mut entry)?,
        "service-defaults" => service_defaults(&mut fields, &mut entry)?,
        "service-resolver" => service_resolver(&mut fields, &mut entry)?,
        _ => service_splitter(&mut fields, &mut entry)?,
    }
    finish(&fields)?;
    let entry = serde_json::from_value(Value::Object(entry));
    let entry = entry.map_err(|error| undecodable(&error.to_string()))?;
    Ok(Asked::Entry(entry))
}

fn undecodable(reason: &str) -> Refused {
    bad_request(format!("Request decoding failed: {reason}"))
}

/// Every field that is left is named, in Consul's words.
fn finish(fields: &Fields) -> Result<(), Refused> {
    let left = fields.left();
    if left.is_empty() {
        return Ok(());
    }
    let lines = left
        .iter()
        .map(|key| format!("\t* invalid config key {key:?}\n"));
    let (count, plural) = (left.len(), if left.len() == 1 { "" } else { "s" });
    Err(undecodable(&format!(
        "{count} error{plural} occurred:\n{}\n",
        lines.collect::<String>()
    )))
}

fn protocol(given: &str) -> Result<(), Refused> {
    match given.is_empty() || PROTOCOLS.contains(&given) {
        true => Ok(()),
        false => Err(server_error(format!(
            "protocol {given:?} is none of {}",
            PROTOCOLS.join(", ")
        ))),
    }
}

fn proxy_defaults(
    name: &str,
    fields: &mut Fields,
    entry: &mut Map<String, Value>,
) -> Result<(), Refused> {
    if name != "global" {
        return Err(server_error(format!(
            "invalid name ({name:?}), only \"global\" is supported"
        )));
    }
    if let Some(config) = fields.take("Config") {
        let mut config = Fields::of(config)?;
        let given = config.text("protocol")?;
        protocol(&given)?;
        if let Some(key) = config.left().first() {
            return Err(unsupported(&format!("Config.{key}")));
        }
        if !given.is_empty() {
            entry.insert("Config".to_owned(), json!({"protocol": given}));
        }
    }
    fields.unsupported(&[
        "Mode",
        "TransparentProxy",
        "MutualTLSMode",
        "MeshGateway",
        "Expose",
        "AccessLogs",
        "EnvoyExtensions",
        "FailoverPolicy",
        "PrioritizeByLocality",
    ])
}

fn service_defaults(fields: &mut Fields, entry: &mut Map<String, Value>) -> Result<(), Refused> {
    let given = fields.text("Protocol")?;
    protocol(&given)?;
    entry.insert("Protocol".to_owned(), json!(given));
    fields.unsupported(&[
        "Mode",
        "TransparentProxy",
        "MutualTLSMode",
        "MeshGateway",
        "Expose",
        "ExternalSNI",
        "UpstreamConfig",
        "Destination",
        "MaxInboundConnections",
        "LocalConnectTimeoutMs",
        "LocalRequestTimeoutMs",
        "BalanceInboundConnections",
        "RateLimits",
        "EnvoyExtensions",
    ])
}

fn service_resolver(fields: &mut Fields, entry: &mut Map<String, Value>) -> Result<(), Refused> {
    if let Some(timeout) = fields.duration("ConnectTimeout")? {
        entry.insert("ConnectTimeout".to_owned(), json!(go_format(timeout)));
    }
    entry.insert(
        "DefaultSubset".to_owned(),
        json!(fields.text("DefaultSubset")?),
    );
    let subsets = objects(fields, "Subsets")?
        .into_iter()
        .map(|(name, subset)| {
            let mut subset = Fields::of(subset)?;
            let (filter, only_passing) = (subset.text("Filter")?, subset.flag("OnlyPassing")?);
            finish(&subset)?;
            if name.is_empty() {
                return Err(server_error("Subset defined with empty name"));
            }
            if !filter.is_empty() {
                Filter::parse(&filter, filter::HEALTH_ENTRY).map_err(|reason| {
                    server_error(format!(
                        "Filter for subset {name:?} is not a valid expression: {reason}"
                    ))
                })?;
            }
            let subset = json!({"Filter": filter, "OnlyPassing": only_passing});
            Ok((name, subset))
        });
    let subsets = subsets.collect::<Result<Map<_, _>, Refused>>()?;
    entry.insert("Subsets".to_owned(), Value::Object(subsets));
    if let Some(redirect) = fields.take("Redirect") {
        let redirect = target(Fields::of(redirect)?, &[])?;
        if redirect == json!({"Service": "", "ServiceSubset": ""}) {
            return Err(server_error("Redirect is empty"));
        }
        entry.insert("Redirect".to_owned(), redirect);
    }
    let failover = objects(fields, "Failover")?.into_iter().map(|(subset, other)| {
        let mut other = Fields::of(other)?;
        let targets = other.items("Targets")?.into_iter();
        let targets = targets.map(|item| target(Fields::of(item)?, &[]));
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        let mut one = target(other, &["Policy", "SamenessGroup"])?;
        if targets.is_empty() && one == json!({"Service": "", "ServiceSubset": ""}) {
            return Err(server_error(format!(
                "Bad Failover[{subset:?}]: one of Service, ServiceSubset and Targets is required"
            )));
        }
        one["Targets"] = json!(targets);
        Ok((subset, one))
    });
    let failover = failover.collect::<Result<Map<_, _>, Refused>>()?;
    entry.insert("Failover".to_owned(), Value::Object(failover));
    // What a balancer of ours does anyway asks for nothing.
    if let Some(balancer) = fields.take("LoadBalancer") {
        let mut balancer = Fields::of(balancer)?;
        let policy = balancer.text("Policy")?;
        if !matches!(policy.as_str(), "" | "least_request") {
            return Err(unsupported(&format!("LoadBalancer.Policy {policy:?}")));
        }
        balancer.unsupported(&["RingHashConfig", "LeastRequestConfig", "HashPolicies"])?;
        finish(&balancer)?;
    }
    fields.unsupported(&["RequestTimeout", "PrioritizeByLocality"])
}

fn service_splitter(fields: &mut Fields, entry: &mut Map<String, Value>) -> Result<(), Refused> {
    let mut sum = 0.0;
    let splits = fields.items("Splits")?.into_iter().map(|split| {
        let mut split = Fields::of(split)?;
        let weight = split.float("Weight")?;
        if !(0.0..=100.0).contains(&weight) || (weight != 0.0 && weight < 0.01) {
            return Err(server_error(
                "each split must have a weight of 0, or of 0.01 to 100",
            ));
        }
        sum += weight;
        let mut split = target(split, &["RequestHeaders", "ResponseHeaders"])?;
        split["Weight"] = json!(weight);
        Ok(split)
    });
    let splits = splits.collect::<Result<Vec<_>, Refused>>()?;
    if splits.is_empty() {
        return Err(server_error("no splits configured"));
    }
    if (sum * 100.0).round() != 10_000.0 {
        return Err(server_error(format!(
            "the sum of all split weights must be 100, not {sum:.6}"
        )));
    }
    entry.insert("Splits".to_owned(), json!(splits));
    Ok(())
}

/// A service and a subset. Everything is in one namespace, partition and datacenter.
fn target(mut fields: Fields, others: &[&str]) -> Result<Value, Refused> {
    let service = fields.text("Service")?.to_ascii_lowercase();
    let subset = fields.text("ServiceSubset")?;
    fields.unsupported(&[
        "Namespace",
        "Partition",
        "Datacenter",
        "Datacenters",
        "Peer",
        "SamenessGroup",
    ])?;
    fields.unsupported(others)?;
    finish(&fields)?;
    Ok(json!({"Service": service, "ServiceSubset": subset}))
}

fn objects(fields: &mut Fields, name: &str) -> Result<Map<String, Value>, Refused> {
    match fields.take(name) {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(undecodable(&format!("{name} is not an object"))),
    }
}

fn unsupported(what: &str) -> Refused {
    bad_request(format!("{what} is not supported by this version of mesh"))
}

fn intentions(destination: String, mut fields: Fields) -> Result<Intentions, Refused> {
    if destination.is_empty() {
        return Err(server_error("Name is required"));
    }
    let sources = fields.items("Sources")?.into_iter().enumerate();
    let sources = sources.map(|(at, source)| {
        let mut source = Fields::of(source)?;
        let (name, action) = (source.text("Name")?, source.text("Action")?);
        let description = source.text("Description")?;
        let kind = source.text("Type")?;
        source.unsupported(&["Permissions", "Peer", "SamenessGroup"])?;
        source.ignore(&[
            "Precedence",
            "Namespace",
            "Partition",
            "LegacyID",
            "LegacyMeta",
            "LegacyCreateTime",
            "LegacyUpdateTime",
        ]);
        finish(&source)?;
        if name.is_empty() {
            return Err(server_error(format!("Sources[{at}].Name is required")));
        }
        if !matches!(kind.as_str(), "" | "consul") {
            return Err(server_error(format!(
                "Sources[{at}].Type must be set to 'consul'"
            )));
        }
        let action = match action.as_str() {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            _ => {
                return Err(server_error(format!(
                    "Sources[{at}].Action must be set to 'allow' or 'deny'"
                )));
            }
        };
        Ok(Source {
            name,
            action,
            description,
        })
    });
    let sources = sources.collect::<Result<Vec<_>, Refused>>()?;
    fields.unsupported(&["JWT"])?;
    finish(&fields)?;
    if sources.is_empty() {
        return Err(server_error("At least one source is required"));
    }
    Ok(Intentions {
        destination,
        sources,
    })
}
