//! Our copy of foca's member list: indexed, and compared to find what changed.
//!
//! foca tells when a member comes or goes but not when it becomes suspect, and finds a member by scanning. The table is
//! refreshed for the members that a call can have touched.
//!
//! What is *shown* differs from what foca thinks in one way: bad news waits. A member becomes suspect to others only
//! after it has been suspected for a while, so that a restart that is back within a second is never seen; and nothing bad
//! is shown of one that announced a restart, until its time is over.

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
    /// What others are told of it.
    shown: Liveness,
    /// Until when nothing bad is shown of this life: it announced a restart.
    restarting: Option<Duration>,
    /// When what is shown changes by itself.
    changes: Option<Duration>,
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

pub(super) struct Table {
    known: BTreeMap<NodeId, Known>,
    present: usize,
    suspect_shown_after: Duration,
}

/// What a refresh brought.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) events: Vec<MemberEvent>,
    /// Members to [`Table::show`] after this long.
    pub(super) later: Vec<(NodeId, Duration)>,
}

impl Table {
    pub(super) fn new(suspect_shown_after: Duration) -> Self {
        Self {
            known: BTreeMap::new(),
            present: 0,
            suspect_shown_after,
        }
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Known> {
        self.known.get(&node)
    }

    /// What others are told of a member.
    pub(super) fn shown(&self, node: NodeId) -> Option<Liveness> {
        self.known.get(&node).map(|known| known.shown)
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
                liveness: known.shown,
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

    /// Takes over what foca thinks of a member now.
    pub(super) fn refresh(
        &mut self,
        member: &FocaMember<Identity>,
        now: Duration,
        changes: &mut Changes,
    ) {
        let node = member.id().node;
        let before = self.known.get(&node).copied();
        let liveness = liveness(member);
        let same_life = before.is_some_and(|before| before.identity == *member.id());
        let was_present = before.is_some_and(|before| before.liveness.is_present());
        match (was_present, liveness.is_present()) {
            (false, true) => self.present += 1,
            (true, false) => self.present -= 1,
            _ => {}
        }
        let since = before
            .filter(|before| before.liveness == liveness && same_life)
            .map_or(now, |before| before.since);
        // Another life of a member that is shown goes on being shown.
        let shown = before.map_or(Liveness::Left, |before| before.shown);
        let known = Known {
            identity: *member.id(),
            incarnation: member.incarnation(),
            liveness,
            since,
            shown,
            restarting: before
                .filter(|_| same_life)
                .and_then(|before| before.restarting),
            changes: before.and_then(|before| before.changes),
        };
        self.known.insert(node, known);
        if !same_life && shown.is_present() && liveness.is_present() {
            changes.events.push(MemberEvent::Up(public(member.id())));
            if shown == Liveness::Suspect
                && let Some(known) = self.known.get_mut(&node)
            {
                known.shown = Liveness::Alive;
            }
        }
        self.show(node, now, changes);
    }

    /// This life of a member announced a restart.
    pub(super) fn restarting(&mut self, life: &Identity, until: Duration) {
        if let Some(known) = self.known.get_mut(&life.node)
            && known.identity == *life
        {
            known.restarting = Some(until);
        }
    }

    /// Until when a member restarts, if it said so.
    pub(super) fn restarting_until(&self, node: NodeId) -> Option<Duration> {
        self.known.get(&node)?.restarting
    }

    /// Shows what is due to be shown of a member.
    pub(super) fn show(&mut self, node: NodeId, now: Duration, changes: &mut Changes) {
        let Some(known) = self.known.get_mut(&node) else {
            return;
        };
        let restarted = known.restarting.unwrap_or_default();
        let due = match known.liveness {
            Liveness::Suspect => restarted.max(known.since + self.suspect_shown_after),
            Liveness::Down if known.shown.is_present() => restarted,
            _ => now,
        };
        let shown = if now < due {
            Liveness::Alive
        } else {
            known.liveness
        };
        let pending = (now < due).then_some(due);
        if pending.is_some() && pending != known.changes {
            changes.later.push((node, due - now));
        }
        known.changes = pending;

        let before = std::mem::replace(&mut known.shown, shown);
        let member = public(&known.identity);
        let events = &mut changes.events;
        if !before.is_present() && shown.is_present() {
            events.push(MemberEvent::Up(member));
        }
        match (before, shown) {
            (_, Liveness::Suspect) if before != Liveness::Suspect => {
                events.push(MemberEvent::Suspect(node));
            }
            (Liveness::Suspect, Liveness::Alive) => events.push(MemberEvent::Alive(node)),
            (Liveness::Alive | Liveness::Suspect, Liveness::Down) => {
                events.push(MemberEvent::Down(node));
            }
            (Liveness::Alive | Liveness::Suspect, Liveness::Left) => {
                events.push(MemberEvent::Left(node));
            }
            _ => {}
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
        let mut changes = Changes::default();
        table.refresh(member, Duration::ZERO, &mut changes);
        changes.events
    }

    #[test]
    fn each_change_is_told_once() {
        let mut table = Table::new(Duration::ZERO);
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
    fn a_suspicion_is_shown_when_it_has_lasted() {
        const SEC: Duration = Duration::from_secs(1);
        let mut table = Table::new(SEC);
        let node = NodeId([1; 16]);
        let suspect = FocaMember::new(id(1), 0, State::Suspect);
        events(&mut table, &FocaMember::alive(id(1)));
        let mut changes = Changes::default();
        table.refresh(&suspect, SEC, &mut changes);
        table.refresh(&suspect, SEC + SEC / 2, &mut changes);
        assert_eq!(changes.events, []);
        assert_eq!(changes.later, [(node, SEC)], "one timer is enough");
        assert_eq!(table.states()[0].liveness, Liveness::Alive);
        table.show(node, 2 * SEC, &mut changes);
        assert_eq!(changes.events, [MemberEvent::Suspect(node)]);
        assert_eq!(table.states()[0].liveness, Liveness::Suspect);

        // The next life is another one to suspect.
        let mut changes = Changes::default();
        table.refresh(
            &FocaMember::new(id(2), 0, State::Suspect),
            3 * SEC,
            &mut changes,
        );
        assert_eq!(changes.events, [MemberEvent::Up(public(&id(2)))]);
        table.refresh(&FocaMember::alive(id(3)), 3 * SEC, &mut changes);
        table.show(node, 9 * SEC, &mut changes);
        assert_eq!(
            changes.events.len(),
            2,
            "a refuted suspicion is never shown: {:?}",
            changes.events
        );
    }

    #[test]
    fn only_what_foca_would_take_is_news() {
        let mut table = Table::new(Duration::ZERO);
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
