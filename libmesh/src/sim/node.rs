//! One simulated node: a protocol, its clock, and what it remembers between lives.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::plain::Plain;
use super::schedule::Input;
use crate::member::core::{Core, Output, Route};
use crate::member::wire::Identity;
use crate::member::{AnswerError, Config, Counters, Preset, StreamReply, decode_candidates};
use crate::model::{Liveness, NodeId};

/// What the wall clocks show when a simulation begins, in microseconds since 1970.
const BEGINNING: u64 = 1_700_000_000_000_000;

/// What a node runs.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Our core.
    Mesh(Preset),
    /// Plain foca with memberlist's LAN settings for a cluster of this size, driven as its documentation says: the
    /// baseline. It has no streams.
    Plain(u32),
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The host is gone: nothing answers.
    Host,
    /// The process is gone, the host refuses connections in its name.
    Process,
}

/// What a node still has when it starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Its last generation and the members that it knew.
    Kept,
    /// Nothing but its key.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// Since when.
    Paused(u64),
    Ended(Crash),
}

pub(super) enum Protocol {
    Mesh(Box<Core>),
    Plain(Box<Plain>),
}

pub(super) struct Node {
    pub(super) protocol: Protocol,
    pub(super) counters: Arc<Counters>,
    pub(super) state: State,
    /// Counts restarts: what was on its way to an earlier life is dropped.
    pub(super) life: u64,
    /// The wake-up that counts.
    pub(super) wake: Option<u64>,
    /// What waits for a paused process.
    pub(super) waiting: VecDeque<Input>,
    /// Who waits for the answer with a token.
    pub(super) askers: BTreeMap<u64, (usize, u64, u64)>,
    pub(super) tokens: u64,
    pub(super) seeds: Vec<SocketAddr>,
    kind: Kind,
    /// What the monotone clock shows beyond the simulation's, in nanoseconds.
    monotone: i64,
    /// What the wall clock shows beyond the simulation's, in microseconds.
    pub(super) wall: i64,
    saved: Option<Saved>,
}

struct Saved {
    generation: u64,
    candidates: Vec<u8>,
}

/// What names a node to others.
pub(super) fn address(node: usize) -> SocketAddr {
    let [.., high, low] = (node as u32 + 1).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 8301))
}

pub(super) fn index_at(addr: SocketAddr) -> Option<usize> {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => {
            let [.., high, low] = ip.octets();
            usize::from(u16::from_be_bytes([high, low])).checked_sub(1)
        }
        std::net::IpAddr::V6(_) => None,
    }
}

/// A node's identity when it first started at the beginning.
pub(super) fn first_identity(node: usize) -> Identity {
    Identity {
        node: node_id(node),
        addr: address(node),
        generation: BEGINNING,
    }
}

/// The id of a node.
pub fn node_id(node: usize) -> NodeId {
    let mut id = [0xab; 16];
    id[..8].copy_from_slice(&(node as u64).to_be_bytes());
    NodeId(id)
}

/// The node with an id that [`node_id`] made.
pub(super) fn index_of(id: NodeId) -> u32 {
    let [_, _, _, _, node @ ..] = *id.as_bytes().first_chunk::<8>().expect("ids have 16 bytes");
    u32::from_be_bytes(node)
}

