//! What membership puts into a datagram before it is sealed: identities, members, foca's header.
//!
//! foca leaves the encoding to us, and one update that a peer cannot decode costs the whole packet, pings included. So
//! identities and members are length-prefixed and a reader skips what a newer version appended; never is a record's
//! meaning changed in place. Integers are big-endian. Version 1 is still the only version of the header: what came since
//! are extensions (`meta`) in the room that a first reader skips, so that old and new nodes understand each other and a
//! cluster is upgraded node by node.
//!
//! ```text
//! identity  len u8 ‖ family u8 (4|6) ‖ node id 16 ‖ generation u64 ‖ ip 4|16 ‖ port u16 ‖ extensions
//! member    len u8 ‖ state u8 (1 alive, 2 suspect, 3 down, 4 left) ‖ incarnation u16 ‖ identity ‖ extensions
//! header    version u8 ‖ message u8 ‖ probe u8 ‖ incarnation u16 ‖ from identity ‖ to identity [‖ third identity]
//! ```
//!
//! An IPv4 member takes 36 bytes, and 20 to 40 more while it says what it is: 15 to 30 updates fit a packet. In a header
//! the sender's extensions are behind its identity.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut};
use foca::{Header, Incarnation, Member, Message, State};
use parking_lot::Mutex;

use super::meta::{Extra, Notes};
use crate::model::NodeId;

const VERSION: u8 = 1;

const STATE_ALIVE: u8 = 1;
const STATE_SUSPECT: u8 = 2;
const STATE_DOWN: u8 = 3;
const STATE_LEFT: u8 = 4;

/// foca has no "left" state: a member that said goodbye is Down at this incarnation, which no failure reaches in
/// practice (65,535 refuted suspicions within one generation).
pub(crate) const LEFT: Incarnation = Incarnation::MAX;

/// Who a member is on the wire: the node, where it answers, and which of its lives this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The node; there is one member per node id.
    pub node: NodeId,
    /// Where it answers: UDP for membership, TCP for mesh RPC.
    pub addr: SocketAddr,
    /// The higher one wins. A node starts with a higher one than before and takes the next when it was declared down.
    pub generation: u64,
}

impl Identity {
    /// A member of which only the address is known: only good for announcing to it. The receiver's codec reads the
    /// nil id as its own.
    pub(crate) fn unknown(addr: SocketAddr) -> Self {
        Self {
            node: NodeId([0; 16]),
            addr,
            generation: 0,
        }
    }

    fn is_unknown(&self) -> bool {
        self.node == NodeId([0; 16])
    }

    fn encoded_len(&self) -> usize {
        2 + 16 + 8 + 2 + if self.addr.is_ipv4() { 4 } else { 16 }
    }

    /// Appends the wire form.
    pub fn encode(&self, out: &mut impl BufMut) {
        self.encode_with(&[], out);
    }

    fn encode_with(&self, extensions: &[u8], out: &mut impl BufMut) {
        let len = self.encoded_len() - 1 + extensions.len();
        out.put_u8(u8::try_from(len).expect("at most 43 and 180 bytes"));
        out.put_u8(if self.addr.is_ipv4() { 4 } else { 6 });
        out.put_slice(self.node.as_bytes());
        out.put_u64(self.generation);
        match self.addr.ip() {
            IpAddr::V4(ip) => out.put_slice(&ip.octets()),
            IpAddr::V6(ip) => out.put_slice(&ip.octets()),
        }
        out.put_u16(self.addr.port());
        out.put_slice(extensions);
    }

    /// Reads the wire form off the front of `input`.
    ///
    /// # Errors
    /// [`WireError`] for what is no identity; `input` is then of no further use.
    pub fn decode(input: &mut &[u8]) -> Result<Self, WireError> {
        Self::decode_with(input).map(|(identity, _)| identity)
    }

    fn decode_with<'a>(input: &mut &'a [u8]) -> Result<(Self, &'a [u8]), WireError> {
        let mut body = prefixed(input)?;
        let family = take_u8(&mut body)?;
        let node = NodeId(take_array(&mut body)?);
        let generation = u64::from_be_bytes(take_array(&mut body)?);
        let ip = match family {
            4 => IpAddr::V4(Ipv4Addr::from(take_array::<4>(&mut body)?)),
            6 => IpAddr::V6(Ipv6Addr::from(take_array::<16>(&mut body)?)),
            _ => return Err(WireError::Malformed("address family")),
        };
        let port = take_u16(&mut body)?;
        let identity = Self {
            node,
            addr: SocketAddr::new(ip, port),
            generation,
        };
        Ok((identity, body))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.node, self.addr, self.generation)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        self.generation.checked_add(1).map(|generation| Self {
            generation,
            ..*self
        })
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        // The address decides between two processes that claim one node in one generation, so that all agree.
        (self.generation, self.addr) > (adversary.generation, adversary.addr)
    }
}

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// It ends too early.
    #[error("ends too early")]
    Truncated,
    /// A field has a value that this version does not know.
    #[error("unknown {0}")]
    Malformed(&'static str),
    /// It announces more than a reader accepts.
    #[error("too many {0}")]
    TooMany(&'static str),
    /// The packet has no room for it.
    #[error("no room in the packet")]
    NoRoom,
}

pub(crate) fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], WireError> {
    let (taken, rest) = input.split_at_checked(len).ok_or(WireError::Truncated)?;
    *input = rest;
    Ok(taken)
}

