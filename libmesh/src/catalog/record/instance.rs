//! Instances of services.

use std::net::IpAddr;
use std::sync::Arc;

use super::super::fields::{Fields, Malformed, Value, Writer};
use super::super::strings::Strings;
use super::super::verify::VerifiedNode;
use super::{ip, ip_bytes, malformed, port};
use crate::model::{
    Class, Host, Instance, InstanceId, InvalidField, Kind, NamedPort, Proxy, ServiceName,
    TaggedAddress, checked,
};

mod field {
    pub(super) const SERVICE: u64 = 1;
    pub(super) const TAG: u64 = 2;
    pub(super) const META_KEY: u64 = 3;
    pub(super) const META_VALUE: u64 = 4;
    pub(super) const IP: u64 = 5;
    pub(super) const HOST: u64 = 6;
    pub(super) const PORT: u64 = 7;
    pub(super) const MESH_PORT: u64 = 8;
    pub(super) const VERSION: u64 = 9;
    pub(super) const FLAGS: u64 = 10;
    /// One less than the weight, so that the usual one is absent.
    pub(super) const PASSING: u64 = 11;
    /// The weight, if it is not 1; 65536 stands for 0.
    pub(super) const WARNING: u64 = 12;
    pub(super) const CREATED: u64 = 13;
    /// Unless it is the stamp before.
    pub(super) const MODIFIED: u64 = 14;
    pub(super) const KIND: u64 = 15;
    pub(super) const PORT_NAME: u64 = 16;
    pub(super) const NAMED_PORT: u64 = 17;
    pub(super) const ADDRESS_TAG: u64 = 18;
    pub(super) const TAGGED_IP: u64 = 19;
    pub(super) const TAGGED_HOST: u64 = 20;
    pub(super) const TAGGED_PORT: u64 = 21;
    pub(super) const REGION: u64 = 22;
    pub(super) const ZONE: u64 = 23;
    pub(super) const PROXY_SERVICE: u64 = 24;
    pub(super) const PROXY_INSTANCE: u64 = 25;
    pub(super) const PROXY_IP: u64 = 26;
    pub(super) const PROXY_HOST: u64 = 27;
    pub(super) const PROXY_PORT: u64 = 28;
}

const TAG_OVERRIDE: u64 = 1;
const EXTERNAL: u64 = 2;
const PET: u64 = 4;
const NO_WEIGHT: u64 = 1 << 16;

const KINDS: [Kind; 6] = [
    Kind::Typical,
    Kind::ConnectProxy,
    Kind::MeshGateway,
    Kind::TerminatingGateway,
    Kind::IngressGateway,
    Kind::ApiGateway,
];

pub(in super::super) fn encode_instance(instance: &Instance) -> bytes::Bytes {
    let mut writer = Writer::default();
    writer.text(field::SERVICE, instance.service.as_str());
    for tag in &instance.tags {
        writer.text(field::TAG, tag);
    }
    for (key, value) in instance.meta.iter() {
        writer.text_always(field::META_KEY, key);
        writer.text_always(field::META_VALUE, value);
    }
    host(
        &mut writer,
        instance.address.as_ref(),
        field::IP,
        field::HOST,
    );
    writer.number(field::PORT, instance.port.into());
    writer.number(field::MESH_PORT, instance.mesh_port.unwrap_or(0).into());
    writer.text(field::VERSION, instance.version.as_deref().unwrap_or(""));
    let flags = [
        (instance.enable_tag_override, TAG_OVERRIDE),
        (instance.external, EXTERNAL),
        (instance.class == Class::Pet, PET),
    ];
    let set = flags.iter().filter(|(on, _)| *on);
    writer.number(field::FLAGS, set.map(|(_, bit)| bit).sum());
    writer.number(field::PASSING, u64::from(instance.weights.passing) - 1);
    match instance.weights.warning {
        0 => writer.number(field::WARNING, NO_WEIGHT),
        1 => {}
        weight => writer.number(field::WARNING, weight.into()),
    }
    writer.stamp(field::CREATED, instance.create_stamp);
    if instance.modify_stamp != instance.create_stamp {
        writer.stamp(field::MODIFIED, instance.modify_stamp);
    }
    let kind = KINDS.iter().position(|kind| *kind == instance.kind);
    writer.number(field::KIND, kind.unwrap_or(0) as u64);
    for named in &instance.ports {
        writer.text_always(field::PORT_NAME, &named.name);
        writer.number(field::NAMED_PORT, named.port.into());
    }
    for tagged in &instance.tagged_addresses {
        writer.text_always(field::ADDRESS_TAG, &tagged.tag);
        host(
            &mut writer,
            Some(&tagged.host),
            field::TAGGED_IP,
            field::TAGGED_HOST,
        );
        writer.number(field::TAGGED_PORT, tagged.port.into());
    }
    if let Some(locality) = &instance.locality {
        writer.text_always(field::REGION, &locality.region);
        writer.text(field::ZONE, &locality.zone);
    }
    if let Some(proxy) = &instance.proxy {
        writer.text_always(field::PROXY_SERVICE, proxy.service.as_str());
        if let Some(id) = &proxy.instance {
            writer.text(field::PROXY_INSTANCE, id.as_str());
        }
        host(
            &mut writer,
            proxy.address.as_ref(),
            field::PROXY_IP,
            field::PROXY_HOST,
        );
        writer.number(field::PROXY_PORT, proxy.port.into());
    }
    writer.0.into()
}

