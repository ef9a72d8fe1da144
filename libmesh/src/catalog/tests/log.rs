//! NodeLog: whatever the network does, a replica is the owner's map as of its head; in the end, as of now.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;

use crate::catalog::Signer;
use crate::catalog::fields::Writer;
use crate::catalog::log::{Delta, Head, NodeLog};
use crate::catalog::replica::{Effect, Note, Reader, Replica};
use crate::catalog::wire::{self, Message};
use crate::model::NodeId;

type Map = BTreeMap<Bytes, Bytes>;

/// Items of this many bytes, so that snapshots and deltas come in several parts.
const PART: usize = 40;

/// Signs nothing: nobody looks here.
struct NoSigner;

impl Signer for NoSigner {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

fn encoded(delta: &Delta) -> Message {
    Message::decode(wire::encode(delta, &NoSigner)).expect("just made")
}

/// Notes changes. Its hashes collide as often as can be, and its notes say what was told before.
#[derive(Default)]
struct Changes {
    made: Vec<(Bytes, Option<Bytes>)>,
    was: Vec<Note>,
}

fn note_of(record: &[u8]) -> Note {
    Note {
        kind: record.len() as u8,
        link: record.iter().map(|byte| u32::from(*byte)).sum(),
    }
}

impl Reader for Changes {
    fn hash(&self, (head, last): (&[u8], &[u8])) -> u32 {
        let sum: u32 = head.iter().chain(last).map(|byte| u32::from(*byte)).sum();
        sum % 3
    }

