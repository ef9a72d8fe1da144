//! What keys and records mean.
//!
//! A record that does not decode, breaks a rule of the model, or that its node has no right to publish is *poison*: it
//! is kept in the log (so that all replicas stay equal), counted, and shown to nobody.
//!
//! Reading goes two ways over the same fields: [`check`] looks at a record where it lies and tells what to index it
//! by; nothing is copied. `instance`, `check_record` and `node_record` make the types of the model, for somebody who
//! looks. The second never fails where the first did not.

use bytes::Bytes;

use super::fields::{Fields, Malformed, Value, Writer};
use super::verify::VerifiedNode;
use crate::model::Health;

mod check;
mod instance;
mod node;

pub(super) use check::{check_record, encode_check};
pub(super) use instance::{encode_instance, instance, meshed, own_ip, tags};
pub(super) use node::{encode_node, node_record};

/// The key of the certificate. It sorts first, so it is in part 0 of every snapshot.
pub(super) const CERTIFICATE: &[u8] = &[0];
/// The key of what the node says of itself.
pub(super) const NODE: &[u8] = &[1];
const INSTANCE: u8 = 2;
const CHECK: u8 = 3;
/// Ends the key of an instance. Ids have no control characters, so it is no part of one.
const OF_INSTANCE: u8 = 0;
/// Ends the key of the check called after an instance, which therefore sorts behind it.
const OF_ITS_CHECK: u8 = 1;
/// `service:<instance id>` is what Consul calls the check of an instance.
const DERIVED: &str = "service:";
/// Most certificates in a chain.
const CHAIN_MAX: usize = 8;

