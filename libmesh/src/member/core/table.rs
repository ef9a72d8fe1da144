//! Our copy of foca's member list: indexed, and compared to find what changed.
//!
//! foca tells when a member comes or goes but not when it becomes suspect, and finds a member by scanning. The table is
//! refreshed for the members that a call can have touched.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::{Incarnation, Member as FocaMember, State};

use crate::member::wire::{Identity, LEFT};
use crate::member::{Member, MemberEvent, MemberState};
use crate::model::{Liveness, NodeId};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) identity: Identity,
    pub(super) incarnation: Incarnation,
    pub(super) liveness: Liveness,
    /// When it took this liveness, on our clock.
    pub(super) since: Duration,
}

pub(super) fn public(identity: &Identity) -> Member {
    Member {
        id: identity.node,
        addr: identity.addr,
        generation: identity.generation,
    }
}

fn liveness(member: &FocaMember<Identity>) -> Liveness {
    match member.state() {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down if member.incarnation() == LEFT => Liveness::Left,
        State::Down => Liveness::Down,
    }
}

#[derive(Default)]
pub(super) struct Table {
    known: BTreeMap<NodeId, Known>,
    present: usize,
}

impl Table {
    pub(super) fn get(&self, node: NodeId) -> Option<&Known> {
        self.known.get(&node)
    }

    /// The entry of exactly this life of a node, if it is present.
    pub(super) fn present_as(&self, identity: &Identity) -> Option<&Known> {
        self.known
            .get(&identity.node)
            .filter(|known| known.identity == *identity && known.liveness.is_present())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// How many are alive or suspect.
    pub(super) fn present(&self) -> usize {
        self.present
    }

    pub(super) fn remove(&mut self, node: NodeId) {
        self.known.remove(&node);
    }

    pub(super) fn states(&self) -> Vec<MemberState> {
        self.iter()
            .map(|known| MemberState {
                member: public(&known.identity),
                liveness: known.liveness,
            })
            .collect()
    }

    /// Whether foca would learn anything from `update`.
    pub(super) fn is_news(&self, update: &FocaMember<Identity>) -> bool {
        self.known.get(&update.id().node).is_none_or(|known| {
            known.identity != *update.id()
                || known.incarnation < update.incarnation()
                || known.liveness.is_present() && known.liveness != liveness(update)
        })
    }

    /// Takes over what foca thinks of a member now; pushes what changed.
    pub(super) fn refresh(
        &mut self,
        member: &FocaMember<Identity>,
        now: Duration,
        events: &mut Vec<MemberEvent>,
    ) {
        let node = member.id().node;
        let before = self.known.get(&node).copied();
        let mut after = Known {
            identity: *member.id(),
            incarnation: member.incarnation(),
            liveness: liveness(member),
            since: now,
        };
        if let Some(before) = before.filter(|before| before.liveness == after.liveness) {
            after.since = before.since;
        }
        self.known.insert(node, after);

        let was_present = before.is_some_and(|before| before.liveness.is_present());
        let same_life = before.is_some_and(|before| before.identity == after.identity);
        match after.liveness {
            Liveness::Alive | Liveness::Suspect => {
                if !was_present {
                    self.present += 1;
                }
                if !was_present || !same_life {
                    events.push(MemberEvent::Up(public(&after.identity)));
                }
                let was = before
                    .filter(|_| was_present && same_life)
                    .map_or(Liveness::Alive, |before| before.liveness);
                match (was, after.liveness) {
                    (Liveness::Alive, Liveness::Suspect) => events.push(MemberEvent::Suspect(node)),
                    (Liveness::Suspect, Liveness::Alive) => events.push(MemberEvent::Alive(node)),
                    _ => {}
                }
            }
            Liveness::Down | Liveness::Left if was_present => {
                self.present -= 1;
                events.push(if after.liveness == Liveness::Left {
                    MemberEvent::Left(node)
                } else {
                    MemberEvent::Down(node)
                });
            }
            Liveness::Down | Liveness::Left => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(generation: u64) -> Identity {
        Identity {
            node: NodeId([1; 16]),
            addr: "192.0.2.1:1".parse().unwrap(),
            generation,
        }
    }

    fn events(table: &mut Table, member: &FocaMember<Identity>) -> Vec<MemberEvent> {
        let mut events = Vec::new();
        table.refresh(member, Duration::ZERO, &mut events);
        events
    }

    #[test]
    fn each_change_is_told_once() {
        let mut table = Table::default();
        let node = NodeId([1; 16]);
        let alive = FocaMember::alive(id(1));
        assert_eq!(
            events(&mut table, &alive),
            [MemberEvent::Up(public(&id(1)))]
        );
        assert_eq!(events(&mut table, &alive), []);
        assert_eq!(
            events(&mut table, &FocaMember::new(id(1), 0, State::Suspect)),
            [MemberEvent::Suspect(node)]
        );
        assert_eq!(
            events(&mut table, &FocaMember::new(id(1), 1, State::Alive)),
            [MemberEvent::Alive(node)]
        );
        assert_eq!(
            events(&mut table, &FocaMember::down(id(1))),
            [MemberEvent::Down(node)]
        );
        assert_eq!(table.present(), 0);
        let suspect_again = FocaMember::new(id(2), 0, State::Suspect);
        assert_eq!(
            events(&mut table, &suspect_again),
            [MemberEvent::Up(public(&id(2))), MemberEvent::Suspect(node)]
        );
        assert_eq!(
            events(&mut table, &FocaMember::alive(id(3))),
            [MemberEvent::Up(public(&id(3)))]
        );
        assert_eq!(
            events(&mut table, &FocaMember::new(id(3), LEFT, State::Down)),
            [MemberEvent::Left(node)]
        );
        assert_eq!(
            events(&mut table, &FocaMember::down(id(4))),
            [],
            "it was gone already"
        );
    }

    #[test]
    fn only_what_foca_would_take_is_news() {
        let mut table = Table::default();
        assert!(table.is_news(&FocaMember::down(id(1))));
        events(&mut table, &FocaMember::new(id(1), 3, State::Alive));
        assert!(!table.is_news(&FocaMember::new(id(1), 3, State::Alive)));
        assert!(!table.is_news(&FocaMember::new(id(1), 2, State::Alive)));
        assert!(table.is_news(&FocaMember::new(id(1), 3, State::Suspect)));
        assert!(table.is_news(&FocaMember::new(id(1), 4, State::Alive)));
        assert!(table.is_news(&FocaMember::down(id(1))));
        assert!(table.is_news(&FocaMember::alive(id(2))));
    }
}
