//! Health and the checks that decide it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::quoted;
use super::{InstanceId, InvalidField, checked};

/// How well something is; ordered from best to worst, so that the aggregate is the maximum (as in Consul).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Fit to serve.
    Passing,
    /// Serving, with a warning.
    Warning,
    /// Not fit to serve.
    Critical,
    /// Taken out by an operator.
    Maintenance,
}

impl Health {
    /// Whether traffic may go there: passing, or warning.
    pub fn is_usable(self) -> bool {
        self <= Self::Warning
    }

    /// Consul's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Maintenance => "maintenance",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Health {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        match text {
            "passing" => Ok(Self::Passing),
            "warning" => Ok(Self::Warning),
            "critical" => Ok(Self::Critical),
            "maintenance" => Ok(Self::Maintenance),
            other => Err(InvalidField::new(
                "status",
                format!("{} is not passing, warning or critical", quoted(other)),
            )),
        }
    }
}

/// What a node publishes about one check. The check's output never leaves the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRecord {
    /// Unique on its node.
    pub id: Arc<str>,
    /// For people.
    pub name: Arc<str>,
    /// The instance it speaks for; `None` = the whole node.
    pub service: Option<InstanceId>,
    /// The result.
    pub status: Health,
    /// `http`, `tcp`, `ttl`, …
    pub kind: Arc<str>,
    /// For people.
    pub notes: Arc<str>,
    /// When it was first registered: unix µs, by its node's clock. Filled in by the local log.
    pub create_stamp: u64,
    /// When it last changed: unix µs, by its node's clock. Filled in by the local log.
    pub modify_stamp: u64,
}

impl CheckRecord {
    /// Equal in everything but the two stamps.
    pub fn same_as(&self, other: &Self) -> bool {
        let stamped = Self {
            create_stamp: other.create_stamp,
            modify_stamp: other.modify_stamp,
            ..self.clone()
        };
        stamped == *other
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// [`InvalidField`] for an empty or over-long `check id`, over-long `name`, `kind` or `notes`.
    pub fn validate(&self) -> Result<(), InvalidField> {
        checked::check_id(&self.id)?;
        checked::check_text("name", &self.name)?;
        checked::check_text("kind", &self.kind)?;
        checked::check_text("notes", &self.notes)?;
        Ok(())
    }
}
