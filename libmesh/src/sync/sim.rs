//! Dissemination of a whole cluster in virtual time: the [`Tree`] that ships under a seeded event heap.
//!
//! Links behave as TCP does: nothing is lost for good, but a lost packet comes 200 ms late, and again as late when it is
//! lost again. A node that is away answers nothing, and callers give up after five seconds. Each node also compares
//! everything with a random peer every ten seconds, as in [`Plane`](super::Plane). Records are left out: a log is its
//! head.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::tree::{Item, Output, Tree};
use crate::catalog::log::Head;
use crate::model::NodeId;

/// What TCP waits before it repeats a packet.
const REPEAT: Duration = Duration::from_millis(200);
/// When a caller gives up.
const DEADLINE: Duration = Duration::from_secs(5);
/// Between two comparisons of a node.
const COMPARE: Duration = Duration::from_secs(10);
/// Bytes of a message.
const MESSAGE: usize = 400;

/// How the simulated network behaves.
#[derive(Debug, Clone)]
pub struct Network {
    /// Shortest and longest way of a packet.
    pub latency: (Duration, Duration),
    /// Share of packets that are lost, and repeated.
    pub loss: f64,
}

/// How long changes took to be everywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Propagation {
    /// Half of all deliveries took at most this.
    pub p50: Duration,
    /// 99 % of them.
    pub p99: Duration,
    /// All of them.
    pub last: Duration,
    /// Messages pushed for each delivery: 1 is a perfect tree.
    pub copies: f64,
}

/// Publishes `changes` at random nodes of a cluster of `nodes`, 10 ms apart, after as many that let the tree form.
///
/// # Panics
/// When a change does not reach every node.
pub fn propagation(seed: u64, nodes: usize, network: Network, changes: usize) -> Propagation {
    let mut cluster = Cluster::new(seed, nodes, network);
    let apart = Duration::from_millis(10);
    // Until only the links are left that stay.
    cluster.run(Duration::from_secs(5));
    for _ in 0..changes {
        let node = cluster.rng.random_range(0..nodes);
        cluster.publish(node);
        cluster.run(apart);
    }
    cluster.run(Duration::from_secs(2));
    // What is late of these does not count any more.
    cluster.published.clear();
    cluster.delivered.clear();
    cluster.pushes = 0;
    for _ in 0..changes {
        let node = cluster.rng.random_range(0..nodes);
        cluster.publish(node);
        cluster.run(apart);
    }
    cluster.run(Duration::from_secs(30));
    let mut times = std::mem::take(&mut cluster.delivered);
    assert_eq!(
        times.len(),
        changes * (nodes - 1),
        "seed {seed}: not everything came everywhere"
    );
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    Propagation {
        p50: at(0.5),
        p99: at(0.99),
        last: at(1.0),
        copies: cluster.pushes as f64 / times.len() as f64,
    }
}

enum Event {
    Wake(usize),
    Compare(usize),
    Arrived {
        to: usize,
        from: usize,
        message: Message,
    },
    Answered {
        at: usize,
        by: usize,
        answer: Answer,
    },
}

enum Message {
    Push(bool, Vec<Item>),
    Digest(Vec<(NodeId, Head)>),
    Pull(Vec<NodeId>, HashMap<NodeId, Head>),
    Compare(HashMap<NodeId, Head>),
}

enum Answer {
    Pushed(Option<bool>),
    Told(bool),
    Pulled(Vec<NodeId>, Vec<(NodeId, Head)>),
    Compared(Vec<(NodeId, Head)>),
}

struct Scheduled {
    at: Duration,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Node {
    id: NodeId,
    tree: Tree,
    heads: HashMap<NodeId, Head>,
    away: bool,
    wake: Option<Duration>,
}

/// The simulated cluster. Nodes are named by their index.
pub struct Cluster {
    rng: Xoshiro256PlusPlus,
    network: Network,
    now: Duration,
    number: u64,
    heap: BinaryHeap<Reverse<Scheduled>>,
    nodes: Vec<Node>,
    index: HashMap<NodeId, usize>,
    cut: HashSet<(usize, usize)>,
    published: HashMap<(NodeId, u64), Duration>,
    delivered: Vec<Duration>,
    pushes: u64,
}

impl Cluster {
    /// A cluster whose nodes know each other, with nothing published.
    pub fn new(seed: u64, nodes: usize, network: Network) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let node = |_| {
            let id = NodeId(rng.random());
            Node {
                id,
                tree: Tree::new(id),
                heads: HashMap::new(),
                away: false,
                wake: None,
            }
        };
        let nodes: Vec<_> = (0..nodes).map(node).collect();
        let index = nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
        let mut cluster = Self {
            rng,
            network,
            now: Duration::ZERO,
            number: 0,
            heap: BinaryHeap::new(),
            nodes,
            index,
            cut: HashSet::new(),
            published: HashMap::new(),
            delivered: Vec::new(),
            pushes: 0,
        };
        for node in 0..cluster.nodes.len() {
            for peer in 0..cluster.nodes.len() {
                if peer != node {
                    let id = cluster.nodes[peer].id;
                    cluster.nodes[node].tree.up(Duration::ZERO, id);
                }
            }
            let first = COMPARE.mul_f64(cluster.rng.random_range(0.0..1.0));
            cluster.schedule(first, Event::Compare(node));
            cluster.outputs(node);
        }
        cluster
    }