fn host(writer: &mut Writer, host: Option<&Host>, ip: u64, name: u64) {
    match host {
        Some(Host::Ip(value)) => ip_bytes(writer, ip, *value),
        Some(Host::Name(value)) => writer.text_always(name, value),
        None => {}
    }
}

/// Checks an instance where it lies; the name of its service.
pub(super) fn check<'a>(
    node: Option<&VerifiedNode>,
    id: &str,
    body: &'a [u8],
) -> Result<&'a str, String> {
    let mut service = None;
    let mut rules = Rules::default();
    rules.take(checked::instance_id(id))?;
    for field in Fields(body) {
        let field = field.map_err(|Malformed| malformed("instance"))?;
        // The service comes first, and once.
        if service.is_none() != (field.0 == field::SERVICE) {
            return Err(malformed("instance"));
        }
        match field {
            (field::SERVICE, Value::Text(text)) => {
                rules.may_publish(node, text)?;
                service = Some(text);
            }
            (field::TAG, Value::Text(text)) => {
                rules.tags += 1;
                rules.take(checked::tag(text))?;
            }
            (field::META_KEY, Value::Text(text)) => {
                if rules.value_due || rules.meta_key.is_some_and(|before| before >= text) {
                    return Err(malformed("instance"));
                }
                (rules.meta_key, rules.value_due) = (Some(text), true);
                rules.meta += 1;
                rules.take(checked::meta_key(text))?;
            }
            (field::META_VALUE, Value::Text(text)) => {
                if !std::mem::take(&mut rules.value_due) {
                    return Err(malformed("instance"));
                }
                rules.take(checked::meta_value(text))?;
            }
            (field::IP, Value::Bytes(bytes)) => {
                ip(bytes)?;
                rules.has_address = true;
            }
            (field::HOST, Value::Text(text)) => {
                rules.take(checked::host("address", text))?;
                rules.has_address = true;
            }
            (field::PROXY_INSTANCE..=field::PROXY_PORT, _) if !rules.has_proxy => {
                return Err(malformed("instance"));
            }
            (field::MESH_PORT, Value::Number(0)) => return Err(malformed("instance")),
            (field::PORT | field::MESH_PORT | field::PROXY_PORT, Value::Number(number)) => {
                port(number).map(drop)?;
            }
            (field::VERSION, Value::Text(text)) => rules.take(checked::version(text))?,
            (field::FLAGS, Value::Number(flags)) => rules.external = flags & EXTERNAL != 0,
            (field::PASSING, Value::Number(number)) if number >= u64::from(u16::MAX) => {
                return Err(malformed("instance"));
            }
            (field::WARNING, Value::Number(number)) if number > NO_WEIGHT => {
                return Err(malformed("instance"));
            }
            (field::KIND, Value::Number(kind)) => {
                rules.is_proxy = kind_of(kind) == Kind::ConnectProxy
            }
            (field::PROXY_SERVICE, Value::Text(text)) => {
                rules.may_publish(node, text)?;
                rules.has_proxy = true;
            }
            (field::PROXY_INSTANCE, Value::Text(text)) => rules.take(checked::instance_id(text))?,
            (field::PROXY_IP, Value::Bytes(bytes)) => ip(bytes).map(drop)?,
            (field::PROXY_HOST, Value::Text(text)) => rules.take(checked::host("proxy", text))?,
            (field::PORT_NAME..=field::ZONE, _) => {
                rules.rare = true;
            }
            _ => {}
        }
    }
    rules.finish()?;
    if rules.rare {
        // What few instances have, is checked as a whole.
        let made = instance(id, &mut Strings::default(), body)?;
        made.validate().map_err(|error| error.to_string())?;
    }
    service.ok_or_else(|| "the instance has no service".to_owned())
}