impl Node {
    /// Starts now; its generation is the wall clock's of `dated`.
    pub(super) fn new(
        node: usize,
        kind: Kind,
        seeds: Vec<SocketAddr>,
        (now, dated): (u64, u64),
        seed: u64,
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let config = config(node, &seeds, BEGINNING + dated / 1000, Vec::new());
        Self {
            protocol: Protocol::new(&kind, config, Duration::from_nanos(now), seed, &counters),
            counters,
            state: State::Running,
            life: 1,
            wake: None,
            waiting: VecDeque::new(),
            askers: BTreeMap::new(),
            tokens: 0,
            seeds,
            kind,
            monotone: 0,
            wall: 0,
            saved: None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// What its monotone clock shows.
    pub(super) fn clock(&self, now: u64) -> Duration {
        Duration::from_nanos(now.saturating_add_signed(self.monotone))
    }

    /// When its monotone clock will show `time`.
    pub(super) fn at(&self, time: Duration) -> u64 {
        (time.as_nanos() as u64).saturating_add_signed(-self.monotone)
    }

    pub(super) fn jump_monotone(&mut self, nanos: i64) {
        self.monotone += nanos;
    }

    pub(super) fn end(&mut self, how: Crash) {
        if let Protocol::Mesh(core) = &self.protocol {
            self.saved = Some(Saved {
                generation: core.local().generation,
                candidates: core.candidates(),
            });
        }
        self.state = State::Ended(how);
        self.life += 1;
        self.waiting.clear();
        self.askers.clear();
        self.wake = None;
    }

    /// As `mesh` does it: the generation is the wall clock's, or one more than the last when that is known and higher.
    pub(super) fn restart(&mut self, node: usize, memory: Memory, now: u64, seed: u64) {
        let saved = self.saved.take().filter(|_| memory == Memory::Kept);
        let clock = (BEGINNING + now / 1000).saturating_add_signed(self.wall);
        let generation = saved
            .as_ref()
            .map_or(clock, |saved| clock.max(saved.generation + 1));
        let candidates = saved.map_or_else(Vec::new, |saved| decode_candidates(&saved.candidates));
        let counters = Arc::new(Counters::default());
        let config = config(node, &self.seeds, generation, candidates);
        self.protocol = Protocol::new(&self.kind, config, self.clock(now), seed, &counters);
        self.counters = counters;
        self.life += 1;
        self.state = State::Running;
    }
}

fn config(
    node: usize,
    seeds: &[SocketAddr],
    generation: u64,
    candidates: Vec<SocketAddr>,
) -> Config {
    Config {
        seeds: seeds.to_vec(),
        candidates,
        ..Config::lan(node_id(node), address(node), generation)
    }
}

impl Protocol {
    fn new(
        kind: &Kind,
        mut config: Config,
        now: Duration,
        seed: u64,
        counters: &Arc<Counters>,
    ) -> Self {
        match kind {
            Kind::Mesh(preset) => {
                config.preset = preset.clone();
                let core = Core::new(&config, now, seed, Arc::clone(counters));
                Self::Mesh(Box::new(core))
            }
            Kind::Plain(size) => {
                let plain = Plain::new(&config, *size, now, seed, Arc::clone(counters));
                Self::Plain(Box::new(plain))
            }
        }
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        match self {
            Self::Mesh(core) => core.poll_output(),
            Self::Plain(plain) => plain.poll_output(),
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        match self {
            Self::Mesh(core) => core.next_timeout(),
            Self::Plain(plain) => plain.next_timeout(),
        }
    }

    pub(super) fn handle_datagram(&mut self, now: Duration, packet: &[u8]) {
        match self {
            Self::Mesh(core) => core.handle_datagram(now, packet),
            Self::Plain(plain) => plain.handle_datagram(now, packet),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Duration) {
        match self {
            Self::Mesh(core) => core.handle_timeout(now),
            Self::Plain(plain) => plain.handle_timeout(now),
        }
    }

    pub(super) fn handle_stream_reply(&mut self, now: Duration, id: u64, reply: &StreamReply) {
        if let Self::Mesh(core) = self {
            core.handle_stream_reply(now, id, reply);
        }
    }

    pub(super) fn peer_closed(&mut self, now: Duration, peer: NodeId) {
        if let Self::Mesh(core) = self {
            core.peer_closed(now, peer);
        }
    }

    /// The answer to a question; `None` if it comes later.
    pub(super) fn answer(
        &mut self,
        now: Duration,
        route: Route,
        body: &[u8],
        token: u64,
    ) -> Option<Result<Option<Bytes>, AnswerError>> {
        let Self::Mesh(core) = self else {
            return None;
        };
        Some(match route {
            Route::Ping => core.answer_ping(now, body, token),
            Route::Sync => core.answer_sync(now, body).map(Some),
        })
    }

    /// What it thinks of a node; `None` if it does not know it.
    pub(super) fn liveness(&self, id: NodeId) -> Option<Liveness> {
        match self {
            Self::Mesh(core) => core.liveness(id),
            Self::Plain(plain) => plain.liveness(id),
        }
    }

    /// How many others are alive or suspect.
    pub(super) fn present(&self) -> usize {
        match self {
            Self::Mesh(core) => core.present(),
            Self::Plain(plain) => plain.present(),
        }
    }
}
