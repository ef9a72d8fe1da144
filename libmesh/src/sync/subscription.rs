//! Following a few services without being a full replica: what a sidecar or a small embedded program does.
//!
//! A [`Subscription`] reads from two full replicas at once. Each tells, for every followed service, first everything and
//! then what changes, node by node, with the head of the owner's log at which it was so; of two such parts the one with
//! the greater head is shown, and what was shown is never followed by something older. A node that one replica believes
//! to be away is shown as long as the other still has it.
//!
//! When a replica goes, the other one carries on alone and a third one is asked to take its place; it is told hashes of
//! what is known already, so that it sends only what differs (and a replica that was only out of reach for a moment
//! sends nothing when its revision of the service is the same). While no replica answers, the last state stays, marked
//! by [`FollowedService::live`]. A replica that has just started refuses until it has caught up, so an empty answer is
//! never its ignorance.
//!
//! Costs: memory for the followed services, twice; a heartbeat every two seconds from each of two replicas.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::codec::Frame;
use super::follow_wire::{Follow, Part, ServiceUpdate, Shown, Subscribe, UPDATE_MAX, Update};
use super::publisher::QUIET;
use crate::catalog::log::Head;
use crate::model::{
    CheckRecord, Health, Host, Instance, Liveness, NodeId, NodeRecord, ServiceName,
};
use crate::rpc::{Client, RpcError, Stream, Target};

pub use super::follow_wire::SERVICES_MAX;

/// The RPC path.
pub(crate) const SUBSCRIBE: &str = "/catalog/subscribe";
/// Replicas that are read from.
const REPLICAS: usize = 2;
/// Time for a replica to begin its answer.
const OPEN: Duration = Duration::from_secs(5);
/// A replica that says nothing for this long is gone.
const SILENCE: Duration = Duration::from_millis(3 * QUIET.as_millis() as u64);
/// Waits before the next replica is asked: doubling from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Nodes remembered as having nothing of a service, for each replica.
const GONE_MAX: usize = 1024;

/// More services than one subscription follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} services are too many for one subscription, the most is {SERVICES_MAX}: be a full replica"
)]
pub struct TooManyServices(pub usize);

/// An instance of a followed service.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowedInstance {
    /// The node it runs on.
    pub node: Arc<NodeRecord>,
    /// What membership thinks of the node.
    pub liveness: Liveness,
    /// What its node published.
    pub instance: Instance,
    /// Its own checks, then those of its node.
    pub checks: Vec<CheckRecord>,
    /// The worst of `checks`; passing when there is none.
    pub health: Health,
    /// Its node went down together with so many others that the network is the more likely cause.
    pub stale: bool,
}

impl FollowedInstance {
    /// Where it answers: its own address, else its node's.
    pub fn address(&self) -> Host {
        let own = self.instance.address.clone();
        own.unwrap_or(Host::Ip(self.node.address))
    }

    /// Where its sidecar takes mTLS connections: its own address when that is an IP, else its node's. `None` when it
    /// has no sidecar.
    pub fn mesh_addr(&self) -> Option<SocketAddr> {
        let ip = match self.instance.address {
            Some(Host::Ip(ip)) => ip,
            Some(Host::Name(_)) | None => self.node.address,
        };
        let port = self.instance.mesh_port?;
        Some(SocketAddr::new(ip, port))
    }

    /// Whether it may get traffic: passing or warning, on a node that is not suspect, and not stale.
    pub fn is_usable(&self) -> bool {
        self.health.is_usable() && !self.stale && self.liveness == Liveness::Alive
    }
}

/// A followed service as of one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct FollowedService {
    /// Its name.
    pub name: ServiceName,
    /// Rises with every change: `max(last + 1, unix µs)`.
    pub revision: u64,
    /// Ordered by node name, then instance id. Empty when there is none.
    pub instances: Vec<Arc<FollowedInstance>>,
    /// Whether a replica vouches for this now; otherwise it is the last that was known.
    pub live: bool,
}

