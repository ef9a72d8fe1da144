//! Instances of services.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::quoted;
use super::{
    Class, Host, InstanceBuilder, InstanceId, InvalidField, Kind, Locality, Meta, NamedPort, Proxy,
    ServiceName, TaggedAddress, checked, limits,
};

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
    /// Addresses for certain uses, in the order given.
    pub tagged_addresses: Vec<TaggedAddress>,
    /// Its own port; 0 when it has none.
    pub port: u16,
    /// Further ports, in the order given.
    pub ports: Vec<NamedPort>,
    /// Port of its sidecar's mTLS listener, where there is one.
    pub mesh_port: Option<u16>,
    /// Version of the software, for subsets and traffic splits.
    pub version: Option<Arc<str>>,
    /// Where it stands; `None` = where its node does.
    pub locality: Option<Locality>,
    /// What it is.
    pub kind: Kind,
    /// What it speaks for: a [`Kind::ConnectProxy`] has one, no other may.
    pub proxy: Option<Arc<Proxy>>,
    /// How it is treated when it goes missing.
    pub class: Class,
    /// It does not run on its node: that only checks it and publishes the record (a database, say). It has an address
    /// of its own, and goes with its node like any other.
    pub external: bool,
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
            tagged_addresses: Vec::new(),
            port,
            ports: Vec::new(),
            mesh_port: None,
            version: None,
            locality: None,
            kind: Kind::default(),
            proxy: None,
            class: Class::default(),
            external: false,
            weights: Weights::default(),
            enable_tag_override: false,
            create_stamp: 0,
            modify_stamp: 0,
        })
    }

    /// Makes an instance step by step.
    pub fn builder(service: ServiceName) -> InstanceBuilder {
        InstanceBuilder::new(service)
    }

    /// A further port by its name.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        let found = self.ports.iter().find(|port| &*port.name == name);
        found.map(|port| port.port)
    }

    /// The address for a certain use.
    pub fn tagged_address(&self, tag: &str) -> Option<&TaggedAddress> {
        self.tagged_addresses
            .iter()
            .find(|known| &*known.tag == tag)
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

    /// Checks what the types alone do not; the bounds are in [`limits`].
    ///
    /// # Errors
    /// [`InvalidField`] for too many or too long `tags`, `meta`, `version`, `address`, `tagged_addresses`, `ports`,
    /// `locality`; twice the same name; a `proxy` that its `kind` does not have; an `external` instance without
    /// address; a passing weight of 0.
    pub fn validate(&self) -> Result<(), InvalidField> {
        check_tags(self.tags.iter().map(|tag| &**tag))?;
        check_meta(self.meta.iter())?;
        if let Some(address) = &self.address {
            address.validate("address")?;
        }
        checked::count(
            "tagged_addresses",
            self.tagged_addresses.len(),
            limits::TAGGED_ADDRESSES,
        )?;
        for (at, tagged) in self.tagged_addresses.iter().enumerate() {
            checked::label("tagged_addresses", &tagged.tag)?;
            tagged.host.validate("tagged_addresses")?;
            let before = &self.tagged_addresses[..at];
            check_new(
                "tagged_addresses",
                &tagged.tag,
                before.iter().map(|it| &*it.tag),
            )?;
        }
        checked::count("ports", self.ports.len(), limits::PORTS)?;
        for (at, port) in self.ports.iter().enumerate() {
            checked::label("ports", &port.name)?;
            if port.port == 0 {
                return Err(InvalidField::new(
                    "ports",
                    format!("{} must not be 0", quoted(&port.name)),
                ));
            }
            check_new(
                "ports",
                &port.name,
                self.ports[..at].iter().map(|it| &*it.name),
            )?;
        }
        if let Some(version) = &self.version {
            checked::version(version)?;
        }
        if let Some(locality) = &self.locality {
            locality.validate()?;
        }
        if (self.kind == Kind::ConnectProxy) != self.proxy.is_some() {
            return Err(InvalidField::new(
                "proxy",
                "a connect-proxy says what it speaks for, and nothing else does",
            ));
        }
        if let Some(Host::Name(name)) = self.proxy.as_ref().and_then(|proxy| proxy.address.as_ref())
        {
            checked::host("proxy", name)?;
        }
        if self.external && self.address.is_none() {
            return Err(InvalidField::new("external", "needs an address of its own"));
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

fn check_new<'a>(
    field: &'static str,
    name: &str,
    mut before: impl Iterator<Item = &'a str>,
) -> Result<(), InvalidField> {
    if before.any(|known| known == name) {
        return Err(InvalidField::new(
            field,
            format!("{} is there twice", quoted(name)),
        ));
    }
    Ok(())
}

fn check_tags<'a>(tags: impl ExactSizeIterator<Item = &'a str>) -> Result<(), InvalidField> {
    checked::count("tags", tags.len(), limits::TAGS)?;
    tags.into_iter().try_for_each(checked::tag)
}

pub(crate) fn check_meta<'a>(
    meta: impl ExactSizeIterator<Item = (&'a Arc<str>, &'a Arc<str>)>,
) -> Result<(), InvalidField> {
    checked::count("meta", meta.len(), limits::META_PAIRS)?;
    for (key, value) in meta {
        checked::meta_key(key)?;
        checked::meta_value(value)?;
    }
    Ok(())
}
