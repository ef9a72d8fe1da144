//! The DNS wire format, as far as an authoritative mesh server needs it.
//!
//! Everything here works on borrowed bytes and fixed buffers: a datagram from anybody is parsed without an
//! allocation ([`message`]), its name is folded to lower case once ([`name`]), and the reply is put together from
//! a prepared [`template`] by copying. Nothing in this module knows what the names mean.

pub mod message;
pub mod name;
pub mod template;

/// Record types that the zone answers or treats specially (IANA "DNS Parameters").
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Authoritative name server.
    pub const NS: u16 = 2;
    /// Canonical name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// Free text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Location of a service (RFC 2782).
    pub const SRV: u16 = 33;
    /// EDNS pseudo record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Incremental zone transfer.
    pub const IXFR: u16 = 251;
    /// Zone transfer.
    pub const AXFR: u16 = 252;
    /// Any type (RFC 8482).
    pub const ANY: u16 = 255;
}

/// Response codes (IANA "DNS Parameters"); those above 15 need EDNS.
pub mod rcode {
    /// No error; with no answers: the name exists, the type does not.
    pub const NOERROR: u16 = 0;
    /// The query could not be read.
    pub const FORMERR: u16 = 1;
    /// The server could not find out.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// This kind of request is not implemented.
    pub const NOTIMP: u16 = 4;
    /// The server will not answer this.
    pub const REFUSED: u16 = 5;
    /// Unknown EDNS version.
    pub const BADVERS: u16 = 16;
}

/// Class Internet.
pub const CLASS_IN: u16 = 1;
/// Any class; answered as class Internet.
pub const CLASS_ANY: u16 = 255;

/// Octets of the fixed message header.
pub const HEADER: usize = 12;
/// The largest UDP reply to somebody who sent no EDNS record (RFC 1035 §4.2.1).
pub const UDP_WITHOUT_EDNS: usize = 512;
/// The largest message over TCP.
pub const TCP_MAX: usize = 65_535;
/// EDE "Stale Answer" (RFC 8914 §4.4): what was known when the mesh could last be reached.
pub const EDE_STALE_ANSWER: u16 = 3;
/// EDE "Not Ready" (RFC 8914 §4.15): the server is not yet able to answer.
pub const EDE_NOT_READY: u16 = 14;
/// EDE "Network Error" (RFC 8914 §4.24): no upstream could be reached.
pub const EDE_NETWORK_ERROR: u16 = 23;
