//! Names: small, shared, already normalised.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use super::error::quoted;
use super::{InvalidField, checked, limits};

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses and normalises `text`.
            ///
            /// # Errors
            /// [`InvalidField`] that names the field and says what is not allowed.
            pub fn parse(text: &str) -> Result<Self, InvalidField> {
                $parse(text).map(Self)
            }

            /// The normalised text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The shared text, for keeping without a copy.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidField;

            fn from_str(text: &str) -> Result<Self, InvalidField> {
                Self::parse(text)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type! {
    /// Name of a service: `[a-z0-9]` first, then `[a-z0-9-_.]`, at most 128 bytes; lower-cased at parse.
    ServiceName, service
}

name_type! {
    /// Name of a node, as in `node1.node.mesh`: letters, digits, `-`, `_` in labels of at most 63 bytes joined by
    /// dots, each starting with a letter or digit; at most 253 bytes; lower-cased at parse.
    NodeName, node
}

name_type! {
    /// Name of a datacenter: one DNS label (`[a-z0-9]` first, then `[a-z0-9-_]`, at most 63 bytes); lower-cased at
    /// parse.
    Datacenter, datacenter
}

name_type! {
    /// Id of an instance on its node: 1 to 256 bytes without control characters; case counts (as in Consul).
    InstanceId, instance_id
}

impl Default for Datacenter {
    /// `dc1`.
    fn default() -> Self {
        Self(Arc::from("dc1"))
    }
}

impl ServiceName {
    /// Lets `share` put an equal text in the place of this one.
    pub(crate) fn share(&mut self, share: impl FnOnce(&mut Arc<str>)) {
        share(&mut self.0);
    }
}

fn service(text: &str) -> Result<Arc<str>, InvalidField> {
    dotted("service", text, limits::SERVICE_BYTES)
}

fn node(text: &str) -> Result<Arc<str>, InvalidField> {
    let name = dotted("node", text, limits::NODE_BYTES)?;
    for label in name.split('.') {
        if label.is_empty()
            || label.len() > limits::LABEL_BYTES
            || !label.as_bytes()[0].is_ascii_alphanumeric()
        {
            return Err(InvalidField::new(
                "node",
                format!(
                    "{} has the label {}: labels have 1 to {} bytes and start with a letter or digit",
                    quoted(text),
                    quoted(label),
                    limits::LABEL_BYTES
                ),
            ));
        }
    }
    Ok(name)
}

fn datacenter(text: &str) -> Result<Arc<str>, InvalidField> {
    let name = dotted("datacenter", text, limits::LABEL_BYTES)?;
    if name.contains('.') {
        return Err(InvalidField::new(
            "datacenter",
            format!("{} must be one label, without dots", quoted(text)),
        ));
    }
    Ok(name)
}

fn instance_id(text: &str) -> Result<Arc<str>, InvalidField> {
    checked::instance_id(text)?;
    Ok(Arc::from(text))
}

/// `[a-z0-9][a-z0-9-_.]*`, lower-cased, at most `max` bytes.
fn dotted(field: &'static str, text: &str, max: usize) -> Result<Arc<str>, InvalidField> {
    if text.is_empty() {
        return Err(InvalidField::new(field, "is empty"));
    }
    if text.len() > max {
        return Err(InvalidField::new(
            field,
            format!(
                "{} has {} bytes, the most is {max}",
                quoted(text),
                text.len()
            ),
        ));
    }
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !text.as_bytes()[0].is_ascii_alphanumeric() || !text.bytes().all(fits) {
        return Err(InvalidField::new(
            field,
            format!(
                "{} must start with a letter or digit and hold only letters, digits, '-', '_', '.'",
                quoted(text)
            ),
        ));
    }
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Ok(Arc::from(text.to_ascii_lowercase()));
    }
    Ok(Arc::from(text))
}
