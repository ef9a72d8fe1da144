//! Questions that membership asks over the stream transport (mesh RPC), and their bodies.
//!
//! Why streams at all: a lost datagram must not make a node suspect, a node must be heard before it is declared down,
//! and a full member list does not fit datagrams. Three questions:
//!
//! * `/member/ping` *ping*: the ping that was not answered, again. The answer holds the same packets that
//!   the target would have sent back in datagrams.
//! * `/member/ping` *suspicion*: "I am about to declare you down". The target refutes.
//! * `/member/ping` *witness*: "ask that member yourself and tell me what you saw".
//! * `/member/ping` *copy*: "we have the same node id: one of us has to end". Carries whether anybody knows the asker, and
//!   when it started; the answer's outcome says who goes on.
//! * `/member/sync`: the whole member list; the answer is the other's. Or a digest of it; the answer is the parts of
//!   the list that differ. Or the asker's view of these parts; the answer is empty.
//!
//! ```text
//! ping    version u8 ‖ kind u8 ‖ from identity ‖ target identity ‖ incarnation u16 ‖ packets
//! answer  version u8 ‖ outcome u8 ‖ by identity ‖ packets            packets: count u8 ‖ (len u16 ‖ bytes)*
//! state   version u8 ‖ count u32 ‖ member*
//! digest  2 u8 ‖ count u8 (64) ‖ hash u64*
//! parts   3 u8 ‖ parts u64, a bit each ‖ count u32 ‖ member*
//! ```

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use foca::Incarnation;

use super::digest::{Digest, PARTS, Parts};
use super::keyring::MAX_DATAGRAM;
use super::wire::{self, Identity, Record, WireError};
use crate::model::NodeId;

const VERSION: u8 = 1;
const DIGEST: u8 = 2;
const PARTIAL: u8 = 3;
/// Packets that one answer may hold.
pub(crate) const MAX_PACKETS: usize = 4;

/// Largest body of `/member/ping` and of its answer, in bytes.
pub const MAX_PING_BODY: usize = 16 * 1024;
/// Largest body of `/member/sync` and of its answer, in bytes.
pub const MAX_SYNC_BODY: usize = 4 * 1024 * 1024;
/// Most members that a state holds.
pub const MAX_SYNC_MEMBERS: usize = 65_536;

/// Whom a stream question goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where.
    pub addr: SocketAddr,
    /// The node expected there; `None` for a seed of which only the address is known. A node with another id that
    /// answers there is an answer like any other: membership reads from the body who answered.
    pub node: Option<NodeId>,
}

/// What came of a stream question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamReply {
    /// The peer answered with this body.
    Acked(Bytes),
    /// Nothing listens there: the connection was refused (RST). Only for refused connects, never for a TLS or HTTP
    /// error: this is evidence that the process is gone.
    Refused,
    /// The peer does not let this node in, for this reason.
    Denied {
        /// Why, for people.
        reason: String,
        /// Where a node with our own id answers.
        copy: Option<SocketAddr>,
    },
    /// Everything else: no answer in time, unreachable, TLS or HTTP errors.
    Timeout,
}

/// A stream question under way.
pub type StreamFuture = Pin<Box<dyn Future<Output = StreamReply> + Send>>;

/// Asks stream questions. Implemented over mesh RPC; a dropped future cancels the question.
pub trait StreamTransport: Send + Sync + 'static {
    /// POSTs `body` to `/member/ping` of `to`. Must end within `deadline`.
    fn ping(&self, to: Peer, body: Bytes, deadline: Duration) -> StreamFuture;

    /// POSTs `body` to `/member/sync` of `to`. Must end within `deadline`.
    fn sync(&self, to: Peer, body: Bytes, deadline: Duration) -> StreamFuture;
}

/// Body of `/member/ping`.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingBody {
    /// Who asks.
    pub from: Identity,
    /// Whom it wants to hear of.
    pub target: Identity,
    /// What it asks.
    pub kind: PingKind,
}

/// What a `/member/ping` asks.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PingKind {
    /// To handle this ping, a foca packet.
    Ping(Bytes),
    /// To refute the suspicion of this incarnation.
    Suspicion(Incarnation),
    /// To ask the target itself, and tell.
    Witness,
    /// Which of two nodes with one id goes on. Asked by one of them.
    Copy {
        /// Whether the asker has members.
        known: bool,
        /// The generation with which it started.
        started: u64,
    },
}

/// Answer to a `/member/ping`.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingAnswer {
    /// Who answers.
    pub by: Identity,
    /// For [`PingKind::Witness`]: what the witness saw. Otherwise [`Seen::Acked`].
    pub seen: Seen,
    /// foca packets for whoever asked.
    pub packets: Vec<Bytes>,
}

/// What a stream question to a member showed.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It answers.
    Acked,
    /// Nothing listens at its address, or another node does.
    Gone,
    /// It did not answer.
    Silent,
}