#[derive(Default)]
struct Rules<'a> {
    tags: usize,
    meta: usize,
    meta_key: Option<&'a str>,
    value_due: bool,
    has_address: bool,
    external: bool,
    is_proxy: bool,
    has_proxy: bool,
    rare: bool,
}

impl Rules<'_> {
    fn take(&self, rule: Result<(), InvalidField>) -> Result<(), String> {
        rule.map_err(|error| error.to_string())
    }

    fn may_publish(&self, node: Option<&VerifiedNode>, service: &str) -> Result<(), String> {
        let name = ServiceName::parse(service).map_err(|error| error.to_string())?;
        if name != *service {
            return Err(format!("service: {name} is not in lower case"));
        }
        match node {
            Some(node) if !(node.may_publish)(&name) => Err(format!(
                "node {} has no right to publish service {service}",
                node.name
            )),
            _ => Ok(()),
        }
    }

    fn finish(&self) -> Result<(), String> {
        self.take(checked::counts(self.tags, self.meta))?;
        if self.value_due {
            return Err(malformed("instance"));
        }
        if self.external && !self.has_address {
            return Err("external: needs an address of its own".to_owned());
        }
        if self.is_proxy != self.has_proxy {
            return Err("proxy: its kind does not go with what it speaks for".to_owned());
        }
        Ok(())
    }
}

/// The tags of an instance.
pub(in super::super) fn tags(body: &[u8]) -> impl Iterator<Item = &str> {
    Fields(body).filter_map(|field| match field {
        Ok((field::TAG, Value::Text(tag))) => Some(tag),
        _ => None,
    })
}

/// The IP address of its own of an instance.
pub(in super::super) fn own_ip(body: &[u8]) -> Option<IpAddr> {
    Fields(body).find_map(|field| match field {
        Ok((field::IP, Value::Bytes(value))) => ip(value).ok(),
        _ => None,
    })
}

/// Whether an instance takes mTLS connections, and the service that it is a proxy for.
pub(in super::super) fn meshed(body: &[u8]) -> (bool, Option<&str>) {
    let (mut takes, mut proxied) = (false, None);
    for field in Fields(body).flatten() {
        match field {
            (field::MESH_PORT, _) => takes = true,
            (field::PROXY_SERVICE, Value::Text(service)) => proxied = Some(service),
            _ => {}
        }
    }
    (takes, proxied)
}

/// A kind of a newer version is treated as an application.
fn kind_of(number: u64) -> Kind {
    let known = usize::try_from(number).ok().and_then(|at| KINDS.get(at));
    known.copied().unwrap_or_default()
}

