//! NodeLog: whatever the network does, a replica is the owner's map as of its head; in the end, as of now.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;

use crate::catalog::log::{Delta, Head, NodeLog};
use crate::catalog::replica::{Effect, Replica};
use crate::model::NodeId;

type Map = BTreeMap<Bytes, Bytes>;

/// Items of this many bytes, so that snapshots and deltas come in several parts.
const PART: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Remove(u8),
    Collect,
    /// The owner tells what someone at an older head lacks; the messages are under way.
    Send(u8),
    /// A replica gets a message that is under way; it stays there, to arrive again.
    Deliver(u8, u8),
    /// A replica asks the owner.
    Pull(u8),
    /// A replica asks another one.
    Relay(u8, u8),
    Distrust(u8),
    /// The owner restarts without its state.
    Lose,
    /// The owner restarts with its state.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6u8, any::<u8>()).prop_map(|(key, body)| Step::Put(key, body)),
        3 => (0..6u8).prop_map(Step::Remove),
        1 => Just(Step::Collect),
        5 => any::<u8>().prop_map(Step::Send),
        12 => (0..3u8, any::<u8>()).prop_map(|(to, message)| Step::Deliver(to, message)),
        2 => (0..3u8).prop_map(Step::Pull),
        3 => (0..3u8, 0..3u8).prop_map(|(to, from)| Step::Relay(to, from)),
        1 => (0..3u8).prop_map(Step::Distrust),
        1 => Just(Step::Lose),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..150)
}

struct World {
    owner: NodeLog,
    now: u64,
    /// What the owner's map was at every head.
    history: HashMap<Head, Map>,
    heads: Vec<Head>,
    /// The last change of each key, by epoch.
    changed: HashMap<(u64, Bytes), u64>,
    under_way: Vec<Delta>,
    /// The messages' raw form is only their number here.
    raw: Vec<Bytes>,
    replicas: Vec<(Replica, Map)>,
}

impl World {
    fn new() -> Self {
        let owner = NodeLog::new(NodeId([1; 16]), 1);
        let history = HashMap::from([(Head::default(), Map::new()), (owner.head(), Map::new())]);
        let replicas = (0..3).map(|_| (Replica::default(), Map::new())).collect();
        Self {
            owner,
            now: 0,
            history,
            heads: vec![Head::default()],
            changed: HashMap::new(),
            under_way: vec![],
            raw: vec![],
            replicas,
        }
    }

    fn note(&mut self) {
        let epoch = self.owner.head().epoch;
        for (item, _) in self.owner.entries() {
            self.changed.insert((epoch, item.key), item.version);
        }
        let map = self
            .owner
            .live()
            .map(|(key, body)| (key.clone(), body.clone()))
            .collect();
        self.history.insert(self.owner.head(), map);
        self.heads.push(self.owner.head());
    }

    fn send(&mut self, have: Head) -> Vec<usize> {
        let first = self.under_way.len();
        for delta in self.owner.since(have, PART) {
            assert!(delta.to > delta.from && (delta.from == 0 || delta.parts == 1));
            self.raw
                .push(Bytes::copy_from_slice(&self.under_way.len().to_le_bytes()));
            self.under_way.push(delta);
        }
        (first..self.under_way.len()).collect()
    }

    fn deliver(&mut self, to: usize, message: usize) -> bool {
        let (replica, shown) = &mut self.replicas[to];
        let before = replica.head();
        let effect = replica.apply(self.under_way[message].clone(), self.raw[message].clone());
        let moved = matches!(effect, Effect::Applied(_));
        match effect {
            Effect::Applied(changes) => {
                for (key, body) in changes {
                    let old = match body.clone() {
                        Some(body) => shown.insert(key, body),
                        None => shown.remove(&key),
                    };
                    assert_ne!(old, body, "a change that changes nothing wakes readers");
                }
            }
            Effect::Pull(have) => assert!(have <= before),
            Effect::Known | Effect::Staged => {}
        }
        assert!(replica.head() >= before, "a replica never goes back");
        let map: Map = replica
            .live()
            .map(|(key, body)| (key.clone(), body.clone()))
            .collect();
        assert_eq!(&map, shown, "the changes are what changed");
        let (at, then) = (replica.head(), &self.history[&replica.head()]);
        for key in map.keys().chain(then.keys()) {
            let changed_since = self
                .changed
                .get(&(at.epoch, key.clone()))
                .is_some_and(|last| *last > at.head);
            assert!(
                map.get(key) == then.get(key) || changed_since,
                "{key:?} is not what it was at {at:?}"
            );
        }
        moved
    }