fn put_packets<'a>(packets: impl ExactSizeIterator<Item = &'a Bytes>, out: &mut Vec<u8>) {
    out.put_u8(u8::try_from(packets.len().min(MAX_PACKETS)).expect("at most MAX_PACKETS"));
    for packet in packets.take(MAX_PACKETS) {
        out.put_u16(u16::try_from(packet.len()).expect("packets are at most MAX_DATAGRAM long"));
        out.put_slice(packet);
    }
}

fn take_packets(input: &mut &[u8]) -> Result<Vec<Bytes>, WireError> {
    let count = wire::take_u8(input)?;
    if usize::from(count) > MAX_PACKETS {
        return Err(WireError::TooMany("packets"));
    }
    (0..count)
        .map(|_| {
            let len = usize::from(wire::take_u16(input)?);
            if len > MAX_DATAGRAM {
                return Err(WireError::TooMany("bytes in a packet"));
            }
            wire::take(input, len).map(Bytes::copy_from_slice)
        })
        .collect()
}

fn take_version(input: &mut &[u8]) -> Result<(), WireError> {
    if wire::take_u8(input)? == VERSION {
        Ok(())
    } else {
        Err(WireError::Malformed("version"))
    }
}

impl PingBody {
    /// The wire form.
    pub fn encode(&self) -> Bytes {
        let (kind, incarnation, packet) = match &self.kind {
            PingKind::Ping(packet) => (1, 0, Some(packet.clone())),
            PingKind::Suspicion(incarnation) => (2, *incarnation, None),
            PingKind::Witness => (3, 0, None),
            PingKind::Copy { known, started } => {
                let started = Bytes::copy_from_slice(&started.to_be_bytes());
                (4, u16::from(*known), Some(started))
            }
        };
        let mut out = Vec::with_capacity(96 + packet.as_ref().map_or(0, Bytes::len));
        out.put_u8(VERSION);
        out.put_u8(kind);
        self.from.encode(&mut out);
        self.target.encode(&mut out);
        out.put_u16(incarnation);
        put_packets(packet.as_slice().iter(), &mut out);
        out.into()
    }

    /// Reads the wire form. Never panics; allocates no more than the body's own length. What follows the known fields
    /// is skipped.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let input = &mut body;
        take_version(input)?;
        let kind = wire::take_u8(input)?;
        let from = Identity::decode(input)?;
        let target = Identity::decode(input)?;
        let incarnation = wire::take_u16(input)?;
        let packet = take_packets(input)?.pop();
        let kind = match (kind, packet) {
            (1, Some(packet)) => PingKind::Ping(packet),
            (2, _) => PingKind::Suspicion(incarnation),
            (3, _) => PingKind::Witness,
            (4, Some(started)) => PingKind::Copy {
                known: incarnation != 0,
                started: u64::from_be_bytes(wire::take_array(&mut &started[..])?),
            },
            _ => return Err(WireError::Malformed("question")),
        };
        Ok(Self { from, target, kind })
    }
}

impl PingAnswer {
    /// The wire form. Packets beyond the fourth are left out.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(
            64 + self
                .packets
                .iter()
                .map(|packet| packet.len() + 2)
                .sum::<usize>(),
        );
        out.put_u8(VERSION);
        out.put_u8(match self.seen {
            Seen::Acked => 1,
            Seen::Gone => 2,
            Seen::Silent => 3,
        });
        self.by.encode(&mut out);
        put_packets(self.packets.iter(), &mut out);
        out.into()
    }

    /// Reads the wire form. Never panics; allocates no more than the body's own length.
    ///
    /// # Errors
    /// [`WireError`].
    pub fn decode(mut body: &[u8]) -> Result<Self, WireError> {
        let input = &mut body;
        take_version(input)?;
        let seen = match wire::take_u8(input)? {
            1 => Seen::Acked,
            2 => Seen::Gone,
            3 => Seen::Silent,
            _ => return Err(WireError::Malformed("outcome")),
        };
        let by = Identity::decode(input)?;
        let packets = take_packets(input)?;
        Ok(Self { by, seen, packets })
    }
}

/// Body of a `/member/sync` and of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exchange {
    State(Vec<Record>),
    Digest(Box<Digest>),
    Parts(Parts, Vec<Record>),
}

fn put_members(members: &[Record], out: &mut Vec<u8>) {
    let members = &members[..members.len().min(MAX_SYNC_MEMBERS)];
    out.reserve(4 + members.len() * 80);
    out.put_u32(u32::try_from(members.len()).expect("at most MAX_SYNC_MEMBERS"));
    for record in members {
        wire::encode_record(&record.member, &record.extra.encode(), out);
    }
}

/// Encodes a whole member list.
pub(crate) fn encode_state(members: &[Record]) -> Vec<u8> {
    let mut out = vec![VERSION];
    put_members(members, &mut out);
    out
}

pub(crate) fn encode_digest(digest: &Digest) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + PARTS * 8);
    out.put_u8(DIGEST);
    out.put_u8(u8::try_from(PARTS).expect("64"));
    digest.0.iter().for_each(|part| out.put_u64(*part));
    out
}