pub(crate) fn take_array<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (taken, rest) = input.split_first_chunk().ok_or(WireError::Truncated)?;
    *input = rest;
    Ok(*taken)
}

pub(crate) fn take_u8(input: &mut &[u8]) -> Result<u8, WireError> {
    take_array::<1>(input).map(|[byte]| byte)
}

pub(crate) fn take_u16(input: &mut &[u8]) -> Result<u16, WireError> {
    take_array(input).map(u16::from_be_bytes)
}

fn prefixed<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let len = take_u8(input)?;
    take(input, usize::from(len))
}

fn member_len(member: &Member<Identity>) -> usize {
    1 + 1 + 2 + member.id().encoded_len()
}

/// A member and the extensions that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) member: Member<Identity>,
    pub(crate) extra: Extra,
}

impl From<Member<Identity>> for Record {
    fn from(member: Member<Identity>) -> Self {
        Self {
            member,
            extra: Extra::default(),
        }
    }
}

pub(crate) fn encode_member(member: &Member<Identity>, out: &mut impl BufMut) {
    encode_record(member, &[], out);
}

pub(crate) fn encode_record(member: &Member<Identity>, extensions: &[u8], out: &mut impl BufMut) {
    let len = member_len(member) - 1 + extensions.len();
    out.put_u8(u8::try_from(len).expect("at most 47 and 180 bytes"));
    out.put_u8(match member.state() {
        State::Alive => STATE_ALIVE,
        State::Suspect => STATE_SUSPECT,
        State::Down if member.incarnation() == LEFT => STATE_LEFT,
        State::Down => STATE_DOWN,
    });
    out.put_u16(member.incarnation());
    member.id().encode(out);
    out.put_slice(extensions);
}

pub(crate) fn decode_record(input: &mut &[u8]) -> Result<Record, WireError> {
    let mut body = prefixed(input)?;
    let state = take_u8(&mut body)?;
    let incarnation = take_u16(&mut body)?;
    let id = Identity::decode(&mut body)?;
    if id.is_unknown() {
        return Err(WireError::Malformed("node id"));
    }
    let member = match state {
        STATE_ALIVE => Member::new(id, incarnation, State::Alive),
        STATE_SUSPECT => Member::new(id, incarnation, State::Suspect),
        STATE_DOWN => Member::new(id, incarnation, State::Down),
        STATE_LEFT => Member::new(id, LEFT, State::Down),
        _ => return Err(WireError::Malformed("member state")),
    };
    let extra = Extra::decode(body);
    Ok(Record { member, extra })
}

fn parts(message: &Message<Identity>) -> (u8, u8, Option<&Identity>) {
    match message {
        Message::Ping(probe) => (1, *probe, None),
        Message::Ack(probe) => (2, *probe, None),
        Message::PingReq {
            target,
            probe_number,
        } => (3, *probe_number, Some(target)),
        Message::IndirectPing {
            origin,
            probe_number,
        } => (4, *probe_number, Some(origin)),
        Message::IndirectAck {
            target,
            probe_number,
        } => (5, *probe_number, Some(target)),
        Message::ForwardedAck {
            origin,
            probe_number,
        } => (6, *probe_number, Some(origin)),
        Message::Announce => (7, 0, None),
        Message::Feed => (8, 0, None),
        Message::Gossip => (9, 0, None),
        Message::Broadcast => (10, 0, None),
        Message::TurnUndead => (11, 0, None),
    }
}

pub(crate) fn encode_header(
    header: &Header<Identity>,
    extensions: &[u8],
    out: &mut impl BufMut,
) -> Result<(), WireError> {
    let (message, probe, third) = parts(&header.message);
    let len = 5
        + extensions.len()
        + header.src.encoded_len()
        + header.dst.encoded_len()
        + third.map_or(0, Identity::encoded_len);
    if out.remaining_mut() < len {
        return Err(WireError::NoRoom);
    }
    out.put_u8(VERSION);
    out.put_u8(message);
    out.put_u8(probe);
    out.put_u16(header.src_incarnation);
    header.src.encode_with(extensions, out);
    header.dst.encode(out);
    if let Some(third) = third {
        third.encode(out);
    }
    Ok(())
}

pub(crate) fn decode_header(input: &mut &[u8]) -> Result<Header<Identity>, WireError> {
    decode_header_with(input).map(|(header, _)| header)
}

