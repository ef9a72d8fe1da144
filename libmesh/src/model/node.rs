//! Nodes: who they are and where they answer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::instance::check_meta;
use super::{Datacenter, InvalidField, Locality, NodeName, checked, limits};

/// Identity of a node: the first 16 bytes of the SHA-256 of its public key (SubjectPublicKeyInfo, DER).
///
/// Nobody can claim another's id without its key, and a certificate renewed for the same key keeps the id.
/// Text form: 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeId(pub [u8; 16]);

impl Ord for NodeId {
    /// As the bytes, but compared as one number: indexes are searched with every packet.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for NodeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl NodeId {
    /// The id that belongs to a public key.
    pub fn from_public_key(subject_public_key_info: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, subject_public_key_info);
        let mut id = [0; 16];
        id.copy_from_slice(&digest.as_ref()[..16]);
        Self(id)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeId {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        let wrong = || InvalidField::new("node id", "must be 32 hex digits");
        if text.len() != 32 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(id))
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?
                .parse()
                .map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

/// What a node says it does. A claim, never a right: rights are in its certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Roles {
    /// It has the sealed store and the mesh CA.
    pub server: bool,
}

/// What is said of a node that is no member of the mesh: somebody registered it, no membership protocol watches over it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// The id that it was registered with, if any.
    pub uuid: Option<[u8; 16]>,
    /// Further addresses, by name (`lan`, `wan`, …).
    pub tagged_addresses: BTreeMap<Arc<str>, Arc<str>>,
}

/// What a node publishes about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id; the same as in its certificate.
    pub id: NodeId,
    /// Its name; the same as in its certificate.
    pub name: NodeName,
    /// Its datacenter.
    pub datacenter: Datacenter,
    /// Where it answers.
    pub address: IpAddr,
    /// UDP port of the membership protocol and TCP port of mesh RPC (8301 by default).
    pub port: u16,
    /// What it does.
    pub roles: Roles,
    /// Where it stands.
    pub locality: Locality,
    /// Free-form pairs.
    pub meta: BTreeMap<Arc<str>, Arc<str>>,
    /// Version of the software it runs.
    pub version: Arc<str>,
    /// Set for one that is no member: others speak for it, with a certificate that says so. It is shown while it is
    /// registered, whatever membership thinks.
    pub external: Option<Box<External>>,
}

impl NodeRecord {
    /// Where its mesh RPC and its membership protocol answer.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }

    /// A node with nothing but its names and where it answers: datacenter `dc1`, no roles, this crate's version.
    pub fn new(id: NodeId, name: NodeName, address: IpAddr, port: u16) -> Self {
        Self {
            id,
            name,
            datacenter: Datacenter::default(),
            address,
            port,
            roles: Roles::default(),
            locality: Locality::default(),
            meta: BTreeMap::new(),
            version: Arc::from(env!("CARGO_PKG_VERSION")),
            external: None,
        }
    }

    /// What is near beyond the zone: the region of its locality, else the datacenter.
    pub fn region(&self) -> &str {
        match &*self.locality.region {
            "" => self.datacenter.as_str(),
            region => region,
        }
    }

    /// Its failure domain, for the mass-event rule: the zone of its locality, else its meta `zone`, else the
    /// datacenter.
    pub fn zone(&self) -> &str {
        if !self.locality.zone.is_empty() {
            return &self.locality.zone;
        }
        self.meta
            .get("zone")
            .map_or(self.datacenter.as_str(), |zone| zone)
    }

    /// Whether it takes part in membership and answers calls.
    pub fn is_member(&self) -> bool {
        self.external.is_none()
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// [`InvalidField`] for too much or too long `meta`, a bad `locality`, or a `version` over
    /// [`limits::VERSION_BYTES`].
    pub fn validate(&self) -> Result<(), InvalidField> {
        check_meta(self.meta.iter())?;
        if let Some(external) = &self.external {
            checked::count(
                "tagged addresses",
                external.tagged_addresses.len(),
                limits::TAGGED_ADDRESSES,
            )?;
            for (tag, address) in &external.tagged_addresses {
                checked::tag(tag)?;
                checked::host("tagged addresses", address)?;
            }
        }
        self.locality.validate()?;
        if self.version.len() > limits::VERSION_BYTES {
            return Err(InvalidField::new(
                "version",
                format!("has more than {} bytes", limits::VERSION_BYTES),
            ));
        }
        Ok(())
    }
}

/// What membership thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It did not answer lately: send it nothing new, keep what is open.
    Suspect,
    /// It is gone without a goodbye, or was never heard of by membership.
    Down,
    /// It said goodbye.
    Left,
}

impl Liveness {
    /// Whether the node's instances are shown ([`Alive`](Self::Alive) and [`Suspect`](Self::Suspect)).
    pub fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}