impl FollowedService {
    /// The instances that may get traffic.
    pub fn usable(&self) -> impl Iterator<Item = &Arc<FollowedInstance>> {
        self.instances
            .iter()
            .filter(|instance| instance.is_usable())
    }
}

/// A receiver of a followed service: `None` until it is known; ends when the service is no longer followed.
pub type FollowedWatch = watch::Receiver<Option<Arc<FollowedService>>>;

/// Follows some services from two full replicas until it is dropped. See the [module](self).
///
/// ```no_run
/// use libmesh::{model::ServiceName, rpc::{Client, Target}, sync::Subscription};
///
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let replicas = ["10.0.0.1:8301".parse()?, "10.0.0.2:8301".parse()?, "10.0.0.3:8301".parse()?];
/// let db = ServiceName::parse("db")?;
/// let followed = Subscription::start(client, move || replicas.map(Target::any).to_vec(), [db.clone()])?;
/// followed.ready().await;
/// for instance in followed.service(&db).iter().flat_map(|db| db.usable()) {
///     println!("{} at {}:{}", instance.node.name, instance.address(), instance.instance.port);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Subscription {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

impl Subscription {
    /// Follows `services`. `replicas` is asked for targets whenever one is needed; any full replica will do (every agent
    /// is one), and they may change over time.
    ///
    /// Must be called in a Tokio runtime. Connection errors are no errors here: the subscription tries on.
    ///
    /// # Errors
    /// [`TooManyServices`].
    pub fn start(
        client: Client,
        replicas: impl Fn() -> Vec<Target> + Send + Sync + 'static,
        services: impl IntoIterator<Item = ServiceName>,
    ) -> Result<Self, TooManyServices> {
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            client,
            replicas: Box::new(replicas),
            follows: watch::Sender::new(Arc::default()),
            merged: Mutex::default(),
        });
        let subscription = Self {
            shared: Arc::clone(&shared),
            _stop: stop.clone().drop_guard(),
        };
        subscription.follow(services)?;
        for slot in 0..REPLICAS {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            tokio::spawn(async move {
                // Boxed: reading holds the buffers of a stream.
                stop.run_until_cancelled(Box::pin(shared.read_from(slot)))
                    .await;
            });
        }
        Ok(subscription)
    }

    /// Follows exactly `services` from now on. What is followed already goes on without a gap.
    ///
    /// # Errors
    /// [`TooManyServices`]: nothing has changed.
    pub fn follow(
        &self,
        services: impl IntoIterator<Item = ServiceName>,
    ) -> Result<(), TooManyServices> {
        let services: BTreeSet<_> = services.into_iter().collect();
        if services.len() > SERVICES_MAX {
            return Err(TooManyServices(services.len()));
        }
        let mut merged = self.shared.merged.lock();
        merged.services.retain(|name, _| services.contains(name));
        for slot in &mut merged.slots {
            slot.told.retain(|name, _| services.contains(name));
        }
        for name in &services {
            merged.services.entry(name.clone()).or_default();
        }
        self.shared.follows.send_replace(Arc::new(services));
        Ok(())
    }

    /// A followed service now; `None` when it is not followed, or not known yet.
    pub fn service(&self, name: &ServiceName) -> Option<Arc<FollowedService>> {
        let merged = self.shared.merged.lock();
        merged.services.get(name)?.shown.borrow().clone()
    }

    /// A receiver of a followed service; `None` when it is not followed.
    pub fn watch(&self, name: &ServiceName) -> Option<FollowedWatch> {
        let merged = self.shared.merged.lock();
        Some(merged.services.get(name)?.shown.subscribe())
    }

    /// Returns when everything that is followed is known.
    pub async fn ready(&self) {
        loop {
            let waiting = {
                let merged = self.shared.merged.lock();
                let mut unknown = merged
                    .services
                    .values()
                    .filter(|s| s.shown.borrow().is_none());
                unknown.next().map(|service| service.shown.subscribe())
            };
            let Some(mut waiting) = waiting else {
                return;
            };
            // An error says that it is no longer followed.
            drop(waiting.wait_for(Option::is_some).await);
        }
    }

    /// The replicas that are read from now.
    pub fn replicas(&self) -> Vec<SocketAddr> {
        let merged = self.shared.merged.lock();
        let live = merged.slots.iter().filter(|slot| slot.live);
        live.filter_map(|slot| slot.addr).collect()
    }
}

