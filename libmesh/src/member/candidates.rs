//! Saved members: whom to announce to after a restart when no seed answers.
//!
//! Only addresses are saved. A saved state that is believed brings back members that are long gone; an address that is
//! announced to either answers or does not.

use std::net::SocketAddr;

/// Most addresses that are saved or read.
pub const MAX_CANDIDATES: usize = 1024;

/// One address a line.
pub(crate) fn encode(addresses: impl Iterator<Item = SocketAddr>) -> Vec<u8> {
    addresses
        .take(MAX_CANDIDATES)
        .map(|addr| format!("{addr}\n"))
        .collect::<String>()
        .into_bytes()
}

/// Reads what [`Membership::candidates`](super::Membership::candidates) returned, for
/// [`Config::candidates`](super::Config::candidates). Lines that are no address are skipped, as is all beyond
/// 1,024: a damaged file costs time, not the start.
pub fn decode(bytes: &[u8]) -> Vec<SocketAddr> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok()?.trim().parse().ok())
        .take(MAX_CANDIDATES)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip_and_damage_is_skipped() {
        let addresses: Vec<SocketAddr> = vec![
            "192.0.2.1:8301".parse().unwrap(),
            "[2001:db8::1]:1".parse().unwrap(),
        ];
        let mut bytes = encode(addresses.iter().copied());
        assert_eq!(decode(&bytes), addresses);
        bytes.extend_from_slice(b"\xff\xfe\nnonsense\n\n192.0.2.3:1");
        assert_eq!(decode(&bytes).len(), 3);
        let many = encode(std::iter::repeat_n(addresses[0], 2 * MAX_CANDIDATES));
        assert_eq!(decode(&many).len(), MAX_CANDIDATES);
    }
}
