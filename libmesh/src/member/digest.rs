//! What a node knows of the members, in 64 numbers.
//!
//! Members are spread over 64 parts by their id; a part's number is the sum of a hash of each present member in it
//! (identity, incarnation, alive or suspect) and of what it says of itself, as far as that is known. Equal numbers:
//! nothing to tell. Members that are gone do not count: each
//! node forgets them at its own time.
//!
//! The hash is part of the protocol. It protects against nothing: whoever could forge a collision is a member, and
//! could lie about the members themselves.

use foca::{Member, State};

use super::wire::Identity;
use crate::model::NodeId;

/// Number of parts.
pub(crate) const PARTS: usize = 64;

/// One number for each part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest(pub(crate) [u64; PARTS]);

/// Some of the parts, one bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts(pub(crate) u64);

impl Parts {
    pub(crate) fn contain(self, node: NodeId) -> bool {
        self.0 >> part(node) & 1 == 1
    }
}

impl Digest {
    /// The parts in which two differ.
    pub(crate) fn differing(&self, other: &Self) -> Parts {
        let pairs = self.0.iter().zip(&other.0);
        Parts(
            pairs
                .rev()
                .fold(0, |bits, (one, other)| bits << 1 | u64::from(one != other)),
        )
    }
}

impl Digest {
    /// Of members, each with the [`mark`] of what is known of it beside, 0 if nothing is.
    pub(crate) fn of(members: impl IntoIterator<Item = (Member<Identity>, u64)>) -> Self {
        let mut sums = [0u64; PARTS];
        for (member, mark) in members {
            let state = match member.state() {
                State::Alive => 1,
                State::Suspect => 2,
                State::Down => continue,
            };
            let id = member.id();
            let ip = match id.addr.ip() {
                std::net::IpAddr::V4(ip) => u128::from(u32::from(ip)),
                std::net::IpAddr::V6(ip) => u128::from(ip),
            };
            let words = [
                id.generation,
                (ip >> 64) as u64,
                ip as u64,
                u64::from(id.addr.port()) << 32 | u64::from(member.incarnation()) << 8 | state,
            ];
            let hash = words
                .iter()
                .fold(mix_node(id.node), |hash, word| mix(hash ^ word));
            let sum = &mut sums[part(id.node)];
            *sum = sum.wrapping_add(hash ^ mark);
        }
        Self(sums)
    }
}

/// One number for some bytes.
pub(crate) fn mark(bytes: &[u8]) -> u64 {
    bytes.iter().fold(mix(bytes.len() as u64), |hash, byte| {
        mix(hash ^ u64::from(*byte))
    })
}

fn part(node: NodeId) -> usize {
    (mix_node(node) % PARTS as u64) as usize
}

fn mix_node(node: NodeId) -> u64 {
    let id = u128::from_be_bytes(*node.as_bytes());
    mix(mix((id >> 64) as u64) ^ id as u64)
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(node: u8, generation: u64, incarnation: u16, state: State) -> Member<Identity> {
        let id = Identity {
            node: NodeId([node; 16]),
            addr: "192.0.2.1:8301".parse().unwrap(),
            generation,
        };
        Member::new(id, incarnation, state)
    }

    #[test]
    fn only_the_parts_of_members_that_differ_differ() {
        let all = |generation| {
            let of = |node| if node == 7 { generation } else { 1 };
            Digest::of((0..=255).map(|node| (member(node, of(node), 0, State::Alive), 0)))
        };
        assert_eq!(all(1).differing(&all(1)), Parts::default());
        let parts = all(1).differing(&all(2));
        assert_eq!(parts.0.count_ones(), 1);
        assert!(parts.contain(NodeId([7; 16])));
        let reversed = (0..=255).rev();
        let reversed = Digest::of(reversed.map(|node| (member(node, 1, 0, State::Alive), 0)));
        assert_eq!(reversed, all(1), "the order does not matter");
    }

    #[test]
    fn what_is_known_of_a_member_matters_unless_it_is_gone() {
        let of = |member| Digest::of([(member, 0)]);
        let alive = of(member(1, 1, 0, State::Alive));
        assert_ne!(alive, of(member(1, 1, 1, State::Alive)));
        assert_ne!(alive, of(member(1, 1, 0, State::Suspect)));
        assert_ne!(alive, of(member(1, 2, 0, State::Alive)));
        assert_ne!(alive, of(member(1, 1, 0, State::Down)));
        let said = |text: &[u8]| Digest::of([(member(1, 1, 0, State::Alive), mark(text))]);
        assert_ne!(alive, said(b"zone a"));
        assert_ne!(said(b"zone b"), said(b"zone a"));
        assert_eq!(of(member(1, 1, 0, State::Down)), Digest([0; PARTS]));
    }

    /// The hash must be the same in every version.
    #[test]
    fn the_hash_is_what_it_always_was() {
        let digest = Digest::of([(member(1, 2, 3, State::Alive), 0)]);
        let sum = digest
            .0
            .iter()
            .fold(0u64, |sum, part| sum.wrapping_add(*part));
        assert_eq!(sum, 8_813_282_228_210_311_563);
    }
}
