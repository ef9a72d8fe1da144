//! The union of a caller's policies, and the decision about one request.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::pattern::Pattern;
use super::{Capabilities, Capability, Parameters, Place, Policy, PolicyName, Rule, Wrapping};
use crate::request::Data;

/// What templates may refer to: facts of a verified identity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// `identity.service`: the service of the SPIFFE ID.
    pub service: Option<String>,
    /// `identity.datacenter`: its datacenter.
    pub datacenter: Option<String>,
    /// `identity.node`: the node of the SPIFFE ID.
    pub node: Option<String>,
    /// The id of the entity, whose facts are filled in where a policy asks for them.
    pub entity: Option<String>,
    /// `identity.entity.…` and `identity.groups.…`, without `identity.`.
    pub facts: BTreeMap<String, String>,
}

impl Identity {
    fn value(&self, name: &str) -> Option<&str> {
        match name {
            "identity.service" => self.service.as_deref(),
            "identity.datacenter" => self.datacenter.as_deref(),
            "identity.node" => self.node.as_deref(),
            _ => {
                let fact = self.facts.get(name.strip_prefix("identity.")?)?;
                Some(fact)
            }
        }
    }

    /// Whether there is such a name, whatever it stands for.
    fn has_name(name: &str) -> bool {
        let Some(name) = name.strip_prefix("identity.") else {
            return false;
        };
        let parts: Vec<_> = name.split('.').collect();
        match parts[..] {
            ["service" | "datacenter" | "node"] | ["entity", "id" | "name"] => true,
            ["entity", "metadata", ..] => parts.len() > 2,
            ["entity", "aliases", _, "id" | "name"] => true,
            ["entity", "aliases", _, "metadata" | "custom_metadata", ..] => parts.len() > 4,
            ["groups", "ids", _, "name"] | ["groups", "names", _, "id"] => true,
            ["groups", "ids" | "names", _, "metadata", ..] => parts.len() > 4,
            _ => false,
        }
    }
}

/// Rules of the same pattern from all policies, made one.
#[derive(Debug)]
struct Merged {
    pattern: Pattern,
    capabilities: Capabilities,
    /// Each contributing rule's parameter limits; a request must satisfy one of them.
    limits: Vec<Limits>,
    policies: Vec<PolicyName>,
}

#[derive(Debug)]
struct Limits {
    /// What the rule grants; its limits say nothing about anything else.
    capabilities: Capabilities,
    allowed: Parameters,
    denied: Parameters,
    required: Vec<String>,
    wrapping: Wrapping,
}

/// A caller's rights. Cheap to share; built once per set of policies and identity.
#[derive(Debug)]
pub(crate) struct Acl {
    root: bool,
    exact: HashMap<String, Merged>,
    /// Most specific first, so that the first match wins.
    globs: Vec<Merged>,
    policies: Vec<PolicyName>,
}

/// An answer with its reason.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decision {
    pub allowed: bool,
    pub reason: Reason,
}

/// Why.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reason {
    /// The caller holds the root policy.
    Root,
    /// This pattern of these policies has the right (or lacks it).
    Rule {
        pattern: String,
        policies: Vec<PolicyName>,
        capabilities: Capabilities,
    },
    /// The rule allows the call, but not with this parameter.
    Parameter {
        pattern: String,
        policies: Vec<PolicyName>,
        name: String,
    },
    /// No rule of these policies matches the path.
    NoRule { policies: Vec<PolicyName> },
}

impl Decision {
    /// The policies that granted it.
    pub fn granting(&self) -> Vec<PolicyName> {
        match &self.reason {
            Reason::Root => PolicyName::parse("root").into_iter().collect(),
            Reason::Rule { policies, .. } if self.allowed => policies.clone(),
            _ => Vec::new(),
        }
    }

