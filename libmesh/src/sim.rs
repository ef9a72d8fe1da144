//! A cluster in one process, in virtual time: membership's own core under a seeded event heap.
//!
//! Why: what goes wrong in a cluster goes wrong once in ten minutes at 5 % loss, or when forty nodes join in one
//! second. Here a virtual minute of a thousand nodes takes seconds, and a run that failed fails again: latency, loss
//! and every choice of every node come from one seed, which is printed when a test panics. [`seed`] takes it from the
//! environment.
//!
//! * `schedule` is the heap of events.
//! * [`Network`] says how long packets and streams take and which get lost; [`Fault`]s and partitions say who cannot hear
//!   whom.
//! * `node` is one node: its protocol (our core, or plain foca as the baseline: [`Kind`]), its clock, and what it
//!   remembers between lives.
//! * [`Seen`], [`Traffic`] and [`Times`] are what a run showed.
//!
//! A host that crashes is silent, a process that is killed refuses connections, a paused one reads nothing until it
//! goes on. Not modelled: bandwidth, CPU time, and the sealing of datagrams (its bytes are counted).

mod measure;
mod network;
mod node;
mod plain;
mod schedule;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use self::network::{Dial, HANDSHAKE, Links, stream_bytes};
use self::node::{Node, Protocol, State, address, first_identity, index_at, index_of};
use self::schedule::{Event, Input, Schedule, StreamInput};
use crate::member::core::{Core, Output, Route};
use crate::member::meta::NodeMeta;
use crate::member::wire::Record;
use crate::member::{Counters, MemberEvent, StreamReply, stream};
use crate::model::Liveness;

pub use measure::{Seen, Times, Traffic, What};
pub use network::{Fault, Latency, Network};
pub use node::{Crash, Kind, Memory, node_id};

/// Inputs that wait for a paused process at most.
const SOCKET_BUFFER: usize = 256;
/// Bytes that IP and UDP headers and sealing add to a packet.
const WIRE_OVERHEAD: u64 = 28 + crate::member::keyring::OVERHEAD as u64;
/// Names the environment variable that [`seed`] reads.
pub const SEED_VARIABLE: &str = "MESH_SIM_SEED";

/// The seed of a run: the environment's `MESH_SIM_SEED` if it is set to a number, otherwise `default`.
pub fn seed(default: u64) -> u64 {
    std::env::var(SEED_VARIABLE)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(default)
}

/// The simulated cluster. Nodes are named by their index.
pub struct Sim {
    seed: u64,
    /// Nanoseconds since the simulation began, on a clock that no node has.
    now: u64,
    rng: Xoshiro256PlusPlus,
    schedule: Schedule,
    nodes: Vec<Node>,
    links: Links,
    traffic: Traffic,
    /// How the network behaves from now on.
    pub network: Network,
    /// Everything that was seen, in order.
    pub seen: Vec<Seen>,
}