    /// A node changes its log.
    pub fn publish(&mut self, node: usize) {
        let now = self.now;
        let node_state = &mut self.nodes[node];
        let id = node_state.id;
        let head = node_state
            .heads
            .entry(id)
            .or_insert(Head { epoch: 1, head: 0 });
        head.head += 1;
        let at = *head;
        self.published.insert((id, at.head), now);
        let item = Item {
            node: id,
            at,
            raw: Some(Bytes::from_static(&[0; MESSAGE])),
        };
        node_state.tree.publish(now, at, &[item]);
        self.outputs(node);
    }

    /// A node stops answering, and membership tells the others.
    pub fn leave(&mut self, node: usize) {
        self.nodes[node].away = true;
        let id = self.nodes[node].id;
        for peer in 0..self.nodes.len() {
            self.nodes[peer].tree.down(self.now, id);
            self.outputs(peer);
        }
    }

    /// A node is back, with nothing but its own log, as after a restart.
    pub fn back(&mut self, node: usize) {
        let (now, id) = (self.now, self.nodes[node].id);
        let own = self.nodes[node].heads.get(&id).copied();
        let mut tree = Tree::new(id);
        tree.publish(now, own.unwrap_or_default(), &[]);
        let heads = own.map(|own| (id, own)).into_iter().collect();
        (self.nodes[node].tree, self.nodes[node].heads) = (tree, heads);
        self.nodes[node].away = false;
        for peer in 0..self.nodes.len() {
            if peer == node || self.nodes[peer].away {
                continue;
            }
            let other = self.nodes[peer].id;
            self.nodes[node].tree.up(now, other);
            self.nodes[peer].tree.up(now, id);
            self.outputs(peer);
        }
        self.outputs(node);
        self.schedule(Duration::ZERO, Event::Compare(node));
    }

