//! The events of one agent.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, OnceLock},
};

use libmesh::{
    catalog::Catalog,
    mesh::Mesh,
    model::{Liveness, NodeId, NodeName},
    rpc,
};
use parking_lot::Mutex;
use regex::Regex;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::pattern;

/// Events that an agent keeps.
const KEPT: usize = 256;
/// News that it knows again.
const REMEMBERED: usize = 4096;
/// News that it takes from others in a second.
const PER_SECOND: u32 = 64;

/// An event as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    /// Names it, and tells it from others.
    pub id: [u8; 16],
    pub name: String,
    pub payload: Vec<u8>,
    /// Patterns: whose agent keeps it.
    pub node: String,
    pub service: String,
    pub tag: String,
    /// Lamport's time; 0 until it is fired.
    pub ltime: u64,
}

impl UserEvent {
    /// What its texts take, in bytes.
    pub fn size(&self) -> usize {
        let texts = [&self.name, &self.node, &self.service, &self.tag];
        self.payload.len() + texts.map(String::len).iter().sum::<usize>()
    }

    /// The patterns of node, service and tag that it has.
    pub fn filters(&self) -> Result<[Option<Regex>; 3], regex::Error> {
        let filter = |text: &str| match text {
            "" => Ok(None),
            text => pattern(text).map(Some),
        };
        Ok([
            filter(&self.node)?,
            filter(&self.service)?,
            filter(&self.tag)?,
        ])
    }

    /// As Consul has it: both halves of the id, one XOR the other. Not in the order of time.
    pub fn index(&self) -> u64 {
        let both = u128::from_be_bytes(self.id);
        (both >> 64) as u64 ^ both as u64
    }
}

/// What agents tell each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// Something happened.
    Event(UserEvent),
    /// A node that is down is not to be waited for.
    Gone {
        /// Tells this from others.
        id: [u8; 16],
        /// Which node.
        node: [u8; 16],
    },
}

impl News {
    pub fn id(&self) -> [u8; 16] {
        match self {
            Self::Event(event) => event.id,
            Self::Gone { id, .. } => *id,
        }
    }
}

/// What came of news from another agent.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    New,
    Known,
    /// Too much of it.
    Shed,
}

/// The user events of an agent. Cheap to clone. Before [`attach`](Self::attach) nothing is kept.
#[derive(Clone)]
pub struct Events {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    pub(super) around: OnceLock<Around>,
}

/// Where an agent stands.
pub(super) struct Around {
    pub name: NodeName,
    pub catalog: Catalog,
    pub client: rpc::Client,
}

#[derive(Default)]
struct State {
    kept: VecDeque<Arc<UserEvent>>,
    seen: HashSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
    /// Later than every event so far.
    clock: u64,
    /// The second that is counted, and how much came in it.
    second: Option<(Instant, u32)>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                changes: watch::Sender::new(0),
                around: OnceLock::new(),
            }),
        }
    }
}

impl Events {
    /// Whose events they are; the first call counts.
    pub fn attach(&self, mesh: &Mesh) {
        let _ = self.inner.around.set(Around {
            name: mesh.name().clone(),
            catalog: mesh.catalog().clone(),
            client: mesh.rpc_client().clone(),
        });
    }

    /// Fires an event: it is here at once, and on its way to the others.
    pub fn fire(&self, mut event: UserEvent) {
        event.ltime = {
            let mut state = self.inner.state.lock();
            // Another agent may have told of the last moment there is.
            state.clock = state.clock.saturating_add(1);
            state.clock
        };
        self.tell_all(&News::Event(event));
    }

    /// Has every agent forget a node that is down there, too.
    pub fn forget(&self, node: NodeId) {
        let id = uuid::Uuid::new_v4().into_bytes();
        self.tell_all(&News::Gone { id, node: node.0 });
    }

    fn tell_all(&self, news: &News) {
        self.inner.state.lock().remember(news.id());
        self.take_in(news);
        self.spread_to_all(news);
    }

    /// Those that are kept, oldest first.
    pub fn list(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        let state = self.inner.state.lock();
        let wanted = |event: &&Arc<UserEvent>| name.is_none_or(|name| event.name == name);
        state.kept.iter().filter(wanted).cloned().collect()
    }