fn decode_header_with<'a>(input: &mut &'a [u8]) -> Result<(Header<Identity>, &'a [u8]), WireError> {
    if take_u8(input)? != VERSION {
        return Err(WireError::Malformed("version"));
    }
    let message = take_u8(input)?;
    let probe_number = take_u8(input)?;
    let src_incarnation = take_u16(input)?;
    let (src, extensions) = Identity::decode_with(input)?;
    let dst = Identity::decode(input)?;
    if src.is_unknown() {
        return Err(WireError::Malformed("node id"));
    }
    let message = match message {
        1 => Message::Ping(probe_number),
        2 => Message::Ack(probe_number),
        3 => Message::PingReq {
            target: Identity::decode(input)?,
            probe_number,
        },
        4 => Message::IndirectPing {
            origin: Identity::decode(input)?,
            probe_number,
        },
        5 => Message::IndirectAck {
            target: Identity::decode(input)?,
            probe_number,
        },
        6 => Message::ForwardedAck {
            origin: Identity::decode(input)?,
            probe_number,
        },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        _ => return Err(WireError::Malformed("message")),
    };
    let header = Header {
        src,
        src_incarnation,
        dst,
        message,
    };
    Ok((header, extensions))
}

/// A packet as the core looks at it before foca does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    pub(crate) header: Header<Identity>,
    /// What the sender says of itself.
    pub(crate) from: Extra,
    pub(crate) updates: Vec<Record>,
    head: &'a [u8],
    raw: Vec<&'a [u8]>,
}

impl Packet<'_> {
    /// The packet with those updates only that are `kept`.
    pub(crate) fn bytes_of(&self, kept: &[bool]) -> Vec<u8> {
        let raw = || self.raw.iter().zip(kept).filter(|(_, kept)| **kept);
        let mut bytes = self.head.to_vec();
        if self.raw.is_empty() {
            return bytes;
        }
        bytes.put_u16(u16::try_from(raw().count()).expect("they were counted in 16 bits"));
        raw().for_each(|(raw, _)| bytes.extend_from_slice(raw));
        bytes
    }
}

/// Decodes a whole packet. Allocates no more than a few times the packet's own length.
pub(crate) fn decode_packet(packet: &[u8]) -> Result<Packet<'_>, WireError> {
    let mut input = packet;
    let (header, extensions) = decode_header_with(&mut input)?;
    let head = &packet[..packet.len() - input.len()];
    let (mut updates, mut raw) = (Vec::new(), Vec::new());
    if !input.is_empty() && header.message != Message::Announce {
        let count = take_u16(&mut input)?;
        for _ in 0..count {
            let before = input;
            updates.push(decode_record(&mut input)?);
            raw.push(&before[..before.len() - input.len()]);
        }
    }
    if input.is_empty() {
        Ok(Packet {
            header,
            from: Extra::decode(extensions),
            updates,
            head,
            raw,
        })
    } else {
        Err(WireError::Malformed("trailing bytes"))
    }
}

/// foca's codec for all of this. Knows its own node for two reasons: an announce to an unknown node is addressed to the
/// nil id, and a goodbye is foca's "I am down", told from failure here. Knows the notes because foca's members have no
/// room for them.
pub(crate) struct WireCodec {
    own: NodeId,
    leaving: Arc<AtomicBool>,
    notes: Arc<Mutex<Notes>>,
}

impl WireCodec {
    pub(crate) fn new(own: NodeId, leaving: Arc<AtomicBool>, notes: Arc<Mutex<Notes>>) -> Self {
        Self {
            own,
            leaving,
            notes,
        }
    }
}

/// Runs a slice reader over foca's buffer, which it guarantees to be contiguous.
fn advancing<T>(
    buf: &mut impl Buf,
    read: impl FnOnce(&mut &[u8]) -> Result<T, WireError>,
) -> Result<T, WireError> {
    let mut rest = buf.chunk();
    let before = rest.len();
    let value = read(&mut rest)?;
    let used = before - rest.len();
    buf.advance(used);
    Ok(value)
}

impl foca::Codec<Identity> for WireCodec {
    type Error = WireError;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        let extensions = self.notes.lock().on_packet(&header.message).encode();
        encode_header(header, &extensions, &mut buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, WireError> {
        let mut header = advancing(&mut buf, decode_header)?;
        if header.dst.is_unknown() && header.message == Message::Announce {
            header.dst.node = self.own;
        }
        Ok(header)
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), WireError> {
        let extensions = self.notes.lock().of(member).encode();
        if buf.remaining_mut() < member_len(member) + extensions.len() {
            return Err(WireError::NoRoom);
        }
        let goodbye = member.id().node == self.own
            && member.state() == State::Down
            && self.leaving.load(Ordering::Relaxed);
        if goodbye {
            encode_member(&Member::new(*member.id(), LEFT, State::Down), &mut buf);
        } else {
            encode_record(member, &extensions, &mut buf);
        }
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, WireError> {
        advancing(&mut buf, decode_record).map(|record| record.member)
    }
}

#[cfg(test)]
pub(crate) mod tests;
