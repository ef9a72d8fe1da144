//! The replica's side of subscriptions: one task for each, woken by changes of the services that it follows and by
//! nothing else.
//!
//! A subscriber that reads slowly is sent less often, and then what is so by then: the changes in between are never
//! built. Costs of a change: a comparison of pointers for each instance of the service, and an encoding of what
//! differs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::codec::{CodecError, Frame};
use super::follow_wire::{Follow, Gone, Part, ServiceUpdate, Shown, Subscribe, Update};
use super::plane::Plane;
use crate::catalog::log::Head;
use crate::catalog::{Catalog, InstanceView, ServiceView, ServiceWatch};
use crate::model::{CheckRecord, Instance, NodeId, NodeRecord};
use crate::rpc::Frames;

/// Subscriptions of one peer at once.
pub const SUBSCRIPTIONS_PER_PEER: usize = 16;
/// Subscriptions of all peers at once.
pub const SUBSCRIPTIONS_MAX: usize = 20_000;
/// A subscriber hears something at least this often.
pub(super) const QUIET: Duration = Duration::from_secs(2);
/// A frame is full with so many bytes.
const FRAME_BYTES: usize = 256 * 1024;
/// How often a view is read again because its owners' logs moved meanwhile.
const READS: usize = 4;

/// Why a subscription is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The caller sent something else (400).
    #[error(transparent)]
    Malformed(#[from] CodecError),
    /// Too many (429): another replica may have room.
    #[error("this replica has {0} subscriptions of {1}, and takes no more")]
    TooMany(usize, &'static str),
    /// It has just started (503): what it says might be less than there is.
    #[error("this replica has not caught up with its peers yet")]
    Early,
}

/// How many subscriptions each peer has.
#[derive(Debug, Default)]
pub(super) struct Subscribers(Arc<Mutex<HashMap<NodeId, usize>>>);

struct Seat {
    all: Arc<Mutex<HashMap<NodeId, usize>>>,
    peer: NodeId,
}

impl Subscribers {
    fn seat(&self, peer: NodeId) -> Result<Seat, SubscribeError> {
        let mut all = self.0.lock();
        let total = all.values().sum();
        if total >= SUBSCRIPTIONS_MAX {
            return Err(SubscribeError::TooMany(total, "all peers"));
        }
        let own = all.entry(peer).or_default();
        if *own >= SUBSCRIPTIONS_PER_PEER {
            return Err(SubscribeError::TooMany(*own, "this peer"));
        }
        *own += 1;
        let all = Arc::clone(&self.0);
        Ok(Seat { all, peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(own) = all.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                all.remove(&self.peer);
            }
        }
    }
}

impl Plane {
    /// Serves `/catalog/subscribe` of `from`: writes what it follows to `frames`, until the reader goes.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn handle_subscribe(
        &self,
        from: NodeId,
        body: &Bytes,
        frames: Frames,
    ) -> Result<(), SubscribeError> {
        let asked = Subscribe::decode(body)?;
        if !*self.inner.caught_up.borrow() {
            return Err(SubscribeError::Early);
        }
        let seat = self.inner.subscribers.seat(from)?;
        let (catalog, life) = (self.inner.catalog.clone(), self.inner.life);
        self.spawn(async move {
            tokio::select! {
                () = frames.closed() => {}
                () = publish(catalog, life, asked, frames.clone()) => {}
            }
            drop(seat);
        });
        Ok(())
    }
}

