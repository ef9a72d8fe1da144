//! A cluster in one process, in virtual time: membership's own core under a seeded event heap.
//!
//! Why: what goes wrong in a cluster goes wrong once in ten minutes at 5 % loss, or when forty nodes join in one
//! second. Here ten minutes of fifty nodes take a few seconds, and a run that failed fails again: latency, loss and every
//! choice of every node come from one seed, which is printed when a test panics.
//!
//! Datagrams take 1–5 ms and are lost at random; streams take as long and are not lost (TCP repeats). A host that
//! crashes is silent, a process that is killed refuses connections, a paused one reads nothing until it goes on. Not
//! modelled: bandwidth, CPU time, and the sealing of datagrams.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::member::core::{Core, Output, Route};
use crate::member::{Config, Counters, MemberEvent, Preset, StreamReply};
use crate::model::{Liveness, NodeId};

/// Datagrams that wait for a paused process at most.
const SOCKET_BUFFER: usize = 256;
/// Bytes that IP and UDP headers and sealing add to a packet.
const WIRE_OVERHEAD: u64 = 28 + crate::member::keyring::OVERHEAD as u64;

/// How the simulated network behaves.
#[derive(Debug, Clone)]
pub struct Network {
    /// Share of datagrams that are lost, 0 to 1.
    pub loss: f64,
    /// Shortest and longest way of a datagram.
    pub latency: (Duration, Duration),
    /// Whether stream questions get through at all.
    pub streams: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            loss: 0.0,
            latency: (Duration::from_millis(1), Duration::from_millis(5)),
            streams: true,
        }
    }
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The host is gone: nothing answers.
    Host,
    /// The process is gone, the host refuses connections in its name.
    Process,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Ended(Crash),
}

enum Input {
    Packet(Bytes),
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
}

enum Event {
    Input(usize, Input),
    Wake(usize),
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
    core: Core,
    counters: Arc<Counters>,
    state: State,
    /// Counts restarts: what was on its way to an earlier life is dropped.
    life: u64,
    wake: Option<Duration>,
    waiting: VecDeque<Input>,
    /// Who waits for the answer with a token.
    askers: BTreeMap<u64, (usize, u64, u64)>,
    tokens: u64,
    preset: Preset,
    seeds: Vec<SocketAddr>,
}

/// Something that a node saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// When.
    pub at: Duration,
    /// Which node.
    pub by: usize,
    /// What.
    pub event: MemberEvent,
}

/// The simulated cluster. Nodes are named by their index.
pub struct Sim {
    seed: u64,
    now: Duration,
    rng: Xoshiro256PlusPlus,
    heap: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    nodes: Vec<Node>,
    /// The side of the network that each node is on; empty when whole.
    sides: Vec<bool>,
    /// How the network behaves from now on.
    pub network: Network,
    /// Everything that was seen, in order.
    pub seen: Vec<Seen>,
    /// Datagrams sent so far.
    pub datagrams: u64,
    /// Bytes of them on the wire.
    pub bytes: u64,
}

impl Drop for Sim {
    #[expect(clippy::print_stderr, reason = "for whoever reads the failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "simulation failed with seed {} at {:?}",
                self.seed, self.now
            );
        }
    }
}

fn address(node: usize) -> SocketAddr {
    let [.., high, low] = (node as u32 + 1).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 8301))
}

fn index(addr: SocketAddr) -> Option<usize> {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => {
            usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])).checked_sub(1)
        }
        std::net::IpAddr::V6(_) => None,
    }
}

/// The id of a node.
pub fn node_id(node: usize) -> NodeId {
    let mut id = [0xab; 16];
    id[..8].copy_from_slice(&(node as u64).to_be_bytes());
    NodeId(id)
}

impl Sim {
    /// An empty cluster.
    pub fn new(seed: u64, network: Network) -> Self {
        Self {
            seed,
            now: Duration::ZERO,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            heap: BinaryHeap::new(),
            number: 0,
            nodes: Vec::new(),
            sides: Vec::new(),
            network,
            seen: Vec::new(),
            datagrams: 0,
            bytes: 0,
        }
    }