impl Drop for Sim {
    #[expect(clippy::print_stderr, reason = "for whoever reads the failed test")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "simulation failed with seed {} at {:?}; {SEED_VARIABLE}={} repeats it",
                self.seed,
                self.now(),
                self.seed
            );
        }
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Sim {
    /// An empty cluster.
    pub fn new(seed: u64, network: Network) -> Self {
        Self {
            seed,
            now: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            schedule: Schedule::default(),
            nodes: Vec::new(),
            links: Links::new(seed),
            traffic: Traffic::default(),
            network,
            seen: Vec::new(),
        }
    }

    /// A cluster of `count` nodes that know each other, each at its own point of its periods, two seconds after the
    /// last start. Costs a fraction of a join storm.
    pub fn established(seed: u64, network: Network, kind: &Kind, count: usize) -> Self {
        let mut sim = Self::new(seed, network);
        let all: Vec<_> = (0..count)
            .map(|node| foca::Member::alive(first_identity(node)))
            .collect();
        let meta = Arc::new(NodeMeta::default());
        let records = all.iter().cloned().map(|member| {
            let mut record = Record::from(member);
            record.extra.meta = Some(Arc::clone(&meta));
            record
        });
        let records: Vec<_> = records.collect();
        let state = Bytes::from(stream::encode_state(&records));
        // Nobody is probed before the first period is over: none of them is late.
        let period = match kind {
            Kind::Mesh(preset) => preset.probe_period,
            Kind::Plain(_) => Duration::from_secs(1),
        };
        let mut starts: Vec<u64> = (0..count)
            .map(|_| sim.rng.random_range(0..nanos(period)))
            .collect();
        starts.sort_unstable();
        for (node, start) in starts.into_iter().enumerate() {
            sim.run_to(start);
            let seeds = if node < 3 { [3, 4, 5] } else { [0, 1, 2] };
            sim.push_node(kind, &seeds, 0);
            sim.tell_all(node, &state, &all);
        }
        sim.run_for(Duration::from_secs(2));
        sim.seen.clear();
        sim
    }

    /// Lets a node that has just started know everybody.
    fn tell_all(
        &mut self,
        node: usize,
        state: &Bytes,
        all: &[foca::Member<crate::member::wire::Identity>],
    ) {
        let now = self.nodes[node].clock(self.now);
        match &mut self.nodes[node].protocol {
            Protocol::Plain(plain) => plain.believe(all.iter().map(|member| *member.id())),
            Protocol::Mesh(core) => {
                core.handle_timeout(now);
                let ask =
                    std::iter::from_fn(|| core.poll_output()).find_map(|output| match output {
                        Output::Ask {
                            id,
                            route: Route::Sync,
                            ..
                        } => Some(id),
                        _ => None,
                    });
                let ask = ask.expect("a node with seeds asks them for the state");
                core.handle_stream_reply(now, ask, &StreamReply::Acked(state.clone()));
            }
        }
        while let Some(output) = self.nodes[node].protocol.poll_output() {
            if let Output::Event(event) = output {
                self.see(node, event);
            }
        }
        self.seen.clear();
        self.drain(node);
    }

    /// Virtual time since the cluster began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Starts a node that announces to the nodes `seeds`; returns its index.
    pub fn start(&mut self, kind: &Kind, seeds: &[usize]) -> usize {
        let node = self.push_node(kind, seeds, self.now);
        self.drain(node);
        node
    }

    fn push_node(&mut self, kind: &Kind, seeds: &[usize], dated: u64) -> usize {
        let node = self.nodes.len();
        let seeds = seeds.iter().copied().map(address).collect();
        let seed = self.rng.random();
        self.nodes.push(Node::new(
            node,
            kind.clone(),
            seeds,
            (self.now, dated),
            seed,
        ));
        node
    }

    /// Starts `count` nodes within `spread`, all with the first three as seeds.
    pub fn start_many(&mut self, kind: &Kind, count: usize, spread: Duration) {
        for _ in 0..count {
            self.start(kind, &[0, 1, 2]);
            self.run_for(spread / u32::try_from(count).unwrap_or(u32::MAX));
        }
    }

    /// Number of nodes, ended ones included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node's core, to give it inputs by hand; [`settle`](Self::settle) carries out what it wants then.
    ///
    /// # Panics
    /// If the node runs plain foca.
    pub fn core_of(&mut self, node: usize) -> &mut Core {
        match &mut self.nodes[node].protocol {
            Protocol::Mesh(core) => core,
            Protocol::Plain(_) => panic!("node {node} is the baseline"),
        }
    }

    /// Carries out what a node's core wants.
    pub fn settle(&mut self, node: usize) {
        self.drain(node);
    }

    /// What a node's own clock shows.
    pub fn clock_of(&self, node: usize) -> Duration {
        self.nodes[node].clock(self.now)
    }

    /// A node's counters.
    pub fn counters(&self, node: usize) -> &Counters {
        &self.nodes[node].counters
    }

    /// Sum of a counter over all nodes.
    pub fn sum(&self, counter: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
        let value =
            |node: &Node| counter(&node.counters).load(std::sync::atomic::Ordering::Relaxed);
        self.nodes.iter().map(value).sum()
    }

    /// What all nodes together sent so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// What a node thinks of another; `None` if it does not know it.
    pub fn liveness(&self, of: usize, by: usize) -> Option<Liveness> {
        self.nodes[by].protocol.liveness(node_id(of))
    }

    /// Nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].is_running())
            .collect()
    }

    /// Whether every running node shows every other running node Alive, and no other node present. Cheap until it is
    /// nearly true, then linear in the pairs.
    pub fn agrees(&self) -> bool {
        let running = self.running();
        running
            .iter()
            .all(|by| self.nodes[*by].protocol.present() + 1 == running.len())
            && running
                .iter()
                .all(|by| self.knows(&running, *by) + 1 == running.len())
    }

    /// How many of `running` a node shows Alive.
    fn knows(&self, running: &[usize], by: usize) -> usize {
        running
            .iter()
            .filter(|of| **of != by && self.liveness(**of, by) == Some(Liveness::Alive))
            .count()
    }

    /// Share of ordered pairs of running nodes of which one shows the other Alive. Linear in the pairs.
    pub fn known_pairs(&self) -> f64 {
        let running = self.running();
        let pairs = running.len() * running.len().saturating_sub(1);
        let known: usize = running.iter().map(|by| self.knows(&running, *by)).sum();
        known as f64 / pairs.max(1) as f64
    }

    /// When each node saw `what` of a node, counted from `since`.
    pub fn times(&self, of: usize, what: What, since: Duration) -> Times {
        self.seen
            .iter()
            .filter(|seen| seen.of as usize == of && seen.what == what && seen.at >= since)
            .map(|seen| seen.at - since)
            .collect()
    }

    /// How many times any node saw any other go.
    pub fn departures(&self) -> usize {
        self.seen
            .iter()
            .filter(|seen| matches!(seen.what, What::Down | What::Left))
            .count()
    }

    /// Ends a node.
    pub fn crash(&mut self, node: usize, how: Crash) {
        self.nodes[node].end(how);
        if how == Crash::Process {
            self.break_streams(node);
        }
    }

    /// Those that kept a stream to a process see it end.
    fn break_streams(&mut self, node: usize) {
        let others: Vec<_> = self.running();
        for _ in 0..self.network.kept_streams.min(others.len()) {
            let to = others[self.rng.random_range(0..others.len())];
            if self.network.streams && self.links.is_connected(node, to) {
                let takes = self.links.answer(&self.network, node, to, &mut self.rng);
                self.stream_input(to, takes, StreamInput::Closed(node));
            }
        }
    }

    /// Lets a node say that it will be back within `within`, and end.
    ///
    /// # Panics
    /// If the node runs plain foca.
    pub fn announce_restart(&mut self, node: usize, within: Duration) {
        let clock = self.clock_of(node);
        self.core_of(node).restart(clock, within);
        self.drain(node);
    }

    /// Starts an ended node again.
    pub fn restart(&mut self, node: usize, memory: Memory) {
        let seed = self.rng.random();
        self.nodes[node].restart(node, memory, self.now, seed);
        self.drain(node);
    }

    /// Gives a node other seeds for its next start.
    pub fn reseed(&mut self, node: usize, seeds: &[usize]) {
        self.nodes[node].seeds = seeds.iter().copied().map(address).collect();
    }

    /// Stops a process without ending it.
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].state = State::Paused(self.now);
    }

    /// Lets a paused process go on; its monotone clock went on meanwhile. It reads what waits, then looks at its clock.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].state = State::Running;
        while let Some(input) = self.nodes[node].waiting.pop_front() {
            self.input(node, input);
        }
        let clock = self.clock_of(node);
        self.nodes[node].protocol.handle_timeout(clock);
        // What it set before the pause may lie before the clock's jump.
        self.nodes[node].wake = None;
        self.drain(node);
    }

    /// As [`resume`](Self::resume), but its monotone clock stood still: a machine that was suspended.
    pub fn wake_up(&mut self, node: usize) {
        if let State::Paused(since) = self.nodes[node].state {
            self.nodes[node].jump_monotone(-((self.now - since) as i64));
        }
        self.resume(node);
    }

    /// Moves a node's monotone clock forward, as a virtual machine sees it that was moved to another host.
    pub fn jump_monotone(&mut self, node: usize, by: Duration) {
        self.nodes[node].jump_monotone(nanos(by) as i64);
        self.resume(node);
    }

    /// Sets a node's wall clock, by seconds forward or back. The protocol reads no wall clock; the next start does, for
    /// the generation.
    pub fn jump_wall(&mut self, node: usize, seconds: i64) {
        self.nodes[node].wall += seconds * 1_000_000;
    }

    /// Lets a node say goodbye.
    ///
    /// # Panics
    /// If the node runs plain foca.
    pub fn leave(&mut self, node: usize) {
        let clock = self.clock_of(node);
        self.core_of(node).leave(clock);
        self.drain(node);
    }

    /// Splits the network: nodes in different groups do not hear each other.
    pub fn partition(&mut self, group: impl Fn(usize) -> u32) {
        let groups = (0..self.nodes.len()).map(group).collect();
        self.links.partition(groups);
    }

    /// Breaks the way from one node to another.
    pub fn fault(&mut self, from: usize, to: usize, fault: Fault) {
        self.links.set(from, to, fault);
    }

    /// Ends partitions and faults.
    pub fn heal(&mut self) {
        self.links.clear();
    }

    /// Delivers a packet that no node sent.
    pub fn inject(&mut self, to: usize, packet: Bytes) {
        self.schedule
            .push(self.now, Event::Input(to as u32, Input::Packet(packet)));
    }

    /// Lets virtual time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_to(self.now + nanos(time));
    }

    /// Lets time pass until `done`, looked at every 100 ms; how long that took, or `None` after `limit`.
    pub fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now();
        while self.now() - start <= limit {
            if done(self) {
                return Some(self.now() - start);
            }
            self.run_for(Duration::from_millis(100));
        }
        None
    }

    fn run_to(&mut self, end: u64) {
        while let Some((at, event)) = self.schedule.pop_until(end) {
            self.now = at;
            match event {
                Event::Wake(node) => self.wake(node as usize),
                Event::Input(node, input) => self.arrive(node as usize, input),
            }
        }
        self.now = end;
    }

    fn wake(&mut self, node: usize) {
        // One that was replaced by an earlier one, or of a process that does not run.
        if self.nodes[node].is_running() && self.nodes[node].wake == Some(self.now) {
            self.nodes[node].wake = None;
            let clock = self.clock_of(node);
            self.nodes[node].protocol.handle_timeout(clock);
            self.drain(node);
        }
    }

    fn arrive(&mut self, node: usize, input: Input) {
        match self.nodes[node].state {
            State::Running => self.input(node, input),
            State::Paused(_) => {
                if self.nodes[node].waiting.len() < SOCKET_BUFFER {
                    self.nodes[node].waiting.push_back(input);
                }
            }
            State::Ended(how) => {
                if let (Input::Stream(input), Crash::Process) = (input, how)
                    && let StreamInput::Question { from, life, id, .. } = *input
                {
                    self.reply(node, from, life, id, StreamReply::Refused);
                }
            }
        }
    }

    fn stream_input(&mut self, to: usize, after: Duration, input: StreamInput) {
        self.schedule.push(
            self.now + nanos(after),
            Event::Input(to as u32, Input::Stream(Box::new(input))),
        );
    }

    fn reply(&mut self, from: usize, to: usize, life: u64, id: u64, reply: StreamReply) {
        if let StreamReply::Acked(body) = &reply {
            self.traffic.stream_messages += 1;
            self.traffic.stream_bytes += stream_bytes(body.len());
        }
        if self.links.is_connected(from, to) || reply == StreamReply::Refused {
            let takes = self.links.answer(&self.network, from, to, &mut self.rng);
            self.stream_input(to, takes, StreamInput::Reply { life, id, reply });
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let clock = self.clock_of(node);
        match input {
            Input::Packet(packet) => self.nodes[node].protocol.handle_datagram(clock, &packet),
            Input::Stream(input) => match *input {
                StreamInput::Closed(peer) => {
                    self.nodes[node].protocol.peer_closed(clock, node_id(peer));
                }
                StreamInput::Reply { life, id, reply } => {
                    if life == self.nodes[node].life {
                        self.nodes[node]
                            .protocol
                            .handle_stream_reply(clock, id, &reply);
                    }
                }
                StreamInput::Question {
                    from,
                    life,
                    id,
                    route,
                    body,
                } => self.question(node, (from, life, id), route, &body),
            },
        }
        self.drain(node);
    }

    fn question(&mut self, node: usize, asker: (usize, u64, u64), route: Route, body: &[u8]) {
        let clock = self.clock_of(node);
        let this = &mut self.nodes[node];
        this.tokens += 1;
        let token = this.tokens;
        match this.protocol.answer(clock, route, body, token) {
            Some(Ok(Some(body))) => {
                let (from, life, id) = asker;
                self.reply(node, from, life, id, StreamReply::Acked(body));
            }
            Some(Ok(None)) => drop(this.askers.insert(token, asker)),
            // An error of HTTP is no evidence: the asker's deadline ends it.
            Some(Err(_)) | None => {}
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].protocol.poll_output() {
            match output {
                Output::Send { to, packet } => self.send(node, to, packet),
                Output::Ask {
                    id,
                    to,
                    route,
                    body,
                    ..
                } => self.ask(node, to.addr, id, route, body),
                Output::Answer { token, body } => {
                    if let Some((to, life, id)) = self.nodes[node].askers.remove(&token) {
                        self.reply(node, to, life, id, StreamReply::Acked(body));
                    }
                }
                Output::Event(event) => self.see(node, event),
                Output::Local(_) | Output::Forgotten(_) => {}
                Output::Left => self.crash(node, Crash::Process),
            }
        }
        let this = &mut self.nodes[node];
        if this.is_running()
            && let Some(next) = this.protocol.next_timeout()
        {
            let next = this.at(next).max(self.now);
            if this.wake.is_none_or(|wake| next < wake) {
                this.wake = Some(next);
                self.schedule.push(next, Event::Wake(node as u32));
            }
        }
    }

    fn see(&mut self, by: usize, event: MemberEvent) {
        let (of, what) = match event {
            MemberEvent::Up(member) => (member.id, What::Up),
            MemberEvent::Suspect(id) => (id, What::Suspect),
            MemberEvent::Alive(id) => (id, What::Alive),
            MemberEvent::Down(id) => (id, What::Down),
            MemberEvent::Left(id) => (id, What::Left),
        };
        self.seen.push(Seen {
            at: self.now(),
            by: by as u32,
            of: index_of(of),
            what,
        });
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Bytes) {
        self.traffic.datagrams += 1;
        self.traffic.datagram_bytes += packet.len() as u64 + WIRE_OVERHEAD;
        let lost = self.network.loss > 0.0 && self.rng.random_bool(self.network.loss);
        let Some(to) = index_at(to).filter(|to| *to < self.nodes.len()) else {
            return;
        };
        if !lost && self.links.hears_datagrams(from, to) {
            let takes = self.links.way(&self.network, from, to, &mut self.rng);
            self.schedule.push(
                self.now + nanos(takes),
                Event::Input(to as u32, Input::Packet(packet)),
            );
        }
    }

    fn ask(&mut self, from: usize, to: SocketAddr, id: u64, route: Route, body: Bytes) {
        let Some(to) = index_at(to).filter(|to| *to < self.nodes.len()) else {
            return;
        };
        let life = self.nodes[from].life;
        match self.links.dial(&self.network, from, to, &mut self.rng) {
            Dial::Lost => {}
            Dial::Refused => {
                let takes = self.links.way(&self.network, from, to, &mut self.rng) * 2;
                let reply = StreamReply::Refused;
                self.stream_input(from, takes, StreamInput::Reply { life, id, reply });
            }
            Dial::Reached(takes) => {
                if !matches!(self.nodes[to].state, State::Ended(_)) {
                    self.traffic.stream_messages += 1;
                    self.traffic.stream_bytes += HANDSHAKE + stream_bytes(body.len());
                }
                let question = StreamInput::Question {
                    from,
                    life,
                    id,
                    route,
                    body,
                };
                self.stream_input(to, takes, question);
            }
        }
    }
}

#[cfg(test)]
mod tests;