/// The name of a record in its node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key<'a> {
    Certificate,
    Node,
    Instance(&'a str),
    /// The check `service:<this>`.
    DerivedCheck(&'a str),
    Check(&'a str),
}

impl<'a> Key<'a> {
    /// The key of the check with this id.
    pub(super) fn of_check(id: &'a str) -> Self {
        match id.strip_prefix(DERIVED) {
            Some(instance) if !instance.is_empty() => Self::DerivedCheck(instance),
            _ => Self::Check(id),
        }
    }

    pub(super) fn encode(self) -> Bytes {
        match self {
            Self::Certificate => Bytes::from_static(CERTIFICATE),
            Self::Node => Bytes::from_static(NODE),
            Self::Instance(id) => [&[INSTANCE], id.as_bytes(), &[OF_INSTANCE]].concat().into(),
            Self::DerivedCheck(id) => [&[INSTANCE], id.as_bytes(), &[OF_ITS_CHECK]]
                .concat()
                .into(),
            Self::Check(id) => [&[CHECK], id.as_bytes()].concat().into(),
        }
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, String> {
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "the key is no text".to_owned());
        match bytes {
            CERTIFICATE => Ok(Self::Certificate),
            NODE => Ok(Self::Node),
            [INSTANCE, id @ .., OF_INSTANCE] => Ok(Self::Instance(text(id)?)),
            [INSTANCE, id @ .., OF_ITS_CHECK] if !id.is_empty() => {
                Ok(Self::DerivedCheck(text(id)?))
            }
            [CHECK, id @ ..] => match Self::of_check(text(id)?) {
                key @ Self::Check(_) => Ok(key),
                _ => Err("the check has another's kind of key".to_owned()),
            },
            _ => Err("the key is of no known kind".to_owned()),
        }
    }
}

/// The id of the check that is called after an instance.
pub(super) fn derived(instance: &str) -> String {
    format!("{DERIVED}{instance}")
}

/// What to index a good record by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// Nothing that is indexed.
    Other,
    /// What the node says of itself.
    Node,
    /// An instance of this service.
    Instance(&'a str),
    /// A check of the instance that its key names.
    DerivedCheck(&'a str),
    /// A check of an instance, or (`None`) of the node.
    Check(Option<&'a str>),
}

/// Checks a record where it lies. Without `node` it is the own one's, which may say everything.
///
/// # Errors
/// Why it is poison.
pub(super) fn check<'a>(
    node: Option<&VerifiedNode>,
    key: Key<'a>,
    body: &'a [u8],
) -> Result<Meaning<'a>, String> {
    match key {
        // Read before the records are, as it decides whether they are believed.
        Key::Certificate => Ok(Meaning::Other),
        Key::Node => node::check(node, body).map(|()| Meaning::Node),
        Key::Instance(id) => instance::check(node, id, body).map(Meaning::Instance),
        Key::DerivedCheck(instance) => match check::check(&[DERIVED, instance].concat(), body)? {
            check::Of::Derived => Ok(Meaning::DerivedCheck(instance)),
            check::Of::Instance(id) => Ok(Meaning::Check(Some(id))),
            check::Of::Node => Ok(Meaning::Check(None)),
        },
        Key::Check(id) => match check::check(id, body)? {
            check::Of::Derived => Err("the check says of nothing what it is of".to_owned()),
            check::Of::Instance(id) => Ok(Meaning::Check(Some(id))),
            check::Of::Node => Ok(Meaning::Check(None)),
        },
    }
}

/// The record of a certificate chain.
pub(super) fn encode_chain(chain: &[Vec<u8>]) -> Bytes {
    let mut writer = Writer::default();
    chain.iter().for_each(|one| writer.bytes(1, one));
    writer.0.into()
}

/// The certificate chain in a record.
pub(super) fn decode_chain(body: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut chain = Vec::new();
    for field in Fields(body) {
        if let (1, Value::Bytes(one)) = field.map_err(|Malformed| malformed("certificate"))? {
            chain.push(one.to_vec());
        }
        if chain.len() > CHAIN_MAX {
            break;
        }
    }
    if chain.is_empty() || chain.len() > CHAIN_MAX {
        return Err(format!(
            "a chain of no or more than {CHAIN_MAX} certificates"
        ));
    }
    Ok(chain)
}

/// What [`check`] has passed is made without error, and written it is read as the same again.
pub(super) fn fuzz_good(key: Key<'_>, body: &[u8]) {
    let strings = &mut super::strings::Strings::default();
    let good = "what is checked can be made";
    match key {
        Key::Certificate => {}
        Key::Node => {
            let id = crate::model::NodeId([0; 16]);
            let node = node_record(id, strings, body).expect(good);
            assert_eq!(
                node_record(id, strings, &encode_node(&node)).as_ref(),
                Ok(&node)
            );
        }
        Key::Instance(id) => {
            let made = instance(id, strings, body).expect(good);
            made.validate().expect(good);
            assert_eq!(
                instance(id, strings, &encode_instance(&made)).as_ref(),
                Ok(&made)
            );
        }
        Key::DerivedCheck(_) | Key::Check(_) => {
            let made = check_record(key, strings, body).expect(good);
            made.validate().expect(good);
            assert_eq!(
                check_record(key, strings, &encode_check(&made)).as_ref(),
                Ok(&made)
            );
        }
    }
}

fn malformed(what: &str) -> String {
    format!("the {what} record is not well formed")
}

fn port(value: u64) -> Result<u16, String> {
    u16::try_from(value).map_err(|_| format!("{value} is no port"))
}

fn ip(bytes: &[u8]) -> Result<std::net::IpAddr, String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(Into::into)
        .map_err(|_| "an address is neither IPv4 nor IPv6".to_owned())
}

fn ip_bytes(writer: &mut Writer, field: u64, ip: std::net::IpAddr) {
    match ip {
        std::net::IpAddr::V4(v4) => writer.bytes(field, &v4.octets()),
        std::net::IpAddr::V6(v6) => writer.bytes(field, &v6.octets()),
    }
}

fn health(number: u64) -> Health {
    match number {
        0 => Health::Passing,
        1 => Health::Warning,
        3 => Health::Maintenance,
        // A status of a newer version is none to send traffic to.
        _ => Health::Critical,
    }
}

#[cfg(test)]
mod tests;
