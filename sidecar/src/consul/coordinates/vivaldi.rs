//! Vivaldi: a node's place in a space in which the distance of two nodes is the time of a round trip.
//!
//! After F. Dabek et al., "Vivaldi: A Decentralized Network Coordinate System" (2004), with a height for the way from a
//! node to the network (§5.4 there), an adjustment for what no space can show, and a slight pull to the origin that keeps all from
//! drifting away (J. Ledlie et al., "Network Coordinates in the Wild", 2007). The constants are those that Serf
//! documents, so that coordinates are of the kind that Consul's clients reckon with.

use std::collections::{HashMap, VecDeque};

use libmesh::model::NodeId;
use serde::{Deserialize, Serialize};

const DIMENSIONS: usize = 8;
/// The error of a node that knows nothing, and the most that one may have.
const ERROR_MAX: f64 = 1.5;
/// How much one measurement changes the error, and the place.
const C_ERROR: f64 = 0.25;
const C_PLACE: f64 = 0.25;
/// Measurements that the adjustment is the mean of.
const ADJUSTMENT_WINDOW: usize = 20;
/// Least height, in seconds.
const HEIGHT_MIN: f64 = 10e-6;
/// Measurements of one node of which the median counts.
const FILTER: usize = 3;
/// Distance from the origin at which the pull is one, in seconds.
const GRAVITY: f64 = 150.0;
/// Below this, in seconds, two places are one.
const NEAR: f64 = 1e-6;
/// Round trips that are longer are no measurement, in seconds.
const RTT_MAX: f64 = 10.0;
/// Nodes of which measurements are kept.
const PEERS: usize = 512;

/// A place. Everything is in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coordinate {
    pub vec: [f64; DIMENSIONS],
    pub error: f64,
    pub adjustment: f64,
    pub height: f64,
}

impl Default for Coordinate {
    fn default() -> Self {
        Self {
            vec: [0.0; DIMENSIONS],
            error: ERROR_MAX,
            adjustment: 0.0,
            height: HEIGHT_MIN,
        }
    }
}

impl Coordinate {
    /// Whether it is one at all, in sane bounds.
    pub fn is_valid(&self) -> bool {
        let sane = |number: f64| number.is_finite() && number.abs() < 1e4;
        self.vec.iter().all(|number| sane(*number))
            && [self.error, self.adjustment, self.height]
                .into_iter()
                .all(sane)
            && self.height >= 0.0
            && self.error >= 0.0
    }

    /// The estimated round trip between two nodes.
    pub fn distance(&self, other: &Self) -> f64 {
        let plain = self.plain_distance(other);
        let adjusted = plain + self.adjustment + other.adjustment;
        if adjusted > 0.0 { adjusted } else { plain }
    }

    fn plain_distance(&self, other: &Self) -> f64 {
        length(&self.away_from(other)) + self.height + other.height
    }

    fn away_from(&self, other: &Self) -> [f64; DIMENSIONS] {
        std::array::from_fn(|at| self.vec[at] - other.vec[at])
    }

    /// Moves by `force` away from `other` (towards it when negative).
    fn push(&mut self, force: f64, other: &Self) {
        let way = self.away_from(other);
        let far = length(&way);
        let direction = match far > NEAR {
            true => way.map(|number| number / far),
            // In one place: somewhere.
            false => any_direction(),
        };
        for (place, direction) in self.vec.iter_mut().zip(direction) {
            *place += direction * force;
        }
        if far > NEAR {
            let height = (self.height + other.height) * force / far + self.height;
            self.height = height.max(HEIGHT_MIN);
        }
    }
}

fn length(vec: &[f64; DIMENSIONS]) -> f64 {
    vec.iter().map(|number| number * number).sum::<f64>().sqrt()
}

fn any_direction() -> [f64; DIMENSIONS] {
    loop {
        let way: [f64; DIMENSIONS] = std::array::from_fn(|_| rand::random::<f64>() - 0.5);
        let far = length(&way);
        if far > NEAR {
            return way.map(|number| number / far);
        }
    }
}

