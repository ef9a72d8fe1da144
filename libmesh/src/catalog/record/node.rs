//! What a node says of itself.

use std::collections::BTreeMap;

use super::super::fields::{Fields, Malformed, Value, Writer};
use super::super::strings::Strings;
use super::super::verify::VerifiedNode;
use super::{ip, ip_bytes, malformed, port};
use crate::model::{Datacenter, External, Locality, NodeId, NodeName, NodeRecord, Roles};

mod field {
    pub(super) const NAME: u64 = 1;
    pub(super) const DATACENTER: u64 = 2;
    pub(super) const IP: u64 = 3;
    pub(super) const PORT: u64 = 4;
    pub(super) const FLAGS: u64 = 5;
    pub(super) const META_KEY: u64 = 6;
    pub(super) const META_VALUE: u64 = 7;
    pub(super) const VERSION: u64 = 8;
    pub(super) const REGION: u64 = 9;
    pub(super) const ZONE: u64 = 10;
    pub(super) const UUID: u64 = 11;
    pub(super) const ADDRESS_TAG: u64 = 12;
    pub(super) const TAGGED_ADDRESS: u64 = 13;
}

const SERVER: u64 = 1;
const EXTERNAL: u64 = 2;

pub(in super::super) fn encode_node(node: &NodeRecord) -> bytes::Bytes {
    let mut writer = Writer::default();
    writer.text(field::NAME, node.name.as_str());
    writer.text(field::DATACENTER, node.datacenter.as_str());
    ip_bytes(&mut writer, field::IP, node.address);
    writer.number(field::PORT, node.port.into());
    let server = if node.roles.server { SERVER } else { 0 };
    let external = node.external.as_ref().map_or(0, |_| EXTERNAL);
    writer.number(field::FLAGS, server | external);
    for (key, value) in &node.meta {
        writer.text_always(field::META_KEY, key);
        writer.text_always(field::META_VALUE, value);
    }
    writer.text(field::VERSION, &node.version);
    writer.text(field::REGION, &node.locality.region);
    writer.text(field::ZONE, &node.locality.zone);
    if let Some(external) = &node.external {
        if let Some(uuid) = &external.uuid {
            writer.bytes(field::UUID, uuid);
        }
        for (tag, address) in &external.tagged_addresses {
            writer.text_always(field::ADDRESS_TAG, tag);
            writer.text_always(field::TAGGED_ADDRESS, address);
        }
    }
    writer.0.into()
}

/// There are few of them, so this one is checked by making it.
pub(super) fn check(node: Option<&VerifiedNode>, body: &[u8]) -> Result<(), String> {
    let id = node.map_or(NodeId([0; 16]), |node| node.id);
    let record = node_record(id, &mut Strings::default(), body)?;
    match node {
        Some(node) if record.name != node.name => Err(format!(
            "node {} ({}) describes itself as {}",
            node.name, node.id, record.name
        )),
        Some(node) if record.is_member() == node.external => Err(format!(
            "the certificate of node {} is for {}",
            node.name,
            if node.external {
                "no member"
            } else {
                "a member"
            }
        )),
        _ => Ok(()),
    }
}

pub(in super::super) fn node_record(
    id: NodeId,
    strings: &mut Strings,
    body: &[u8],
) -> Result<NodeRecord, String> {
    let text = |error: crate::model::InvalidField| error.to_string();
    let (mut name, mut address) = (None, None);
    let mut datacenter = Datacenter::default();
    let (mut listens, mut roles) = (0, Roles::default());
    let (mut locality, mut version) = (Locality::default(), "".into());
    let mut meta = BTreeMap::new();
    let mut meta_key = None;
    let (mut is_external, mut external, mut address_tag) = (false, External::default(), None);
    for field in Fields(body) {
        match field.map_err(|Malformed| malformed("node"))? {
            (field::NAME, Value::Text(value)) => {
                name = Some(NodeName::parse(value).map_err(text)?);
            }
            (field::DATACENTER, Value::Text(value)) => {
                datacenter = Datacenter::parse(value).map_err(text)?;
            }
            (field::IP, Value::Bytes(value)) => address = Some(ip(value)?),
            (field::PORT, Value::Number(value)) => listens = port(value)?,
            (field::FLAGS, Value::Number(value)) => {
                roles.server = value & SERVER != 0;
                is_external = value & EXTERNAL != 0;
            }
            (field::UUID, Value::Bytes(value)) => {
                external.uuid = Some(value.try_into().map_err(|_| malformed("node"))?);
            }
            (field::ADDRESS_TAG, Value::Text(value)) => address_tag = Some(strings.shared(value)),
            (field::TAGGED_ADDRESS, Value::Text(value)) => {
                let tag = address_tag.take().ok_or_else(|| malformed("node"))?;
                external.tagged_addresses.insert(tag, strings.shared(value));
            }
            (field::META_KEY, Value::Text(value)) => meta_key = Some(strings.shared(value)),
            (field::META_VALUE, Value::Text(value)) => {
                let key = meta_key.take().ok_or_else(|| malformed("node"))?;
                meta.insert(key, strings.shared(value));
            }
            (field::VERSION, Value::Text(value)) => version = strings.shared(value),
            (field::REGION, Value::Text(value)) => locality.region = strings.shared(value),
            (field::ZONE, Value::Text(value)) => locality.zone = strings.shared(value),
            _ => {}
        }
    }
    let record = NodeRecord {
        id,
        name: name.ok_or("the node has no name")?,
        datacenter,
        address: address.ok_or("the node has no address")?,
        port: listens,
        roles,
        locality,
        meta,
        version,
        external: is_external.then(|| Box::new(external)),
    };
    record.validate().map_err(text)?;
    Ok(record)
}
