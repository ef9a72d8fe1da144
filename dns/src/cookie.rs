//! DNS cookies (RFC 7873): proof that an asker over UDP is who he says he is, because he has what was sent to him before.
//!
//! Server cookies are those of RFC 9018: version 1, the time, and SipHash-2-4 over both, the client's part and his address,
//! with a secret of this process. One is good for an hour and replaced after half of that. Costs one hash for those who
//! send a cookie, nothing for the others.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use crate::wire::message::Cookie;

/// Octets of a whole cookie: the client's 8, our 16.
pub(crate) const COOKIE: usize = 24;
/// Our part's version (RFC 9018 §4.2), and three octets that are not used.
const HEAD: [u8; 4] = [1, 0, 0, 0];
/// How long a cookie is good, in seconds (RFC 9018 §4.3).
const GOOD: u32 = 3600;
/// And how old it may be to be sent again as it is.
const FRESH: u32 = 1800;
/// How far in the future it may be, as clocks of several servers differ.
const AHEAD: u32 = 300;

/// Makes and checks cookies. One for all threads of a server: an asker may come to any of them.
#[derive(Debug)]
pub(crate) struct Cookies {
    secret: [u8; 16],
}

/// What became of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Its sender has had a cookie from us at this address.
    pub(crate) known: bool,
    /// The one to send back.
    pub(crate) reply: [u8; COOKIE],
}

impl Cookies {
    pub(crate) fn new() -> Self {
        Self {
            secret: rand::random(),
        }
    }

    /// Checks what `from` sent at `now` (unix seconds; the arithmetic is that of RFC 1982).
    pub(crate) fn check(&self, cookie: Cookie<'_>, from: IpAddr, now: u32) -> Checked {
        let made = |at: u32| self.make(&cookie.client, at, from);
        let at = cookie.server.and_then(|server| {
            let server: &[u8; 16] = server.try_into().ok()?;
            let at = u32::from_be_bytes([server[4], server[5], server[6], server[7]]);
            let age = now.wrapping_sub(at);
            let in_time = age <= GOOD || age.wrapping_neg() <= AHEAD;
            // Who could guess octet by octet by the time it takes, sees only what the network adds to it.
            (in_time && made(at)[8..] == server[..]).then_some((at, age))
        });
        match at {
            Some((at, age)) if age <= FRESH => Checked {
                known: true,
                reply: made(at),
            },
            Some(_) => Checked {
                known: true,
                reply: made(now),
            },
            None => Checked {
                known: false,
                reply: made(now),
            },
        }
    }

    fn make(&self, client: &[u8; 8], at: u32, from: IpAddr) -> [u8; COOKIE] {
        let mut cookie = [0; COOKIE];
        cookie[..8].copy_from_slice(client);
        cookie[8..12].copy_from_slice(&HEAD);
        cookie[12..16].copy_from_slice(&at.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(&cookie[..16]);
        match from {
            IpAddr::V4(ip) => hasher.write(&ip.octets()),
            IpAddr::V6(ip) => hasher.write(&ip.octets()),
        }
        cookie[16..].copy_from_slice(&hasher.finish().to_le_bytes());
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u8; 8] = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];

    /// The example of RFC 9018, appendix A.1.
    #[test]
    fn cookies_are_those_of_the_standard() {
        let cookies = Cookies {
            secret: 0xe5e973e5_a6b2a43f_48e7dc84_9e37bfcf_u128.to_be_bytes(),
        };
        let made = cookies.make(&CLIENT, 1_559_731_985, [198, 51, 100, 100].into());
        let hex: String = made.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "2464c4abcf10c957010000005cf79f111f8130c3eee29480");
    }

    #[test]
    fn a_cookie_is_good_for_its_owner_and_its_time() {
        let cookies = Cookies::new();
        let (from, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let first = cookies.check(
            Cookie {
                client: CLIENT,
                server: None,
            },
            from,
            1_000_000,
        );
        assert!(!first.known);
        let with = |server: &[u8], from, now| {
            let server = Some(server);
            cookies.check(
                Cookie {
                    client: CLIENT,
                    server,
                },
                from,
                now,
            )
        };
        let server = &first.reply[8..];
        let again = with(server, from, 1_000_100);
        assert_eq!((again.known, again.reply), (true, first.reply));
        let later = with(server, from, 1_002_000);
        assert!(later.known && later.reply != first.reply);
        assert!(with(server, from, 999_800).known, "a clock that is behind");
        for (server, from, now) in [
            (server, other, 1_000_100),
            (server, from, 1_003_601),
            (server, from, 999_000),
            (&first.reply[9..], from, 1_000_100),
            (&[7; 16][..], from, 1_000_100),
        ] {
            assert!(!with(server, from, now).known);
        }
        let mut forged = first.reply;
        forged[23] ^= 1;
        assert!(!with(&forged[8..], from, 1_000_100).known);
    }
}