    /// Nothing gets through between two nodes until [`heal`](Self::heal).
    pub fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
    }

    /// Everything gets through again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether all nodes that are not away know the same, their own logs first of all.
    pub fn agree(&self) -> bool {
        let present = || self.nodes.iter().filter(|node| !node.away);
        present().all(|owner| {
            let head = owner.heads.get(&owner.id);
            present().all(|node| node.heads.get(&owner.id) == head)
        })
    }

    /// The most that waited at any node: see [`Tree::waiting`].
    pub fn waiting(&self) -> [usize; 4] {
        self.nodes.iter().fold([0; 4], |most, node| {
            let waiting = node.tree.waiting();
            std::array::from_fn(|i| most[i].max(waiting[i]))
        })
    }

    /// Eager links of a node, and all its links.
    pub fn links(&self, node: usize) -> (usize, usize) {
        self.nodes[node].tree.links()
    }

    /// Messages pushed so far.
    pub fn pushes(&self) -> u64 {
        self.pushes
    }

    /// Lets time pass.
    pub fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(Reverse(next)) = self.heap.peek() {
            if next.at > until {
                break;
            }
            let Some(Reverse(Scheduled { at, event, .. })) = self.heap.pop() else {
                break;
            };
            self.now = at;
            self.happen(event);
        }
        self.now = until;
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.number += 1;
        self.heap.push(Reverse(Scheduled {
            at: self.now + after,
            number: self.number,
            event,
        }));
    }

    /// The time of one way.
    fn way(&mut self) -> Duration {
        let (least, most) = self.network.latency;
        let mut way = least + (most - least).mul_f64(self.rng.random_range(0.0..1.0));
        let mut wait = REPEAT;
        while self.rng.random_bool(self.network.loss) {
            way += wait;
            wait *= 2;
        }
        way
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        !self.nodes[a].away && !self.nodes[b].away && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if self.reaches(from, to) {
            let way = self.way();
            return self.schedule(way, Event::Arrived { to, from, message });
        }
        let answer = match message {
            Message::Push(..) => Answer::Pushed(None),
            Message::Digest(_) => Answer::Told(false),
            Message::Pull(nodes, _) => Answer::Pulled(nodes, Vec::new()),
            Message::Compare(_) => Answer::Compared(Vec::new()),
        };
        let (at, by) = (from, to);
        self.schedule(DEADLINE, Event::Answered { at, by, answer });
    }

    fn outputs(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].tree.poll() {
            let (to, message) = match output {
                Output::Push { to, direct, items } => {
                    self.pushes += items.len() as u64;
                    (to, Message::Push(direct, items))
                }
                Output::Digest { to, heads } => (to, Message::Digest(heads)),
                Output::Graft { from, nodes } => {
                    let have = self.nodes[node].heads.clone();
                    (from, Message::Pull(nodes, have))
                }
                Output::Compare { with } => {
                    (with, Message::Compare(self.nodes[node].heads.clone()))
                }
            };
            let to = self.index[&to];
            self.send(node, to, message);
        }
        let due = self.nodes[node].tree.due();
        if let Some(due) = due
            && self.nodes[node].wake.is_none_or(|wake| due < wake)
        {
            self.nodes[node].wake = Some(due);
            self.schedule(due.saturating_sub(self.now), Event::Wake(node));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Wake(node) => {
                let state = &mut self.nodes[node];
                if state.wake.is_some_and(|wake| wake <= self.now) {
                    state.wake = None;
                    state.tree.advance(self.now);
                }
                self.outputs(node);
            }
            Event::Compare(node) => {
                let peer = self.rng.random_range(0..self.nodes.len());
                if peer != node && self.reaches(node, peer) {
                    let heads = self.nodes[node].heads.clone();
                    self.send(node, peer, Message::Compare(heads));
                }
                let next = COMPARE.mul_f64(self.rng.random_range(0.8..1.2));
                self.schedule(next, Event::Compare(node));
            }
            Event::Arrived { to, from, message } => self.arrived(to, from, message),
            Event::Answered { at, by, answer } => self.answered(at, by, answer),
        }
    }

    /// Takes in what is new; how much of it was known.
    fn take_in(
        &mut self,
        at: usize,
        by: usize,
        items: Vec<Item>,
        is_delta: bool,
    ) -> (Vec<Item>, usize) {
        let (mut new, mut known) = (Vec::new(), 0);
        for item in items {
            let have = self.nodes[at]
                .heads
                .get(&item.node)
                .copied()
                .unwrap_or_default();
            if item.at <= have {
                known += 1;
            } else if is_delta && item.at.head > have.head + 1 {
                let from = self.nodes[by].id;
                self.nodes[at]
                    .tree
                    .announced(self.now, from, item.node, item.at, true);
            } else {
                for head in have.head + 1..=item.at.head {
                    let since = self.published.get(&(item.node, head));
                    self.delivered.extend(since.map(|since| self.now - *since));
                }
                self.nodes[at].heads.insert(item.node, item.at);
                new.push(item);
            }
        }
        (new, known)
    }

    fn arrived(&mut self, to: usize, from: usize, message: Message) {
        let (now, sender) = (self.now, self.nodes[from].id);
        if self.nodes[to].away {
            return;
        }
        let answer = match message {
            Message::Push(direct, items) => {
                let (new, known) = self.take_in(to, from, items, true);
                let tree = &mut self.nodes[to].tree;
                Answer::Pushed(Some(tree.received(now, sender, direct, &new, known)))
            }
            Message::Digest(heads) => {
                self.nodes[to].tree.heard(sender);
                for (node, at) in heads {
                    let state = &mut self.nodes[to];
                    if state.heads.get(&node).is_none_or(|have| *have < at) && at.head > 0 {
                        state.tree.announced(now, sender, node, at, false);
                    }
                }
                Answer::Told(true)
            }
            Message::Pull(nodes, have) => {
                let state = &mut self.nodes[to];
                state.tree.grafted_by(sender);
                let newer = |node: &NodeId| {
                    let at = *state.heads.get(node)?;
                    (have.get(node).is_none_or(|have| *have < at)).then_some((*node, at))
                };
                let found = nodes.iter().filter_map(newer).collect();
                Answer::Pulled(nodes, found)
            }
            Message::Compare(have) => {
                let newer = |(node, at): (&NodeId, &Head)| {
                    (have.get(node).is_none_or(|have| have < at)).then_some((*node, *at))
                };
                Answer::Compared(self.nodes[to].heads.iter().filter_map(newer).collect())
            }
        };
        self.outputs(to);
        let way = self.way();
        let (at, by) = (from, to);
        self.schedule(way, Event::Answered { at, by, answer });
    }

    fn answered(&mut self, at: usize, by: usize, answer: Answer) {
        let (now, peer) = (self.now, self.nodes[by].id);
        if self.nodes[at].away {
            return;
        }
        let item = |(node, at): (NodeId, Head)| Item {
            node,
            at,
            raw: Some(Bytes::from_static(&[0; MESSAGE])),
        };
        match answer {
            Answer::Pushed(prune) => self.nodes[at].tree.pushed(now, peer, prune),
            Answer::Told(ok) => self.nodes[at].tree.told(now, peer, ok),
            Answer::Pulled(nodes, found) => {
                let items = found.into_iter().map(item).collect();
                let (new, _) = self.take_in(at, by, items, false);
                self.nodes[at].tree.fetched(now, peer, &new);
                self.nodes[at].tree.grafted(now, &nodes);
            }
            Answer::Compared(found) => {
                let items = found.into_iter().map(item).collect();
                let (new, _) = self.take_in(at, by, items, false);
                let heads: Vec<_> = new.iter().map(|item| (item.node, item.at)).collect();
                self.nodes[at].tree.caught_up(now, peer, &heads);
            }
        }
        self.outputs(at);
    }
}
