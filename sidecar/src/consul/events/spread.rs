//! How news reaches every agent: over mesh RPC, as a tree that is made anew each time.
//!
//! The nodes to tell are cut into [`PARTS`]; the first of each part is told, and which others it is to tell in the same
//! way. When one cannot be reached, the next of its part takes its place, and it is tried again for itself, a few times. So every node that is
//! present gets one message, and no node sends more than a few. A message is 16 bytes for each node below its receiver, and the news. Whoever has the
//! news already passes nothing on. A node that ends between taking a message and passing it on takes its part with it:
//! an event is no order that must not be lost.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use libmesh::{
    model::NodeId,
    rpc::{Reply, Router, Target},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    EVENT_MAX,
    kept::{Around, Events, Heard, News, UserEvent},
};

const PATH: &str = "/agent/news";
/// Parts that the nodes are cut into.
const PARTS: usize = 8;
/// Largest message: the news, and the nodes of a large mesh.
const MESSAGE_MAX: usize = 1 << 20;
/// Time for one node to take a message.
const DEADLINE: Duration = Duration::from_secs(5);

/// Pauses before one that could not be told is tried again.
const AGAIN: [Duration; 3] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
];

/// News, and whom the receiver tells.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    news: News,
    onward: Vec<[u8; 16]>,
}

impl Message {
    /// `None` also for an event that is larger than any that is fired.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let message: Self = postcard::from_bytes(bytes).ok()?;
        match &message.news {
            News::Event(event) if event.size() > EVENT_MAX => None,
            _ => Some(message),
        }
    }
}

/// Whether it is a message that an agent takes in. For fuzzing.
pub(crate) fn understands(bytes: &[u8]) -> bool {
    let Some(message) = Message::parse(bytes) else {
        return false;
    };
    let encoded = postcard::to_stdvec(&message).expect("plain data always encodes");
    assert_eq!(Message::parse(&encoded).as_ref(), Some(&message));
    let events = Events::default();
    assert_eq!(events.hear(&message.news, Instant::now()), Heard::New);
    assert_eq!(events.hear(&message.news, Instant::now()), Heard::Known);
    if let News::Event(event) = message.news {
        let _ = event.filters();
        events.fire(event);
    }
    true
}

/// A message of each kind. For fuzzing.
pub(crate) fn samples() -> [Vec<u8>; 2] {
    let event = News::Event(UserEvent {
        id: [1; 16],
        name: "deploy".to_owned(),
        payload: b"v2".to_vec(),
        node: "^web-[0-9]+$".to_owned(),
        service: "web|api".to_owned(),
        tag: "(?i)V1".to_owned(),
        ltime: 7,
    });
    let gone = News::Gone {
        id: [2; 16],
        node: [3; 16],
    };
    [event, gone].map(|news| {
        let message = Message {
            news,
            onward: vec![[4; 16], [5; 16]],
        };
        postcard::to_stdvec(&message).expect("plain data always encodes")
    })
}

impl Events {
    /// The route on which other agents tell of theirs.
    pub fn rpc(&self) -> Router {
        let events = self.clone();
        Router::new().route(PATH, MESSAGE_MAX, move |request| {
            let events = events.clone();
            async move {
                let Some(message) = Message::parse(&request.body) else {
                    return Reply::error(StatusCode::BAD_REQUEST, "the news are malformed");
                };
                match events.hear(&message.news, Instant::now()) {
                    Heard::New => events.spread(&message.news, &message.onward),
                    Heard::Known => {}
                    Heard::Shed => {
                        let reason = "too many events in this second";
                        return Reply::error(StatusCode::TOO_MANY_REQUESTS, reason);
                    }
                }
                Reply::ok(Bytes::new())
            }
        })
    }

    pub(super) fn spread_to_all(&self, news: &News) {
        let Some(around) = self.inner.around.get() else {
            return;
        };
        let own = around.catalog.own();
        let nodes = around.catalog.nodes();
        let others = nodes.iter().filter(|node| {
            node.record.is_member() && node.liveness.is_present() && node.record.id != own
        });
        let others: Vec<_> = others.map(|node| node.record.id.0).collect();
        self.spread(news, &others);
    }

    /// Tells `nodes`, in the background.
    fn spread(&self, news: &News, nodes: &[[u8; 16]]) {
        let size = nodes.len().div_ceil(PARTS).max(1);
        for part in nodes.chunks(size) {
            tokio::spawn(tell(self.clone(), news.clone(), part.to_vec()));
        }
    }
}

/// Tells the first of `nodes` that can be told, and has it tell the others.
async fn tell(events: Events, news: News, mut nodes: Vec<[u8; 16]>) {
    let Some(around) = events.inner.around.get() else {
        return;
    };
    while let Some(first) = nodes.pop() {
        match take(around, &news, first, nodes.clone()).await {
            Taken::Yes => return,
            Taken::Gone => {}
            Taken::No => {
                tokio::spawn(insist(events.clone(), news.clone(), first));
            }
        }
    }
}

/// Tells one node that could not be told.
async fn insist(events: Events, news: News, node: [u8; 16]) {
    let Some(around) = events.inner.around.get() else {
        return;
    };
    for pause in AGAIN {
        sleep(pause).await;
        match take(around, &news, node, Vec::new()).await {
            Taken::Yes | Taken::Gone => return,
            Taken::No => {}
        }
    }
}

/// What became of a message to a node.
enum Taken {
    Yes,
    No,
    /// There is no such node any more.
    Gone,
}

async fn take(around: &Around, news: &News, node: [u8; 16], onward: Vec<[u8; 16]>) -> Taken {
    let node = around.catalog.node_by_id(&NodeId(node));
    let Some(node) = node.filter(|node| node.liveness.is_present()) else {
        return Taken::Gone;
    };
    let message = Message {
        news: news.clone(),
        onward,
    };
    let body = postcard::to_stdvec(&message).expect("plain data always encodes");
    let record = &node.record;
    let target = Target::node(record.socket_addr(), record.name.clone());
    let told = around.client.call(&target, PATH, body.into(), DEADLINE);
    match told.await {
        Ok(_) => Taken::Yes,
        Err(error) => {
            tracing::debug!(node = %record.name, %error, "an event did not get there");
            Taken::No
        }
    }
}
