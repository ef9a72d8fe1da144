//! Policy documents: HCL or JSON into rules.

use std::time::Duration;

use hcl::expr::{Expression, ObjectKey};
use hcl::structure::{Block, Structure};
use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::{Capabilities, Capability, Parameters, Rule, Wrapping};
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
    let rules = stanzas
        .into_iter()
        .map(|(path, fields)| rule(path, &fields))
        .collect::<Result<Vec<_>, _>>()?;
    if rules.is_empty() && !source.trim().is_empty() && !source.contains(['#', '/']) {
        return Err("no path rule found".into());
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

type Stanza = (String, Map<String, Value>);

fn from_hcl(source: &str) -> Result<Vec<Stanza>, String> {
    // The parser's message shows the source line; only its position is passed on.
    let body = hcl::parse(source).map_err(|error| match error {
        hcl::Error::Parse(parse) => {
            let at = parse.location();
            format!("At {}:{}: not valid HCL", at.line(), at.column())
        }
        _ => "not valid HCL".to_string(),
    })?;
    let mut out = Vec::new();
    for structure in body {
        match structure {
            Structure::Block(block) if block.identifier() == "path" => {
                let [label] = block.labels() else {
                    return Err(
                        "a path block needs exactly one path: path \"secret/*\" { … }".into(),
                    );
                };
                out.push((label.as_str().to_string(), block_fields(&block)?));
            }
            Structure::Attribute(attribute) if attribute.key() == "name" => {}
            Structure::Block(block) => {
                return Err(format!(
                    "unknown block {:?} (only path is known)",
                    block.identifier()
                ));
            }
            Structure::Attribute(attribute) => {
                return Err(format!(
                    "unknown key {:?} (only path blocks are known)",
                    attribute.key()
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
    let paths = document.remove("path").unwrap_or_default();
    if let Some(key) = document.keys().next() {
        return Err(format!("unknown key {key:?} (only path is known)"));
    }
    let mut out = Vec::new();
    let groups = match paths {
        Value::Array(groups) => groups,
        one => vec![one],
    };
    for group in groups {
        let Value::Object(group) = group else {
            return Err("\"path\" must be an object of path rules".into());
        };
        for (path, fields) in group {
            for fields in if let Value::Array(many) = fields {
                many
            } else {
                vec![fields]
            } {
                let Value::Object(fields) = fields else {
                    return Err(format!("path {path:?}: must be an object"));
                };
                out.push((path.clone(), fields));
            }
        }
    }
    Ok(out)
}

fn rule(path: String, fields: &Map<String, Value>) -> Result<Rule, String> {
    // Templates are filled in per caller; the pattern's shape is checked now with a harmless word.
    Pattern::parse(&super::acl::fill(&path, |_| Some("x".into()))?.unwrap_or_default())?;
    let mut rule = Rule {
        path,
        capabilities: Capabilities::default(),
        allowed: Parameters::new(),
        denied: Parameters::new(),
        required: Vec::new(),
        wrapping: Wrapping::default(),
    };
    for (key, value) in fields {
        match key.as_str() {
            "capabilities" => {
                for name in texts(value).ok_or_else(|| {
                    format!("path {:?}: capabilities must be a list of texts", rule.path)
                })? {
                    rule.capabilities = rule.capabilities.union(capability(&rule.path, name)?);
                }
            }
            "policy" => rule.capabilities = rule.capabilities.union(shorthand(&rule.path, value)?),
            "allowed_parameters" => rule.allowed = parameters(&rule.path, key, value)?,
            "denied_parameters" => rule.denied = parameters(&rule.path, key, value)?,
            "required_parameters" => {
                rule.required = texts(value)
                    .ok_or_else(|| {
                        format!(
                            "path {:?}: required_parameters must be a list of texts",
                            rule.path
                        )
                    })?
                    .into_iter()
                    .map(str::to_ascii_lowercase)
                    .collect();
            }
            "min_wrapping_ttl" => rule.wrapping.min = Some(ttl(&rule.path, key, value)?),
            "max_wrapping_ttl" => rule.wrapping.max = Some(ttl(&rule.path, key, value)?),
            // A restriction that is silently not applied would grant more than was written.
            "mfa_methods"
            | "control_group"
            | "expiration"
            | "list_scan_response_keys_filter_path" => {
                return Err(format!("path {:?}: {key} is not supported", rule.path));
            }
            key if IGNORED.contains(&key) => {}
            _ => return Err(format!("path {:?}: invalid key {key:?}", rule.path)),
        }
    }
    if let Wrapping {
        min: Some(min),
        max: Some(max),
    } = rule.wrapping
        && min > max
    {
        return Err(format!(
            "path {:?}: max_wrapping_ttl is less than min_wrapping_ttl",
            rule.path
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