    /// One sentence for people.
    pub fn explain(&self, capability: Capability, path: &str) -> String {
        let names = |policies: &[PolicyName]| match policies {
            [] => "no policy".to_string(),
            many => many
                .iter()
                .map(PolicyName::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        };
        let verb = if self.allowed { "allowed" } else { "denied" };
        let what = format!("{} on {path:?} is {verb}", capability.as_str());
        match &self.reason {
            Reason::Root => format!("{what}: the caller holds the root policy"),
            Reason::Rule {
                pattern,
                policies,
                capabilities,
            } => {
                format!(
                    "{what}: the most specific rule is {pattern:?} of {} with [{}]",
                    names(policies),
                    capabilities.names().join(", ")
                )
            }
            Reason::Parameter {
                pattern,
                policies,
                name,
            } => {
                format!(
                    "{what}: rule {pattern:?} of {} does not permit the request's parameter {name:?}",
                    names(policies)
                )
            }
            Reason::NoRule { policies } => {
                format!("{what}: no rule of {} matches", names(policies))
            }
        }
    }
}

impl Acl {
    /// Merge policies for one identity. A rule whose template has no value for this identity matches nothing.
    pub fn new(policies: &[Arc<Policy>], identity: &Identity) -> Self {
        let mut merged: BTreeMap<Pattern, Merged> = BTreeMap::new();
        for policy in policies {
            for rule in &policy.rules {
                let Some(pattern) = resolve(rule, identity) else {
                    continue;
                };
                let entry = merged.entry(pattern.clone()).or_insert_with(|| Merged {
                    pattern,
                    capabilities: Capabilities::default(),
                    limits: Vec::new(),
                    policies: Vec::new(),
                });
                entry.capabilities = entry.capabilities.union(rule.capabilities);
                entry.limits.push(Limits {
                    capabilities: rule.capabilities,
                    allowed: rule.allowed.clone(),
                    denied: rule.denied.clone(),
                    required: rule.required.clone(),
                    wrapping: rule.wrapping,
                });
                if !entry.policies.contains(&policy.name) {
                    entry.policies.push(policy.name.clone());
                }
            }
        }
        let (exact, mut globs): (Vec<_>, Vec<_>) =
            merged.into_values().partition(|m| m.pattern.is_exact());
        globs.sort_by(|a, b| b.pattern.specificity(&a.pattern));
        Self {
            root: policies.iter().any(|p| p.name.is_root()),
            exact: exact
                .into_iter()
                .map(|m| (m.pattern.as_str().to_string(), m))
                .collect(),
            globs,
            policies: policies.iter().map(|p| p.name.clone()).collect(),
        }
    }

    pub fn is_root(&self) -> bool {
        self.root
    }

    /// Everything allowed on a path.
    pub fn capabilities(&self, path: &str) -> Vec<&'static str> {
        if self.root {
            return vec!["root"];
        }
        self.rule(path, false)
            .map_or_else(|| vec!["deny"], |m| m.capabilities.names())
    }

    /// May the caller do this? `data` are the request's fields, for parameter rules.
    pub fn decide(&self, path: &str, capability: Capability, data: Option<&Data>) -> Decision {
        if self.root {
            return Decision {
                allowed: true,
                reason: Reason::Root,
            };
        }
        let Some(rule) = self.rule(path, capability == Capability::List) else {
            return Decision {
                allowed: false,
                reason: Reason::NoRule {
                    policies: self.policies.clone(),
                },
            };
        };
        let (pattern, policies) = (rule.pattern.as_str().to_string(), rule.policies.clone());
        let allowed = rule.capabilities.allows(capability);
        let checked = matches!(
            capability,
            Capability::Read | Capability::Create | Capability::Update | Capability::Patch
        );
        if let (true, true, Some(data)) = (allowed, checked, data)
            && let Some(name) = rule.refused_parameter(capability, data)
        {
            return Decision {
                allowed: false,
                reason: Reason::Parameter {
                    pattern,
                    policies,
                    name,
                },
            };
        }
        Decision {
            allowed,
            reason: Reason::Rule {
                pattern,
                policies,
                capabilities: rule.capabilities,
            },
        }
    }

