//! What is shown of what two replicas say; the way over RPC is tested from outside (`tests/it/subscribe.rs`).

use super::super::follow_wire::Gone;
use super::*;
use crate::model::{Datacenter, NodeName, Roles};

fn name() -> ServiceName {
    ServiceName::parse("web").unwrap()
}

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn head(head: u64) -> Head {
    Head { epoch: 1, head }
}

/// What node `n` has at `at`: one instance at `port`.
fn part(n: u8, at: u64, port: u16, liveness: Liveness) -> Part {
    let node = NodeRecord {
        id: id(n),
        name: NodeName::parse(&format!("node{n}")).unwrap(),
        datacenter: Datacenter::default(),
        address: [10, 0, 0, n].into(),
        port: 8301,
        roles: Roles::default(),
        locality: Default::default(),
        meta: Default::default(),
        version: "1".into(),
        external: None,
    };
    let shown = Shown {
        instance: Instance::new(name(), port).unwrap(),
        checks: vec![],
        health: Health::Passing,
        stale: false,
    };
    Part {
        at: head(at),
        hash: u64::from(port),
        node,
        liveness,
        instances: vec![shown],
    }
}

#[derive(Default)]
struct Replicas {
    merged: Merged,
}

impl Replicas {
    fn new() -> Self {
        let mut merged = Merged::default();
        merged.services.insert(name(), Service::default());
        Self { merged }
    }

    fn says(&mut self, slot: usize, parts: Vec<Part>, gone: Vec<Gone>) {
        self.begins(slot, parts, gone, false);
    }

    fn begins(&mut self, slot: usize, parts: Vec<Part>, gone: Vec<Gone>, more: bool) {
        self.merged.slots[slot].live = true;
        let told = self.merged.slots[slot].told.entry(name()).or_default();
        let update = ServiceUpdate {
            service: name(),
            revision: 1,
            parts,
            gone,
            more,
        };
        if told.take(update) {
            self.merged.show(&name());
        }
    }

    fn dies(&mut self, slot: usize) {
        self.merged.slots[slot].live = false;
        self.merged.show(&name());
    }

    fn shown(&self) -> Option<Arc<FollowedService>> {
        self.merged.services[&name()].shown.borrow().clone()
    }

    /// Ports of what is shown.
    fn ports(&self) -> Vec<u16> {
        let shown = self.shown().unwrap();
        shown.instances.iter().map(|i| i.instance.port).collect()
    }
}

fn gone(n: u8, at: Option<u64>) -> Gone {
    Gone {
        node: id(n),
        at: at.map(head),
    }
}

const ALIVE: Liveness = Liveness::Alive;

#[test]
fn the_newest_by_its_owners_log_wins_whoever_says_it() {
    let mut replicas = Replicas::new();
    replicas.says(0, vec![part(1, 5, 80, ALIVE)], vec![]);
    replicas.says(1, vec![part(1, 7, 81, ALIVE)], vec![]);
    assert_eq!(replicas.ports(), [81]);
    let revision = replicas.shown().unwrap().revision;
    replicas.says(0, vec![part(1, 6, 82, ALIVE)], vec![]);
    assert_eq!(replicas.ports(), [81]);
    assert_eq!(
        replicas.shown().unwrap().revision,
        revision,
        "nobody is woken"
    );
    replicas.says(0, vec![], vec![gone(1, Some(8))]);
    assert_eq!(
        replicas.ports(),
        [0; 0],
        "deregistered, although the other one is behind"
    );
    replicas.says(1, vec![part(1, 9, 83, ALIVE)], vec![]);
    assert_eq!(replicas.ports(), [83]);
}

#[test]
fn what_was_shown_is_not_followed_by_something_older() {
    let mut replicas = Replicas::new();
    replicas.says(0, vec![part(1, 9, 90, ALIVE)], vec![]);
    replicas.says(1, vec![part(1, 5, 50, ALIVE)], vec![]);
    replicas.dies(0);
    assert_eq!(replicas.ports(), [90], "the one that is left is behind");
    replicas.says(1, vec![part(1, 10, 100, ALIVE)], vec![]);
    assert_eq!(replicas.ports(), [100]);
}

#[test]
fn a_node_that_one_replica_takes_for_dead_stays_as_long_as_the_other_has_it() {
    let mut replicas = Replicas::new();
    for slot in [0, 1] {
        replicas.says(slot, vec![part(1, 5, 80, ALIVE)], vec![]);
    }
    replicas.says(0, vec![], vec![gone(1, None)]);
    assert_eq!(replicas.ports(), [80]);
    replicas.says(1, vec![part(1, 5, 80, Liveness::Suspect)], vec![]);
    assert!(!replicas.shown().unwrap().instances[0].is_usable());
    replicas.says(1, vec![], vec![gone(1, None)]);
    assert_eq!(replicas.ports(), [0; 0]);
}

#[test]
fn without_replicas_the_last_state_stays_and_says_so() {
    let mut replicas = Replicas::new();
    assert_eq!(replicas.shown(), None, "unknown is not empty");
    replicas.begins(0, vec![part(1, 5, 80, ALIVE)], vec![], true);
    assert_eq!(replicas.shown(), None, "nor is half of it");
    replicas.says(0, vec![part(2, 5, 81, ALIVE)], vec![]);
    assert_eq!(replicas.ports(), [80, 81]);
    replicas.dies(0);
    let shown = replicas.shown().unwrap();
    assert!(!shown.live && shown.instances.len() == 2);
    replicas.says(1, vec![part(1, 5, 80, ALIVE)], vec![]);
    assert!(replicas.shown().unwrap().live);
    assert_eq!(replicas.ports(), [80]);
}

#[test]
fn a_part_in_pieces_is_put_together() {
    let mut replicas = Replicas::new();
    replicas.says(0, vec![part(1, 4, 70, ALIVE)], vec![]);
    replicas.begins(0, vec![part(1, 5, 80, ALIVE)], vec![], true);
    let mut second = part(1, 5, 81, ALIVE);
    second.instances[0].instance.id = crate::model::InstanceId::parse("web-2").unwrap();
    assert_eq!(replicas.ports(), [70]);
    replicas.says(0, vec![second], vec![]);
    assert_eq!(replicas.ports(), [80, 81]);
}
