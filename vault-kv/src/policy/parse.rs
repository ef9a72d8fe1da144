//! Policy documents: HCL or JSON into rules.

use std::fmt;
use std::time::Duration;

use hcl::edit::Span as _;
use hcl::expr::{Expression, ObjectKey};
use hcl::structure::{Block, Structure};
use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::resource::{self, Resource};
use super::{Capabilities, Capability, Parameters, Place, Rule, Wrapping};
use crate::request::duration;

/// Longest document, in bytes.
const MAX_SOURCE: usize = 512 * 1024;
/// Deepest nesting of brackets. A policy needs five. The HCL parser recurses, and reads what may be a key or a value
/// twice: each level doubles the time, and thirty take hours.
const MAX_DEPTH: usize = 8;

/// Keys of a path stanza that are accepted for compatibility and have no effect here.
const IGNORED: [&str; 2] = ["comment", "pagination_limit"];

/// Parse a document into its rules, in order.
pub(super) fn rules(source: &str) -> Result<Vec<Rule>, String> {
    if source.len() > MAX_SOURCE {
        return Err("the document is longer than 512 KiB".into());
    }
    shallow(source)?;
    let stanzas = if source.trim_start().starts_with('{') {
        from_json(source)?
    } else {
        from_hcl(source)?
    };
    let mut rules = Vec::new();
    for stanza in stanzas {
        match stanza {
            Stanza::Path(path, fields) => rules.push(rule(&path, &fields)?),
            Stanza::Resource(resource, name, fields, at) => {
                let those = resource.rules(&name, &fields);
                rules.extend(those.map_err(|why| format!("At {at}: {why}"))?);
            }
            Stanza::Single(rule) => rules.push(rule),
        }
    }
    if rules.is_empty() && !source.trim().is_empty() && !source.contains(['#', '/']) {
        return Err("no rule found".into());
    }
    Ok(rules)
}

/// Count brackets, whatever they mean, before a recursive parser sees them.
fn shallow(source: &str) -> Result<(), String> {
    let mut depth = 0usize;
    for byte in source.bytes() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(format!(
                "brackets are nested deeper than {MAX_DEPTH} levels"
            ));
        }
    }
    Ok(())
}

enum Stanza {
    Path(String, Map<String, Value>),
    /// With its name and where it is.
    Resource(Resource, String, Map<String, Value>, At),
    Single(Rule),
}

/// A place in a document.
#[derive(Clone, Copy)]
struct At {
    line: usize,
    column: usize,
}

impl At {
    fn offset(source: &str, offset: usize) -> Self {
        let before = source.get(..offset).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

fn unknown(name: &str, at: At) -> String {
    format!(
        "At {at}: unknown resource {name:?} (path, or Consul's key, service, node, session, agent, event, query and \
         their _prefix, acl, keyring, mesh, operator, peering)"
    )
}

fn from_hcl(source: &str) -> Result<Vec<Stanza>, String> {
    // The parser's message shows the source line; only its position is passed on.
    let body = hcl::edit::parser::parse_body(source).map_err(|error| {
        let at = error.location();
        format!("At {}:{}: not valid HCL", at.line(), at.column())
    })?;
    let mut out = Vec::new();
    for structure in &body {
        let at = At::offset(source, structure.span().map_or(0, |span| span.start));
        match Structure::from(structure.clone()) {
            Structure::Block(block) => {
                let [label] = block.labels() else {
                    return Err(match block.identifier() {
                        "path" => {
                            "a path block needs exactly one path: path \"secret/*\" { … }".into()
                        }
                        kind => format!("At {at}: {kind} needs exactly one name"),
                    });
                };
                let (name, fields) = (label.as_str().to_string(), block_fields(&block)?);
                out.push(match block.identifier() {
                    "path" => Stanza::Path(name, fields),
                    kind => {
                        let resource = Resource::named(kind).ok_or_else(|| unknown(kind, at))?;
                        Stanza::Resource(resource, name, fields, at)
                    }
                });
            }
            Structure::Attribute(attribute) if attribute.key() == "name" => {}
            Structure::Attribute(attribute) => {
                let value = plain(attribute.expr()).unwrap_or_default();
                let rule = resource::single(attribute.key(), &value)
                    .ok_or_else(|| unknown(attribute.key(), at))?;
                out.push(Stanza::Single(
                    rule.map_err(|why| format!("At {at}: {why}"))?,
                ));
            }
        }
    }
    Ok(out)
}

/// Attributes of a block, and its inner blocks as maps (`allowed_parameters { … }`).
fn block_fields(block: &Block) -> Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for structure in block.body() {
        let (key, value) = match structure {
            Structure::Attribute(attribute) => {
                let value = plain(attribute.expr())
                    .ok_or_else(|| format!("{}: not a plain value", attribute.key()))?;
                (attribute.key().to_string(), value)
            }
            Structure::Block(inner) => (
                inner.identifier().to_string(),
                Value::Object(block_fields(inner)?),
            ),
        };
        if fields.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is given twice in one block"));
        }
    }
    Ok(fields)
}

/// A literal as JSON; `None` for anything that would need evaluating.
fn plain(expression: &Expression) -> Option<Value> {
    Some(match expression {
        Expression::Null => Value::Null,
        Expression::Bool(flag) => Value::Bool(*flag),
        Expression::Number(number) => serde_json::to_value(number).ok()?,
        Expression::String(text) => Value::String(text.clone()),
        Expression::Array(items) => Value::Array(items.iter().map(plain).collect::<Option<_>>()?),
        Expression::Object(members) => Value::Object(
            members
                .iter()
                .map(|(key, value)| Some((key_text(key)?, plain(value)?)))
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    })
}

fn key_text(key: &ObjectKey) -> Option<String> {
    match key {
        ObjectKey::Identifier(name) => Some(name.to_string()),
        ObjectKey::Expression(Expression::String(text)) => Some(text.clone()),
        _ => None,
    }
}

fn from_json(source: &str) -> Result<Vec<Stanza>, String> {
    let mut document: Map<String, Value> = serde_json::from_str(source)
        .map_err(|e| format!("At {}:{}: not valid JSON", e.line(), e.column()))?;
    document.remove("name");
    let mut out = Vec::new();
    for (kind, value) in document {
        // The first place where the word stands: keys of one name are one here.
        let found = source.find(&format!("{kind:?}"));
        let at = At::offset(source, found.unwrap_or_default());
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
                        Some(resource) => Stanza::Resource(resource, name.clone(), fields, at),
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
