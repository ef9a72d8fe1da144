//! The read side: cells that a writer swaps and readers load.
//!
//! A service's cell is found through one of sixteen shards; its lock is held for one hash-table access, never while a
//! view is built. The view itself is an [`ArcSwapOption`]: a reader of a kept view neither waits for a writer nor for
//! another reader.
//! A cell outlives the service's last instance, so that its revision stays known; see [`Index::prune`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::RwLock;
use tokio::sync::{Notify, watch};

use super::view::{InstanceView, NodeView, ServiceView};
use crate::model::{Liveness, NodeId, NodeName, ServiceName};

const SHARDS: usize = 16;

pub(super) struct Index {
    shards: [RwLock<HashMap<ServiceName, Arc<ServiceCell>>>; SHARDS],
    hasher: RandomState,
    nodes: RwLock<NodeTable>,
    revision: watch::Sender<u64>,
    /// Highest revision of a service that [`prune`](Self::prune) forgot: what an unknown service's revision may be.
    floor: AtomicU64,
}

/// A service's view, made when somebody reads it and kept while somebody does.
pub(super) struct ServiceCell {
    /// `None` = not made; `Some(None)` = no instance on any node that is present.
    view: ArcSwapOption<Option<Arc<ServiceView>>>,
    /// Read since the last [`Index::forget_unread`].
    read: AtomicBool,
    revision: AtomicU64,
    changed: Notify,
}

impl ServiceCell {
    fn new(revision: u64) -> Self {
        Self {
            view: ArcSwapOption::empty(),
            read: AtomicBool::new(false),
            revision: AtomicU64::new(revision),
            changed: Notify::new(),
        }
    }

    /// The view for a reader, if it is kept.
    pub(super) fn read(&self) -> Option<Option<Arc<ServiceView>>> {
        // Only the first reader writes, so that the others do not fight for the line.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        self.kept()
    }

    /// The view, if it is kept.
    pub(super) fn kept(&self) -> Option<Option<Arc<ServiceView>>> {
        self.view.load().as_deref().cloned()
    }

    /// Keeps a view just made.
    pub(super) fn keep(&self, view: Option<Arc<ServiceView>>) {
        self.view.store(Some(Arc::new(view)));
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Shows a new view in place of a kept one.
    pub(super) fn publish(&self, view: Option<Arc<ServiceView>>, revision: u64) {
        self.keep(view);
        self.touch(revision);
    }

    /// Tells those who wait that the service changed.
    pub(super) fn touch(&self, revision: u64) {
        self.revision.store(revision, Ordering::Release);
        self.changed.notify_waiters();
    }
}

pub(super) struct NodeCell {
    view: ArcSwap<NodeView>,
    /// What is shown of this node's instances, by id, if somebody asked since it last changed.
    instances: ArcSwapOption<Vec<Arc<InstanceView>>>,
    read: AtomicBool,
}

impl NodeCell {
    pub(super) fn view(&self) -> Arc<NodeView> {
        self.view.load_full()
    }

    pub(super) fn kept_instances(&self) -> Option<Arc<Vec<Arc<InstanceView>>>> {
        let kept = self.instances.load_full();
        if kept.is_some() && !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        kept
    }

    pub(super) fn keep_instances(&self, instances: Arc<Vec<Arc<InstanceView>>>) {
        self.instances.store(Some(instances));
        self.read.store(true, Ordering::Relaxed);
    }