/// Writes changes until the reader has gone.
async fn publish(catalog: Catalog, life: u64, asked: Subscribe, frames: Frames) {
    let same_life = asked.life == life;
    let mut changed = JoinSet::new();
    if frames.send(Update::Hello { life }.encode()).await.is_err() {
        return;
    }
    for follow in asked.follows {
        let mut followed = Followed::new(&catalog, follow);
        let told = if same_life && followed.is_current() {
            frames
                .send(Update::Service(followed.unchanged()).encode())
                .await
        } else {
            followed.tell(&catalog, &frames, true).await
        };
        if told.is_err() {
            return;
        }
        changed.spawn(followed.changed());
    }
    let mut quiet = interval(QUIET);
    quiet.set_missed_tick_behavior(MissedTickBehavior::Delay);
    quiet.reset();
    loop {
        let sent = tokio::select! {
            Some(followed) = changed.join_next() => {
                let Ok(mut followed) = followed else {
                    return;
                };
                quiet.reset();
                let sent = followed.tell(&catalog, &frames, false).await;
                changed.spawn(followed.changed());
                sent
            }
            _ = quiet.tick() => frames.send(Update::Quiet.encode()).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A service as the subscriber has it.
struct Followed {
    watch: ServiceWatch,
    service: crate::model::ServiceName,
    revision: u64,
    view: Option<Arc<ServiceView>>,
    /// Hashes of the parts.
    parts: HashMap<NodeId, u64>,
}

impl Followed {
    fn new(catalog: &Catalog, follow: Follow) -> Self {
        Self {
            watch: catalog.watch_service(&follow.service),
            service: follow.service,
            revision: follow.revision,
            view: None,
            parts: follow.parts.into_iter().collect(),
        }
    }

    fn is_current(&self) -> bool {
        self.revision != 0 && self.watch.revision() == self.revision
    }

    fn unchanged(&self) -> ServiceUpdate {
        ServiceUpdate {
            service: self.service.clone(),
            revision: self.revision,
            parts: Vec::new(),
            gone: Vec::new(),
            more: false,
        }
    }

    async fn changed(self) -> Self {
        self.watch.changed_after(self.revision).await;
        self
    }

    /// Writes what differs; with `always` also when nothing does, so that the subscriber knows that it is complete.
    async fn tell(
        &mut self,
        catalog: &Catalog,
        frames: &Frames,
        always: bool,
    ) -> Result<(), crate::rpc::ReaderGone> {
        self.revision = self.watch.revision();
        let view = self.watch.view();
        let (parts, gone) = self.differences(catalog, view.as_ref());
        self.view = view;
        if parts.is_empty() && gone.is_empty() && !always {
            return Ok(());
        }
        let mut update = ServiceUpdate {
            gone,
            more: true,
            ..self.unchanged()
        };
        let mut size = 0;
        for (part, bytes) in parts.into_iter().flat_map(pieces) {
            if size > 0 && size + bytes > FRAME_BYTES {
                frames
                    .send(Update::Service(update.clone()).encode())
                    .await?;
                (update.parts, update.gone, size) = (Vec::new(), Vec::new(), 0);
            }
            size += bytes;
            update.parts.push(part);
        }
        update.more = false;
        frames.send(Update::Service(update).encode()).await
    }

    fn differences(
        &mut self,
        catalog: &Catalog,
        view: Option<&Arc<ServiceView>>,
    ) -> (Vec<(Part, usize)>, Vec<Gone>) {
        let old = by_node(self.view.as_ref());
        let new = by_node(view);
        let mut parts = Vec::new();
        for (node, instances) in &new {
            let same = |old: &&[Arc<InstanceView>]| {
                old.len() == instances.len()
                    && old.iter().zip(*instances).all(|(a, b)| Arc::ptr_eq(a, b))
            };
            if old.get(node).is_some_and(same) {
                continue;
            }
            let (part, bytes) = self.part(catalog, *node, instances);
            if self.parts.insert(*node, part.hash) != Some(part.hash) {
                parts.push((part, bytes));
            }
        }
        let gone: Vec<_> = self
            .parts
            .keys()
            .filter(|node| !new.contains_key(node))
            .map(|node| Gone {
                node: *node,
                at: gone_at(catalog, node),
            })
            .collect();
        for gone in &gone {
            self.parts.remove(&gone.node);
        }
        (parts, gone)
    }

    /// What a node has, and a head of its log at which that was so.
    fn part(
        &self,
        catalog: &Catalog,
        node: NodeId,
        instances: &[Arc<InstanceView>],
    ) -> (Part, usize) {
        let mut part = as_part(instances);
        let mut at = head(catalog, &node);
        for _ in 0..READS {
            // Between two readings of the same head the view can have been read at no other.
            let view = self.watch.view();
            let again = head(catalog, &node);
            if let Some(instances) = by_node(view.as_ref()).get(&node) {
                part = as_part(instances);
            }
            if again == at {
                break;
            }
            at = again;
        }
        part.at = at;
        let (hash, bytes) = part.content();
        part.hash = hash;
        (part, bytes)
    }
}

/// A part that fills more than a frame, in several.
fn pieces((part, bytes): (Part, usize)) -> Vec<(Part, usize)> {
    let count = bytes.div_ceil(FRAME_BYTES).min(part.instances.len());
    if count <= 1 {
        return vec![(part, bytes)];
    }
    let piece = |instances: &[Shown]| {
        let piece = Part {
            node: part.node.clone(),
            instances: instances.to_vec(),
            ..part
        };
        (piece, bytes / count)
    };
    let size = part.instances.len().div_ceil(count);
    part.instances.chunks(size).map(piece).collect()
}

fn as_part(instances: &[Arc<InstanceView>]) -> Part {
    let node = &instances[0].node;
    let shown = |view: &Arc<InstanceView>| Shown {
        instance: Instance::clone(&view.instance),
        checks: view
            .checks
            .iter()
            .map(|check| CheckRecord::clone(check))
            .collect(),
        health: view.health,
        stale: view.stale,
    };
    Part {
        at: Head::default(),
        hash: 0,
        node: NodeRecord::clone(&node.record),
        liveness: node.liveness,
        instances: instances.iter().map(shown).collect(),
    }
}

/// The instances of a view by their nodes: they lie side by side.
fn by_node(view: Option<&Arc<ServiceView>>) -> BTreeMap<NodeId, &[Arc<InstanceView>]> {
    let Some(view) = view else {
        return BTreeMap::new();
    };
    view.instances
        .chunk_by(|a, b| a.node.record.id == b.node.record.id)
        .map(|instances| (instances[0].node.record.id, instances))
        .collect()
}

fn head(catalog: &Catalog, node: &NodeId) -> Head {
    let beyond = Head {
        epoch: u64::MAX,
        head: u64::MAX,
    };
    catalog.lacks(node, beyond).unwrap_or_default()
}

/// The head that says that a node has nothing; `None` when it is away.
fn gone_at(catalog: &Catalog, node: &NodeId) -> Option<Head> {
    let present = catalog.node_by_id(node)?.liveness.is_present();
    present.then(|| head(catalog, node))
}

#[cfg(test)]
mod tests;