/// The instance `id`, which [`check`] has passed.
pub(in super::super) fn instance(
    id: &str,
    strings: &mut Strings,
    body: &[u8],
) -> Result<Instance, String> {
    let text = |error: InvalidField| error.to_string();
    let wrong = || malformed("instance");
    let named = |value: &str| ServiceName::parse(value).map_err(text);
    let mut instance: Option<Instance> = None;
    let mut pairs = Vec::new();
    let mut meta_key = None;
    for field in Fields(body) {
        let (number, value) = field.map_err(|Malformed| wrong())?;
        if let (field::SERVICE, Value::Text(value)) = (number, value) {
            let mut service = named(value)?;
            service.share(|text| strings.share(text));
            let mut made = Instance::new(service, 0).map_err(text)?;
            made.id = InstanceId::parse(id).map_err(text)?;
            instance = Some(made);
            continue;
        }
        // The service comes first, always.
        let instance = instance.as_mut().ok_or_else(wrong)?;
        match (number, value) {
            (field::TAG, Value::Text(value)) => instance.tags.push(strings.shared(value)),
            (field::META_KEY, Value::Text(value)) => meta_key = Some(strings.shared(value)),
            (field::META_VALUE, Value::Text(value)) => {
                pairs.push((meta_key.take().ok_or_else(wrong)?, strings.shared(value)));
            }
            (field::IP, Value::Bytes(value)) => instance.address = Some(ip(value)?.into()),
            (field::HOST, Value::Text(value)) => {
                instance.address = Some(Host::Name(strings.shared(value)));
            }
            (field::PORT, Value::Number(value)) => instance.port = port(value)?,
            (field::MESH_PORT, Value::Number(value)) => instance.mesh_port = Some(port(value)?),
            (field::VERSION, Value::Text(value)) => instance.version = Some(strings.shared(value)),
            (field::FLAGS, Value::Number(flags)) => {
                instance.enable_tag_override = flags & TAG_OVERRIDE != 0;
                instance.external = flags & EXTERNAL != 0;
                if flags & PET != 0 {
                    instance.class = Class::Pet;
                }
            }
            (field::PASSING, Value::Number(value)) => {
                instance.weights.passing = port(value.saturating_add(1))?;
            }
            (field::WARNING, Value::Number(value)) => {
                instance.weights.warning = port(value % NO_WEIGHT)?;
            }
            (field::CREATED, Value::Stamp(stamp)) => {
                (instance.create_stamp, instance.modify_stamp) = (stamp, stamp);
            }
            (field::MODIFIED, Value::Stamp(stamp)) => instance.modify_stamp = stamp,
            (field::KIND, Value::Number(value)) => instance.kind = kind_of(value),
            (field::PORT_NAME, Value::Text(value)) => instance.ports.push(NamedPort {
                name: strings.shared(value),
                port: 0,
            }),
            (field::NAMED_PORT, Value::Number(value)) => {
                instance.ports.last_mut().ok_or_else(wrong)?.port = port(value)?;
            }
            (field::ADDRESS_TAG, Value::Text(value)) => {
                // Nothing has an empty name for its host: `validate` finds a tag without one.
                instance.tagged_addresses.push(TaggedAddress {
                    tag: strings.shared(value),
                    host: Host::Name(strings.shared("")),
                    port: 0,
                });
            }
            (field::TAGGED_IP, Value::Bytes(value)) => {
                instance.tagged_addresses.last_mut().ok_or_else(wrong)?.host = ip(value)?.into();
            }
            (field::TAGGED_HOST, Value::Text(value)) => {
                let tagged = instance.tagged_addresses.last_mut().ok_or_else(wrong)?;
                tagged.host = Host::Name(strings.shared(value));
            }
            (field::TAGGED_PORT, Value::Number(value)) => {
                instance.tagged_addresses.last_mut().ok_or_else(wrong)?.port = port(value)?;
            }
            (field::REGION, Value::Text(value)) => {
                instance.locality.get_or_insert_default().region = strings.shared(value);
            }
            (field::ZONE, Value::Text(value)) => {
                instance.locality.get_or_insert_default().zone = strings.shared(value);
            }
            (field::PROXY_SERVICE, Value::Text(value)) => {
                instance.proxy = Some(Arc::new(Proxy::new(named(value)?)));
            }
            (
                field::PROXY_INSTANCE | field::PROXY_IP | field::PROXY_HOST | field::PROXY_PORT,
                value,
            ) => {
                let proxy = instance
                    .proxy
                    .as_mut()
                    .map(Arc::make_mut)
                    .ok_or_else(wrong)?;
                match (number, value) {
                    (field::PROXY_INSTANCE, Value::Text(value)) => {
                        proxy.instance = Some(InstanceId::parse(value).map_err(text)?);
                    }
                    (field::PROXY_IP, Value::Bytes(value)) => {
                        proxy.address = Some(ip(value)?.into())
                    }
                    (field::PROXY_HOST, Value::Text(value)) => {
                        proxy.address = Some(Host::Name(strings.shared(value)));
                    }
                    (field::PROXY_PORT, Value::Number(value)) => proxy.port = port(value)?,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let mut instance = instance.ok_or_else(wrong)?;
    instance.tags.shrink_to_fit();
    instance.meta = pairs.into_iter().collect();
    Ok(instance)
}
