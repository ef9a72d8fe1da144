//! Who may call whom. Precedence as in Consul: an exact destination beats a wildcard, then an exact
//! source beats a wildcard; the order in which intentions were written never matters.

use std::{collections::HashMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::model::{InvalidField, ServiceName};

/// Allow or deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The call goes through.
    Allow,
    /// The call is refused.
    #[default]
    Deny,
}

/// One service, or every service (`*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ServiceMatch {
    /// `*`
    Any,
    /// This service.
    Name(ServiceName),
}

/// A rule between a source and a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intention {
    /// Who calls.
    pub source: ServiceMatch,
    /// Who is called.
    pub destination: ServiceMatch,
    /// What holds.
    pub action: Action,
}

/// What holds for a call, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the call may go through.
    pub action: Action,
    /// The rule that decided; `None`: the default did.
    pub rule: Option<Intention>,
}

/// Intentions, indexed for evaluation.
#[derive(Debug, Clone, Default)]
pub struct Intentions {
    rules: HashMap<ServiceMatch, HashMap<ServiceMatch, Action>>,
    default: Action,
}

impl Intentions {
    /// These rules; where two are for the same pair, the later one holds.
    pub fn new(rules: &[Intention], default: Action) -> Self {
        let mut index: HashMap<ServiceMatch, HashMap<ServiceMatch, Action>> = HashMap::new();
        for rule in rules {
            index
                .entry(rule.destination.clone())
                .or_default()
                .insert(rule.source.clone(), rule.action);
        }
        Self {
            rules: index,
            default,
        }
    }

    /// What holds for a call from `source` to `destination`.
    pub fn evaluate(&self, source: &ServiceName, destination: &ServiceName) -> Decision {
        for to in [ServiceMatch::Name(destination.clone()), ServiceMatch::Any] {
            let Some(sources) = self.rules.get(&to) else {
                continue;
            };
            for from in [ServiceMatch::Name(source.clone()), ServiceMatch::Any] {
                if let Some(&action) = sources.get(&from) {
                    return Decision {
                        action,
                        rule: Some(Intention {
                            source: from,
                            destination: to,
                            action,
                        }),
                    };
                }
            }
        }
        Decision {
            action: self.default,
            rule: None,
        }
    }
}

impl Intention {
    /// Consul's figure: an exact destination counts more than an exact source. 9, 8, 6 or 5.
    pub fn precedence(&self) -> u8 {
        match (&self.destination, &self.source) {
            (ServiceMatch::Name(_), ServiceMatch::Name(_)) => 9,
            (ServiceMatch::Name(_), ServiceMatch::Any) => 8,
            (ServiceMatch::Any, ServiceMatch::Name(_)) => 6,
            (ServiceMatch::Any, ServiceMatch::Any) => 5,
        }
    }
}

impl Decision {
    /// Whether the call may go through.
    pub fn is_allowed(&self) -> bool {
        self.action == Action::Allow
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = if self.is_allowed() {
            "allowed"
        } else {
            "denied"
        };
        match &self.rule {
            Some(rule) => write!(
                f,
                "{action} by the intention {} -> {}",
                rule.source, rule.destination
            ),
            None => write!(f, "{action} by default: no intention matches"),
        }
    }
}

impl fmt::Display for ServiceMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for ServiceMatch {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        if text == "*" {
            Ok(Self::Any)
        } else {
            ServiceName::parse(text).map(Self::Name)
        }
    }
}

impl TryFrom<String> for ServiceMatch {
    type Error = InvalidField;

    fn try_from(text: String) -> Result<Self, InvalidField> {
        text.parse()
    }
}

impl From<ServiceMatch> for String {
    fn from(value: ServiceMatch) -> Self {
        value.to_string()
    }
}
