//! The JSON bodies of the attach API, the same types on both sides of the socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use libmesh::bundle::SignedBundle;
use serde::{Deserialize, Serialize};

/// The header in which a caller shows its attach token.
pub const TOKEN_HEADER: &str = "x-mesh-attach";
/// The header in which a caller who may act as several services says which one it means.
pub const SERVICE_HEADER: &str = "x-mesh-service";

/// How long an attachment lives without being repeated.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often a sidecar repeats it.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// `PUT /v1/mesh/attach`: a sidecar says which instance it stands for. Repeating it is the heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The service.
    pub service: Arc<str>,
    /// The instance, unique on the node. Default: the service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<Arc<str>>,
    /// A random word of this sidecar process.
    pub holder: Arc<str>,
    /// The application's own port, as it is published.
    pub port: u16,
    /// The port on which the sidecar takes mTLS connections; none for a sidecar that only calls others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh_port: Option<u16>,
    /// An address other than the node's, for a sidecar with a network of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<Arc<str>>,
    /// Metadata.
    #[serde(default)]
    pub meta: BTreeMap<Arc<str>, Arc<str>>,
    /// Version of the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
    /// Checks that the agent shall run.
    #[serde(default)]
    pub checks: Vec<CheckSpec>,
}

/// A check of the application that the agent runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum CheckSpec {
    /// `GET http://<address><path>` answers 2xx.
    Http {
        /// Where the application listens; a loopback address.
        address: SocketAddr,
        /// Path and query, beginning with `/`.
        path: Arc<str>,
        /// Seconds between two checks.
        interval: u16,
    },
    /// The port takes a connection.
    Tcp {
        /// Where the application listens; a loopback address.
        address: SocketAddr,
        /// Seconds between two checks.
        interval: u16,
    },
}

impl CheckSpec {
    /// What is checked.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Http { address, .. } | Self::Tcp { address, .. } => *address,
        }
    }
}

/// `GET /v1/mesh/about`: what a sidecar has to know before it asks for a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboutReply {
    /// The agent's node.
    pub node: Arc<str>,
    /// Its datacenter.
    pub datacenter: Arc<str>,
    /// The mesh's trust domain.
    pub trust_domain: Arc<str>,
    /// The roots of the mesh (PEM).
    pub bundle_pem: String,
}

/// The answer to [`AttachRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachReply {
    /// The instance as registered.
    pub instance: Arc<str>,
    /// Seconds after which the attachment ends when it is not repeated.
    pub lease: u64,
}

/// `POST /v1/mesh/sign`: a certificate for a service key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// The service.
    pub service: Arc<str>,
    /// The PKCS#10 request (PEM).
    pub csr_pem: String,
    /// The life to ask for, as `20s` or `24h`. Default: the authority's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// The answer to [`SignRequest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SignReply {
    /// The leaf, then the intermediates (PEM).
    pub chain_pem: String,
    /// The roots of the mesh (PEM).
    pub bundle_pem: String,
    /// When the leaf ends (Unix seconds).
    pub not_after: u64,
}

/// `GET /v1/mesh/endpoints/<service>`: where a service takes mTLS connections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsReply {
    /// To be given back as `?index=` in order to wait for the next change.
    pub index: u64,
    /// Instances with a sidecar whose checks pass (or warn).
    pub endpoints: Vec<EndpointWire>,
    /// Where calls are split: the weight of each part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// How long one attempt to connect may take, if somebody says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Duration>,
}

/// One way to reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointWire {
    /// `<node>/<instance>`.
    pub id: Arc<str>,
    /// Where its sidecar listens.
    pub address: SocketAddr,
    /// Share of new connections among the endpoints.
    pub weight: u16,
    /// Version of the application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
    /// 0 in the agent's own zone, 1 elsewhere.
    pub distance: u8,
    /// Its node did not answer lately: to be used only when nothing better is there.
    pub suspect: bool,
    /// Its service, if it is another than the one asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// The part of the calls that it takes.
    #[serde(default)]
    pub part: u16,
}

/// `GET /v1/mesh/bundle`: the signed configuration of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleReply {
    /// To be given back as `?index=` in order to wait for the next one.
    pub index: u64,
    /// The signed bundle (postcard, in base64), to be verified by whoever uses it; none before the first one was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

/// A signed bundle as it stands in [`BundleReply`].
pub fn encode_bundle(signed: &SignedBundle) -> String {
    STANDARD.encode(postcard::to_stdvec(signed).expect("bytes always encode"))
}

/// The signed bundle in a [`BundleReply`]; `None` when it is malformed. Verifying it is the caller's.
pub fn decode_bundle(text: &str) -> Option<SignedBundle> {
    postcard::from_bytes(&STANDARD.decode(text).ok()?).ok()
}
