//! What is kept of nodes without an agent: `external/<node>` describes one, `external/<node>/service/<id>` and
//! `external/<node>/check/<id>` are what it has.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use libmesh::model::{Datacenter, External as NotMember, NodeId, NodeName, NodeRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;
use uuid::Uuid;
use vault_kv::{Kv, KvPair};

/// Where external nodes are kept.
pub const PREFIX: &str = "external/";
const SERVICE: &str = "service/";
const CHECK: &str = "check/";

/// What is said of a node itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Described {
    /// Where it is.
    pub address: IpAddr,
    /// The id it was registered with.
    pub uuid: Option<Uuid>,
    /// Its metadata.
    pub meta: BTreeMap<String, String>,
    /// Further addresses, by name.
    pub tagged_addresses: BTreeMap<String, String>,
}

impl Described {
    /// The same for the catalog.
    pub fn record(&self, id: NodeId, name: &NodeName, datacenter: &Datacenter) -> NodeRecord {
        fn shared(pairs: &BTreeMap<String, String>) -> BTreeMap<Arc<str>, Arc<str>> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()))
                .collect()
        }
        NodeRecord {
            datacenter: datacenter.clone(),
            meta: shared(&self.meta),
            version: "".into(),
            external: Some(Box::new(NotMember {
                uuid: self.uuid.map(|uuid| *uuid.as_bytes()),
                tagged_addresses: shared(&self.tagged_addresses),
            })),
            ..NodeRecord::new(id, name.clone(), self.address, 0)
        }
    }
}

/// A part of what is kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Everything, [`Part::Node`] first.
    Whole,
    /// What is said of the node itself; without it there is no node.
    Node,
    /// The instance with this id.
    Service(String),
    /// The check with this id.
    Check(String),
}

impl Part {
    /// The key under which it is kept.
    pub fn key(&self, node: &NodeName) -> String {
        match self {
            Self::Whole | Self::Node => format!("{PREFIX}{node}"),
            Self::Service(id) => format!("{PREFIX}{node}/{SERVICE}{id}"),
            Self::Check(id) => format!("{PREFIX}{node}/{CHECK}{id}"),
        }
    }

    /// What is kept of `node` under `key`.
    pub fn of(node: &NodeName, key: &str) -> Option<Self> {
        let part = key.strip_prefix(PREFIX)?.strip_prefix(node.as_str())?;
        if part.is_empty() {
            return Some(Self::Node);
        }
        let part = part.strip_prefix('/')?;
        let service = part.strip_prefix(SERVICE).map(str::to_owned);
        let check = || part.strip_prefix(CHECK).map(str::to_owned);
        service
            .map(Self::Service)
            .or_else(|| check().map(Self::Check))
    }
}

/// What the keys of everything that a node has begin with.
pub fn below(node: &NodeName) -> String {
    format!("{PREFIX}{node}/")
}

/// What the keys of a node's checks begin with.
pub fn checks_of(node: &NodeName) -> String {
    format!("{PREFIX}{node}/{CHECK}")
}

/// Why something is not read.
#[derive(Debug, Error)]
pub enum Unread {
    /// Sealed, or storage fails.
    #[error(transparent)]
    Store(#[from] vault_kv::Error),
    /// What is kept there is none of ours.
    #[error("what is kept as {key} is not readable: {reason}")]
    Unreadable {
        /// Where.
        key: String,
        /// Why.
        reason: String,
    },
}

/// What is kept of a part.
pub fn read<T: DeserializeOwned>(
    kv: &Kv,
    node: &NodeName,
    part: &Part,
) -> Result<Option<T>, Unread> {
    let pair = kv.get(&part.key(node))?;
    pair.map(|pair| decode(&pair)).transpose()
}

/// The value of a pair.
pub fn decode<T: DeserializeOwned>(pair: &KvPair) -> Result<T, Unread> {
    serde_json::from_slice(&pair.value).map_err(|error| Unread::Unreadable {
        key: pair.key.clone(),
        reason: error.to_string(),
    })
}
