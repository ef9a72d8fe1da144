//! Tokens, policies and roles as Consul's clients know them, for the embedding program to show.
//!
//! They are the store's own tokens and policies: what is here is the part of them that only such clients ask about. A role
//! is a set of policies under an id, which tokens link to; an [`Identity`] stands for the rights that a service or a node
//! needs for itself.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::http::ApiError;

/// The accessor of the token of those who show none.
pub const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
/// The text of that token.
pub const ANONYMOUS_SECRET: &str = "anonymous";

/// Whom a set of rights is made for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Identity {
    /// An instance of a service: it registers itself and its sidecar, and finds others.
    Service(String),
    /// A node: its agent registers it, and finds services.
    Node(String),
}

const SERVICE: &str = "consul:service-identity/";
const NODE: &str = "consul:node-identity/";

impl Identity {
    /// The name of the policy that it is; no other policy has such a name.
    pub(crate) fn policy(&self) -> String {
        match self {
            Self::Service(name) => format!("{SERVICE}{name}"),
            Self::Node(name) => format!("{NODE}{name}"),
        }
    }

    /// Whose policy is called so.
    pub(crate) fn of_policy(policy: &str) -> Option<Self> {
        if let Some(name) = policy.strip_prefix(SERVICE) {
            return Some(Self::Service(name.into()));
        }
        let name = policy.strip_prefix(NODE)?;
        Some(Self::Node(name.into()))
    }

    /// What that policy says.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::Service(name) => format!(
                "service \"{name}\" {{ policy = \"write\" }}\n\
                 service \"{name}-sidecar-proxy\" {{ policy = \"write\" }}\n\
                 service_prefix \"\" {{ policy = \"read\" }}\n\
                 node_prefix \"\" {{ policy = \"read\" }}\n"
            ),
            Self::Node(name) => format!(
                "node \"{name}\" {{ policy = \"write\" }}\n\
                 service_prefix \"\" {{ policy = \"read\" }}\n"
            ),
        }
    }

    /// Whether its name can be one: nothing in it means anything in a policy.
    pub fn is_valid(&self) -> bool {
        let (Self::Service(name) | Self::Node(name)) = self;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
        !name.is_empty() && name.len() <= 100 && name.chars().all(fits)
    }
}

/// What a token or a role grants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Links {
    /// Names of policies.
    pub policies: Vec<String>,
    /// Ids of roles; a role has none.
    pub roles: Vec<String>,
    /// Whom it stands for.
    pub identities: Vec<Identity>,
}

/// What there are lists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// Tokens that were made here.
    Tokens,
    /// Policies.
    Policies,
    /// Roles.
    Roles,
}

/// What a token is to be.
#[derive(Default)]
pub struct TokenSpec {
    /// Its accessor; `None`: a random UUID.
    pub accessor: Option<String>,
    /// Its text; `None`: a random one.
    pub secret: Option<Zeroizing<String>>,
    /// For people.
    pub description: String,
    /// What it grants.
    pub links: Links,
    /// A mark of the client's.
    pub local: bool,
    /// How long it lives; `None`: until it is revoked.
    pub ttl: Option<Duration>,
    /// The login that made it; may be empty.
    pub auth_method: String,
}

/// A token, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEntry {
    /// Its accessor.
    pub accessor: String,
    /// For people.
    pub description: String,
    /// What it grants.
    pub links: Links,
    /// A mark of the client's.
    pub local: bool,
    /// The login that made it; may be empty.
    pub auth_method: String,
    /// Unix seconds.
    pub created: i64,
    /// Unix seconds; `None`: never.
    pub expires: Option<i64>,
    /// The ledger's index when it was made and when it last changed.
    pub indexes: (u64, u64),
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyEntry {
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// The document.
    pub source: String,
    /// Whether it has rules about Consul's resources only.
    pub is_consuls: bool,
    /// Whether it cannot be changed.
    pub builtin: bool,
    /// The ledger's index when it was made and when it last changed.
    pub indexes: (u64, u64),
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleEntry {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// For people.
    pub description: String,
    /// What it grants.
    pub links: Links,
    /// The ledger's index when it was made and when it last changed.
    pub indexes: (u64, u64),
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// What was asked for is not possible; the text says why.
    #[error("{0}")]
    Invalid(String),
    /// The caller may not; the text says what.
    #[error("{0}")]
    Denied(String),
    /// Bootstrapped already, at this index of the ledger.
    #[error("bootstrapped at {0}")]
    Bootstrapped(u64),
    /// The store is sealed.
    #[error("the store is sealed; next: mesh operator unseal")]
    Sealed,
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

impl From<ApiError> for AclError {
    fn from(error: ApiError) -> Self {
        match error {
            ApiError::BadRequest(text) => Self::Invalid(text),
            ApiError::Sealed => Self::Sealed,
            ApiError::Unauthenticated | ApiError::Denied => Self::Denied(error.to_string()),
            ApiError::Forbidden(text) => Self::Denied(text),
            other => Self::Failed(other.to_string()),
        }
    }
}