    /// Virtual time since the cluster began.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// Starts a node that announces to the nodes `seeds`; returns its index.
    pub fn start(&mut self, preset: Preset, seeds: &[usize]) -> usize {
        let node = self.nodes.len();
        let seeds: Vec<_> = seeds.iter().copied().map(address).collect();
        let (core, counters) = self.core(node, 1, &preset, &seeds);
        self.nodes.push(Node {
            core,
            counters,
            state: State::Running,
            life: 1,
            wake: None,
            waiting: VecDeque::new(),
            askers: BTreeMap::new(),
            tokens: 0,
            preset,
            seeds,
        });
        self.drain(node);
        node
    }

    /// Starts `count` nodes at random moments within `spread`, all with the first three as seeds.
    pub fn start_many(&mut self, preset: &Preset, count: usize, spread: Duration) {
        for _ in 0..count {
            self.start(preset.clone(), &[0, 1, 2]);
            self.run_for(spread / u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    fn core(
        &mut self,
        node: usize,
        life: u64,
        preset: &Preset,
        seeds: &[SocketAddr],
    ) -> (Core, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let mut config = Config::lan(node_id(node), address(node), life * 1000);
        config.preset = preset.clone();
        config.seeds = seeds.to_vec();
        (
            Core::new(&config, self.now, self.rng.random(), Arc::clone(&counters)),
            counters,
        )
    }

    /// Number of nodes, ended ones included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node's core.
    pub fn core_of(&mut self, node: usize) -> &mut Core {
        &mut self.nodes[node].core
    }

    /// A node's counters.
    pub fn counters(&self, node: usize) -> &Counters {
        &self.nodes[node].counters
    }

    /// What a node thinks of another; `None` if it does not know it.
    pub fn liveness(&self, of: usize, by: usize) -> Option<Liveness> {
        let id = node_id(of);
        self.nodes[by]
            .core
            .members()
            .into_iter()
            .find(|state| state.member.id == id)
            .map(|state| state.liveness)
    }

    /// Whether every running node shows every other running node Alive, and no other node present.
    pub fn agrees(&self) -> bool {
        let running: Vec<_> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].state == State::Running)
            .collect();
        running.iter().all(|by| {
            let members = self.nodes[*by].core.members();
            let alive = members
                .iter()
                .filter(|state| state.liveness == Liveness::Alive)
                .count();
            let present = members
                .iter()
                .filter(|state| state.liveness.is_present())
                .count();
            alive == present
                && alive + 1 == running.len()
                && members
                    .iter()
                    .filter(|state| state.liveness.is_present())
                    .all(|state| running.iter().any(|node| node_id(*node) == state.member.id))
        })
    }

    /// Ends a node.
    pub fn crash(&mut self, node: usize, how: Crash) {
        self.nodes[node].state = State::Ended(how);
        self.nodes[node].life += 1;
        self.nodes[node].waiting.clear();
        self.nodes[node].askers.clear();
        self.nodes[node].wake = None;
    }

    /// Starts an ended node again, with a higher generation and an empty memory.
    pub fn restart(&mut self, node: usize) {
        let (preset, seeds) = (
            self.nodes[node].preset.clone(),
            self.nodes[node].seeds.clone(),
        );
        let life = self.nodes[node].life + 1;
        let (core, counters) = self.core(node, life, &preset, &seeds);
        let this = &mut self.nodes[node];
        (this.core, this.counters, this.life, this.state) = (core, counters, life, State::Running);
        self.drain(node);
    }

    /// Stops a process without ending it.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].state = State::Paused;
    }

