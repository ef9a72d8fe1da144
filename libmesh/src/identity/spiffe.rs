//! SPIFFE IDs: parsed once, kept in canonical form (SPIFFE-ID specification, 2.1–2.4).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::model::{Datacenter, NodeName, ServiceName};

/// The longest SPIFFE ID we accept, in bytes (the specification's limit).
const MAX_LEN: usize = 2048;

/// Why a text is no SPIFFE ID of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeError {
    /// The trust domain is empty, too long or has a character other than `a-z 0-9 . - _`.
    #[error(
        "{0:?} is not a trust domain: lower-case letters, digits, '.', '-' and '_', at most 255"
    )]
    TrustDomain(String),
    /// The text is not one of the four forms that the mesh issues.
    #[error(
        "{0:?} is not a SPIFFE ID of a service, node, external node or config signer of a mesh"
    )]
    Form(String),
}

/// The trust domain of one mesh, `<cluster-uuid>.mesh`; fixed when the mesh is made.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain; upper case is refused, not folded, as a certificate carries it exactly.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain(shorten(text)));
        }
        Ok(Self(text.into()))
    }

    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The identity in a certificate: a service, a node, or the signer of config bundles.
///
/// Two IDs are equal exactly when their texts are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    path: Path,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Path {
    Service {
        datacenter: Datacenter,
        service: ServiceName,
    },
    Node(NodeName),
    External(NodeName),
    Config(Datacenter),
}

impl SpiffeId {
    /// `spiffe://<td>/ns/default/dc/<dc>/svc/<service>`
    pub fn service(
        trust_domain: &TrustDomain,
        datacenter: &Datacenter,
        service: &ServiceName,
    ) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            path: Path::Service {
                datacenter: datacenter.clone(),
                service: service.clone(),
            },
        }
    }

    /// `spiffe://<td>/node/<name>`
    pub fn node(trust_domain: &TrustDomain, name: &NodeName) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            path: Path::Node(name.clone()),
        }
    }

    /// `spiffe://<td>/external/<name>`: who speaks for a node that is no member. It may do nothing but sign records.
    pub fn external(trust_domain: &TrustDomain, name: &NodeName) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            path: Path::External(name.clone()),
        }
    }

    /// `spiffe://<td>/dc/<dc>/config`: who may sign the config bundle of a datacenter.
    pub fn config_signer(trust_domain: &TrustDomain, datacenter: &Datacenter) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            path: Path::Config(datacenter.clone()),
        }
    }

    /// Parses a canonical ID. Anything that would not print back byte for byte is refused: no upper
    /// case, no percent-encoding, no empty or extra path segments, no query, no port.
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let bad = || SpiffeError::Form(shorten(text));
        if text.len() > MAX_LEN {
            return Err(bad());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let (domain, path) = rest.split_once('/').ok_or_else(bad)?;
        let trust_domain = TrustDomain::parse(domain)?;
        let segments: Vec<&str> = path.splitn(7, '/').collect();
        let path = match segments.as_slice() {
            ["ns", "default", "dc", datacenter, "svc", service] => Path::Service {
                datacenter: Datacenter::parse(datacenter).map_err(|_| bad())?,
                service: ServiceName::parse(service).map_err(|_| bad())?,
            },
            ["node", name] => Path::Node(NodeName::parse(name).map_err(|_| bad())?),
            ["external", name] => Path::External(NodeName::parse(name).map_err(|_| bad())?),
            ["dc", datacenter, "config"] => {
                Path::Config(Datacenter::parse(datacenter).map_err(|_| bad())?)
            }
            _ => return Err(bad()),
        };
        let id = Self { trust_domain, path };
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(bad())
        }
    }

    /// The trust domain of the ID.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The service, if this is a service's ID.
    pub fn as_service(&self) -> Option<&ServiceName> {
        match &self.path {
            Path::Service { service, .. } => Some(service),
            _ => None,
        }
    }

    /// The node name, if this is a node's ID.
    pub fn as_node(&self) -> Option<&NodeName> {
        match &self.path {
            Path::Node(name) => Some(name),
            _ => None,
        }
    }

    /// The name of the node that is no member, if this is the ID of who speaks for one.
    pub fn as_external(&self) -> Option<&NodeName> {
        match &self.path {
            Path::External(name) => Some(name),
            _ => None,
        }
    }

    /// The datacenter whose config bundles this ID may sign, if it is such an ID.
    pub fn as_config_signer(&self) -> Option<&Datacenter> {
        match &self.path {
            Path::Config(datacenter) => Some(datacenter),
            _ => None,
        }
    }

    /// The datacenter of a service or config signer.
    pub fn datacenter(&self) -> Option<&Datacenter> {
        match &self.path {
            Path::Service { datacenter, .. } | Path::Config(datacenter) => Some(datacenter),
            Path::Node(_) | Path::External(_) => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}", self.trust_domain)?;
        match &self.path {
            Path::Service {
                datacenter,
                service,
            } => write!(f, "/ns/default/dc/{datacenter}/svc/{service}"),
            Path::Node(name) => write!(f, "/node/{name}"),
            Path::External(name) => write!(f, "/external/{name}"),
            Path::Config(datacenter) => write!(f, "/dc/{datacenter}/config"),
        }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, SpiffeError> {
        Self::parse(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeError;

    fn try_from(text: String) -> Result<Self, SpiffeError> {
        Self::parse(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

/// What an error may repeat of a text that came from outside.
fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}