    fn relay(&mut self, to: usize, from: usize) {
        let have = self.replicas[to].0.wanted_after();
        for raw in self.replicas[from].0.messages_since(have) {
            self.deliver(to, usize::from_le_bytes(raw.as_ref().try_into().unwrap()));
        }
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        match *step {
            Step::Put(key, body) => {
                let (key, body) = (Bytes::from(vec![key; 3]), Bytes::from(vec![body % 4; 12]));
                self.owner.put(key, body, self.now);
                self.note();
            }
            Step::Remove(key) => {
                self.owner.remove(&Bytes::from(vec![key; 3]), self.now);
                self.note();
            }
            Step::Collect => self.owner.collect(self.now.saturating_sub(5)),
            Step::Send(head) => {
                let have = self.heads[head as usize % self.heads.len()];
                self.send(have);
            }
            Step::Deliver(to, message) => {
                if !self.under_way.is_empty() {
                    self.deliver(to as usize, message as usize % self.under_way.len());
                }
            }
            Step::Pull(to) => self.pull(to as usize),
            Step::Relay(to, from) => self.relay(to as usize, from as usize),
            Step::Distrust(at) => self.replicas[at as usize].0.distrust(),
            Step::Lose => {
                self.owner = NodeLog::new(NodeId([1; 16]), self.owner.head().epoch + 1);
                self.owner.put(
                    Bytes::from_static(b"first"),
                    Bytes::from_static(b"record"),
                    self.now,
                );
                self.note();
            }
            Step::Restart => {
                let entries: Vec<_> = self.owner.entries().collect();
                let content = self.owner.content();
                self.owner =
                    NodeLog::restore(NodeId([1; 16]), self.owner.head(), entries.into_iter());
                assert_eq!(self.owner.content(), content);
            }
        }
    }

    fn pull(&mut self, to: usize) {
        let have = self.replicas[to].0.wanted_after();
        for message in self.send(have) {
            self.deliver(to, message);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_loss_duplication_reordering_and_epoch_change_converges(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        for to in 0..3 {
            world.pull(to);
            let replica = &world.replicas[to].0;
            if world.owner.head().head > 0 {
                prop_assert_eq!(replica.head(), world.owner.head());
                prop_assert_eq!(replica.content(), world.owner.content());
            }
        }
        // Relaying from a replica that is up to date is as good as asking the owner.
        world.replicas[0] = (Replica::default(), Map::new());
        world.relay(0, 1);
        prop_assert_eq!(world.replicas[0].0.head(), world.replicas[1].0.head());
    }
}

fn key(n: u32) -> Bytes {
    Bytes::from(format!("key {n}"))
}

#[test]
fn a_deleted_record_does_not_come_back_from_a_peer_behind_gc() {
    let mut owner = NodeLog::new(NodeId([1; 16]), 7);
    owner.put(key(1), Bytes::from_static(b"a"), 1);
    owner.put(key(2), Bytes::from_static(b"b"), 2);
    let mut peer = Replica::default();
    for delta in owner.since(Head::default(), 1 << 20) {
        peer.apply(delta, Bytes::new());
    }
    owner.remove(&key(1), 3);
    owner.put(key(3), Bytes::from_static(b"c"), 4);
    owner.collect(10);
    assert_eq!(owner.gc(), 3);
    let messages = owner.since(peer.head(), 1 << 20);
    assert_eq!(messages[0].from, 0, "behind gc: the whole map");
    for delta in messages {
        assert_eq!(
            peer.apply(delta, Bytes::new()),
            Effect::Applied(vec![
                (key(3), Some(Bytes::from_static(b"c"))),
                (key(1), None)
            ])
        );
    }
}

#[test]
fn a_new_epoch_replaces_the_old_view_only_when_complete() {
    let mut old = NodeLog::new(NodeId([1; 16]), 1);
    old.put(key(1), Bytes::from_static(b"old"), 1);
    let mut replica = Replica::default();
    replica.apply(old.since(Head::default(), 1 << 20).remove(0), Bytes::new());
    let mut new = NodeLog::new(NodeId([1; 16]), 2);
    for n in 1..=3 {
        new.put(key(n), Bytes::from_static(b"new"), 1);
    }
    let parts = new.since(Head::default(), 1);
    assert_eq!(parts.len(), 3);
    assert_eq!(
        replica.apply(parts[2].clone(), Bytes::new()),
        Effect::Staged
    );
    assert_eq!(
        replica.apply(parts[0].clone(), Bytes::new()),
        Effect::Staged
    );
    assert_eq!(replica.head(), Head { epoch: 1, head: 1 });
    assert!(
        matches!(replica.apply(parts[1].clone(), Bytes::new()), Effect::Applied(changes) if changes.len() == 3)
    );
    assert_eq!(replica.head(), Head { epoch: 2, head: 3 });
    assert_eq!(
        replica.apply(old.since(Head::default(), 1 << 20).remove(0), Bytes::new()),
        Effect::Known
    );
}

#[test]
fn kept_messages_stay_bounded_under_churn() {
    let mut owner = NodeLog::new(NodeId([1; 16]), 1);
    let mut replica = Replica::default();
    let mut most = 0;
    for n in 0..20_000u32 {
        owner.put(
            key(n % 10),
            Bytes::from(n.to_le_bytes().repeat(10)),
            u64::from(n),
        );
        for delta in owner.since(replica.head(), 1 << 20) {
            let raw = Bytes::from(vec![0; delta.items.len() * 50]);
            replica.apply(delta, raw);
        }
        most = most.max(replica.kept_bytes());
    }
    assert_eq!(replica.content(), owner.content());
    assert!(most < 100_000, "{most} bytes kept for ten records");
}
