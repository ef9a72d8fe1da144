//! Where something stands.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{InvalidField, limits};

/// Region and zone: what fails together, and what is near. Names are compared as they are. Both empty = not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Locality {
    /// A place with a network of its own, such as `eu-west-1`.
    pub region: Arc<str>,
    /// A part of the region that fails alone, such as `eu-west-1a`; needs a region (as in Consul).
    pub zone: Arc<str>,
}

impl Locality {
    /// A locality, checked.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn new(region: &str, zone: &str) -> Result<Self, InvalidField> {
        let locality = Self {
            region: region.into(),
            zone: zone.into(),
        };
        locality.validate().map(|()| locality)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty()
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// [`InvalidField`] `locality` for a zone without a region, or names over [`limits::LOCALITY_BYTES`] or with control characters.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let wrong = |reason| Err(InvalidField::new("locality", reason));
        if self.region.is_empty() && !self.zone.is_empty() {
            return wrong("a zone needs a region".to_owned());
        }
        for name in [&self.region, &self.zone] {
            if name.len() > limits::LOCALITY_BYTES || name.chars().any(char::is_control) {
                return wrong(format!(
                    "{} must have at most {} bytes and no control characters",
                    super::error::quoted(name),
                    limits::LOCALITY_BYTES
                ));
            }
        }
        Ok(())
    }
}
