//! Policy documents: HCL or JSON into rules.

use std::time::Duration;

use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::resource::{self, Resource};
use super::{Capabilities, Capability, Parameters, Place, Rule, Wrapping};
use crate::hcl::{self, At};
use crate::request::duration;

/// Longest document, in bytes.
const MAX_SOURCE: usize = 512 * 1024;
/// Keys of a path stanza that are accepted for compatibility and have no effect here.
const IGNORED: [&str; 2] = ["comment", "pagination_limit"];

/// Parse a document into its rules, in order.
pub(super) fn rules(source: &str) -> Result<Vec<Rule>, String> {
    if source.len() > MAX_SOURCE {
        return Err("the document is longer than 512 KiB".into());
    }
    let stanzas = if source.trim_start().starts_with('{') {
        from_json(source)?
    } else {
        from_hcl(source)?
    };
    let mut rules = Vec::new();
    for stanza in stanzas {
        match stanza {
            Stanza::Path(path, fields) => rules.push(rule(&path, &fields)?),
            Stanza::Resource(resource, name, fields, offset) => {
                let those = resource.rules(&name, &fields);
                let placed = |why| format!("At {}: {why}", At::offset(source, offset));
                rules.extend(those.map_err(placed)?);
            }
            Stanza::Single(rule) => rules.push(rule),
        }
    }
    if rules.is_empty() && !source.trim().is_empty() && !source.contains(['#', '/']) {
        return Err("no rule found".into());
    }
    Ok(rules)
}

enum Stanza {
    Path(String, Map<String, Value>),
    /// With its name and the offset where it is.
    Resource(Resource, String, Map<String, Value>, usize),
    Single(Rule),
}

fn unknown(name: &str, at: At) -> String {
    format!(
        "At {at}: unknown resource {name:?} (path, or Consul's key, service, node, session, agent, event, query and \
         their _prefix, acl, keyring, mesh, operator, peering)"
    )
}

fn from_hcl(source: &str) -> Result<Vec<Stanza>, String> {
    let items = hcl::items(source)
        .map_err(|wrong| format!("At {}: not valid HCL: {}", wrong.at, wrong.reason))?;
    let stanza = |item| stanza(item, source).transpose();
    items.into_iter().filter_map(stanza).collect()
}

/// Nothing: the document's own name.
fn stanza(item: hcl::Item, source: &str) -> Result<Option<Stanza>, String> {
    let hcl::Item {
        offset,
        key: kind,
        labels,
        value,
    } = item;
    let at = || At::offset(source, offset);
    if labels.is_empty() {
        if kind == "name" {
            return Ok(None);
        }
        if let Some(rule) = resource::single(&kind, &value) {
            let rule = rule.map_err(|why| format!("At {}: {why}", at()))?;
            return Ok(Some(Stanza::Single(rule)));
        }
    }
    let resource = Resource::named(&kind);
    if resource.is_none() && kind != "path" {
        return Err(unknown(&kind, at()));
    }
    let (Ok([name]), Value::Object(fields)) = (<[String; 1]>::try_from(labels), value) else {
        return Err(match resource {
            None => "a path block needs exactly one path: path \"secret/*\" { … }".into(),
            Some(_) => format!("At {}: {kind} needs exactly one name", at()),
        });
    };
    Ok(Some(match resource {
        None => Stanza::Path(name, fields),
        Some(resource) => Stanza::Resource(resource, name, fields, offset),
    }))
}

fn from_json(source: &str) -> Result<Vec<Stanza>, String> {
    let mut document = hcl::parse_json(source)?;
    document.remove("name");
    let mut out = Vec::new();
    for (kind, value) in document {
        // The first place where the word stands: keys of one name are one here.
        let found = source.find(&format!("{kind:?}"));
        let offset = found.unwrap_or_default();
        let at = At::offset(source, offset);
        if let Some(rule) = resource::single(&kind, &value) {
            out.push(Stanza::Single(
                rule.map_err(|why| format!("At {at}: {why}"))?,
            ));
            continue;
        }
        let resource = Resource::named(&kind);
        if resource.is_none() && kind != "path" {
            return Err(unknown(&kind, at));
        }
        for group in list_of(value) {
            let Value::Object(group) = group else {
                return Err(format!("{kind:?} must be an object of {kind} rules"));
            };
            for (name, fields) in group {
                for fields in list_of(fields) {
                    let Value::Object(fields) = fields else {
                        return Err(format!("{kind} {name:?}: must be an object"));
                    };
                    out.push(match resource {
                        None => Stanza::Path(name.clone(), fields),
                        Some(resource) => Stanza::Resource(resource, name.clone(), fields, offset),
                    });
                }
            }
        }
    }
    Ok(out)
}

