//! How coordinates get about.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::StatusCode;
use libmesh::{
    mesh::Mesh,
    model::NodeId,
    rpc::{Reply, Router, RpcError, Target},
};
use parking_lot::Mutex;
use rand::seq::{IndexedRandom, IteratorRandom};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::vivaldi::{Coordinate, Placed};

const PATH: &str = "/agent/coordinates";
/// Between two measurements, once a node has a place.
const PAUSE: Duration = Duration::from_secs(15);
/// Before the first, and doubled after each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(5);
/// Others that are told of in one message.
const OTHERS: usize = 64;
const MESSAGE_MAX: usize = 32 << 10;
/// Nodes whose coordinates are kept.
const KEPT: usize = 16_384;
/// A coordinate that its node has not confirmed for so long is forgotten.
const LIFE: u64 = 3 * 24 * 3600 * 1000;
/// How far ahead another node's clock may be, in ms.
const AHEAD: u64 = 5 * 60 * 1000;

/// What is known of coordinates. Cheap to clone.
#[derive(Clone)]
pub struct Coordinates {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Unix time of the last change, in microseconds.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    own: Option<NodeId>,
    placed: Placed,
    known: HashMap<NodeId, Told>,
}

/// A coordinate as it travels.
#[derive(Clone, Serialize, Deserialize)]
struct Told {
    node: [u8; 16],
    /// Unix time in ms, by the clock of whoever measured it.
    at: u64,
    coordinate: Coordinate,
}

#[derive(Serialize, Deserialize)]
struct Message {
    own: Told,
    others: Vec<Told>,
}

impl Default for Coordinates {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                changed: watch::Sender::new(0),
            }),
        }
    }
}

impl Coordinates {
    /// All that are known, this node's own too.
    pub fn snapshot(&self) -> HashMap<NodeId, Coordinate> {
        let state = self.inner.state.lock();
        let known = state.known.iter();
        let mut all: HashMap<_, _> = known
            .map(|(node, told)| (*node, told.coordinate.clone()))
            .collect();
        if let Some(own) = state.own {
            all.insert(own, state.placed.coordinate().clone());
        }
        all
    }

    /// When something changed last.
    pub fn index(&self) -> u64 {
        *self.inner.changed.borrow()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// Keeps what was measured of a node that has no agent.
    pub fn put(&self, node: NodeId, coordinate: Coordinate) {
        let told = Told {
            node: node.0,
            at: now_ms(),
            coordinate,
        };
        self.inner.state.lock().keep(told, now_ms());
        self.touch();
    }

    /// The route on which others ask.
    pub fn rpc(&self) -> Router {
        let coordinates = self.clone();
        Router::new().route(PATH, MESSAGE_MAX, move |request| {
            let coordinates = coordinates.clone();
            async move {
                if request.body.is_empty() {
                    // Whoever asks looks how long it takes.
                    return Reply::ok(Bytes::new());
                }
                match postcard::from_bytes::<Message>(&request.body) {
                    Ok(message) => {
                        coordinates.hear(message, request.peer.node_id);
                        Reply::ok(coordinates.message())
                    }
                    Err(_) => Reply::error(StatusCode::BAD_REQUEST, "malformed coordinates"),
                }
            }
        })
    }

    /// Measures and exchanges until `stop`.
    pub async fn follow(self, mesh: Mesh, stop: CancellationToken) {
        self.inner.state.lock().own = Some(mesh.id());
        self.touch();
        let mut pause = FIRST_PAUSE;
        loop {
            let wait = sleep(pause.mul_f64(rand::random_range(0.75..1.25)));
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
            let Some(peer) = somebody(&mesh) else {
                continue;
            };
            pause = (pause * 2).min(PAUSE);
            let meeting = Box::pin(self.meet(&mesh, &peer));
            match stop.run_until_cancelled(meeting).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::debug!(%error, "no round trip was measured"),
            }
        }
    }

