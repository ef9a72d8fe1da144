//! Whether a history of one key is linearizable: whether all that its clients saw can have come from one key, on which one
//! operation happened after the other, each at a moment between its call and its answer (Herlihy and Wing, 1990). The search is
//! that of Wing and Gong with the memory of Lowe: a set of operations done, and what they left, is looked at once.

use std::{collections::HashSet, time::Duration};

/// A session, by number.
pub type Session = u8;
/// A value; no two writes have the same.
pub type Value = u32;

/// What a client asked for, and was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A read, and what it saw.
    Get(State),
    /// An unconditional write.
    Put(Value),
    /// A write over what was read before (`None`: over nothing), and whether it was done; unknown without an answer.
    Cas(Option<Value>, Value, Option<bool>),
    /// A lock, and whether it was got.
    Acquire(Session, Value, Option<bool>),
    /// An unlock, and whether it was one.
    Release(Session, Value, Option<bool>),
    /// A removal.
    Delete,
}

/// A key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Its value, if it is there.
    pub value: Option<Value>,
    /// Who holds it.
    pub holder: Option<Session>,
}

/// One operation of one client.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    pub op: Op,
    pub called: Duration,
    /// `None`: there was no answer. It may have been done, then or later, or never.
    pub answered: Option<Duration>,
}

impl Op {
    /// What it leaves; `None` if it cannot have had its answer here.
    fn apply(self, state: State) -> Option<State> {
        let held = |session| State {
            holder: Some(session),
            ..state
        };
        let told = |answer: Option<bool>, done: bool, after: State| match answer {
            Some(answer) if answer != done => None,
            _ => Some(if done { after } else { state }),
        };
        match self {
            Op::Get(seen) => (seen == state).then_some(state),
            Op::Put(value) => Some(with(state, value)),
            Op::Cas(expected, value, answer) => {
                told(answer, state.value == expected, with(state, value))
            }
            Op::Acquire(session, value, answer) => {
                let free = state.holder.is_none_or(|holder| holder == session);
                told(answer, free, with(held(session), value))
            }
            Op::Release(session, value, answer) => {
                let own = state.holder == Some(session);
                let free = State {
                    holder: None,
                    ..state
                };
                told(answer, own, with(free, value))
            }
            Op::Delete => Some(State::default()),
        }
    }
}

fn with(state: State, value: Value) -> State {
    State {
        value: Some(value),
        ..state
    }
}

/// Whether the events can have happened one after the other.
pub fn is_linearizable(events: &[Event]) -> bool {
    let mut events = events.to_vec();
    events.sort_by_key(|event| event.called);
    let words = events.len().div_ceil(64);
    let mut search = Search {
        events: &events,
        seen: HashSet::new(),
    };
    search.from(&mut vec![0; words], State::default())
}

struct Search<'a> {
    events: &'a [Event],
    seen: HashSet<(Vec<u64>, State)>,
}

impl Search<'_> {
    fn from(&mut self, done: &mut Vec<u64>, state: State) -> bool {
        if !self.seen.insert((done.clone(), state)) {
            return false;
        }
        let events = self.events;
        let left = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 0;
        // Whatever was called after this was answered comes later.
        let answered = events.iter().enumerate();
        let answered = answered.filter(|(at, _)| left(done, *at));
        let Some(first) = answered.filter_map(|(_, event)| event.answered).min() else {
            // What is left had no answer, and need not have happened.
            return true;
        };
        for (at, event) in events.iter().enumerate() {
            if event.called > first {
                break;
            }
            if !left(done, at) {
                continue;
            }
            if let Some(after) = event.op.apply(state) {
                done[at / 64] |= 1 << (at % 64);
                if self.from(done, after) {
                    return true;
                }
                done[at / 64] &= !(1 << (at % 64));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(op: Op, called: u64, answered: u64) -> Event {
        Event {
            op,
            called: Duration::from_millis(called),
            answered: (answered > 0).then(|| Duration::from_millis(answered)),
        }
    }

    fn get(value: u32) -> Op {
        Op::Get(State {
            value: Some(value),
            holder: None,
        })
    }

    #[test]
    fn what_overlaps_may_be_in_either_order() {
        let history = [
            event(Op::Put(1), 0, 10),
            event(Op::Put(2), 5, 20),
            event(get(2), 12, 15),
            event(get(2), 21, 22),
        ];
        assert!(is_linearizable(&history));
        // The other order was seen last.
        let history = [history[0], history[1], event(get(1), 21, 22)];
        assert!(is_linearizable(&history));
    }

    #[test]
    fn lost_writes_stale_reads_and_locks_held_twice_are_found() {
        let put = event(Op::Put(1), 0, 1);
        let stale = event(Op::Get(State::default()), 2, 3);
        assert!(!is_linearizable(&[put, stale]));
        let back = [
            put,
            event(Op::Put(2), 2, 3),
            event(get(2), 4, 5),
            event(get(1), 6, 7),
        ];
        assert!(!is_linearizable(&back));
        let both = [
            put,
            event(Op::Cas(Some(1), 2, Some(true)), 2, 9),
            event(Op::Cas(Some(1), 3, Some(true)), 3, 8),
        ];
        assert!(!is_linearizable(&both));
        let twice = [
            event(Op::Acquire(1, 1, Some(true)), 0, 5),
            event(Op::Acquire(2, 2, Some(true)), 1, 6),
        ];
        assert!(!is_linearizable(&twice));
        let freed = [
            twice[0],
            event(Op::Release(1, 3, Some(true)), 7, 9),
            twice[1],
        ];
        assert!(
            !is_linearizable(&freed),
            "it was answered before the release was called"
        );
        let later = event(Op::Acquire(2, 2, Some(true)), 8, 10);
        assert!(is_linearizable(&[freed[0], freed[1], later]));
    }

    #[test]
    fn what_had_no_answer_may_have_happened_or_not() {
        let lost = event(Op::Put(2), 2, 0);
        let before = event(Op::Put(1), 0, 1);
        assert!(is_linearizable(&[before, lost, event(get(1), 3, 4)]));
        assert!(is_linearizable(&[before, lost, event(get(2), 3, 4)]));
        // But not both, in this order, and then back.
        let back = [before, lost, event(get(2), 3, 4), event(get(1), 5, 6)];
        assert!(!is_linearizable(&back));
        let unknown = event(Op::Cas(Some(1), 3, None), 2, 0);
        assert!(is_linearizable(&[before, unknown, event(get(3), 3, 4)]));
    }
}
