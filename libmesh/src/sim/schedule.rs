//! What happens when: a heap of events, in the order of their time and, within it, of their making.
//!
//! The heap moves its entries at every push and pop, so an entry is small: what a stream carries is boxed, a packet is
//! a counted reference.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use bytes::Bytes;

use crate::member::StreamReply;
use crate::member::core::Route;

/// Something that reaches a node, or its clock.
pub(super) enum Event {
    Input(u32, Input),
    Wake(u32),
}

/// Something that reaches a node.
pub(super) enum Input {
    Packet(Bytes),
    Stream(Box<StreamInput>),
}

pub(super) enum StreamInput {
    Question {
        from: usize,
        life: u64,
        id: u64,
        route: Route,
        body: Bytes,
    },
    Reply {
        life: u64,
        id: u64,
        reply: StreamReply,
    },
    /// A kept stream to this node ended without a goodbye.
    Closed(usize),
}

struct Entry {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Events to come. Times are nanoseconds since the simulation began.
#[derive(Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Entry>,
    number: u64,
}

impl Schedule {
    pub(super) fn push(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.heap.push(Entry {
            at,
            number: self.number,
            event,
        });
    }

    /// The next event, if it comes no later than `end`.
    pub(super) fn pop_until(&mut self, end: u64) -> Option<(u64, Event)> {
        if self.heap.peek()?.at > end {
            return None;
        }
        self.heap.pop().map(|entry| (entry.at, entry.event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_their_time_and_then_of_their_making() {
        let mut schedule = Schedule::default();
        for (node, at) in [(0, 5), (1, 3), (2, 5), (3, 9)] {
            schedule.push(at, Event::Wake(node));
        }
        let mut order = Vec::new();
        while let Some((at, Event::Wake(node))) = schedule.pop_until(5) {
            order.push((at, node));
        }
        assert_eq!(order, [(3, 1), (5, 0), (5, 2)]);
        assert!(
            size_of::<Entry>() <= 64,
            "entries are moved at every push and pop: {} bytes",
            size_of::<Entry>()
        );
    }
}
