//! Consul's rules in a policy document: `key_prefix "app/" { policy = "write" }`, `acl = "read"`.
//!
//! Each stands for rules about paths, so that there is one evaluator. Its order is Consul's: what names something
//! exactly comes before a prefix, a longer prefix before a shorter one, and of the same name `deny` before `write`, `list`
//! and `read`. Names are what they are: `*`, `+` and `{{…}}` in them stand for themselves.

use serde_json::{Map, Value};

use super::pattern::Pattern;
use super::{Capabilities, Capability, Place, Rule};

/// Resources that have names, and what their paths begin with.
const NAMED: [(&str, &[&str]); 8] = [
    ("agent", &["consul/agent/"]),
    ("event", &["consul/event/"]),
    ("identity", &["consul/identity/"]),
    ("key", &["consul/kv/"]),
    ("node", &["consul/node/", "mesh/external/"]),
    ("query", &["consul/query/"]),
    ("service", &["consul/service/"]),
    ("session", &["consul/session/"]),
];

/// Resources that there is one of, and its path.
const SINGLE: [(&str, &str); 5] = [
    ("acl", "consul/acl"),
    ("keyring", "mesh/keyring"),
    ("mesh", "consul/mesh"),
    ("operator", "consul/operator"),
    ("peering", "consul/peering"),
];

/// Where intentions are, below the name of their destination.
const INTENTIONS: &str = "mesh/intention/";
/// Where prepared queries without a name are.
const NAMELESS_QUERIES: &str = "mesh/query/";

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resource {
    name: &'static str,
    prefix: bool,
}

impl Resource {
    /// `key`, `key_prefix`, …
    pub fn named(text: &str) -> Option<Self> {
        let (base, prefix) = match text.strip_suffix("_prefix") {
            Some(base) => (base, true),
            None => (text, false),
        };
        let (name, _) = NAMED.into_iter().find(|(name, _)| *name == base)?;
        Some(Self { name, prefix })
    }

    /// What the rule in `fields` about `name` stands for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn rules(self, name: &str, fields: &Map<String, Value>) -> Result<Vec<Rule>, String> {
        let kind = self.name;
        let shown = || {
            format!(
                "{kind}{} {name:?}",
                if self.prefix { "_prefix" } else { "" }
            )
        };
        let mut policy = None;
        let mut intentions = None;
        for (key, value) in fields {
            match key.as_str() {
                "policy" => policy = Some(access(&shown(), key, value)?),
                "intentions" if kind == "service" => {
                    intentions = Some(access(&shown(), key, value)?);
                }
                _ => return Err(format!("{}: invalid key {key:?}", shown())),
            }
        }
        let policy = policy.ok_or_else(|| format!("{}: policy is missing", shown()))?;
        for access in [Some(policy), intentions].into_iter().flatten() {
            if access == Access::List && kind != "key" {
                return Err(format!("{}: the policy \"list\" is for keys", shown()));
            }
        }
        let name = match kind {
            "agent" | "node" | "service" | "session" => {
                if name.contains('/') {
                    return Err(format!("{}: no {kind} is called so", shown()));
                }
                name.to_ascii_lowercase()
            }
            "query" => name.to_ascii_lowercase(),
            _ => name.to_owned(),
        };
        let place = |path: &str, name: &str| match self.prefix {
            true => Pattern::prefix(format!("{path}{name}")),
            false => Pattern::exact(format!("{path}{name}")),
        };
        let paths = NAMED.iter().find(|(named, _)| *named == kind);
        let paths = paths.map_or(&[][..], |(_, paths)| paths);
        let mut rules: Vec<Rule> = paths
            .iter()
            .map(|path| rule(place(path, &name), policy))
            .collect();
        if kind == "query" && self.prefix && name.is_empty() {
            rules.push(rule(Pattern::prefix(NAMELESS_QUERIES.to_owned()), policy));
        }
        if kind == "service" {
            // Who may see a service may see who may call it.
            let intentions = intentions.unwrap_or(match policy {
                Access::Deny => Access::Deny,
                Access::Read | Access::List | Access::Write => Access::Read,
            });
            let end = if self.prefix { "" } else { "/" };
            let below = Pattern::prefix(format!("{INTENTIONS}{name}{end}"));
            rules.push(rule(below, intentions));
        }
        Ok(rules)
    }
}

/// What `acl = "read"` and its like stand for; `None`: there is no such resource.
pub(super) fn single(name: &str, value: &Value) -> Option<Result<Rule, String>> {
    let (_, path) = SINGLE.iter().find(|(single, _)| *single == name)?;
    Some(match access(name, "policy", value) {
        Ok(Access::List) => Err(format!("{name}: the policy \"list\" is for keys")),
        Ok(access) => Ok(rule(Pattern::exact((*path).to_owned()), access)),
        Err(why) => Err(why),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Deny,
    Read,
    List,
    Write,
}

fn access(of: &str, key: &str, value: &Value) -> Result<Access, String> {
    match value.as_str() {
        Some("deny") => Ok(Access::Deny),
        Some("read") => Ok(Access::Read),
        Some("list") => Ok(Access::List),
        Some("write") => Ok(Access::Write),
        _ => Err(format!(
            "{of}: invalid {key} (read, write or deny; list for keys)"
        )),
    }
}

fn rule(pattern: Pattern, access: Access) -> Rule {
    use Capability::{Create, Delete, Deny, List, Patch, Read, Update};
    let all: &[Capability] = match access {
        Access::Deny => &[Deny],
        Access::Read => &[Read],
        Access::List => &[Read, List],
        Access::Write => &[Create, Read, Update, Patch, Delete, List],
    };
    Rule {
        capabilities: all
            .iter()
            .fold(Capabilities::default(), |sum, one| sum.with(*one)),
        ..Rule::at(Place::Literal(pattern))
    }
}
