//! How news reaches every agent: over mesh RPC, as a tree that is made anew each time.
//!
//! The nodes to tell are cut into [`PARTS`]; the first of each part is told, and which others it is to tell in the same
//! way. One that cannot be reached is left out, and the next of its part takes its place. So every node that is present gets one message, and
//! no node sends more than a few. A message is 16 bytes for each node below its receiver, and the news. Whoever has the
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
use tokio::time::Instant;

use super::kept::{Events, Heard, News};

const PATH: &str = "/agent/news";
/// Parts that the nodes are cut into.
const PARTS: usize = 8;
/// Largest message: the news, and the nodes of a large mesh.
const MESSAGE_MAX: usize = 1 << 20;
/// Time for one node to take a message.
const DEADLINE: Duration = Duration::from_secs(5);

/// News, and whom the receiver tells.
#[derive(Serialize, Deserialize)]
struct Message {
    news: News,
    onward: Vec<[u8; 16]>,
}

impl Events {
    /// The route on which other agents tell of theirs.
    pub fn rpc(&self) -> Router {
        let events = self.clone();
        Router::new().route(PATH, MESSAGE_MAX, move |request| {
            let events = events.clone();
            async move {
                let Ok(message) = postcard::from_bytes::<Message>(&request.body) else {
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
        let Some(node) = around.catalog.node_by_id(&NodeId(first)) else {
            continue;
        };
        let message = Message {
            news: news.clone(),
            onward: nodes.clone(),
        };
        let body = postcard::to_stdvec(&message).expect("plain data always encodes");
        let record = &node.record;
        let target = Target::node(record.socket_addr(), record.name.clone());
        let told = around.client.call(&target, PATH, body.into(), DEADLINE);
        match told.await {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(node = %record.name, %error, "an event did not get there");
            }
        }
    }
}
