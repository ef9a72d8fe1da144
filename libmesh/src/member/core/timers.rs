//! Timers, on a clock that stands still while the process does.
//!
//! A process that was stopped (a paused VM, a starved container, a laptop lid) wakes up with every timer overdue, and
//! would hold its own sleep against the others: the answers that it did not read become suspicions. So when an input
//! comes more than [`STALL`] after the next timer was due, the time between does not count.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use foca::Timer;

use super::effects::has_token;
use crate::member::wire::Identity;
use crate::model::NodeId;

/// Lag that a busy machine is allowed.
const STALL: Duration = Duration::from_millis(200);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Foca(Timer<Identity>),
    /// The probe with this number has no answer yet: ping once more.
    PingAgain(u8),
    /// Neither the second ping nor others reached the target of this probe: try the stream.
    PingOverStream(u8),
    /// A stream question gets no answer any more.
    AskDeadline(u64),
    Seeds,
    PushPull,
    /// A member's port was seen refused: time to look again.
    SecondLook(NodeId),
    /// What is shown of a member may change by now.
    Show(NodeId),
    /// Time to find out whether others reach us.
    Reach,
    Forget,
    GoodbyeRound(u8),
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    due: Duration,
    number: u64,
    item: Item,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

pub(super) struct Timers {
    heap: BinaryHeap<Reverse<Entry>>,
    number: u64,
    /// The caller's clock, never running back.
    now: Duration,
    /// How much of it we slept through.
    slept: Duration,
}

impl Timers {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            heap: BinaryHeap::new(),
            number: 0,
            now,
            slept: Duration::ZERO,
        }
    }

    /// Takes note of the caller's clock; true when a stall was found.
    pub(super) fn advance(&mut self, now: Duration) -> bool {
        self.now = self.now.max(now);
        let late = self.heap.peek().map_or(Duration::ZERO, |Reverse(next)| {
            self.time().saturating_sub(next.due)
        });
        let stalled = late > STALL;
        if stalled {
            self.slept += late;
        }
        stalled
    }

    /// Our clock.
    pub(super) fn time(&self) -> Duration {
        self.now - self.slept
    }

    /// How much time was slept through so far.
    pub(super) fn slept(&self) -> Duration {
        self.slept
    }

    /// When the next timer is due, on the caller's clock.
    pub(super) fn next(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(next)| next.due + self.slept)
    }

    pub(super) fn set(&mut self, item: Item, after: Duration) {
        self.number += 1;
        self.heap.push(Reverse(Entry {
            due: self.time() + after,
            number: self.number,
            item,
        }));
    }

    /// Sets a timer of which there is only one.
    pub(super) fn replace(&mut self, item: Item, after: Duration) {
        self.heap.retain(|Reverse(entry)| entry.item != item);
        self.set(item, after);
    }

    /// Drops foca's timers that carry a token.
    pub(super) fn void(&mut self) {
        self.heap
            .retain(|Reverse(entry)| !matches!(&entry.item, Item::Foca(timer) if has_token(timer)));
    }

    /// What is due, in an order that is safe even when it comes late: the indirect stage of a probe before its end.
    pub(super) fn due(&mut self) -> Vec<Item> {
        let time = self.time();
        let mut due = Vec::new();
        while self
            .heap
            .peek()
            .is_some_and(|Reverse(next)| next.due <= time)
        {
            due.extend(self.heap.pop().map(|Reverse(entry)| entry.item));
        }
        due.sort_by(|one, other| match (one, other) {
            (Item::Foca(one), Item::Foca(other)) => one.cmp(other),
            (Item::Foca(_), _) => std::cmp::Ordering::Less,
            (_, Item::Foca(_)) => std::cmp::Ordering::Greater,
            _ => std::cmp::Ordering::Equal,
        });
        due
    }

    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_that_was_slept_through_does_not_count() {
        let mut timers = Timers::new(ms(1000));
        timers.set(Item::PushPull, ms(100));
        timers.set(Item::Forget, ms(500));
        assert!(
            !timers.advance(ms(1100) + STALL),
            "a little late is no stall"
        );
        assert!(timers.advance(ms(6100)));
        assert_eq!(
            timers.due(),
            [Item::PushPull],
            "the second is not due: we were not there"
        );
        assert_eq!(timers.next(), Some(ms(6500)));
        timers.advance(ms(6500));
        assert_eq!(timers.due(), [Item::Forget]);
    }

    #[test]
    fn late_timers_come_in_a_safe_order() {
        let id = Identity::unknown("192.0.2.1:1".parse().unwrap());
        let mut timers = Timers::new(ms(0));
        timers.set(Item::Foca(Timer::ProbeRandomMember(1)), ms(10));
        timers.set(
            Item::Foca(Timer::SendIndirectProbe {
                probed_id: id,
                token: 1,
            }),
            ms(20),
        );
        timers.advance(ms(30));
        assert!(matches!(
            timers.due()[0],
            Item::Foca(Timer::SendIndirectProbe { .. })
        ));
    }

    #[test]
    fn void_timers_are_gone_and_ours_stay() {
        let mut timers = Timers::new(ms(0));
        timers.set(Item::Foca(Timer::ProbeRandomMember(1)), ms(10));
        timers.set(Item::Seeds, ms(20));
        timers.void();
        timers.advance(ms(30));
        assert_eq!(timers.due(), [Item::Seeds]);
        assert_eq!(timers.len(), 0);
    }
}