/// Encodes the members of some parts of the list.
pub(crate) fn encode_parts(parts: Parts, members: &[Record]) -> Vec<u8> {
    let mut out = vec![PARTIAL];
    out.put_u64(parts.0);
    put_members(members, &mut out);
    out
}

fn take_members(input: &mut &[u8]) -> Result<Vec<Record>, WireError> {
    let count = u32::from_be_bytes(wire::take_array(input)?);
    if count as usize > MAX_SYNC_MEMBERS {
        return Err(WireError::TooMany("members"));
    }
    (0..count).map(|_| wire::decode_record(input)).collect()
}

/// Who sent a state or parts of one, which is the first in it, or a question. What comes over mutual TLS must be of the
/// node that its certificate names.
pub(crate) fn sender_of_sync(mut body: &[u8]) -> Option<NodeId> {
    let input = &mut body;
    match wire::take_u8(input).ok()? {
        VERSION => {}
        PARTIAL => drop(wire::take(input, 8).ok()?),
        _ => return None,
    }
    wire::take(input, 4).ok()?;
    Some(wire::decode_record(input).ok()?.member.id().node)
}

pub(crate) fn sender_of_ping(body: &[u8]) -> Option<NodeId> {
    Some(PingBody::decode(body).ok()?.from.node)
}

/// Reads any body of `/member/sync`. Never panics; allocates no more than a few times the body's own length.
pub(crate) fn decode_sync(mut body: &[u8]) -> Result<Exchange, WireError> {
    if body.len() > MAX_SYNC_BODY {
        return Err(WireError::TooMany("bytes in a state"));
    }
    let input = &mut body;
    match wire::take_u8(input)? {
        VERSION => take_members(input).map(Exchange::State),
        DIGEST => {
            if usize::from(wire::take_u8(input)?) != PARTS {
                return Err(WireError::Malformed("number of parts"));
            }
            let mut digest = Digest([0; PARTS]);
            for part in &mut digest.0 {
                *part = u64::from_be_bytes(wire::take_array(input)?);
            }
            Ok(Exchange::Digest(Box::new(digest)))
        }
        PARTIAL => {
            let parts = Parts(u64::from_be_bytes(wire::take_array(input)?));
            Ok(Exchange::Parts(parts, take_members(input)?))
        }
        _ => Err(WireError::Malformed("version")),
    }
}

/// Reads a whole member list, as [`decode_sync`].
pub(crate) fn decode_state(body: &[u8]) -> Result<Vec<Record>, WireError> {
    match decode_sync(body)? {
        Exchange::State(members) => Ok(members),
        Exchange::Digest(_) | Exchange::Parts(..) => Err(WireError::Malformed("state")),
    }
}

/// Entry points for fuzzing: every decoder of outside bytes. They never panic.
#[doc(hidden)]
pub mod fuzz {
    /// The content of an opened datagram.
    pub fn packet(bytes: &[u8]) -> bool {
        super::wire::decode_packet(bytes).is_ok()
    }

    /// A datagram from the network, and the same bytes as what a member sealed.
    pub fn datagram(bytes: &[u8]) -> bool {
        use super::super::keyring::{Keyring, Opener, Sealer};
        let key = [&[1, 1][..], &[7; 32]].concat();
        let keyring = Keyring::from_bytes(&key).expect("one key of 32 bytes");
        let mut opener = Opener::new(keyring.clone(), b"fuzz");
        let mut sealer = Sealer::new(keyring, b"fuzz").expect("random bytes");
        let mut sealed = Vec::new();
        let fits = sealer.seal(bytes, &mut sealed).is_ok();
        if fits {
            assert_eq!(opener.open(&mut sealed), Ok(bytes));
        }
        opener.open(&mut bytes.to_vec()).is_ok_and(packet)
    }

    /// An identity.
    pub fn identity(bytes: &[u8]) -> bool {
        super::Identity::decode(&mut &*bytes).is_ok()
    }

    /// A body of `/member/sync`; what decodes must encode and decode to the same.
    pub fn state(bytes: &[u8]) -> bool {
        let Ok(body) = super::decode_sync(bytes) else {
            return false;
        };
        let again = match &body {
            super::Exchange::State(members) => super::encode_state(members),
            super::Exchange::Digest(digest) => super::encode_digest(digest),
            super::Exchange::Parts(parts, members) => super::encode_parts(*parts, members),
        };
        assert_eq!(super::decode_sync(&again).as_ref(), Ok(&body));
        true
    }

    /// Both bodies of `/member/ping`; what decodes must encode and decode to the same.
    pub fn ping(bytes: &[u8]) -> bool {
        let question = super::PingBody::decode(bytes);
        if let Ok(question) = &question {
            assert_eq!(
                super::PingBody::decode(&question.encode()).as_ref(),
                Ok(question)
            );
        }
        let answer = super::PingAnswer::decode(bytes);
        if let Ok(answer) = &answer {
            assert_eq!(
                super::PingAnswer::decode(&answer.encode()).as_ref(),
                Ok(answer)
            );
        }
        question.is_ok() || answer.is_ok()
    }
}

#[cfg(test)]
mod tests;
