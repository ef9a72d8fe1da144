//! Clusters of trees in virtual time, and the bounds of one.

use std::cmp::Reverse;

use super::*;
use crate::sync::sim::{Cluster, Network, propagation};

use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn network(loss: f64) -> Network {
    Network {
        latency: (MS, MS),
        loss,
    }
}

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn item(node: u8, head: u64, bytes: usize) -> Item {
    Item {
        node: id(node),
        at: Head { epoch: 1, head },
        raw: Some(Bytes::from(vec![0; bytes])),
    }
}

fn outputs(tree: &mut Tree) -> Vec<Output> {
    std::iter::from_fn(|| tree.poll()).collect()
}

/// A tree at node 0 with peers 1 to `peers`, all greeted.
fn tree(peers: u8) -> Tree {
    let mut tree = Tree::new(id(0));
    for peer in 1..=peers {
        tree.up(Duration::ZERO, id(peer));
    }
    for output in outputs(&mut tree) {
        let Output::Digest { to, .. } = output else {
            panic!("{output:?}");
        };
        tree.told(Duration::ZERO, to, true);
    }
    tree
}

#[test]
fn a_lossy_cluster_hears_of_everything_soon_and_nearly_once() {
    let at = propagation(7, 200, network(0.02), 100);
    assert!(at.p50 <= 20 * MS && at.p99 <= 300 * MS, "{at:?}");
    assert!(at.copies < 2.0, "{at:?}");
}

#[test]
fn links_stay_few_however_the_mesh_grew() {
    let mut cluster = Cluster::new(5, 150, network(0.0));
    cluster.run(Duration::from_secs(10));
    let links: Vec<_> = (0..150).map(|node| cluster.links(node).1).collect();
    let all: usize = links.iter().sum();
    // Four chosen by each, so eight on average.
    assert!(
        links
            .iter()
            .all(|links| (CHOSEN..=LINKS_MAX).contains(links)),
        "{links:?}"
    );
    assert!(all <= 9 * 150, "{all}");
}

#[test]
fn without_loss_nobody_waits_for_a_timer() {
    let at = propagation(8, 200, network(0.0), 100);
    // The way down a tree, and nothing else: no digest (40 ms) or graft (50 ms) is in these.
    assert!(at.p99 < 40 * MS, "{at:?}");
    assert!(at.copies < 1.2, "{at:?}");
}

#[test]
fn a_small_mesh_pushes_to_all_and_passes_nothing_on() {
    let mut cluster = Cluster::new(1, 9, network(0.0));
    cluster.publish(0);
    cluster.run(MS);
    assert!(cluster.agree());
    cluster.run(Duration::from_secs(1));
    assert_eq!(cluster.pushes(), 8);
}

#[test]
fn who_the_owner_does_not_reach_hears_it_from_others() {
    let mut cluster = Cluster::new(2, 4, network(0.0));
    cluster.cut(0, 1);
    cluster.publish(0);
    cluster.run(Duration::from_millis(200));
    assert!(cluster.agree());
}

#[test]
fn the_tree_mends_itself_when_inner_nodes_vanish() {
    let mut cluster = Cluster::new(3, 100, network(0.0));
    let warm_up = |cluster: &mut Cluster| {
        for node in 0..60 {
            cluster.publish(node);
            cluster.run(10 * MS);
        }
    };
    warm_up(&mut cluster);
    // The ten with the most eager links.
    let mut inner: Vec<_> = (0..100).collect();
    inner.sort_by_key(|node| Reverse(cluster.links(*node).0));
    for node in &inner[..10] {
        cluster.leave(*node);
    }
    cluster.publish(inner[50]);
    cluster.run(Duration::from_millis(500));
    assert!(cluster.agree());
    for node in &inner[..10] {
        cluster.back(*node);
    }
    cluster.publish(inner[60]);
    cluster.run(Duration::from_secs(2));
    assert!(cluster.agree(), "who came back has everything again");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_all_know_the_same_in_the_end(
        seed in any::<u64>(),
        nodes in 2usize..24,
        loss in 0.0f64..0.3,
        steps in prop::collection::vec((0u8..6, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0u64..2_000), 1..40),
    ) {
        let mut cluster = Cluster::new(seed, nodes, network(loss));
        let mut away = BTreeSet::new();
        for (what, a, b, wait) in steps {
            let (a, b) = (a.index(nodes), b.index(nodes));
            match what {
                0 if away.insert(a) => cluster.leave(a),
                1 if away.remove(&a) => cluster.back(a),
                2 if a != b => cluster.cut(a, b),
                3 => cluster.heal(),
                _ if !away.contains(&a) => cluster.publish(a),
                _ => {}
            }
            cluster.run(Duration::from_millis(wait));
        }
        cluster.heal();
        for node in away {
            cluster.back(node);
        }
        // Long enough for comparisons after the last call to a dead end has been given up.
        cluster.run(Duration::from_secs(300));
        prop_assert!(cluster.agree());
        let [messages, bytes, _, missing] = cluster.waiting();
        prop_assert_eq!([messages, bytes, missing], [0, 0, 0]);
    }
}

