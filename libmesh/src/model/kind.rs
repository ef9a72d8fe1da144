//! What an instance is: an application, a proxy for one, or a gateway; and how it is to be treated.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::quoted;
use super::{Host, InstanceId, InvalidField, ServiceName};

/// What an instance is, in Consul's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An application.
    #[default]
    Typical,
    /// A proxy that speaks for an application: see [`Proxy`].
    ConnectProxy,
    /// Joins meshes.
    MeshGateway,
    /// Leads out of the mesh.
    TerminatingGateway,
    /// Leads into the mesh.
    IngressGateway,
    /// Leads into the mesh, by routes.
    ApiGateway,
}

impl Kind {
    /// Consul's word for it; empty for a typical one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Typical => "",
            Self::ConnectProxy => "connect-proxy",
            Self::MeshGateway => "mesh-gateway",
            Self::TerminatingGateway => "terminating-gateway",
            Self::IngressGateway => "ingress-gateway",
            Self::ApiGateway => "api-gateway",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        match text {
            "" | "typical" => Ok(Self::Typical),
            "connect-proxy" => Ok(Self::ConnectProxy),
            "mesh-gateway" => Ok(Self::MeshGateway),
            "terminating-gateway" => Ok(Self::TerminatingGateway),
            "ingress-gateway" => Ok(Self::IngressGateway),
            "api-gateway" => Ok(Self::ApiGateway),
            other => Err(InvalidField::new(
                "kind",
                format!(
                    "{} is none of connect-proxy, mesh-gateway, terminating-gateway, ingress-gateway, api-gateway",
                    quoted(other)
                ),
            )),
        }
    }
}

/// What a [`Kind::ConnectProxy`] speaks for. Its node needs the right to publish that service, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// The service.
    pub service: ServiceName,
    /// The one instance, where the proxy is a sidecar.
    pub instance: Option<InstanceId>,
    /// Where the proxy reaches it; `None` = on its own host.
    pub address: Option<Host>,
    /// The port there; 0 when not given.
    pub port: u16,
}

impl Proxy {
    /// What the name of a service ends in whose instances stand in front of another's: Consul's rule.
    pub const SUFFIX: &str = "-sidecar-proxy";

    /// A proxy for any instance of `service`.
    pub fn new(service: ServiceName) -> Self {
        Self {
            service,
            instance: None,
            address: None,
            port: 0,
        }
    }
}

/// How an instance is treated when it goes missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// One of many: replaced, not missed.
    #[default]
    Cattle,
    /// The only one of its kind, such as a database: people want to know.
    Pet,
}

impl Class {
    /// `cattle` or `pet`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cattle => "cattle",
            Self::Pet => "pet",
        }
    }
}

impl FromStr for Class {
    type Err = InvalidField;

    fn from_str(text: &str) -> Result<Self, InvalidField> {
        match text {
            "cattle" => Ok(Self::Cattle),
            "pet" => Ok(Self::Pet),
            other => Err(InvalidField::new(
                "class",
                format!("{} is neither pet nor cattle", quoted(other)),
            )),
        }
    }
}