    async fn meet(&self, mesh: &Mesh, peer: &(NodeId, Target)) -> Result<(), RpcError> {
        let (client, (node, target)) = (mesh.rpc_client(), peer);
        let answer = client.call(target, PATH, self.message(), DEADLINE).await?;
        let Ok(message) = postcard::from_bytes::<Message>(&answer) else {
            return Ok(());
        };
        let there = message.own.coordinate.clone();
        self.hear(message, *node);
        // The connection is there by now: what is measured is the way, not the handshake.
        let began = Instant::now();
        client.call(target, PATH, Bytes::new(), DEADLINE).await?;
        let rtt = Instant::now().duration_since(began).as_secs_f64();
        let mut state = self.inner.state.lock();
        state.placed.measured(*node, &there, rtt);
        drop(state);
        self.touch();
        Ok(())
    }

    /// `from` speaks for itself; what it says of others counts as far as it is newer.
    fn hear(&self, message: Message, from: NodeId) {
        let now = now_ms();
        let mut state = self.inner.state.lock();
        if message.own.node == from.0 {
            state.keep(message.own, now);
        }
        for told in message.others.into_iter().take(OTHERS) {
            state.keep(told, now);
        }
        drop(state);
        self.touch();
    }

    fn message(&self) -> Bytes {
        let state = self.inner.state.lock();
        let own = Told {
            node: state.own.unwrap_or(NodeId([0; 16])).0,
            at: now_ms(),
            coordinate: state.placed.coordinate().clone(),
        };
        let others = state.known.values().cloned();
        let others = others.sample(&mut rand::rng(), OTHERS);
        drop(state);
        let message = Message { own, others };
        postcard::to_stdvec(&message)
            .expect("plain data always encodes")
            .into()
    }

    fn touch(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_micros() as u64);
        self.inner
            .changed
            .send_modify(|last| *last = now.max(*last + 1));
    }
}

impl State {
    fn keep(&mut self, told: Told, now: u64) {
        let node = NodeId(told.node);
        let known = self.known.get(&node);
        let newer = known.is_none_or(|known| known.at < told.at);
        let timely = told.at <= now + AHEAD && told.at + LIFE >= now;
        if Some(node) == self.own || !newer || !timely || !told.coordinate.is_valid() {
            return;
        }
        if known.is_none() && self.known.len() >= KEPT {
            self.known.retain(|_, told| told.at + LIFE >= now);
            if self.known.len() >= KEPT {
                return;
            }
        }
        self.known.insert(node, told);
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

/// Another agent that is present.
fn somebody(mesh: &Mesh) -> Option<(NodeId, Target)> {
    let nodes = mesh.nodes();
    let others: Vec<_> = nodes
        .iter()
        .filter(|node| {
            let record = &node.record;
            record.is_member() && node.liveness.is_present() && record.id != mesh.id()
        })
        .collect();
    let record = &others.choose(&mut rand::rng())?.record;
    let target = Target::node(record.socket_addr(), record.name.clone());
    Some((record.id, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(node: u8, at: u64, height: f64) -> Told {
        let coordinate = Coordinate {
            height,
            ..Coordinate::default()
        };
        Told {
            node: [node; 16],
            at,
            coordinate,
        }
    }

    #[test]
    fn the_newest_counts_and_nobody_is_told_of_itself() {
        let now = now_ms();
        let mut state = State {
            own: Some(NodeId([9; 16])),
            ..State::default()
        };
        let height = |state: &State, node: u8| {
            let known = state.known.get(&NodeId([node; 16]));
            known.map(|told| told.coordinate.height)
        };
        state.keep(told(1, now, 0.1), now);
        state.keep(told(1, now - 5, 0.2), now);
        assert_eq!(height(&state, 1), Some(0.1));
        state.keep(told(1, now + 5, 0.3), now);
        assert_eq!(height(&state, 1), Some(0.3));
        state.keep(told(9, now, 0.1), now);
        state.keep(told(2, now + AHEAD + 1, 0.1), now);
        state.keep(told(3, now - LIFE - 1, 0.1), now);
        state.keep(told(4, now, f64::INFINITY), now);
        assert_eq!(state.known.len(), 1);
    }
}