struct Shared {
    client: Client,
    replicas: Box<dyn Fn() -> Vec<Target> + Send + Sync>,
    follows: watch::Sender<Arc<BTreeSet<ServiceName>>>,
    merged: Mutex<Merged>,
}

#[derive(Default)]
struct Merged {
    slots: [Slot; REPLICAS],
    services: BTreeMap<ServiceName, Service>,
}

/// What one replica says.
#[derive(Default)]
struct Slot {
    addr: Option<SocketAddr>,
    live: bool,
    life: u64,
    told: HashMap<ServiceName, Told>,
}

#[derive(Default)]
struct Told {
    revision: u64,
    /// Everything is here.
    complete: bool,
    parts: HashMap<NodeId, Arc<Part>>,
    gone: HashMap<NodeId, Head>,
    /// Nodes of which something came in the change that is under way.
    arriving: BTreeSet<NodeId>,
}

/// What is shown.
struct Service {
    nodes: HashMap<NodeId, Merge>,
    shown: watch::Sender<Option<Arc<FollowedService>>>,
}

impl Default for Service {
    fn default() -> Self {
        Self {
            nodes: HashMap::new(),
            shown: watch::Sender::new(None),
        }
    }
}

/// The newest that is known of what a node has.
#[derive(Debug, Clone, PartialEq)]
struct Merge {
    at: Head,
    /// `None`: nothing.
    part: Option<Arc<Part>>,
    liveness: Liveness,
    stale: bool,
}

impl Shared {
    /// Reads from one replica after the other.
    async fn read_from(&self, slot: usize) {
        let mut follows = self.follows.subscribe();
        let mut failures = 0;
        loop {
            let Some(target) = self.pick(slot) else {
                self.lost(slot);
                failures += 1;
                sleep(back_off(failures)).await;
                continue;
            };
            let began = self.read(slot, &target, &mut follows).await;
            self.lost(slot);
            failures = if began { 1 } else { failures + 1 };
            sleep(back_off(failures)).await;
        }
    }

    /// A replica that the other slot does not use.
    fn pick(&self, slot: usize) -> Option<Target> {
        let mut targets = (self.replicas)();
        let mut merged = self.merged.lock();
        let taken = |target: &Target| {
            let mut slots = merged.slots.iter().enumerate();
            slots.any(|(other, state)| other != slot && state.addr == Some(target.addr))
        };
        targets.retain(|target| !taken(target));
        let target = (!targets.is_empty())
            .then(|| targets.swap_remove(rand::random_range(0..targets.len())));
        merged.slots[slot].addr = target.as_ref().map(|target| target.addr);
        target
    }

