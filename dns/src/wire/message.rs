//! Reading a request.
//!
//! The parser is bounded by the datagram itself: each record is stepped over once, pointers are never followed.
//! What it cannot read it either drops (too short, or a response: answering those would let two servers talk for
//! ever) or answers with FORMERR.

use super::name::{self, WireName};
use super::{HEADER, rtype};

/// The fixed header's identity and flag bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the asker, echoed.
    pub id: u16,
    /// The 16 flag bits as received.
    pub flags: u16,
}

impl Header {
    /// Response bit.
    pub const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Checking disabled (DNSSEC).
    pub const CD: u16 = 0x0010;
    const OPCODE: u16 = 0x7800;

    /// Kind of request: 0 is QUERY.
    pub fn opcode(self) -> u8 {
        ((self.flags & Self::OPCODE) >> 11) as u8
    }

    /// The flags of a reply before its own bits are set: response bit, opcode, RD and CD as asked.
    pub fn reply_flags(self) -> u16 {
        Self::QR | (self.flags & (Self::OPCODE | Self::RD | Self::CD))
    }
}

/// The one question of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a> {
    /// The asked name, spelt as asked.
    pub name: WireName<'a>,
    /// The asked type.
    pub rtype: u16,
    /// The asked class.
    pub class: u16,
    /// Name, type and class as they came, to be echoed.
    pub bytes: &'a [u8],
}

impl<'a> Question<'a> {
    /// Reads a question at the start of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let name = WireName::parse(bytes)?;
        let len = name.as_bytes().len();
        let fixed = bytes.get(len..len + 4)?;
        Some(Self {
            name,
            rtype: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            bytes: &bytes[..len + 4],
        })
    }
}

/// What the asker's OPT record says (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns<'a> {
    /// The largest UDP reply that the asker can take.
    pub payload: u16,
    /// EDNS version; only 0 is known.
    pub version: u8,
    /// "DNSSEC OK" bit, echoed.
    pub dnssec_ok: bool,
    /// The first cookie option.
    pub cookie: Option<Cookie<'a>>,
}

/// A cookie option (RFC 7873 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie<'a> {
    /// The client's part.
    pub client: [u8; 8],
    /// What the client says that a server gave him: 8 to 32 octets.
    pub server: Option<&'a [u8]>,
}

/// Number of the cookie option (IANA "DNS EDNS0 Option Codes").
const COOKIE: u16 = 10;

impl<'a> Edns<'a> {
    /// Reads an OPT record's data; `None` when an option is cut off, or a cookie has a wrong length.
    fn cookie(mut data: &'a [u8]) -> Option<Option<Cookie<'a>>> {
        let mut found = None;
        while !data.is_empty() {
            let (head, rest) = data.split_at_checked(4)?;
            let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let (option, rest) = rest.split_at_checked(word(2).into())?;
            data = rest;
            if word(0) == COOKIE && found.is_none() {
                let (client, server) = option.split_first_chunk::<8>()?;
                if !server.is_empty() && !(8..=32).contains(&server.len()) {
                    return None;
                }
                found = Some(Cookie {
                    client: *client,
                    server: (!server.is_empty()).then_some(server),
                });
            }
        }
        Some(found)
    }
}

/// A standard query with one question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// Id and flags.
    pub header: Header,
    /// The question.
    pub question: Question<'a>,
    /// The OPT record, when there is one.
    pub edns: Option<Edns<'a>>,
}

