//! Domain names on the wire.
//!
//! A name in a question is a run of length-prefixed labels without compression. It is checked once, by
//! [`WireName::parse`], and folded to lower case once, by [`Folded::new`]; everything after works on those.
//! The original spelling is kept for the reply (clients that randomise case, "0x20", compare it).

use std::fmt;

/// The longest name on the wire, its root octet included (RFC 1035 §2.3.4).
pub const MAX_NAME: usize = 255;
/// The longest label.
pub const MAX_LABEL: usize = 63;

/// A checked, uncompressed name inside a message, its root octet included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireName<'a>(&'a [u8]);

impl<'a> WireName<'a> {
    /// Reads a name at the start of `bytes`. `None` when it is cut off, too long, or compressed: nothing before a
    /// question could be pointed at.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut at = 0;
        loop {
            let len = usize::from(*bytes.get(at)?);
            if len > MAX_LABEL {
                return None;
            }
            at += 1 + len;
            if at > MAX_NAME {
                return None;
            }
            if len == 0 {
                return Some(Self(&bytes[..at]));
            }
        }
    }

    /// The octets, root included.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Steps over a possibly compressed name in a record; the position behind it, or `None` when it is malformed.
/// Pointers are not followed: whoever only wants the record's end does not need to know where they lead.
pub fn skip(message: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let len = usize::from(*message.get(at)?);
        match len & 0xC0 {
            0xC0 => return (at + 2 <= message.len()).then_some(at + 2),
            0 if len == 0 => return Some(at + 1),
            0 => at += 1 + len,
            _ => return None,
        }
        if at - start > MAX_NAME {
            return None;
        }
    }
}

/// A name in lower case, in a buffer of its own, with room for the two octets of a type so that it can serve as
/// a cache key without an allocation.
pub struct Folded {
    bytes: [u8; MAX_NAME + 2],
    len: usize,
}

impl Folded {
    /// Folds ASCII capitals (RFC 4343); every other octet stays.
    pub fn new(name: WireName<'_>) -> Self {
        let mut bytes = [0; MAX_NAME + 2];
        let len = name.as_bytes().len();
        bytes[..len].copy_from_slice(name.as_bytes());
        // Length octets are at most 63 and so never in the range of the capitals.
        bytes[..len].make_ascii_lowercase();
        Self { bytes, len }
    }

    /// The folded name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The folded name followed by the type: the key of a cached answer.
    pub fn key(&mut self, rtype: u16) -> &[u8] {
        self.bytes[self.len..self.len + 2].copy_from_slice(&rtype.to_be_bytes());
        &self.bytes[..self.len + 2]
    }
}

/// The labels of a wire name from left to right, the root left out.
pub fn labels(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = name;
    std::iter::from_fn(move || {
        let (&len, tail) = rest.split_first()?;
        if len == 0 {
            return None;
        }
        let (label, tail) = tail.split_at_checked(usize::from(len))?;
        rest = tail;
        Some(label)
    })
}

/// A domain name in text form could not be encoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a domain name: {reason}")]
pub struct BadName {
    name: String,
    reason: &'static str,
}

/// A name that this server owns or writes into answers: lower case, in wire form, root included.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Domain(Box<[u8]>);