    /// Whether what a rule says about wrapping the answer is met. As with parameters, one rule that grants the capability
    /// and is met is enough.
    pub fn permits_wrapping(
        &self,
        path: &str,
        capability: Capability,
        ttl: Option<Duration>,
    ) -> bool {
        if self.root {
            return true;
        }
        let rule = self.rule(path, capability == Capability::List);
        rule.is_some_and(|rule| {
            let mut limits = rule.limits.iter();
            limits.any(|limits| {
                limits.capabilities.allows(capability) && limits.wrapping.permits(ttl)
            })
        })
    }

    /// What the rule for a path says of a capability; `None`: there is no rule.
    pub fn says(&self, path: &str, capability: Capability) -> Option<bool> {
        match self.root {
            true => Some(true),
            false => Some(self.rule(path, false)?.capabilities.allows(capability)),
        }
    }

    /// Whether this is allowed on everything that begins with `prefix`, known or not; where no rule speaks, `otherwise`
    /// counts.
    pub fn allows_below(&self, prefix: &str, capability: Capability, otherwise: bool) -> bool {
        if self.root {
            return true;
        }
        let rules = || self.exact.values().chain(&self.globs);
        let mut covering = self.globs.iter().filter(|m| m.pattern.covers(prefix));
        let general = covering.next().map_or(otherwise, |m| {
            // The first is the longest one: it speaks where nothing more specific does.
            m.capabilities.allows(capability)
        });
        general
            && rules()
                .filter(|m| m.pattern.reaches_below(prefix) && !m.pattern.covers(prefix))
                .all(|m| m.capabilities.allows(capability))
    }

    /// The rules about what begins with one of these.
    pub fn rules_below(&self, prefixes: &[&str]) -> Vec<(Pattern, Capabilities)> {
        self.exact
            .values()
            .chain(&self.globs)
            .filter(|m| {
                prefixes
                    .iter()
                    .any(|prefix| m.pattern.reaches_below(prefix))
            })
            .map(|m| (m.pattern.clone(), m.capabilities))
            .collect()
    }

    /// What such rules grant.
    pub fn of_rules(rules: impl Iterator<Item = (Pattern, Capabilities)>, root: bool) -> Self {
        let merged = rules.map(|(pattern, capabilities)| Merged {
            pattern,
            capabilities,
            limits: Vec::new(),
            policies: Vec::new(),
        });
        let (exact, mut globs): (Vec<_>, Vec<_>) = merged.partition(|m| m.pattern.is_exact());
        globs.sort_by(|a, b| b.pattern.specificity(&a.pattern));
        Self {
            root,
            exact: exact
                .into_iter()
                .map(|m| (m.pattern.as_str().to_string(), m))
                .collect(),
            globs,
            policies: Vec::new(),
        }
    }

    /// May the caller see that something exists at or below this path? (Used for mount listings.)
    pub fn touches(&self, prefix: &str) -> bool {
        let below = |text: &str| {
            let fixed = text.split(['*', '+']).next().unwrap_or_default();
            fixed.starts_with(prefix) || (fixed.len() < text.len() && prefix.starts_with(fixed))
        };
        let rules = self.exact.values().chain(&self.globs);
        self.root
            || rules.into_iter().any(|m| {
                !m.capabilities.denied()
                    && m.capabilities != Capabilities::default()
                    && below(m.pattern.as_str())
            })
    }

    /// The rule that speaks for a path. LIST asks for a folder (`a/`): rules for `a` speak for it as well, or a `deny`
    /// on `a` could be walked around by listing (GHSA-xp3c); the more specific of both wins.
    fn rule(&self, path: &str, list: bool) -> Option<&Merged> {
        let bare = path
            .strip_suffix('/')
            .filter(|bare| list && !bare.is_empty());
        if let Some(exact) = self.exact.get(path).or_else(|| self.exact.get(bare?)) {
            return Some(exact);
        }
        self.globs
            .iter()
            .find(|m| m.pattern.matches(path) || bare.is_some_and(|bare| m.pattern.matches(bare)))
    }
}