fn list_of(value: Value) -> Vec<Value> {
    match value {
        Value::Array(many) => many,
        one => vec![one],
    }
}

fn rule(path: &str, fields: &Map<String, Value>) -> Result<Rule, String> {
    // Templates are filled in per caller; the pattern's shape is checked now with a harmless word.
    Pattern::parse(&super::acl::fill(path, |_| Some("x".into()))?.unwrap_or_default())?;
    let mut rule = Rule::at(Place::Written(path.to_string()));
    for (key, value) in fields {
        match key.as_str() {
            "capabilities" => {
                for name in texts(value)
                    .ok_or_else(|| format!("path {path:?}: capabilities must be a list of texts"))?
                {
                    rule.capabilities = rule.capabilities.union(capability(path, name)?);
                }
            }
            "policy" => rule.capabilities = rule.capabilities.union(shorthand(path, value)?),
            "allowed_parameters" => rule.allowed = parameters(path, key, value)?,
            "denied_parameters" => rule.denied = parameters(path, key, value)?,
            "required_parameters" => {
                rule.required = texts(value)
                    .ok_or_else(|| {
                        format!("path {path:?}: required_parameters must be a list of texts")
                    })?
                    .into_iter()
                    .map(str::to_ascii_lowercase)
                    .collect();
            }
            "min_wrapping_ttl" => rule.wrapping.min = Some(ttl(path, key, value)?),
            "max_wrapping_ttl" => rule.wrapping.max = Some(ttl(path, key, value)?),
            // A restriction that is silently not applied would grant more than was written.
            "mfa_methods"
            | "control_group"
            | "expiration"
            | "list_scan_response_keys_filter_path" => {
                return Err(format!("path {path:?}: {key} is not supported"));
            }
            key if IGNORED.contains(&key) => {}
            _ => return Err(format!("path {path:?}: invalid key {key:?}")),
        }
    }
    if let Wrapping {
        min: Some(min),
        max: Some(max),
    } = rule.wrapping
        && min > max
    {
        return Err(format!(
            "path {path:?}: max_wrapping_ttl is less than min_wrapping_ttl"
        ));
    }
    Ok(rule)
}

fn ttl(path: &str, key: &str, value: &Value) -> Result<Duration, String> {
    let parsed = match value {
        Value::Number(seconds) => seconds.as_u64().map(Duration::from_secs),
        Value::String(text) => duration::parse(text),
        _ => None,
    };
    parsed.ok_or_else(|| format!("path {path:?}: {key} must be a duration"))
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::Array(items) => items.iter().map(Value::as_str).collect(),
        Value::String(one) => Some(vec![one]),
        _ => None,
    }
}

fn capability(path: &str, name: &str) -> Result<Capabilities, String> {
    // OpenBao's recursive list: the same right as list here.
    let name = if name == "scan" { "list" } else { name };
    let found = Capability::ALL.iter().find(|(_, known)| *known == name);
    found
        .map(|(c, _)| Capabilities::default().with(*c))
        .ok_or_else(|| format!("path {path:?}: invalid capability {name:?}"))
}

/// The pre-0.5 form: `policy = "read"`.
fn shorthand(path: &str, value: &Value) -> Result<Capabilities, String> {
    let all: &[&str] = match value.as_str() {
        Some("deny") => &["deny"],
        Some("read") => &["read", "list"],
        Some("write") => &["read", "list", "create", "update", "delete"],
        Some("sudo") => &["read", "list", "create", "update", "delete", "sudo"],
        _ => {
            return Err(format!(
                "path {path:?}: invalid policy (read, write, sudo or deny)"
            ));
        }
    };
    all.iter().try_fold(Capabilities::default(), |sum, name| {
        Ok(sum.union(capability(path, name)?))
    })
}

fn parameters(path: &str, key: &str, value: &Value) -> Result<Parameters, String> {
    let Value::Object(map) = value else {
        return Err(format!("path {path:?}: {key} must be a map of lists"));
    };
    map.iter()
        .map(|(name, values)| match values {
            Value::Array(values) => Ok((name.to_ascii_lowercase(), values.clone())),
            _ => Err(format!("path {path:?}: {key}: {name:?} must be a list")),
        })
        .collect()
}