impl Domain {
    /// Parses `mesh`, `mesh.` or `svc.example.com`. At least one label; letters, digits, `-` and `_`.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let bad = |reason| BadName {
            name: text.to_owned(),
            reason,
        };
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        if trimmed.is_empty() {
            return Err(bad("it is empty"));
        }
        if !trimmed
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        {
            return Err(bad("only letters, digits, `-`, `_` and `.` may be in it"));
        }
        let wire = encode(&trimmed.to_ascii_lowercase())
            .ok_or_else(|| bad("a label is empty or over 63 octets, or the whole is over 255"))?;
        Ok(Self(wire.into_boxed_slice()))
    }

    /// The wire form, root included.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many octets of `name` come before this domain; `None` when `name` is not at or below it.
    /// `name` must be folded.
    pub fn prefix_len(&self, name: &[u8]) -> Option<usize> {
        let at = name.len().checked_sub(self.0.len())?;
        if name[at..] != *self.0 {
            return None;
        }
        // The tail must begin at a label, not inside one that happens to hold the same octets.
        let mut label = 0;
        while label < at {
            label += 1 + usize::from(name[label]);
        }
        (label == at).then_some(at)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in labels(&self.0) {
            write!(f, "{}.", String::from_utf8_lossy(label))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Encodes dotted text into wire form, root included; `None` when a label is empty or over 63 octets or the whole
/// is over 255. One trailing dot is accepted.
pub fn encode(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        if label.is_empty() || label.len() > MAX_LABEL {
            return None;
        }
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_at_its_root() {
        let name = WireName::parse(b"\x03web\x07service\x04mesh\x00rest").unwrap();
        assert_eq!(name.as_bytes(), b"\x03web\x07service\x04mesh\x00");
        assert_eq!(
            labels(name.as_bytes()).collect::<Vec<_>>(),
            [&b"web"[..], b"service", b"mesh"]
        );
    }

    #[test]
    fn cut_off_compressed_and_long_names_are_refused() {
        assert_eq!(WireName::parse(b""), None);
        assert_eq!(WireName::parse(b"\x03we"), None);
        assert_eq!(WireName::parse(b"\x03web"), None);
        assert_eq!(WireName::parse(b"\xC0\x0C"), None);
        assert_eq!(WireName::parse(b"\x40aaaa"), None);
        let label = [&[63u8][..], &[b'a'; 63]].concat();
        let longest = [label.repeat(3), vec![61], vec![b'a'; 61], vec![0]].concat();
        assert_eq!(longest.len(), MAX_NAME);
        assert!(WireName::parse(&longest).is_some());
        assert_eq!(WireName::parse(&[label.repeat(4), vec![0]].concat()), None);
    }

    #[test]
    fn folding_touches_letters_only() {
        let wire = b"\x05WeB-9\x04MESH\x00";
        let mut folded = Folded::new(WireName::parse(wire).unwrap());
        assert_eq!(folded.as_bytes(), b"\x05web-9\x04mesh\x00");
        assert_eq!(folded.key(28), b"\x05web-9\x04mesh\x00\x00\x1c");
    }

    #[test]
    fn a_domain_matches_at_label_borders_only() {
        let mesh = Domain::parse("Mesh.").unwrap();
        assert_eq!(mesh.to_string(), "mesh.");
        assert_eq!(mesh.prefix_len(b"\x03web\x04mesh\x00"), Some(4));
        assert_eq!(mesh.prefix_len(b"\x04mesh\x00"), Some(0));
        assert_eq!(mesh.prefix_len(b"\x03web\x03com\x00"), None);
        // One label of eight octets whose tail looks like `\x04mesh`.
        assert_eq!(mesh.prefix_len(b"\x08abc\x04mesh\x00"), None);
        assert_eq!(mesh.prefix_len(b"\x00"), None);
    }

    #[test]
    fn bad_domains_say_why() {
        assert_eq!(
            Domain::parse(".").unwrap_err().to_string(),
            "`.` is not a domain name: it is empty"
        );
        assert!(Domain::parse("a..b").is_err());
        assert!(Domain::parse("a b").is_err());
        assert!(Domain::parse(&"a".repeat(64)).is_err());
        assert!(Domain::parse("svc.example.com").is_ok());
    }

    #[test]
    fn skipping_accepts_pointers_and_stops_at_nonsense() {
        assert_eq!(skip(b"\x01a\x00x", 0), Some(3));
        assert_eq!(skip(b"\x01a\xC0\x00x", 0), Some(4));
        assert_eq!(skip(b"\x01a\xC0", 0), None);
        assert_eq!(skip(b"\x80a", 0), None);
        assert_eq!(skip(&[1; 600], 0), None);
    }
}
