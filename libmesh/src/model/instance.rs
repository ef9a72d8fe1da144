//! Instances of services.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::quoted;
use super::{InstanceId, InvalidField, Meta, ServiceName};

/// Most tags of an instance.
const TAGS_MAX: usize = 256;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 255;
/// Most metadata pairs (Consul's limit).
const META_MAX: usize = 64;
/// Longest metadata key, in bytes (Consul's limit).
const META_KEY_MAX: usize = 128;
/// Longest metadata value, in bytes (Consul's limit).
const META_VALUE_MAX: usize = 512;
/// Longest host name (RFC 1035 §2.3.4).
const HOST_MAX: usize = 253;

/// Where something answers: an address, or a name that the asker resolves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A DNS name.
    Name(Arc<str>),
}

impl Host {
    /// An IP address where `text` is one, else a name.
    ///
    /// # Errors
    /// [`InvalidField`] `address` for an empty or over-long name, or one with characters that no host name has.
    pub fn parse(text: &str) -> Result<Self, InvalidField> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > HOST_MAX || !text.bytes().all(fits) {
            return Err(InvalidField::new(
                "address",
                format!("{} is neither an IP address nor a host name", quoted(text)),
            ));
        }
        Ok(Self::Name(Arc::from(text)))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => fmt::Display::fmt(ip, f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Share of the traffic an instance wants, by health (DNS SRV weights; 1 and 1 by default, as in Consul).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// While passing; 1 to 65535.
    pub passing: u16,
    /// While warning; 0 to 65535.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            passing: 1,
            warning: 1,
        }
    }
}

/// One running copy of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Unique on its node.
    pub id: InstanceId,
    /// The service it belongs to.
    pub service: ServiceName,
    /// Labels, in the order given; `v2.web.service.mesh` finds the instances with tag or version `v2`.
    pub tags: Vec<Arc<str>>,
    /// Free-form pairs.
    pub meta: Meta,
    /// Where it answers; `None` = at its node's address.
    pub address: Option<Host>,
    /// Its own port; 0 when it has none.
    pub port: u16,
    /// Port of its sidecar's mTLS listener, where there is one.
    pub mesh_port: Option<u16>,
    /// Version of the software, for subsets and traffic splits.
    pub version: Option<Arc<str>>,
    /// Share of the traffic.
    pub weights: Weights,
    /// Others may change the tags (Consul's `EnableTagOverride`).
    pub enable_tag_override: bool,
    /// When it was first registered: unix µs, by its node's clock. Filled in by the local log.
    pub create_stamp: u64,
    /// When it last changed: unix µs, by its node's clock. Filled in by the local log.
    pub modify_stamp: u64,
}

impl Instance {
    /// An instance with nothing but its names and port; its id is the service's name.
    ///
    /// # Errors
    /// [`InvalidField`] when the service's name does not fit as an id (it always does today).
    pub fn new(service: ServiceName, port: u16) -> Result<Self, InvalidField> {
        Ok(Self {
            id: InstanceId::parse(service.as_str())?,
            service,
            tags: Vec::new(),
            meta: Meta::new(),
            address: None,
            port,
            mesh_port: None,
            version: None,
            weights: Weights::default(),
            enable_tag_override: false,
            create_stamp: 0,
            modify_stamp: 0,
        })
    }

    /// Whether `subset` names this instance: one of its tags, or its version; letter case does not count.
    pub fn matches(&self, subset: &str) -> bool {
        self.tags.iter().any(|tag| tag.eq_ignore_ascii_case(subset))
            || self
                .version
                .as_deref()
                .is_some_and(|version| version.eq_ignore_ascii_case(subset))
    }

    /// Equal in everything but the two stamps: registering it again changes nothing.
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
    /// [`InvalidField`] for too many or too long `tags`, `meta`, `version`, `address`, or a passing weight of 0.
    pub fn validate(&self) -> Result<(), InvalidField> {
        if self.tags.len() > TAGS_MAX {
            return Err(InvalidField::new(
                "tags",
                format!("{} tags, the most is {TAGS_MAX}", self.tags.len()),
            ));
        }
        for tag in &self.tags {
            if tag.is_empty() || tag.len() > TAG_BYTES_MAX || tag.chars().any(char::is_control) {
                return Err(InvalidField::new(
                    "tags",
                    format!(
                        "{} must have 1 to {TAG_BYTES_MAX} bytes and no control characters",
                        quoted(tag)
                    ),
                ));
            }
        }
        check_meta(self.meta.iter())?;
        if let Some(Host::Name(name)) = &self.address {
            Host::parse(name)?;
        }
        if let Some(version) = &self.version
            && (version.is_empty() || version.len() > TAG_BYTES_MAX)
        {
            return Err(InvalidField::new(
                "version",
                format!("must have 1 to {TAG_BYTES_MAX} bytes"),
            ));
        }
        if self.weights.passing == 0 {
            return Err(InvalidField::new("weights.passing", "must be at least 1"));
        }
        if self.mesh_port == Some(0) {
            return Err(InvalidField::new("mesh_port", "must not be 0"));
        }
        Ok(())
    }
}

pub(crate) fn check_meta<'a>(
    meta: impl ExactSizeIterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
) -> Result<(), InvalidField> {
    if meta.len() > META_MAX {
        return Err(InvalidField::new(
            "meta",
            format!("{} pairs, the most is {META_MAX}", meta.len()),
        ));
    }
    for (key, value) in meta {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if key.is_empty() || key.len() > META_KEY_MAX || !key.bytes().all(fits) {
            return Err(InvalidField::new(
                "meta",
                format!(
                    "key {} must have 1 to {META_KEY_MAX} bytes of letters, digits, '-', '_', '.', '/'",
                    quoted(key)
                ),
            ));
        }
        if value.len() > META_VALUE_MAX {
            return Err(InvalidField::new(
                "meta",
                format!("{} has more than {META_VALUE_MAX} bytes", quoted(key)),
            ));
        }
    }
    Ok(())
}