    /// Tells of each event that is kept from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// News from another agent.
    pub(super) fn hear(&self, news: &News, now: Instant) -> Heard {
        let heard = self.inner.state.lock().hear(news, now);
        if heard == Heard::New {
            self.take_in(news);
        }
        heard
    }

    fn take_in(&self, news: &News) {
        let Some(around) = self.inner.around.get() else {
            return;
        };
        match news {
            News::Event(event) if around.is_meant(event) => {
                let mut state = self.inner.state.lock();
                if state.kept.len() == KEPT {
                    state.kept.pop_front();
                }
                state.kept.push_back(Arc::new(event.clone()));
                drop(state);
                self.inner.changes.send_modify(|count| *count += 1);
            }
            News::Event(_) => {}
            News::Gone { node, .. } => {
                let node = NodeId(*node);
                let known = around.catalog.node_by_id(&node);
                if known.is_some_and(|node| node.liveness == Liveness::Down) {
                    around.catalog.set_liveness(node, Liveness::Left);
                }
            }
        }
    }
}

impl State {
    fn hear(&mut self, news: &News, now: Instant) -> Heard {
        if self.seen.contains(&news.id()) {
            return Heard::Known;
        }
        let second = self.second.get_or_insert((now, 0));
        if now.duration_since(second.0).as_secs() >= 1 {
            *second = (now, 0);
        }
        second.1 += 1;
        if second.1 > PER_SECOND {
            return Heard::Shed;
        }
        if let News::Event(event) = news {
            self.clock = self.clock.max(event.ltime);
        }
        self.remember(news.id());
        Heard::New
    }

    fn remember(&mut self, id: [u8; 16]) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.seen.insert(id);
        self.order.push_back(id);
    }
}

impl Around {
    /// Whether this agent is one of those that an event is for.
    fn is_meant(&self, event: &UserEvent) -> bool {
        // Whoever fired it has looked at the patterns.
        let Ok([node, service, tag]) = event.filters() else {
            return false;
        };
        let fits = |filter: &Regex, what: &str| filter.is_match(what);
        if node.is_some_and(|node| !fits(&node, self.name.as_str())) {
            return false;
        }
        let Some(service) = service else {
            return true;
        };
        let services = self.catalog.local().services();
        services.iter().any(|local| {
            let tagged = |tag| local.tags.iter().any(|own| fits(tag, own));
            fits(&service, local.service.as_str()) && tag.as_ref().is_none_or(tagged)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn event(number: u8, ltime: u64) -> News {
        News::Event(UserEvent {
            id: [number; 16],
            name: "deploy".to_owned(),
            payload: Vec::new(),
            node: String::new(),
            service: String::new(),
            tag: String::new(),
            ltime,
        })
    }

    #[tokio::test]
    async fn news_counts_once_is_bounded_and_sets_the_clock() {
        let mut state = State::default();
        let start = Instant::now();
        assert_eq!(state.hear(&event(1, 40), start), Heard::New);
        assert_eq!(state.hear(&event(1, 99), start), Heard::Known);
        assert_eq!(state.clock, 40);
        for number in 2..=64 {
            assert_eq!(state.hear(&event(number, 1), start), Heard::New);
        }
        assert_eq!(state.hear(&event(65, 1), start), Heard::Shed);
        // What was shed is taken when it comes again.
        let later = start + Duration::from_secs(1);
        assert_eq!(state.hear(&event(65, 1), later), Heard::New);
    }

    /// An agent that tells of the end of time must not end others.
    #[tokio::test]
    async fn the_clock_stops_at_its_end() {
        let mut state = State::default();
        state.hear(&event(1, u64::MAX), Instant::now());
        let events = Events::default();
        *events.inner.state.lock() = state;
        let News::Event(next) = event(2, 0) else {
            unreachable!("it is an event")
        };
        events.fire(next);
        assert_eq!(events.inner.state.lock().clock, u64::MAX);
    }

    #[test]
    fn the_index_is_one_half_of_the_id_xor_the_other() {
        let News::Event(mut event) = event(0, 0) else {
            unreachable!("it is an event")
        };
        event.id = *b"\x01\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0\x05";
        assert_eq!(event.index(), 0x0300_0000_0000_0006);
    }
}
