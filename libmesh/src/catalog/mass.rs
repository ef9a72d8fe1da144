//! The mass-event rule: when much of a zone seems to die at once, the network is the more likely cause, and hiding its
//! instances would make an outage out of a partition (as Eureka's self-preservation does).
//!
//! When more than 15 % of a zone's nodes, and at least three, go down within 30 s, what they offer is kept and marked
//! *stale*. The event ends when so many are back that the rest no longer make one, and for each node after an hour.
//!
//! Pure: time and the zone's size are inputs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::model::NodeId;

/// Downs this close together count as one event: 30 s in µs.
const WINDOW: u64 = 30_000_000;
/// Fewer nodes than this are never an event.
const NODES_MIN: usize = 3;
/// More than this share of a zone, in percent.
const PERCENT: usize = 15;
/// No node stays stale longer: 1 h in µs.
const HOLD: u64 = 3_600_000_000;

#[derive(Debug, Default)]
pub(super) struct MassEvents {
    zones: HashMap<String, Zone>,
}

#[derive(Debug, Default)]
struct Zone {
    /// Went down within the window: when.
    recent: BTreeMap<NodeId, u64>,
    /// Kept visible: since when they are down.
    stale: BTreeMap<NodeId, u64>,
}

impl Zone {
    fn down(&self) -> BTreeSet<NodeId> {
        self.recent
            .keys()
            .chain(self.stale.keys())
            .copied()
            .collect()
    }
}

fn is_event(down: usize, present: usize) -> bool {
    down >= NODES_MIN && down * 100 > (down + present) * PERCENT
}

/// An alarm: much of a zone went down at once, so what it offers is still shown, as
/// [`stale`](super::InstanceView::stale). Operators should look at the network first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MassEvent {
    /// The failure domain.
    pub zone: String,
    /// When the first of the nodes went down: unix µs, by this node's clock.
    pub since: u64,
    /// The nodes that are down and shown.
    pub nodes: Vec<NodeId>,
}

impl MassEvents {
    /// The events that are going on, by zone.
    pub(super) fn going_on(&self) -> Vec<MassEvent> {
        let zones = self.zones.iter();
        let events = zones.filter_map(|(zone, found)| {
            Some(MassEvent {
                zone: zone.clone(),
                since: found.stale.values().min().copied()?,
                nodes: found.stale.keys().copied().collect(),
            })
        });
        let mut events: Vec<_> = events.collect();
        events.sort_unstable_by(|a, b| a.zone.cmp(&b.zone));
        events
    }

    /// `node` went down; `present` nodes of its zone are left. Returns the nodes to mark stale.
    pub(super) fn down(
        &mut self,
        zone: &str,
        node: NodeId,
        present: usize,
        now: u64,
    ) -> Vec<NodeId> {
        let zone = self.zones.entry(zone.to_owned()).or_default();
        zone.recent
            .retain(|_, at| now.saturating_sub(*at) <= WINDOW);
        zone.recent.insert(node, now);
        if !is_event(zone.down().len(), present) {
            return Vec::new();
        }
        let marked: Vec<_> = zone
            .recent
            .keys()
            .copied()
            .filter(|node| !zone.stale.contains_key(node))
            .collect();
        zone.stale.append(&mut zone.recent);
        marked
    }

    /// `node` is back, or is no longer expected; `present` nodes of its zone are there now. Returns the nodes that are
    /// stale no longer (never `node` itself).
    pub(super) fn resolved(&mut self, zone: &str, node: NodeId, present: usize) -> Vec<NodeId> {
        let Some(found) = self.zones.get_mut(zone) else {
            return Vec::new();
        };
        found.recent.remove(&node);
        found.stale.remove(&node);
        let ended = if is_event(found.stale.len(), present) {
            BTreeMap::new()
        } else {
            std::mem::take(&mut found.stale)
        };
        if found.recent.is_empty() && found.stale.is_empty() {
            self.zones.remove(zone);
        }
        ended.into_keys().collect()
    }

    /// Ends what lasted too long. Returns the nodes that are stale no longer.
    pub(super) fn expire(&mut self, now: u64) -> Vec<NodeId> {
        let mut ended = Vec::new();
        self.zones.retain(|_, zone| {
            zone.recent
                .retain(|_, at| now.saturating_sub(*at) <= WINDOW);
            zone.stale.retain(|node, at| {
                let keep = now.saturating_sub(*at) <= HOLD;
                if !keep {
                    ended.push(*node);
                }
                keep
            });
            !zone.recent.is_empty() || !zone.stale.is_empty()
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn id(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    #[test]
    fn the_third_of_ten_within_the_window_makes_all_three_stale() {
        let mut events = MassEvents::default();
        assert!(events.down("a", id(1), 9, 0).is_empty());
        assert!(events.down("a", id(2), 8, 10 * SECOND).is_empty());
        assert!(
            events.down("b", id(9), 0, 10 * SECOND).is_empty(),
            "another zone is another matter"
        );
        assert_eq!(
            events.down("a", id(3), 7, 30 * SECOND),
            [id(1), id(2), id(3)]
        );
        assert_eq!(events.down("a", id(4), 6, 31 * SECOND), [id(4)]);
    }

    #[test]
    fn slow_deaths_and_small_shares_are_no_event() {
        let mut events = MassEvents::default();
        for n in 0..8 {
            assert!(
                events
                    .down("slow", id(n), 5, u64::from(n) * 16 * SECOND)
                    .is_empty()
            );
        }
        for n in 0..15 {
            assert!(
                events
                    .down("large", id(n), 85 + (14 - n as usize), SECOND)
                    .is_empty(),
                "15 of 100 is not more"
            );
        }
        assert_eq!(events.down("large", id(15), 84, SECOND).len(), 16);
    }

    #[test]
    fn it_ends_when_most_are_back() {
        let mut events = MassEvents::default();
        for n in 0..4 {
            events.down("a", id(n), 10 - n as usize, 0);
        }
        assert!(events.resolved("a", id(0), 8).is_empty());
        let mut ended = events.resolved("a", id(1), 9);
        ended.sort();
        assert_eq!(ended, [id(2), id(3)], "two are no event: they are hidden");
        assert!(events.zones.is_empty());
    }

    #[test]
    fn it_ends_after_an_hour() {
        let mut events = MassEvents::default();
        for n in 0..3 {
            events.down("a", id(n), 0, 0);
        }
        assert!(events.expire(HOLD).is_empty());
        assert_eq!(events.expire(HOLD + 1).len(), 3);
        assert!(events.zones.is_empty());
    }
}