impl Merged {
    /// A parameter that no rule granting the capability permits. A rule without limits permits everything.
    fn refused_parameter(&self, capability: Capability, data: &Data) -> Option<String> {
        let mut refused = None;
        for limits in self
            .limits
            .iter()
            .filter(|l| l.capabilities.allows(capability))
        {
            refused = Some(limits.refuse(data)?);
        }
        refused
    }
}

impl Limits {
    fn refuse(&self, data: &Data) -> Option<String> {
        // Names are compared in lower case, or `Ttl` would pass where `ttl` is denied.
        let sent: Vec<(String, &Value)> = data
            .map()
            .iter()
            .map(|(k, v)| (k.to_ascii_lowercase(), v))
            .collect();
        if let Some(missing) = self
            .required
            .iter()
            .find(|name| !sent.iter().any(|(k, _)| k == *name))
        {
            return Some(missing.clone());
        }
        for (name, value) in &sent {
            let denied = self
                .denied
                .get("*")
                .map(Vec::as_slice)
                .filter(|v| v.is_empty())
                .or_else(|| self.denied.get(name).map(Vec::as_slice));
            if denied.is_some_and(|values| {
                values.is_empty() || values.iter().any(|v| value_matches(v, value))
            }) {
                return Some(name.clone());
            }
        }
        if self.allowed.is_empty() {
            return None;
        }
        for (name, value) in &sent {
            let Some(values) = self.allowed.get(name).or_else(|| self.allowed.get("*")) else {
                return Some(name.clone());
            };
            if !values.is_empty() && !values.iter().any(|v| value_matches(v, value)) {
                return Some(name.clone());
            }
        }
        None
    }
}

/// Equal, or equal under a leading and/or trailing `*`; a list must match in every item.
fn value_matches(rule: &Value, sent: &Value) -> bool {
    if let Value::Array(items) = sent {
        return !items.is_empty() && items.iter().all(|item| value_matches(rule, item));
    }
    match (rule, sent) {
        (Value::String(rule), Value::String(sent)) => {
            match (rule.strip_prefix('*'), rule.strip_suffix('*')) {
                (Some(_), Some(_)) if rule.len() > 1 => sent.contains(&rule[1..rule.len() - 1]),
                (Some(tail), _) => sent.ends_with(tail),
                (_, Some(head)) => sent.starts_with(head),
                _ => rule == sent,
            }
        }
        _ => rule == sent,
    }
}

/// A rule's pattern with its templates filled in for one identity.
fn resolve(rule: &Rule, identity: &Identity) -> Option<Pattern> {
    let path = match &rule.place {
        Place::Literal(pattern) => return Some(pattern.clone()),
        Place::Written(path) => path,
    };
    let text = fill(path, |name| identity.value(name).map(str::to_string))
        .ok()
        .flatten()?;
    Pattern::parse(&text).ok()
}

/// Replace every `{{name}}`. `Ok(None)` when a value is missing or could change the pattern's meaning
/// (GHSA-59w7: a value with `*`, `+` or `/` would widen the rule). `Err` for an unknown name or broken braces.
pub(super) fn fill(
    path: &str,
    value: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut complete = true;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, tail) = after
            .split_once("}}")
            .ok_or_else(|| format!("path {path:?}: '{{{{' without '}}}}'"))?;
        let name = name.trim();
        if !Identity::has_name(name) {
            return Err(format!(
                "path {path:?}: unknown template {name:?} (identity.service, identity.datacenter, identity.node, identity.entity.…, identity.groups.…)"
            ));
        }
        out.push_str(before);
        match value(name).filter(|v| !v.is_empty() && !v.contains(['*', '+', '/', '{', '}'])) {
            Some(value) => out.push_str(&value),
            None => complete = false,
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(complete.then_some(out))
}