/// What a datagram or a TCP frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// A standard query.
    Query(Query<'a>),
    /// Another opcode (NOTIFY, UPDATE, …) with its question, if it has one that can be read.
    Other(Header, Option<Question<'a>>),
    /// Unreadable, but with a header that an error can be sent for.
    Malformed(Header),
    /// Not to be answered at all.
    Ignore,
}

impl<'a> Request<'a> {
    /// Reads one message.
    pub fn parse(message: &'a [u8]) -> Self {
        let Some(head) = message.first_chunk::<HEADER>() else {
            return Self::Ignore;
        };
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let header = Header {
            id: word(0),
            flags: word(2),
        };
        if header.flags & Header::QR != 0 {
            return Self::Ignore;
        }
        let question = if word(4) == 1 {
            Question::parse(&message[HEADER..])
        } else {
            None
        };
        if header.opcode() != 0 {
            return Self::Other(header, question);
        }
        let Some(question) = question else {
            return Self::Malformed(header);
        };
        // Asker's answer and authority records mean nothing to us (IXFR sends one), but the OPT is behind them.
        let before = u32::from(word(6)) + u32::from(word(8));
        match records(message, HEADER + question.bytes.len(), before, word(10)) {
            Some(edns) => Self::Query(Query {
                header,
                question,
                edns,
            }),
            None => Self::Malformed(header),
        }
    }
}

/// Steps over `before` records, then over `additional` ones looking for the OPT. `None` when a record is cut off,
/// an OPT is malformed or doubled, or octets are left over.
fn records(
    message: &[u8],
    mut at: usize,
    before: u32,
    additional: u16,
) -> Option<Option<Edns<'_>>> {
    let mut edns = None;
    for index in 0..before + u32::from(additional) {
        let is_root = message.get(at) == Some(&0);
        at = name::skip(message, at)?;
        let fixed = message.get(at..at + 10)?;
        let word = |i: usize| u16::from_be_bytes([fixed[i], fixed[i + 1]]);
        let data_at = at + 10;
        at = data_at + usize::from(word(8));
        if at > message.len() {
            return None;
        }
        if index >= before && word(0) == rtype::OPT {
            if !is_root || edns.is_some() {
                return None;
            }
            edns = Some(Edns {
                payload: word(2),
                version: fixed[5],
                dnssec_ok: fixed[6] & 0x80 != 0,
                cookie: Edns::cookie(&message[data_at..at])?,
            });
        }
    }
    (at == message.len()).then_some(edns)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEB: &[u8] = b"\x03web\x04mesh\x00\x00\x01\x00\x01";
    const OPT: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x80\x00\x00\x00";

    fn message(flags: u16, counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0xAB, 0xCD];
        out.extend(flags.to_be_bytes());
        counts.iter().for_each(|c| out.extend(c.to_be_bytes()));
        body.iter().for_each(|b| out.extend_from_slice(b));
        out
    }

    #[test]
    fn a_plain_query() {
        let bytes = message(0x0100, [1, 0, 0, 0], &[WEB]);
        let Request::Query(query) = Request::parse(&bytes) else {
            panic!("not a query")
        };
        assert_eq!(
            query.header,
            Header {
                id: 0xABCD,
                flags: 0x0100
            }
        );
        assert_eq!(
            (
                query.question.rtype,
                query.question.class,
                query.question.bytes
            ),
            (1, 1, WEB)
        );
        assert_eq!(query.edns, None);
    }

    #[test]
    fn edns_is_found_behind_other_records() {
        let other = b"\xC0\x0C\x00\x10\x00\x01\x00\x00\x00\x00\x00\x02\x01x";
        let bytes = message(0, [1, 0, 1, 2], &[WEB, other, other, OPT]);
        let Request::Query(query) = Request::parse(&bytes) else {
            panic!("not a query")
        };
        assert_eq!(
            query.edns,
            Some(Edns {
                payload: 1232,
                version: 0,
                dnssec_ok: true,
                cookie: None,
            })
        );
    }

    #[test]
    fn cookies_are_found_and_have_a_length() {
        let opt = |data: &[u8]| {
            let mut opt = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00".to_vec();
            opt.extend((data.len() as u16).to_be_bytes());
            opt.extend_from_slice(data);
            message(0, [1, 0, 0, 1], &[WEB, &opt])
        };
        let option = |cookie: &[u8]| {
            let mut data = b"\x00\x03\x00\x00\x00\x0a".to_vec();
            data.extend((cookie.len() as u16).to_be_bytes());
            data.extend_from_slice(cookie);
            opt(&data)
        };
        for (len, server) in [(8, None), (16, Some(8)), (24, Some(16)), (40, Some(32))] {
            let bytes = option(&vec![7; len]);
            let Request::Query(Query {
                edns: Some(edns), ..
            }) = Request::parse(&bytes)
            else {
                panic!("{len}: not a query with EDNS")
            };
            let cookie = edns.cookie.expect("a cookie");
            assert_eq!(
                (cookie.client, cookie.server.map(<[u8]>::len)),
                ([7; 8], server)
            );
        }
        for len in [0, 7, 9, 15, 41] {
            let bytes = option(&vec![7; len]);
            assert!(
                matches!(Request::parse(&bytes), Request::Malformed(_)),
                "{len}"
            );
        }
        assert!(matches!(
            Request::parse(&opt(b"\x00\x03\x00")),
            Request::Malformed(_)
        ));
        assert!(matches!(
            Request::parse(&opt(b"\x00\x03\x00\x01")),
            Request::Malformed(_)
        ));
    }

    #[test]
    fn responses_and_stubs_are_ignored() {
        assert_eq!(
            Request::parse(&message(Header::QR, [1, 0, 0, 0], &[WEB])),
            Request::Ignore
        );
        assert_eq!(Request::parse(b"\x00\x01\x00"), Request::Ignore);
        assert_eq!(Request::parse(b""), Request::Ignore);
    }

    #[test]
    fn what_cannot_be_read_is_malformed() {
        let header = Header {
            id: 0xABCD,
            flags: 0,
        };
        for (counts, body) in [
            ([0, 0, 0, 0], vec![]),
            ([2, 0, 0, 0], vec![WEB, WEB]),
            ([1, 0, 0, 0], vec![&WEB[..6]]),
            ([1, 0, 0, 0], vec![WEB, &b"\x00"[..]]),
            ([1, 0, 0, 1], vec![WEB]),
            ([1, 0, 0, 2], vec![WEB, OPT, OPT]),
            ([1, 0, 0, 1], vec![WEB, &OPT[..10]]),
            ([1, 0, 0, 1], vec![WEB, &b"\x01a"[..], OPT]),
            ([1, 0xFFFF, 0xFFFF, 0xFFFF], vec![WEB, OPT]),
        ] {
            let bytes = message(0, counts, &body);
            assert_eq!(
                Request::parse(&bytes),
                Request::Malformed(header),
                "{counts:?} {body:?}"
            );
        }
    }

    #[test]
    fn other_opcodes_keep_their_question() {
        let bytes = message(4 << 11, [1, 0, 0, 0], &[WEB]);
        let Request::Other(header, Some(question)) = Request::parse(&bytes) else {
            panic!("not another opcode")
        };
        assert_eq!((header.opcode(), question.bytes), (4, WEB));
        let bytes = message(2 << 11, [0, 0, 0, 0], &[]);
        assert!(matches!(Request::parse(&bytes), Request::Other(_, None)));
    }

    proptest! {
        /// No input makes the parser panic, and what it returns is inside the input.
        #[test]
        fn any_bytes_parse(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Request::Query(query) = Request::parse(&bytes) {
                prop_assert!(query.question.bytes.len() + HEADER <= bytes.len());
            }
        }

        /// The same with a good beginning, so that the records behind it are reached.
        #[test]
        fn any_records_parse(counts in any::<[u16; 3]>(), tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = message(0, [1, counts[0] % 3, counts[1] % 3, counts[2] % 4], &[WEB, &tail]);
            Request::parse(&bytes);
        }
    }
}