    pub(super) fn forget_instances(&self) {
        self.instances.store(None);
    }
}

#[derive(Default)]
struct NodeTable {
    by_id: HashMap<NodeId, Arc<NodeCell>>,
    by_name: HashMap<NodeName, Vec<NodeId>>,
    by_ip: HashMap<IpAddr, Vec<NodeId>>,
}

impl NodeTable {
    fn unlink(&mut self, view: &NodeView) {
        let id = view.record.id;
        if let Some(ids) = self.by_name.get_mut(&view.record.name) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_name.remove(&view.record.name);
            }
        }
        if let Some(ids) = self.by_ip.get_mut(&view.record.address) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_ip.remove(&view.record.address);
            }
        }
    }

    /// Of several nodes with one name or address (a reinstalled host has a new key), the one that is most alive.
    fn best(&self, ids: Option<&Vec<NodeId>>) -> Option<Arc<NodeCell>> {
        let rank = |cell: &Arc<NodeCell>| match cell.view.load().liveness {
            Liveness::Alive => 0,
            Liveness::Suspect => 1,
            Liveness::Down => 2,
            Liveness::Left => 3,
        };
        ids?.iter()
            .filter_map(|id| self.by_id.get(id))
            .min_by_key(|cell| rank(cell))
            .cloned()
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            nodes: RwLock::default(),
            revision: watch::Sender::new(0),
            floor: AtomicU64::new(0),
        }
    }

    fn shard(&self, name: &str) -> &RwLock<HashMap<ServiceName, Arc<ServiceCell>>> {
        &self.shards[self.hasher.hash_one(name) as usize % SHARDS]
    }

    pub(super) fn service(&self, name: &str) -> Option<Arc<ServiceCell>> {
        self.shard(name).read().get(name).cloned()
    }

    pub(super) fn service_or_new(&self, name: &ServiceName) -> Arc<ServiceCell> {
        let shard = self.shard(name.as_str());
        if let Some(cell) = shard.read().get(name) {
            return Arc::clone(cell);
        }
        let mut shard = shard.write();
        let cell = shard
            .entry(name.clone())
            .or_insert_with(|| Arc::new(ServiceCell::new(self.floor())));
        Arc::clone(cell)
    }

    /// Forgets the cell that a watcher of an unknown name made, once nobody else uses it. `cell` is the caller's own.
    pub(super) fn release(&self, name: &ServiceName, cell: &Arc<ServiceCell>) {
        if cell.revision() > self.floor() {
            return;
        }
        let mut shard = self.shard(name.as_str()).write();
        // One in the table, one with the caller: nobody else has it, and under this lock nobody else can get it. The
        // table of services would have it if there were instances.
        if Arc::strong_count(cell) == 2
            && shard
                .get(name)
                .is_some_and(|known| Arc::ptr_eq(known, cell))
        {
            shard.remove(name);
        }
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }

    /// Drops the views that nobody has read since the last call.
    pub(super) fn forget_unread(&self) {
        for shard in &self.shards {
            for cell in shard.read().values() {
                if !cell.read.swap(false, Ordering::Relaxed) {
                    cell.view.store(None);
                }
            }
        }
        for cell in self.nodes.read().by_id.values() {
            if !cell.read.swap(false, Ordering::Relaxed) {
                cell.forget_instances();
            }
        }
    }

    /// Forgets services without instances whose last change is older than `before` and that nobody watches. From then
    /// on an unknown service's revision is the highest forgotten one, so that no revision goes back.
    pub(super) fn prune(&self, before: u64) {
        let gone =
            |cell: &Arc<ServiceCell>| cell.revision() < before && Arc::strong_count(cell) == 1;
        for shard in &self.shards {
            let names: Vec<_> = shard
                .read()
                .iter()
                .filter(|(_, cell)| gone(cell))
                .map(|(name, _)| name.clone())
                .collect();
            for name in names {
                let mut shard = shard.write();
                // Nobody can have got hold of the cell since: that takes this lock.
                if shard.get(&name).is_some_and(gone)
                    && let Some(cell) = shard.remove(&name)
                {
                    self.floor.fetch_max(cell.revision(), Ordering::AcqRel);
                }
            }
        }
    }

    pub(super) fn node(&self, id: &NodeId) -> Option<Arc<NodeCell>> {
        self.nodes.read().by_id.get(id).cloned()
    }

    pub(super) fn node_by_name(&self, name: &str) -> Option<Arc<NodeCell>> {
        let nodes = self.nodes.read();
        nodes.best(nodes.by_name.get(name))
    }

    pub(super) fn node_by_ip(&self, ip: IpAddr) -> Option<Arc<NodeCell>> {
        let nodes = self.nodes.read();
        nodes.best(nodes.by_ip.get(&ip))
    }

    pub(super) fn nodes(&self) -> Vec<Arc<NodeView>> {
        let mut all: Vec<_> = self
            .nodes
            .read()
            .by_id
            .values()
            .map(|cell| cell.view())
            .collect();
        all.sort_unstable_by(|a, b| {
            (&a.record.name, a.record.id).cmp(&(&b.record.name, b.record.id))
        });
        all
    }

    /// Shows `view` in place of what was known of that node.
    pub(super) fn put_node(&self, view: &Arc<NodeView>) -> Arc<NodeCell> {
        let record = &view.record;
        let mut nodes = self.nodes.write();
        let cell = match nodes.by_id.get(&record.id) {
            Some(cell) => {
                let cell = Arc::clone(cell);
                let old = cell.view.swap(Arc::clone(view));
                if old.record.name == record.name && old.record.address == record.address {
                    return cell;
                }
                nodes.unlink(&old);
                cell
            }
            None => {
                let cell = Arc::new(NodeCell {
                    view: ArcSwap::new(Arc::clone(view)),
                    instances: ArcSwapOption::empty(),
                    read: AtomicBool::new(false),
                });
                nodes.by_id.insert(record.id, Arc::clone(&cell));
                cell
            }
        };
        nodes
            .by_name
            .entry(record.name.clone())
            .or_default()
            .push(record.id);
        nodes
            .by_ip
            .entry(record.address)
            .or_default()
            .push(record.id);
        cell
    }

    pub(super) fn remove_node(&self, id: &NodeId) {
        let mut nodes = self.nodes.write();
        if let Some(cell) = nodes.by_id.remove(id) {
            nodes.unlink(&cell.view());
        }
    }

    pub(super) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    pub(super) fn publish_revision(&self, revision: u64) {
        self.revision.send_replace(revision);
    }

    pub(super) fn watch_all(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
