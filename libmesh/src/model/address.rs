//! Addresses and ports of instances.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{InvalidField, checked};

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
        checked::host("address", text)?;
        Ok(Self::Name(Arc::from(text)))
    }

    pub(super) fn validate(&self, field: &'static str) -> Result<(), InvalidField> {
        match self {
            Self::Ip(_) => Ok(()),
            Self::Name(name) => checked::host(field, name),
        }
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

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Self::Ip(ip)
    }
}

/// A further port of an instance: `metrics`, `admin`, …
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamedPort {
    /// Unique in its instance: a DNS label (letters, digits, `-`, `_`).
    pub name: Arc<str>,
    /// 1 to 65535.
    pub port: u16,
}

/// An address of an instance for a certain use; the name says which: `lan`, `lan_ipv4`, `wan`, `wan_ipv4`, `virtual`, …
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaggedAddress {
    /// The use. Unique in its instance: 1 to 63 letters, digits, `-`, `_`.
    pub tag: Arc<str>,
    /// The address.
    pub host: Host,
    /// The port there; 0 = the instance's own.
    pub port: u16,
}