    fn changed(&mut self, _: u32, key: &[u8], record: Option<&[u8]>, was: Note) -> Note {
        self.was.push(was);
        let copied = record.map(Bytes::copy_from_slice);
        self.made.push((Bytes::copy_from_slice(key), copied));
        record.map_or_else(Note::default, note_of)
    }
}

fn live(replica: &Replica) -> Map {
    let mut map = Map::new();
    replica.each(
        |_| true,
        |note, key, record| {
            assert_eq!(note, note_of(record), "the note goes with the record");
            let record = Bytes::copy_from_slice(record);
            assert_eq!(map.insert(Bytes::copy_from_slice(key), record), None);
        },
    );
    map
}

/// Some records are made of fields, and so packed in messages; some are not.
fn record(n: u8) -> Bytes {
    if n.is_multiple_of(5) {
        return Bytes::from(vec![0xff; 12]);
    }
    let mut writer = Writer::default();
    writer.text(1, "the same text in many");
    writer.text(2, &format!("text {}", n % 5));
    writer.stamp(3, 1_000_000 + u64::from(n % 5));
    writer.0.into()
}

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
    under_way: Vec<Message>,
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
            self.under_way.push(encoded(&delta));
        }
        (first..self.under_way.len()).collect()
    }

    fn deliver(&mut self, to: usize, message: usize) -> bool {
        let (replica, shown) = &mut self.replicas[to];
        let before = replica.head();
        let old = shown.clone();
        let mut changes = Changes::default();
        let effect = replica.apply(self.under_way[message].clone(), &mut changes);
        let moved = matches!(effect, Effect::Applied(_));
        match effect {
            Effect::Applied(count) => assert_eq!(count, changes.made.len()),
            Effect::Pull(have) => assert!(have <= before),
            Effect::Known | Effect::Staged => {}
        }
        for ((key, body), was) in changes.made.into_iter().zip(changes.was) {
            let told = old
                .get(&key)
                .map_or_else(Note::default, |body| note_of(body));
            assert_eq!(was, told, "the reader gets its note back");
            let old = match body.clone() {
                Some(body) => shown.insert(key, body),
                None => shown.remove(&key),
            };
            assert_ne!(old, body, "a change that changes nothing wakes readers");
        }
        assert!(replica.head() >= before, "a replica never goes back");
        let map = live(replica);
        assert_eq!(map.len(), replica.records());
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
            self.under_way.push(Message::decode(raw).unwrap());
            self.deliver(to, self.under_way.len() - 1);
        }
    }

    fn step(&mut self, step: &Step) {
        self.now += 1;
        match *step {
            Step::Put(key, body) => {
                let (key, body) = (key_of(key), record(body));
                self.owner.put(key, body, self.now);
                self.note();
            }
            Step::Remove(key) => {
                self.owner.remove(&key_of(key), self.now);
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

/// Neighbours among them differ in the last byte only, as an instance and its check do.
fn key_of(n: u8) -> Bytes {
    Bytes::from(vec![7, n / 2, n / 2, n / 2, n / 2, n % 2])
}

/// Applies what the owner would send; what changed.
fn apply(replica: &mut Replica, delta: &Delta) -> (Effect, Vec<(Bytes, Option<Bytes>)>) {
    let mut changes = Changes::default();
    let effect = replica.apply(encoded(delta), &mut changes);
    (effect, changes.made)
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
        apply(&mut peer, &delta);
    }
    owner.remove(&key(1), 3);
    owner.put(key(3), Bytes::from_static(b"c"), 4);
    owner.collect(10);
    assert_eq!(owner.gc(), 3);
    let messages = owner.since(peer.head(), 1 << 20);
    assert_eq!(messages[0].from, 0, "behind gc: the whole map");
    for delta in messages {
        let (effect, mut changes) = apply(&mut peer, &delta);
        changes.sort();
        assert_eq!(effect, Effect::Applied(2));
        assert_eq!(
            changes,
            [(key(1), None), (key(3), Some(Bytes::from_static(b"c")))]
        );
    }
}

#[test]
fn a_new_epoch_replaces_the_old_view_only_when_complete() {
    let mut old = NodeLog::new(NodeId([1; 16]), 1);
    old.put(key(1), Bytes::from_static(b"old"), 1);
    let mut replica = Replica::default();
    apply(&mut replica, &old.since(Head::default(), 1 << 20)[0]);
    let mut new = NodeLog::new(NodeId([1; 16]), 2);
    for n in 1..=3 {
        new.put(key(n), Bytes::from_static(b"new"), 1);
    }
    let parts = new.since(Head::default(), 1);
    assert_eq!(parts.len(), 3);
    assert_eq!(apply(&mut replica, &parts[2]).0, Effect::Staged);
    assert_eq!(apply(&mut replica, &parts[0]).0, Effect::Staged);
    assert_eq!(replica.head(), Head { epoch: 1, head: 1 });
    assert_eq!(apply(&mut replica, &parts[1]).0, Effect::Applied(3));
    assert_eq!(replica.head(), Head { epoch: 2, head: 3 });
    let late = &old.since(Head::default(), 1 << 20)[0];
    assert_eq!(apply(&mut replica, late).0, Effect::Known);
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
        owner.tell();
        for delta in owner.since(replica.head(), 1 << 20) {
            apply(&mut replica, &delta);
        }
        most = most.max(replica.kept_bytes());
    }
    assert_eq!(replica.content(), owner.content());
    assert!(most < 100_000, "{most} bytes kept for ten records");
}

#[test]
fn a_key_twice_in_a_message_counts_as_said_last() {
    let item = |n: u64, body: &'static [u8]| crate::catalog::log::Item {
        key: key(1),
        version: n,
        body: (!body.is_empty()).then_some(Bytes::from_static(body)),
    };
    let mut delta = Delta {
        node: NodeId([1; 16]),
        epoch: 1,
        from: 0,
        to: 9,
        part: 0,
        parts: 1,
        items: vec![item(1, b"first"), item(2, b"second")],
    };
    let mut replica = Replica::default();
    apply(&mut replica, &delta);
    assert_eq!(
        live(&replica),
        Map::from([(key(1), Bytes::from_static(b"second"))])
    );
    (delta.from, delta.to) = (9, 19);
    delta.items = vec![
        item(11, b"third"),
        item(12, b""),
        item(13, b"last"),
        item(14, b""),
    ];
    apply(&mut replica, &delta);
    assert!(live(&replica).is_empty());
    assert_eq!((replica.content(), replica.records()), (0, 0));
}
