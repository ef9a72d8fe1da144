//! What keys and bodies mean.
//!
//! A record that does not decode, breaks a rule of the model, or that its node has no right to publish is *poison*: it
//! is kept in the log (so that all replicas stay equal), counted, and shown to nobody.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Touched};
use super::strings::Strings;
use super::verify::VerifiedNode;
use crate::model::{CheckRecord, Instance, InstanceId, NodeRecord};

/// The name of a record in its node's log. The certificate sorts first, so it is in part 0 of every snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Key {
    Certificate,
    Node,
    Instance(InstanceId),
    Check(Arc<str>),
}

/// Most certificates in a chain.
const CHAIN_MAX: usize = 8;

impl Key {
    pub(super) fn encode(&self) -> Bytes {
        encode(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode("key", bytes)
    }
}

pub(super) fn encode(value: &impl Serialize) -> Bytes {
    postcard::to_stdvec(value)
        .expect("plain data always encodes")
        .into()
}

fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(format!("the {what} has bytes after its end")),
        Err(error) => Err(format!("the {what} does not decode: {error}")),
    }
}

/// The certificate chain in a record's body.
pub(super) fn decode_chain(body: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let chain: Vec<Vec<u8>> = decode("certificate record", body)?;
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        return Err(format!(
            "a chain of {} certificates, allowed are 1 to {CHAIN_MAX}",
            chain.len()
        ));
    }
    Ok(chain)
}

/// Takes one changed record into its node's facts; without `node` it is the own one, which may say everything. Poison takes away what the key said before: its owner does not
/// say that any more.
///
/// # Errors
/// Why it is poison.
pub(super) fn take(
    facts: &mut Facts,
    touched: &mut Touched,
    strings: &mut Strings,
    node: Option<&VerifiedNode>,
    key: &[u8],
    body: Option<&[u8]>,
) -> Result<(), String> {
    match Key::decode(key)? {
        // Read before the records are, as it decides whether they are believed.
        Key::Certificate => Ok(()),
        Key::Node => {
            let record = body.map(|body| node_record(node, body)).transpose();
            let (record, result) = or_nothing(record);
            facts.set_record(record, touched);
            result
        }
        Key::Instance(id) => {
            let instance = body.map(|body| instance(node, &id, body)).transpose();
            let (mut instance, result) = or_nothing(instance);
            if let Some(instance) = &mut instance {
                strings.share_instance(instance);
                instance.id = id.clone();
            }
            facts.set_instance(&id, instance, touched);
            result
        }
        Key::Check(id) => {
            let check = body.map(|body| check(&id, body)).transpose();
            let (mut check, result) = or_nothing(check);
            if let Some(check) = &mut check {
                strings.share_check(check);
                check.id = Arc::clone(&id);
            }
            facts.set_check(&id, check, touched);
            result
        }
    }
}

fn or_nothing<T>(read: Result<Option<T>, String>) -> (Option<T>, Result<(), String>) {
    match read {
        Ok(value) => (value, Ok(())),
        Err(reason) => (None, Err(reason)),
    }
}

fn node_record(node: Option<&VerifiedNode>, body: &[u8]) -> Result<NodeRecord, String> {
    let record: NodeRecord = decode("node record", body)?;
    record.validate().map_err(|error| error.to_string())?;
    if let Some(node) = node
        && (record.id != node.id || record.name != node.name)
    {
        return Err(format!(
            "node {} ({}) describes itself as {} ({})",
            node.name, node.id, record.name, record.id
        ));
    }
    Ok(record)
}

fn instance(node: Option<&VerifiedNode>, id: &InstanceId, body: &[u8]) -> Result<Instance, String> {
    let instance: Instance = decode("instance", body)?;
    instance.validate().map_err(|error| error.to_string())?;
    if instance.id != *id {
        return Err("the instance's id is not its key".to_owned());
    }
    if let Some(node) = node
        && !(node.may_publish)(&instance.service)
    {
        return Err(format!(
            "node {} has no right to publish service {}",
            node.name, instance.service
        ));
    }
    Ok(instance)
}

fn check(id: &Arc<str>, body: &[u8]) -> Result<CheckRecord, String> {
    let check: CheckRecord = decode("check", body)?;
    check.validate().map_err(|error| error.to_string())?;
    if check.id != *id {
        return Err("the check's id is not its key".to_owned());
    }
    Ok(check)
}
