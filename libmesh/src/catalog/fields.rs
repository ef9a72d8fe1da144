//! How a record is written: numbered fields, each of which says how long it is.
//!
//! `field := varint(number << 3 | kind) ‖ value`. What is absent costs nothing, and who does not know a number skips
//! the field: so a newer version may add fields to any record, and older ones go on reading it.
//!
//! A message carries texts that several of its records have once, in a table, and stamps as distances from their
//! least: two more kinds, that only the [`wire`](super::wire) module writes and resolves. It does so by kind alone,
//! so it need not know what a field means either.

/// A varint.
const NUMBER: u64 = 0;
/// A length and as many bytes.
const BYTES: u64 = 1;
/// A length and as many bytes of UTF-8, which may be shared.
const TEXT: u64 = 2;
/// In messages only: where in the table the text is.
const SHARED_TEXT: u64 = 3;
/// A varint: unix µs.
const STAMP: u64 = 4;
/// In messages only: how much more than the message's base the stamp is.
const NEAR_STAMP: u64 = 5;

/// Lengths of texts that may be in a table: shorter ones are not worth it, longer ones are not repeated by accident.
pub(super) const SHARED: std::ops::RangeInclusive<usize> = 2..=256;

/// Bytes that are no fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Stamp(u64),
}

/// The fields of a record, in order.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let head = take_varint(&mut self.0)?;
        let value = match head & 7 {
            NUMBER => Value::Number(take_varint(&mut self.0)?),
            BYTES => Value::Bytes(take_bytes(&mut self.0)?),
            TEXT => Value::Text(std::str::from_utf8(take_bytes(&mut self.0)?).ok()?),
            STAMP => Value::Stamp(take_varint(&mut self.0)?),
            _ => return None,
        };
        Some((head >> 3, value))
    }
}

/// Writes the fields of a record. Those that say nothing are left out.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn number(&mut self, field: u64, value: u64) {
        if value != 0 {
            put_varint(&mut self.0, field << 3 | NUMBER);
            put_varint(&mut self.0, value);
        }
    }

    pub(super) fn stamp(&mut self, field: u64, value: u64) {
        if value != 0 {
            put_varint(&mut self.0, field << 3 | STAMP);
            put_varint(&mut self.0, value);
        }
    }

    pub(super) fn text(&mut self, field: u64, value: &str) {
        if !value.is_empty() {
            self.text_always(field, value);
        }
    }

    /// For fields whose presence says something.
    pub(super) fn text_always(&mut self, field: u64, value: &str) {
        put_varint(&mut self.0, field << 3 | TEXT);
        put_bytes(&mut self.0, value.as_bytes());
    }

    pub(super) fn bytes(&mut self, field: u64, value: &[u8]) {
        put_varint(&mut self.0, field << 3 | BYTES);
        put_bytes(&mut self.0, value);
    }
}

/// Calls `text` and `stamp` for every such value of a record.
pub(super) fn visit<'a>(
    body: &'a [u8],
    mut text: impl FnMut(&'a str),
    mut stamp: impl FnMut(u64),
) -> Result<(), Malformed> {
    for field in Fields(body) {
        match field?.1 {
            Value::Text(value) => text(value),
            Value::Stamp(value) => stamp(value),
            Value::Number(_) | Value::Bytes(_) => {}
        }
    }
    Ok(())
}

/// Writes a record as it is in a message: `shared` says where in the table a text is, stamps are taken from `base`.
pub(super) fn pack(
    body: &[u8],
    shared: impl Fn(&str) -> Option<usize>,
    base: u64,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let mut fields = Fields(body);
    loop {
        let before = fields.0;
        let Some(field) = fields.next() else {
            return Ok(());
        };
        let (number, value) = field?;
        match value {
            Value::Text(text) if let Some(at) = shared(text) => {
                put_varint(out, number << 3 | SHARED_TEXT);
                put_varint(out, at as u64);
            }
            Value::Stamp(stamp) if stamp >= base => {
                put_varint(out, number << 3 | NEAR_STAMP);
                put_varint(out, stamp - base);
            }
            _ => out.extend_from_slice(&before[..before.len() - fields.0.len()]),
        }
    }
}

/// The opposite of [`pack`]; `most` bytes of result at most.
pub(super) fn unpack(
    mut packed: &[u8],
    table: &[u8],
    base: u64,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    out.clear();
    while !packed.is_empty() {
        unpack_field(&mut packed, table, base, out).ok_or(Malformed)?;
        if out.len() > most {
            return Err(Malformed);
        }
    }
    Ok(())
}

fn unpack_field(rest: &mut &[u8], table: &[u8], base: u64, out: &mut Vec<u8>) -> Option<()> {
    let before = *rest;
    let head = take_varint(rest)?;
    match head & 7 {
        NUMBER | STAMP => drop(take_varint(rest)?),
        BYTES | TEXT => drop(take_bytes(rest)?),
        SHARED_TEXT => {
            let at = usize::try_from(take_varint(rest)?).ok()?;
            let text = take_bytes(&mut table.get(at..)?)?;
            if !SHARED.contains(&text.len()) {
                return None;
            }
            put_varint(out, head >> 3 << 3 | TEXT);
            put_bytes(out, text);
            return Some(());
        }
        NEAR_STAMP => {
            let stamp = base.checked_add(take_varint(rest)?)?;
            put_varint(out, head >> 3 << 3 | STAMP);
            put_varint(out, stamp);
            return Some(());
        }
        _ => return None,
    }
    out.extend_from_slice(&before[..before.len() - rest.len()]);
    Some(())
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (at, byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            // A number has one form, so that what is written again is the same.
            if *byte == 0 && at > 0 {
                return None;
            }
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(take_varint(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_come_back(value: u64) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut rest = &bytes[..];
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_fields_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields(&bytes).count();
            let mut out = Vec::new();
            let _ = unpack(&bytes, &bytes, u64::MAX, 1000, &mut out);
        }
    }

    #[test]
    fn what_is_packed_comes_back_and_what_is_absent_costs_nothing() {
        let mut writer = Writer::default();
        writer.number(1, 0);
        writer.text(2, "");
        writer.stamp(3, 0);
        assert!(writer.0.is_empty());
        writer.number(1, 7);
        writer.text(2, "shared");
        writer.text(3, "alone");
        writer.stamp(4, 1_000_000_007);
        writer.bytes(500, &[1, 2, 3]);
        let mut table = Vec::new();
        put_bytes(&mut table, b"shared");
        let mut packed = Vec::new();
        let shared = |text: &str| (text == "shared").then_some(0);
        pack(&writer.0, shared, 1_000_000_000, &mut packed).unwrap();
        assert!(packed.len() + 8 < writer.0.len());
        let mut back = Vec::new();
        unpack(&packed, &table, 1_000_000_000, 100, &mut back).unwrap();
        assert_eq!(back, writer.0);
        assert_eq!(
            unpack(&packed, &table, u64::MAX, 100, &mut back),
            Err(Malformed)
        );
        assert_eq!(unpack(&packed, &[], 0, 100, &mut back), Err(Malformed));
        assert_eq!(unpack(&packed, &table, 0, 10, &mut back), Err(Malformed));
    }
}