/// A node that finds its place.
#[derive(Default)]
pub struct Placed {
    coordinate: Coordinate,
    /// What the last measurements were more than the plain distance.
    excess: VecDeque<f64>,
    /// The last measurements, by node.
    measured: HashMap<NodeId, VecDeque<f64>>,
}

impl Placed {
    /// Where it is.
    pub fn coordinate(&self) -> &Coordinate {
        &self.coordinate
    }

    /// A round trip of `rtt` seconds was measured to `node`, which says that it is at `other`.
    pub fn measured(&mut self, node: NodeId, other: &Coordinate, rtt: f64) {
        if !other.is_valid() || !(0.0..=RTT_MAX).contains(&rtt) {
            return;
        }
        let rtt = self.median(node, rtt).max(NEAR);
        let distance = self.coordinate.distance(other);
        let wrong = (distance - rtt).abs() / rtt;
        let weight = self.coordinate.error / (self.coordinate.error + other.error).max(NEAR);
        let error = C_ERROR * weight * wrong + self.coordinate.error * (1.0 - C_ERROR * weight);
        self.coordinate.error = error.min(ERROR_MAX);
        self.coordinate
            .push(C_PLACE * weight * (rtt - distance), other);
        if self.excess.len() == ADJUSTMENT_WINDOW {
            self.excess.pop_front();
        }
        self.excess
            .push_back(rtt - self.coordinate.plain_distance(other));
        self.coordinate.adjustment =
            self.excess.iter().sum::<f64>() / (2.0 * ADJUSTMENT_WINDOW as f64);
        let origin = Coordinate::default();
        let pull = (self.coordinate.plain_distance(&origin) / GRAVITY).powi(2);
        self.coordinate.push(-pull, &origin);
        if !self.coordinate.is_valid() {
            *self = Self::default();
        }
    }

    /// The median of the node's last measurements: one that was held up does not count.
    fn median(&mut self, node: NodeId, rtt: f64) -> f64 {
        if self.measured.len() >= PEERS && !self.measured.contains_key(&node) {
            self.measured.clear();
        }
        let last = self.measured.entry(node).or_default();
        if last.len() == FILTER {
            last.pop_front();
        }
        last.push_back(rtt);
        let mut sorted: Vec<_> = last.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two towns, 40 ms apart; within each a round trip takes 2 ms.
    #[test]
    fn nodes_find_where_the_others_are() {
        let rtt = |a: usize, b: usize| if a / 4 == b / 4 { 0.002 } else { 0.040 };
        let mut nodes: Vec<Placed> = (0..8).map(|_| Placed::default()).collect();
        for round in 0..400 {
            for a in 0..8 {
                let b = (a + 1 + (round * 3 + a) % 7) % 8;
                let there = nodes[b].coordinate().clone();
                nodes[a].measured(NodeId([b as u8; 16]), &there, rtt(a, b));
            }
        }
        for a in 0..8 {
            for b in (0..8).filter(|b| *b != a) {
                let distance = nodes[a].coordinate().distance(nodes[b].coordinate());
                let wrong = (distance - rtt(a, b)).abs();
                assert!(wrong < 0.006, "{a} to {b}: {distance}");
            }
            assert!(nodes[a].coordinate().error < 0.5);
        }
    }

    #[test]
    fn nonsense_moves_nobody() {
        let mut node = Placed::default();
        let before = node.coordinate().clone();
        let wrong = Coordinate {
            height: f64::NAN,
            ..Coordinate::default()
        };
        node.measured(NodeId([1; 16]), &wrong, 0.1);
        for rtt in [-1.0, 11.0, f64::NAN] {
            node.measured(NodeId([1; 16]), &Coordinate::default(), rtt);
        }
        assert_eq!(*node.coordinate(), before);
    }

    #[test]
    fn one_slow_answer_does_not_count() {
        let mut node = Placed::default();
        assert_eq!(node.median(NodeId([1; 16]), 0.002), 0.002);
        node.median(NodeId([1; 16]), 0.002);
        assert_eq!(node.median(NodeId([1; 16]), 3.0), 0.002);
    }
}
