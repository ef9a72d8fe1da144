//! Checks.

use std::sync::Arc;

use super::super::fields::{Fields, Malformed, Value, Writer};
use super::super::strings::Strings;
use super::{DERIVED, Key, health, malformed};
use crate::model::{CheckRecord, Health, InstanceId, checked};

mod field {
    pub(super) const NAME: u64 = 1;
    pub(super) const KIND: u64 = 2;
    pub(super) const NOTES: u64 = 3;
    pub(super) const STATUS: u64 = 4;
    /// The instance it speaks for, unless the key says it.
    pub(super) const INSTANCE: u64 = 5;
    /// It speaks for the whole node, though its key names an instance.
    pub(super) const WHOLE_NODE: u64 = 6;
    pub(super) const CREATED: u64 = 7;
    /// Unless it is the stamp before.
    pub(super) const MODIFIED: u64 = 8;
}

/// What a check speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of<'a> {
    /// The instance that its key names.
    Derived,
    Instance(&'a str),
    Node,
}

pub(in super::super) fn encode_check(check: &CheckRecord) -> bytes::Bytes {
    let mut writer = Writer::default();
    writer.text(field::NAME, &check.name);
    writer.text(field::KIND, &check.kind);
    writer.text(field::NOTES, &check.notes);
    let status = match check.status {
        Health::Passing => 0,
        Health::Warning => 1,
        Health::Critical => 2,
        Health::Maintenance => 3,
    };
    writer.number(field::STATUS, status);
    match (Key::of_check(&check.id), &check.service) {
        (Key::DerivedCheck(named), Some(id)) if id == named => {}
        (Key::DerivedCheck(_), None) => writer.number(field::WHOLE_NODE, 1),
        (_, Some(id)) => writer.text(field::INSTANCE, id.as_str()),
        (_, None) => {}
    }
    writer.stamp(field::CREATED, check.create_stamp);
    if check.modify_stamp != check.create_stamp {
        writer.stamp(field::MODIFIED, check.modify_stamp);
    }
    writer.0.into()
}

pub(super) fn check<'a>(id: &str, body: &'a [u8]) -> Result<Of<'a>, String> {
    checked::check_id(id).map_err(|error| error.to_string())?;
    let mut of = match Key::of_check(id) {
        Key::DerivedCheck(_) => Of::Derived,
        _ => Of::Node,
    };
    for field in Fields(body) {
        let rule = match field.map_err(|Malformed| malformed("check"))? {
            (field::NAME, Value::Text(text)) => checked::check_text("name", text),
            (field::KIND, Value::Text(text)) => checked::check_text("kind", text),
            (field::NOTES, Value::Text(text)) => checked::check_text("notes", text),
            (field::INSTANCE, Value::Text(text)) => {
                of = Of::Instance(text);
                checked::instance_id(text)
            }
            (field::WHOLE_NODE, Value::Number(_)) => {
                of = Of::Node;
                Ok(())
            }
            _ => Ok(()),
        };
        rule.map_err(|error| error.to_string())?;
    }
    Ok(of)
}

/// The check with `key`, which [`check`] has passed.
pub(in super::super) fn check_record(
    key: Key<'_>,
    strings: &mut Strings,
    body: &[u8],
) -> Result<CheckRecord, String> {
    let parsed = |id: &str| InstanceId::parse(id).map_err(|error| error.to_string());
    let (id, service) = match key {
        Key::DerivedCheck(named) => ([DERIVED, named].concat(), Some(parsed(named)?)),
        Key::Check(id) => (id.to_owned(), None),
        _ => return Err("no check has this key".to_owned()),
    };
    let mut check = CheckRecord {
        id: Arc::from(id),
        name: strings.shared(""),
        service,
        status: Health::Passing,
        kind: strings.shared(""),
        notes: strings.shared(""),
        create_stamp: 0,
        modify_stamp: 0,
    };
    for field in Fields(body) {
        match field.map_err(|Malformed| malformed("check"))? {
            (field::NAME, Value::Text(text)) => check.name = strings.shared(text),
            (field::KIND, Value::Text(text)) => check.kind = strings.shared(text),
            (field::NOTES, Value::Text(text)) => check.notes = strings.shared(text),
            (field::STATUS, Value::Number(number)) => check.status = health(number),
            (field::INSTANCE, Value::Text(text)) => check.service = Some(parsed(text)?),
            (field::WHOLE_NODE, Value::Number(_)) => check.service = None,
            (field::CREATED, Value::Stamp(stamp)) => {
                (check.create_stamp, check.modify_stamp) = (stamp, stamp);
            }
            (field::MODIFIED, Value::Stamp(stamp)) => check.modify_stamp = stamp,
            _ => {}
        }
    }
    Ok(check)
}