    /// Reads from `target` until it fails; whether it ever began. A change of what is followed opens a new stream before
    /// the old one is given up.
    async fn read(
        &self,
        slot: usize,
        target: &Target,
        follows: &mut watch::Receiver<Arc<BTreeSet<ServiceName>>>,
    ) -> bool {
        let mut began = false;
        loop {
            let services = follows.borrow_and_update().clone();
            let opened = self.open(slot, target, &services).await;
            let mut stream = match opened {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::debug!(replica = %target.addr, %error, "no subscription");
                    return began;
                }
            };
            loop {
                tokio::select! {
                    changed = follows.changed() => {
                        if changed.is_err() {
                            return began;
                        }
                        break;
                    }
                    frame = timeout(SILENCE, stream.next()) => {
                        let update = match frame {
                            Ok(Ok(Some(frame))) => Update::decode(&frame),
                            Ok(Ok(None)) | Err(_) => return began,
                            Ok(Err(error)) => {
                                tracing::debug!(%error, "a subscription broke");
                                return began;
                            }
                        };
                        let Ok(update) = update else {
                            tracing::warn!(replica = %target.addr, "a replica sends what is no update");
                            return began;
                        };
                        began = true;
                        self.take(slot, update);
                    }
                }
            }
        }
    }

    async fn open(
        &self,
        slot: usize,
        target: &Target,
        services: &BTreeSet<ServiceName>,
    ) -> Result<Stream, RpcError> {
        let body = self.request(slot, services);
        self.client
            .open(target, SUBSCRIBE, body, OPEN, UPDATE_MAX)
            .await
    }

    fn request(&self, slot: usize, services: &BTreeSet<ServiceName>) -> Bytes {
        let merged = self.merged.lock();
        let slot = &merged.slots[slot];
        let follow = |service: &ServiceName| {
            let told = slot.told.get(service);
            let parts = told.into_iter().flat_map(|told| &told.parts);
            Follow {
                service: service.clone(),
                revision: told
                    .filter(|told| told.complete)
                    .map_or(0, |told| told.revision),
                parts: parts.map(|(node, part)| (*node, part.hash)).collect(),
            }
        };
        Subscribe {
            life: slot.life,
            follows: services.iter().map(follow).collect(),
        }
        .encode()
    }

    fn take(&self, slot: usize, update: Update) {
        let mut merged = self.merged.lock();
        match update {
            Update::Hello { life } => {
                let slot = &mut merged.slots[slot];
                let goes_on = slot.live && slot.life == life;
                (slot.life, slot.live) = (life, true);
                if !goes_on {
                    // What it says of them is to come; what was said before a break is no answer any more.
                    let told = slot.told.values_mut();
                    told.for_each(|told| told.complete = false);
                }
            }
            Update::Quiet => {}
            Update::Service(update) => {
                let name = update.service.clone();
                if !merged.services.contains_key(&name) {
                    return;
                }
                let told = merged.slots[slot].told.entry(name.clone()).or_default();
                if told.take(update) {
                    merged.show(&name);
                }
            }
        }
    }

    /// A replica does not answer any more.
    fn lost(&self, slot: usize) {
        let mut merged = self.merged.lock();
        merged.slots[slot].addr = None;
        if !std::mem::take(&mut merged.slots[slot].live) {
            return;
        }
        for name in merged.services.keys().cloned().collect::<Vec<_>>() {
            merged.show(&name);
        }
    }
}

impl Told {
    /// Whether it is complete with that.
    fn take(&mut self, update: ServiceUpdate) -> bool {
        for part in update.parts {
            let node = part.node.id;
            self.gone.remove(&node);
            let first = self.arriving.insert(node);
            match self.parts.get_mut(&node).filter(|_| !first) {
                Some(begun) => Arc::make_mut(begun).instances.extend(part.instances),
                None => drop(self.parts.insert(node, Arc::new(part))),
            }
        }
        for gone in update.gone {
            self.parts.remove(&gone.node);
            if self.gone.len() >= GONE_MAX {
                self.gone.clear();
            }
            if let Some(at) = gone.at {
                self.gone.insert(gone.node, at);
            }
        }
        if update.more {
            return false;
        }
        self.arriving.clear();
        self.revision = update.revision;
        self.complete = true;
        true
    }
}

