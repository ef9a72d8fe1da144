//! Making an instance step by step; what is wrong comes out at the end, as one error that names the field.

use std::sync::Arc;

use super::{
    Class, Host, Instance, InstanceId, InvalidField, Kind, Locality, NamedPort, Proxy, ServiceName,
    TaggedAddress, Weights,
};

/// Makes an [`Instance`]: see [`Instance::builder`].
///
/// ```
/// use libmesh::model::{Instance, ServiceName};
///
/// # fn main() -> Result<(), libmesh::model::InvalidField> {
/// let instance = Instance::builder(ServiceName::parse("web")?)
///     .id("web-1")
///     .port(8080)
///     .tag("v2")
///     .meta("owner", "shop")
///     .named_port("metrics", 9090)
///     .build()?;
/// assert_eq!(instance.port, 8080);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "`build` makes the instance"]
pub struct InstanceBuilder {
    instance: Result<Instance, InvalidField>,
}

impl InstanceBuilder {
    pub(super) fn new(service: ServiceName) -> Self {
        Self {
            instance: Instance::new(service, 0),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Instance)) -> Self {
        if let Ok(instance) = &mut self.instance {
            change(instance);
        }
        self
    }

    fn try_with(mut self, change: impl FnOnce(&mut Instance) -> Result<(), InvalidField>) -> Self {
        if let Ok(instance) = &mut self.instance
            && let Err(error) = change(instance)
        {
            self.instance = Err(error);
        }
        self
    }

    /// Its id, unique on its node. Default: the service's name.
    pub fn id(self, id: &str) -> Self {
        self.try_with(|instance| {
            instance.id = InstanceId::parse(id)?;
            Ok(())
        })
    }

    /// Its port. Default 0: none.
    pub fn port(self, port: u16) -> Self {
        self.with(|instance| instance.port = port)
    }

    /// One more port.
    pub fn named_port(self, name: &str, port: u16) -> Self {
        let name = Arc::from(name);
        self.with(|instance| instance.ports.push(NamedPort { name, port }))
    }

    /// Port of its sidecar's, or its own, mTLS listener.
    pub fn mesh_port(self, port: u16) -> Self {
        self.with(|instance| instance.mesh_port = Some(port))
    }

    /// Where it answers: an IP address or a host name. Default: its node's address.
    pub fn address(self, address: &str) -> Self {
        self.try_with(|instance| {
            instance.address = Some(Host::parse(address)?);
            Ok(())
        })
    }

    /// An address for a certain use, such as `wan_ipv4`.
    pub fn tagged_address(self, tag: &str, host: Host, port: u16) -> Self {
        let tag = Arc::from(tag);
        self.with(|instance| {
            instance
                .tagged_addresses
                .push(TaggedAddress { tag, host, port });
        })
    }

    /// One more tag.
    pub fn tag(self, tag: &str) -> Self {
        self.with(|instance| instance.tags.push(tag.into()))
    }

    /// More tags.
    pub fn tags<T: AsRef<str>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        self.with(|instance| {
            let tags = tags.into_iter().map(|tag| tag.as_ref().into());
            instance.tags.extend(tags);
        })
    }

    /// One more pair; replaces the one with that key.
    pub fn meta(self, key: &str, value: &str) -> Self {
        self.with(|instance| drop(instance.meta.insert(key.into(), value.into())))
    }

    /// Version of the software.
    pub fn version(self, version: &str) -> Self {
        self.with(|instance| instance.version = Some(version.into()))
    }

    /// Share of the traffic while passing and while warning.
    pub fn weights(self, passing: u16, warning: u16) -> Self {
        self.with(|instance| instance.weights = Weights { passing, warning })
    }

    /// Where it stands. Default: where its node does.
    pub fn locality(self, region: &str, zone: &str) -> Self {
        self.try_with(|instance| {
            instance.locality = Some(Locality::new(region, zone)?);
            Ok(())
        })
    }

    /// A gateway. (A proxy is made with [`proxy`](Self::proxy).)
    pub fn kind(self, kind: Kind) -> Self {
        self.with(|instance| instance.kind = kind)
    }

    /// A proxy that speaks for another service.
    pub fn proxy(self, proxy: Proxy) -> Self {
        self.with(|instance| {
            instance.kind = Kind::ConnectProxy;
            instance.proxy = Some(Arc::new(proxy));
        })
    }

    /// The only one of its kind.
    pub fn pet(self) -> Self {
        self.with(|instance| instance.class = Class::Pet)
    }

    /// It does not run on this node, which only checks it; needs an [`address`](Self::address).
    pub fn external(self) -> Self {
        self.with(|instance| instance.external = true)
    }

    /// Others may change the tags.
    pub fn enable_tag_override(self) -> Self {
        self.with(|instance| instance.enable_tag_override = true)
    }

    /// The instance.
    ///
    /// # Errors
    /// The first [`InvalidField`], as [`Instance::validate`] gives them.
    pub fn build(self) -> Result<Instance, InvalidField> {
        let instance = self.instance?;
        instance.validate()?;
        Ok(instance)
    }
}