#[test]
fn a_peer_that_does_not_answer_costs_a_bounded_queue_and_is_told_later() {
    let mut tree = tree(3);
    let now = MS;
    for head in 1..=5_000 {
        let at = Head { epoch: 1, head };
        tree.publish(now, at, &[item(0, head, 10_000)]);
        let [messages, bytes, entries, _] = tree.waiting();
        assert!(
            messages <= 3 * 1_024 && bytes <= 3 << 20 && entries <= 3,
            "{head}"
        );
    }
    let pushes = outputs(&mut tree);
    assert_eq!(pushes.len(), 3, "one under way for each link");
    tree.pushed(now, id(1), None);
    let [messages, ..] = tree.waiting();
    tree.pushed(now, id(2), Some(false));
    let due = tree.due().unwrap();
    tree.advance(due.max(now + 200 * MS));
    let told = outputs(&mut tree).into_iter().any(|output| {
        matches!(output, Output::Digest { to, heads } if to == id(1) && heads == [(id(0), Head { epoch: 1, head: 5_000 })])
    });
    assert!(told && messages <= 2 * 1_024);
}

#[test]
fn more_than_a_digest_holds_ends_in_a_comparison() {
    let mut tree = tree(9);
    let first = outputs(&mut tree);
    assert!(first.is_empty());
    let node = |n: u32| {
        let mut id = [9; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        NodeId(id)
    };
    let peer = *tree.links.keys().next().unwrap();
    let heads: Vec<_> = (0..10_000)
        .map(|n| (node(n), Head { epoch: 1, head: 1 }))
        .collect();
    tree.caught_up(MS, peer, &heads);
    let [_, _, entries, _] = tree.waiting();
    assert!(entries <= DIGEST_MAX * LINKS_MAX);
    tree.advance(tree.due().unwrap());
    let outputs = outputs(&mut tree);
    assert!(!outputs.is_empty());
    assert!(
        outputs
            .iter()
            .all(|output| matches!(output, Output::Compare { .. })),
        "{outputs:?}"
    );
}

#[test]
fn announcements_of_a_liar_are_bounded_and_end() {
    let mut tree = tree(9);
    let liar = *tree.links.keys().next().unwrap();
    for n in 0..20_000u32 {
        let mut node = [9; 16];
        node[..4].copy_from_slice(&n.to_be_bytes());
        tree.announced(MS, liar, NodeId(node), Head { epoch: 1, head: 1 }, false);
    }
    assert_eq!(tree.waiting()[3], MISSING_MAX);
    let mut now = MS;
    let mut grafts = 0;
    while let Some(due) = tree.due() {
        now = due.max(now);
        tree.advance(now);
        let is_graft = |output: &Output| matches!(output, Output::Graft { .. });
        grafts += outputs(&mut tree)
            .iter()
            .filter(|output| is_graft(output))
            .count();
    }
    assert_eq!((tree.waiting()[3], grafts), (0, MISSING_MAX / GRAFT_NODES));
}

#[test]
fn a_link_that_brings_nothing_new_becomes_lazy_and_a_graft_makes_it_eager() {
    let mut tree = tree(20);
    let (a, b) = {
        let mut links = tree.links.keys().copied();
        (links.next().unwrap(), links.next().unwrap())
    };
    for n in 1..=3 {
        assert!(!tree.received(MS, a, false, &[item(99, n, 10)], 0));
        let prune = tree.received(MS, b, false, &[], 1);
        assert_eq!(prune, n == 3);
    }
    assert!(tree.links[&a].eager && !tree.links[&b].eager);
    outputs(&mut tree);
    for peer in [a, b] {
        tree.pushed(MS, peer, Some(false));
    }
    tree.received(2 * MS, a, false, &[item(99, 4, 10)], 0);
    let pushed: Vec<_> = outputs(&mut tree)
        .into_iter()
        .filter_map(|output| match output {
            Output::Push { to, .. } => Some(to),
            _ => None,
        })
        .collect();
    assert!(!pushed.contains(&b) && !pushed.contains(&a));
    tree.announced(3 * MS, b, id(98), Head { epoch: 1, head: 1 }, false);
    tree.advance(3 * MS + GRAFT_AFTER);
    let graft = outputs(&mut tree)
        .into_iter()
        .find(|output| matches!(output, Output::Graft { .. }));
    let expected = Output::Graft {
        from: b,
        nodes: vec![id(98)],
    };
    assert_eq!(graft, Some(expected));
    assert!(tree.links[&b].eager);
}