    /// Lets a paused process go on: it reads what waits, then looks at its clock.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].state = State::Running;
        while let Some(input) = self.nodes[node].waiting.pop_front() {
            self.input(node, input);
        }
        self.nodes[node].core.handle_timeout(self.now);
        self.drain(node);
    }

    /// Lets a node say goodbye.
    pub fn leave(&mut self, node: usize) {
        self.nodes[node].core.leave(self.now);
        self.drain(node);
    }

    /// Splits the network: nodes for which `side` differs do not hear each other.
    pub fn partition(&mut self, side: impl Fn(usize) -> bool) {
        self.sides = (0..self.nodes.len()).map(side).collect();
    }

    /// Ends a partition.
    pub fn heal(&mut self) {
        self.sides.clear();
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.heap.peek().is_some_and(|Reverse(next)| next.at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Lets time pass until `done`, looked at every 100 ms; how long that took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while self.now - start <= limit {
            if done(self) {
                return Some(self.now - start);
            }
            self.run_for(Duration::from_millis(100));
        }
        None
    }

    fn step(&mut self) {
        let Some(Reverse(next)) = self.heap.pop() else {
            return;
        };
        self.now = next.at;
        match next.event {
            Event::Wake(node) => {
                // A wake that was replaced by an earlier one, or of a process that does not run.
                if self.nodes[node].state == State::Running
                    && self.nodes[node].wake == Some(self.now)
                {
                    self.nodes[node].wake = None;
                    self.nodes[node].core.handle_timeout(self.now);
                    self.drain(node);
                }
            }
            Event::Input(node, input) => match self.nodes[node].state {
                State::Running => self.input(node, input),
                State::Paused => {
                    if self.nodes[node].waiting.len() < SOCKET_BUFFER {
                        self.nodes[node].waiting.push_back(input);
                    }
                }
                State::Ended(how) => {
                    if let (Input::Question { from, life, id, .. }, Crash::Process) = (input, how) {
                        self.reply(from, life, id, StreamReply::Refused);
                    }
                }
            },
        }
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.number += 1;
        self.heap.push(Reverse(Scheduled {
            at,
            number: self.number,
            event,
        }));
    }

    fn arrival(&mut self) -> Duration {
        let (shortest, longest) = self.network.latency;
        self.now + self.rng.random_range(shortest..=longest)
    }

    fn separated(&self, one: usize, other: usize) -> bool {
        self.sides
            .get(one)
            .zip(self.sides.get(other))
            .is_some_and(|(one, other)| one != other)
    }

    fn reply(&mut self, to: usize, life: u64, id: u64, reply: StreamReply) {
        let at = self.arrival();
        self.schedule(at, Event::Input(to, Input::Reply { life, id, reply }));
    }

    fn input(&mut self, node: usize, input: Input) {
        let now = self.now;
        let this = &mut self.nodes[node];
        match input {
            Input::Packet(packet) => this.core.handle_datagram(now, &packet),
            Input::Reply { life, id, reply } => {
                if life == this.life {
                    this.core.handle_stream_reply(now, id, &reply);
                }
            }
            Input::Question {
                from,
                life,
                id,
                route,
                body,
            } => {
                let answer = match route {
                    Route::Ping => {
                        this.tokens += 1;
                        let token = this.tokens;
                        let answer = this.core.answer_ping(now, &body, token);
                        if answer == Ok(None) {
                            this.askers.insert(token, (from, life, id));
                        }
                        answer
                    }
                    Route::Sync => this.core.answer_sync(now, &body).map(Some),
                };
                if let Ok(Some(body)) = answer
                    && !self.separated(node, from)
                {
                    self.reply(from, life, id, StreamReply::Acked(body));
                }
            }
        }
        self.drain(node);
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].core.poll_output() {
            match output {
                Output::Send { to, packet } => self.send(node, to, packet),
                Output::Ask {
                    id,
                    to,
                    route,
                    body,
                    ..
                } => {
                    let reached = index(to.addr)
                        .filter(|to| *to < self.nodes.len() && !self.separated(node, *to));
                    if let Some(to) = reached.filter(|_| self.network.streams) {
                        let (at, life) = (self.arrival(), self.nodes[node].life);
                        let question = Input::Question {
                            from: node,
                            life,
                            id,
                            route,
                            body,
                        };
                        self.schedule(at, Event::Input(to, question));
                    }
                }
                Output::Answer { token, body } => {
                    if let Some((from, life, id)) = self.nodes[node].askers.remove(&token) {
                        self.reply(from, life, id, StreamReply::Acked(body));
                    }
                }
                Output::Event(event) => self.seen.push(Seen {
                    at: self.now,
                    by: node,
                    event,
                }),
                Output::Local(_) | Output::Forgotten(_) => {}
                Output::Left => self.crash(node, Crash::Process),
            }
        }
        let this = &mut self.nodes[node];
        if this.state == State::Running
            && let Some(next) = this.core.next_timeout()
        {
            let next = next.max(self.now);
            if this.wake.is_none_or(|wake| next < wake) {
                this.wake = Some(next);
                self.schedule(next, Event::Wake(node));
            }
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Bytes) {
        self.datagrams += 1;
        self.bytes += packet.len() as u64 + WIRE_OVERHEAD;
        let lost = self.rng.random_bool(self.network.loss);
        let reached = index(to).filter(|to| *to < self.nodes.len() && !self.separated(from, *to));
        if let Some(to) = reached.filter(|_| !lost) {
            let at = self.arrival();
            self.schedule(at, Event::Input(to, Input::Packet(packet)));
        }
    }
}

#[cfg(test)]
mod tests;