impl Merged {
    /// Shows the newest of what live replicas say of a service; what was shown stays while none of them is complete.
    fn show(&mut self, name: &ServiceName) {
        let Some(service) = self.services.get_mut(name) else {
            return;
        };
        let told: Vec<_> = self
            .slots
            .iter()
            .filter(|slot| slot.live)
            .filter_map(|slot| slot.told.get(name).filter(|told| told.complete))
            .collect();
        if told.is_empty() {
            service.shown.send_if_modified(|shown| match shown {
                Some(service) if service.live => {
                    Arc::make_mut(service).live = false;
                    true
                }
                _ => false,
            });
            return;
        }
        let ids: BTreeSet<_> = told
            .iter()
            .flat_map(|told| told.parts.keys().chain(told.gone.keys()))
            .copied()
            .collect();
        let nodes: HashMap<_, _> = ids
            .into_iter()
            .filter_map(|id| Some((id, merge(&told, id, service.nodes.get(&id))?)))
            .collect();
        let known = service.shown.borrow().clone();
        let was_live = known.as_ref().is_some_and(|known| known.live);
        if was_live && service.nodes == nodes {
            return;
        }
        service.nodes = nodes;
        let revision = known.map_or(0, |known| known.revision) + 1;
        let shown = FollowedService {
            name: name.clone(),
            revision: revision.max(unix_micros()),
            instances: instances(&service.nodes),
            live: true,
        };
        service.shown.send_replace(Some(Arc::new(shown)));
    }
}

/// The newest of what is said of a node, `shown` included; `None` when it is away or nobody knows it.
fn merge(told: &[&Told], id: NodeId, shown: Option<&Merge>) -> Option<Merge> {
    let parts = || told.iter().filter_map(|told| told.parts.get(&id));
    let newest = parts().max_by_key(|part| part.at);
    let gone = told.iter().filter_map(|told| told.gone.get(&id)).max();
    let mut merge = match (newest, gone) {
        (Some(part), gone) if gone.is_none_or(|gone| *gone < part.at) => Merge {
            at: part.at,
            part: Some(Arc::clone(part)),
            liveness: Liveness::Suspect,
            stale: true,
        },
        (_, Some(gone)) => Merge {
            at: *gone,
            part: None,
            liveness: Liveness::Suspect,
            stale: true,
        },
        _ => return None,
    };
    if let Some(shown) = shown.filter(|shown| shown.at > merge.at) {
        (merge.at, merge.part) = (shown.at, shown.part.clone());
    }
    if parts().any(|part| part.liveness == Liveness::Alive) {
        merge.liveness = Liveness::Alive;
    }
    let is_stale = |part: &Arc<Part>| part.instances.iter().any(|shown| shown.stale);
    merge.stale = parts().count() > 0 && parts().all(is_stale);
    Some(merge)
}

fn instances(nodes: &HashMap<NodeId, Merge>) -> Vec<Arc<FollowedInstance>> {
    let of = |merge: &Merge| {
        let (liveness, stale) = (merge.liveness, merge.stale);
        let parts = merge
            .part
            .iter()
            .map(|part| (Arc::new(part.node.clone()), part));
        let shown = parts.flat_map(move |(node, part)| {
            let with = move |shown: &Shown| FollowedInstance {
                node: Arc::clone(&node),
                liveness,
                instance: shown.instance.clone(),
                checks: shown.checks.clone(),
                health: shown.health,
                stale,
            };
            part.instances
                .iter()
                .map(with)
                .map(Arc::new)
                .collect::<Vec<_>>()
        });
        shown.collect::<Vec<_>>()
    };
    let mut all: Vec<_> = nodes.values().flat_map(of).collect();
    all.sort_by(|a, b| {
        let place = |of: &FollowedInstance| (of.node.name.clone(), of.node.id);
        place(a)
            .cmp(&place(b))
            .then_with(|| a.instance.id.cmp(&b.instance.id))
    });
    all
}

fn back_off(failures: u32) -> Duration {
    let wait = BACK_OFF.0 * 2u32.saturating_pow(failures.min(8).saturating_sub(1));
    wait.min(BACK_OFF.1).mul_f64(rand::random_range(0.5..1.0))
}

fn unix_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
