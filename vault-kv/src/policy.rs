//! Who may do what: policies, their rules, and the decision with its reason.
//!
//! A policy is a named document in HCL or JSON ([`parse`]), of rules about paths and about Consul's resources ([`resource`]). A caller holds a set of names; the union of those
//! documents is an [`Acl`], and [`Acl::decide`] answers one question about one path. The answer always carries
//! which rule of which policy spoke ([`Decision`]), for the audit log and for whoever asks why.
//!
//! Names are normalised here, at [`PolicyName::parse`], and nowhere else: a name with blanks around it is
//! refused rather than trimmed, so that `" root"` can never become `root` (CVE-2025-5999 and its kin).

mod acl;
pub(crate) mod builtin;
mod grants;
mod parse;
mod pattern;
mod resource;
mod rights;
mod roles;
mod store;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use acl::{Acl, Decision, Identity};
pub use grants::{Grant, Grants};
use pattern::Pattern;
pub(crate) use rights::Rights;
pub(crate) use roles::PREFIX as ROLES;
pub(crate) use store::{PREFIX as POLICIES, Policies};

use crate::http::ApiError;

/// The name of a policy: lower case, printable, no blanks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName(Arc<str>);

impl PolicyName {
    /// Normalise a name: ASCII letters are lower-cased, everything doubtful is refused.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@/+=".contains(c);
        if text.is_empty() || text.len() > 128 || !text.chars().all(allowed) {
            return Err(ApiError::bad(
                "a policy name has 1 to 128 characters out of letters, digits and -_.:@/+= (no blanks)",
            ));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        &*self.0 == "root"
    }
}

/// A set of capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities(u8);

/// One thing a rule can allow, or `deny`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Write something that does not exist yet.
    Create = 1,
    /// Read.
    Read = 2,
    /// Write over something.
    Update = 4,
    /// Merge-patch.
    Patch = 8,
    /// Delete.
    Delete = 16,
    /// List names.
    List = 32,
    /// Use root-protected paths.
    Sudo = 64,
    /// Nothing at all; beats every other capability.
    Deny = 128,
}

impl Capability {
    const ALL: [(Self, &'static str); 8] = [
        (Self::Create, "create"),
        (Self::Delete, "delete"),
        (Self::Deny, "deny"),
        (Self::List, "list"),
        (Self::Patch, "patch"),
        (Self::Read, "read"),
        (Self::Sudo, "sudo"),
        (Self::Update, "update"),
    ];

    /// The name used in policies.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(c, _)| *c == self)
            .map_or("", |(_, name)| name)
    }
}

impl Capabilities {
    pub(crate) fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability as u8)
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True when the capability is there and nothing is denied.
    pub fn allows(self, capability: Capability) -> bool {
        !self.denied() && self.0 & capability as u8 != 0
    }

    /// True when `deny` is among them.
    pub fn denied(self) -> bool {
        self.0 & Capability::Deny as u8 != 0
    }

    /// Names, sorted; `["deny"]` when nothing is allowed.
    pub fn names(self) -> Vec<&'static str> {
        if self.denied() || self.0 == 0 {
            return vec!["deny"];
        }
        Capability::ALL
            .iter()
            .filter(|(c, _)| self.0 & *c as u8 != 0)
            .map(|(_, name)| *name)
            .collect()
    }
}

/// The policies that an identity or a login may give, by their one form, sorted: neither `root` (CVE-2024-9180) nor the one
/// of wrapped answers.
///
/// # Errors
/// 400 with the name.
pub(crate) fn assignable(names: &[String]) -> Result<Vec<String>, ApiError> {
    let mut out: Vec<String> = names
        .iter()
        .map(|name| Ok(PolicyName::parse(name)?.as_str().to_string()))
        .collect::<Result<_, ApiError>>()?;
    let refused = ["root", builtin::WRAPPING_NAME];
    if let Some(name) = out.iter().find(|name| refused.contains(&name.as_str())) {
        return Err(ApiError::bad(format!(
            "the policy {name:?} cannot be given to identities and by logins"
        )));
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// One parsed policy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub name: PolicyName,
    /// The document as written.
    pub source: String,
    pub rules: Vec<Rule>,
    /// Whether what it grants depends on who asks.
    pub has_templates: bool,
    /// For people.
    pub description: String,
}

impl Policy {
    /// Parse a document.
    ///
    /// # Errors
    /// 400 naming the rule and what is wrong with it.
    pub fn parse(name: PolicyName, source: &str) -> Result<Self, ApiError> {
        let rules = parse::rules(source)
            .map_err(|why| ApiError::bad(format!("failed to parse policy: {why}")))?;
        Ok(Self {
            name,
            source: source.to_string(),
            has_templates: rules.iter().any(|rule| rule.place.has_template()),
            rules,
            description: String::new(),
        })
    }

    /// Whether it has rules about Consul's resources only.
    pub fn is_consuls(&self) -> bool {
        !self.name.is_root()
            && self
                .rules
                .iter()
                .all(|rule| matches!(rule.place, Place::Literal(_)))
    }
}

/// One `path "…" { … }`, or a part of what a rule about one of Consul's resources stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub place: Place,
    pub capabilities: Capabilities,
    /// Parameter names (lower case) and the values allowed for them; no values = any.
    pub allowed: Parameters,
    pub denied: Parameters,
    pub required: Vec<String>,
    pub wrapping: Wrapping,
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Place {
    /// The path as written, perhaps with `{{identity.…}}` in it.
    Written(String),
    /// What needs no filling in.
    Literal(Pattern),
}

impl Place {
    fn has_template(&self) -> bool {
        matches!(self, Self::Written(path) if path.contains("{{"))
    }
}

impl Rule {
    /// A rule that grants nothing yet.
    fn at(place: Place) -> Self {
        Self {
            place,
            capabilities: Capabilities::default(),
            allowed: Parameters::new(),
            denied: Parameters::new(),
            required: Vec::new(),
            wrapping: Wrapping::default(),
        }
    }
}

/// How an answer must be wrapped; either bound makes wrapping a must.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wrapping {
    pub min: Option<Duration>,
    pub max: Option<Duration>,
}

impl Wrapping {
    fn permits(self, ttl: Option<Duration>) -> bool {
        match (self.min, self.max, ttl) {
            (None, None, _) => true,
            (_, _, None) => false,
            (min, max, Some(ttl)) => {
                min.is_none_or(|min| ttl >= min) && max.is_none_or(|max| ttl <= max)
            }
        }
    }
}

pub(crate) type Parameters = std::collections::BTreeMap<String, Vec<serde_json::Value>>;

#[cfg(test)]
mod tests;
