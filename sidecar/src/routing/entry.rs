//! The entries, in the shape that Consul shows them in; what they are stored and sent as.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const PROXY_DEFAULTS: &str = "proxy-defaults";
pub const SERVICE_DEFAULTS: &str = "service-defaults";
pub const SERVICE_RESOLVER: &str = "service-resolver";
pub const SERVICE_SPLITTER: &str = "service-splitter";

/// One config entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "Kind")]
pub enum Entry {
    /// What holds for every service.
    #[serde(rename = "proxy-defaults")]
    ProxyDefaults(ProxyDefaults),
    /// What holds for one.
    #[serde(rename = "service-defaults")]
    ServiceDefaults(ServiceDefaults),
    /// Which instances take its calls.
    #[serde(rename = "service-resolver")]
    ServiceResolver(ServiceResolver),
    /// How its calls are split.
    #[serde(rename = "service-splitter")]
    ServiceSplitter(ServiceSplitter),
}

/// An object without fields: asks for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// `proxy-defaults`; there is one, `global`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProxyDefaults {
    /// Always `global`.
    pub name: String,
    /// Free-form settings, of which there is one.
    #[serde(default)]
    pub config: ProxyConfig,
    /// The client's own pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default)]
    transparent_proxy: Empty,
    #[serde(default)]
    mesh_gateway: Empty,
    #[serde(default)]
    expose: Empty,
    #[serde(default)]
    access_logs: Empty,
}

/// `Config` of [`ProxyDefaults`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProxyConfig {
    /// What services speak that have no protocol of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// `service-defaults`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceDefaults {
    /// The service.
    pub name: String,
    /// `tcp`, `http`, `http2` or `grpc`; empty: nothing is said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// The client's own pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(default)]
    transparent_proxy: Empty,
    #[serde(default)]
    mesh_gateway: Empty,
    #[serde(default)]
    expose: Empty,
}

/// `service-resolver`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceResolver {
    /// The service.
    pub name: String,
    /// How long a connection may take to be made, as Go writes it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub connect_timeout: String,
    /// The subset of calls that name none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub default_subset: String,
    /// Parts of the instances, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<String, Subset>,
    /// All calls go there instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Target>,
    /// Who stands in, by subset; `*` for all that are not named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failover: BTreeMap<String, Failover>,
    /// The client's own pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// Some of a service's instances.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Subset {
    /// An expression over `Service` and `Node`, as in `filter=`; empty: all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Instances with a warning are left out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub only_passing: bool,
}

/// A service and a subset; empty: that which is spoken of, and its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Target {
    /// The service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
}

/// Who stands in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Failover {
    /// One target.
    #[serde(flatten)]
    pub one: Target,
    /// Or several, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<Target>,
}

/// `service-splitter`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceSplitter {
    /// The service.
    pub name: String,
    /// The parts; their weights make 100.
    pub splits: Vec<Split>,
    /// The client's own pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// A part of the calls.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Split {
    /// In percent.
    pub weight: f64,
    /// Who takes them.
    #[serde(flatten)]
    pub target: Target,
}

impl Entry {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Entry::ProxyDefaults(_) => PROXY_DEFAULTS,
            Entry::ServiceDefaults(_) => SERVICE_DEFAULTS,
            Entry::ServiceResolver(_) => SERVICE_RESOLVER,
            Entry::ServiceSplitter(_) => SERVICE_SPLITTER,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Entry::ProxyDefaults(entry) => &entry.name,
            Entry::ServiceDefaults(entry) => &entry.name,
            Entry::ServiceResolver(entry) => &entry.name,
            Entry::ServiceSplitter(entry) => &entry.name,
        }
    }
}
