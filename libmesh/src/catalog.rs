//! Who offers what, where, and how healthy it is.
//!
//! Each node is the only writer of its own records; a [`Catalog`] holds the records of all nodes and shows what is
//! present as views. It knows nothing of sockets: others feed it.
//!
//! Other nodes' records lie in the signed messages they came in, with sixteen bytes of index each: a million instances
//! with a check each take some 225 MB. Views are made when somebody reads, and kept while somebody does.
//!
//! Costs: a **read** is one shard lock for a hash lookup and one atomic load, and what it returns stays valid and
//! unchanged for as long as it is kept. The first read of a service makes its view (about 4 µs for each instance, under
//! the writers' lock); from then on it is kept up to date, until a minute or two passed in which nobody read it. A
//! **write** takes the writers' lock and costs O(log n), whatever the service's size; where the service's view is kept,
//! one pointer copy for each of its instances besides. A batch updates each view once. A **watch** is woken by changes
//! of its own service only, and by each of them, whether its view is kept or not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch as tokio_watch;

use crate::error::{Blame, Retry};
use crate::model::{InstanceId, InvalidField, Liveness, NodeId, ServiceName};

mod apply;
mod belief;
mod diff;
mod facts;
mod fields;
#[doc(hidden)]
pub mod fuzz;
mod index;
mod local;
pub mod log;
mod mass;
mod quota;
mod read;
mod record;
mod refusals;
pub mod replica;
mod saved;
mod select;
mod services;
mod show;
mod state;
mod strings;
#[cfg(any(test, feature = "sim"))]
pub mod testing;
mod verify;
mod view;
mod watch;
pub mod wire;

pub(crate) use apply::Origin;
#[doc(hidden)]
pub use apply::fuzz_message;
pub use apply::{LogHead, Outcome, Quarantined, Rejection};
pub use diff::Diff;
pub use local::{Gone, Inherited, LocalLog, OwnHead};
pub use mass::MassEvent;
pub use quota::{Limit, Quota};
pub use refusals::Refusals;
pub use saved::SavedError;
pub use select::{Distance, Doubtful, Fitness, Select};
pub use verify::{Signer, VerifiedNode, Verifier};
pub use view::{InstanceView, NodeView, ServiceView};
pub use watch::ServiceWatch;

use facts::{Facts, Touched};
use index::{Index, ServiceCell};
use local::OwnWrite;
use log::{Head, NodeLog};
use refusals::Ledger;
use state::State;

/// The records of all nodes, as one node sees them. Cheap to clone; all clones are the same catalog.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    clock: Clock,
    verifier: Option<Arc<dyn Verifier>>,
    signer: Option<Arc<dyn Signer>>,
    index: Arc<Index>,
    state: Mutex<State>,
    own_head: tokio_watch::Sender<OwnHead>,
    /// The own log's last snapshot, signed, and where the log was then.
    own_snapshot: Mutex<Option<(Head, Vec<Bytes>)>>,
    /// What the own log is held to.
    quota: Quota,
    /// What others' logs are held to.
    others: Quota,
    refusals: Ledger,
}

impl Inner {
    /// Tells those who wait for the own log.
    fn announce(&self, log: &NodeLog, urgent: bool) {
        self.own_head.send_if_modified(|known| {
            let changed = known.at != log.head();
            known.at = log.head();
            if changed && urgent {
                known.urgent = known.at.head;
            }
            changed
        });
    }
}

/// Unix time in µs.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a [`Catalog`] needs from outside.
#[derive(Clone)]
pub struct Options {
    /// Reads the certificates of other nodes; without one, nothing they say is believed.
    pub verifier: Option<Arc<dyn Verifier>>,
    /// Signs what this node says; without one, nothing is told to others.
    pub signer: Option<Arc<dyn Signer>>,
    /// The time in unix µs.
    pub clock: Clock,
    /// How much a node may say, this one and others.
    pub quota: Quota,
}

impl Default for Options {
    /// Alone in the world, by the system's clock.
    fn default() -> Self {
        Self {
            verifier: None,
            signer: None,
            clock: Arc::new(unix_micros),
            quota: Quota::default(),
        }
    }
}

/// Why a write to the own log was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// A field is not well formed.
    #[error(transparent)]
    Invalid(#[from] InvalidField),
    /// The own certificate is not valid, or not this node's.
    #[error("this node's certificate cannot be published: {0}")]
    Certificate(String),
    /// The own certificate does not allow it; `mesh join-token create --publish` says what a node may publish.
    #[error("this node's certificate does not allow it to publish service {service}")]
    NotPermitted {
        /// The service.
        service: ServiceName,
    },
    /// The node says more than one may: see [`Quota`]. For [`Limit::Rate`] a later try may succeed.
    #[error("too many {limit}: the most is {most}")]
    Quota {
        /// Which limit.
        limit: Limit,
        /// How much it allows.
        most: usize,
    },
    /// A check names an instance that this node does not have.
    #[error("instance {:?} is not registered on this node", id.as_str())]
    UnknownInstance {
        /// The instance's id.
        id: InstanceId,
    },
    /// A node may describe only itself.
    #[error("the record is of node {given}, this node is {own}")]
    ForeignNode {
        /// Id in the record.
        given: NodeId,
        /// Id of this node.
        own: NodeId,
    },
}

impl LocalError {
    /// Whom to blame: for what the certificate does not allow the configuration (the join token says it), for the rest
    /// the caller.
    pub fn blame(&self) -> Blame {
        match self {
            Self::NotPermitted { .. } => Blame::Configuration,
            Self::Certificate(_) => Blame::Authority,
            _ => Blame::Caller,
        }
    }

    /// Whether trying again helps.
    pub fn retry(&self) -> Retry {
        Retry::No
    }
}

impl Catalog {
    /// An empty catalog of the node `own` that believes nobody else and tells nobody: for use alone and in tests.
    pub fn new(own: NodeId) -> Self {
        Self::open(own, Options::default())
    }

    /// An empty catalog of the node `own`. Its log begins a new epoch; see [`restore`](Self::restore) for going on.
    pub fn open(own: NodeId, options: Options) -> Self {
        let now = (options.clock)();
        Self::with_log(NodeLog::new(own, now.max(1)), own, options, now)
    }

    fn with_log(log: NodeLog, own: NodeId, options: Options, now: u64) -> Self {
        let own_head = tokio_watch::Sender::new(OwnHead {
            at: log.head(),
            urgent: 0,
        });
        Self {
            inner: Arc::new(Inner {
                own,
                clock: options.clock,
                verifier: options.verifier,
                signer: options.signer,
                index: Arc::new(Index::new()),
                state: Mutex::new(State::new(own, log, now)),
                own_head,
                own_snapshot: Mutex::new(None),
                quota: options.quota,
                others: options.quota.doubled(),
                refusals: Ledger::default(),
            }),
        }
    }

    /// The node whose catalog this is.
    pub fn own(&self) -> NodeId {
        self.inner.own
    }

    /// Write access to the own node's records.
    pub fn local(&self) -> LocalLog {
        LocalLog::new(self.clone())
    }

    /// Where the own node's log stands.
    pub fn own_head(&self) -> Head {
        self.inner.own_head.borrow().at
    }

    /// The revision of the last change of anything: `max(last + 1, unix µs)`. Never goes back, close between nodes.
    pub fn revision(&self) -> u64 {
        self.inner.index.revision()
    }

    /// A service by name (letter case does not count); `None` = no instance on any node that is present.
    pub fn service(&self, name: &str) -> Option<Arc<ServiceView>> {
        lower(name, |name| {
            let cell = self.inner.index.service(name)?;
            self.view(&cell, name)
        })
    }

    fn view(&self, cell: &ServiceCell, name: &str) -> Option<Arc<ServiceView>> {
        if let Some(view) = cell.read() {
            return view;
        }
        let mut state = self.inner.state.lock();
        state.view(&self.inner.index, cell, name, true)
    }

    /// The revision of a service's last change, also after its last instance went; 0 when it never had one.
    pub fn service_revision(&self, name: &str) -> u64 {
        lower(name, |name| self.inner.index.service(name))
            .map_or(self.inner.index.floor(), |cell| cell.revision())
    }

    /// Names of all services that have an instance on a node that is present, in order. Costs one look at each service.
    pub fn service_names(&self) -> Vec<ServiceName> {
        let names = self.inner.state.lock().service_names();
        names.into_iter().collect()
    }

    /// All services, by name. Makes every view that is not kept, so it costs what the whole catalog does: for tests and
    /// small meshes; see [`service_names`](Self::service_names).
    pub fn services(&self) -> Vec<Arc<ServiceView>> {
        let view = |name: ServiceName| {
            let cell = self.inner.index.service(name.as_str())?;
            let mut state = self.inner.state.lock();
            state.view(&self.inner.index, &cell, name.as_str(), false)
        };
        self.service_names().into_iter().filter_map(view).collect()
    }

    /// The tags of all services' instances on those present nodes that `wanted` picks. Makes no views: costs one look at
    /// each instance, under the writers' lock.
    pub fn service_tags(
        &self,
        wanted: impl Fn(&NodeView) -> bool,
    ) -> BTreeMap<ServiceName, BTreeSet<Arc<str>>> {
        self.inner.state.lock().tags(&self.inner.index, wanted)
    }

    /// The service of each address that an instance has of its own, on nodes that are shown; of several services with one
    /// address, the first by name. Makes no views: costs one look at each instance, under the writers' lock.
    pub fn own_addresses(&self) -> HashMap<IpAddr, ServiceName> {
        self.inner.state.lock().own_addresses()
    }

    /// The services that can be called over mTLS: those of which an instance has a
    /// [`mesh_port`](crate::model::Instance::mesh_port), or that a connect proxy speaks for. Costs the same.
    pub fn meshed_services(&self) -> BTreeSet<ServiceName> {
        self.inner.state.lock().meshed_services()
    }

    /// A node by name (letter case does not count), down or not; `None` for one that left.
    pub fn node(&self, name: &str) -> Option<Arc<NodeView>> {
        Some(lower(name, |name| self.inner.index.node_by_name(name))?.view())
    }

    /// A node by id.
    pub fn node_by_id(&self, id: &NodeId) -> Option<Arc<NodeView>> {
        Some(self.inner.index.node(id)?.view())
    }

    /// A node by its address.
    pub fn node_by_ip(&self, ip: IpAddr) -> Option<Arc<NodeView>> {
        Some(self.inner.index.node_by_ip(ip)?.view())
    }

    /// All nodes that did not leave, by name; those that are down say so in [`NodeView::liveness`].
    pub fn nodes(&self) -> Vec<Arc<NodeView>> {
        self.inner.index.nodes()
    }

    /// What is shown of a node's instances, by instance id; empty for an unknown node or one that is down.
    pub fn instances_on(&self, node: &NodeId) -> Vec<Arc<InstanceView>> {
        let Some(cell) = self.inner.index.node(node) else {
            return Vec::new();
        };
        if let Some(kept) = cell.kept_instances() {
            return kept.to_vec();
        }
        self.inner.state.lock().instances_on(node, &cell).to_vec()
    }

    /// The alarms of the mass-event rule: zones in which so many nodes went down at once that what they offer is still
    /// shown, marked [`stale`](InstanceView::stale).
    pub fn mass_events(&self) -> Vec<MassEvent> {
        self.inner.state.lock().events.going_on()
    }

    /// A waiter on one service.
    pub fn watch_service(&self, name: &ServiceName) -> ServiceWatch {
        ServiceWatch::new(self, name)
    }

    /// A receiver of [`revision`](Self::revision), told of every change; changes in quick succession may come as one.
    pub fn watch_all(&self) -> tokio_watch::Receiver<u64> {
        self.inner.index.watch_all()
    }

    /// Takes what membership says about a node. A node that is down or left is hidden at once; its records are kept
    /// for its return.
    pub fn set_liveness(&self, node: NodeId, liveness: Liveness) {
        self.inner.state.lock().set_liveness(
            &self.inner.index,
            node,
            liveness,
            (self.inner.clock)(),
        );
    }

    /// Lets time pass: drops tombstones after 10 min, records of absent nodes after 72 h, views that nobody read
    /// for a minute, ends mass events after an hour. To be called every second or so.
    pub fn tick(&self) {
        self.inner
            .state
            .lock()
            .tick(&self.inner.index, (self.inner.clock)());
    }

    fn write_own<T>(&self, write: impl FnOnce(&mut OwnWrite<'_>) -> T) -> T {
        let now = (self.inner.clock)();
        let mut state = self.inner.state.lock();
        let State {
            nodes,
            own_facts: facts,
            own_log: log,
            own_pace: pace,
            inherited,
            ..
        } = &mut *state;
        let own = nodes
            .get_mut(&self.inner.own)
            .expect("the own node is never removed");
        let touched = Touched::default();
        let mut write_to = OwnWrite {
            own: self.inner.own,
            facts,
            verified: &mut own.verified,
            log,
            inherited,
            quota: &self.inner.quota,
            pace,
            touched,
            urgent: false,
            now,
        };
        let result = write(&mut write_to);
        let OwnWrite {
            touched, urgent, ..
        } = write_to;
        state.show_own(&self.inner.index, &touched, now);
        self.inner.announce(&state.own_log, urgent);
        result
    }

    fn read_own<T>(&self, read: impl FnOnce(&Facts) -> T) -> T {
        read(&self.inner.state.lock().own_facts)
    }

    fn watch_own(&self) -> tokio_watch::Receiver<OwnHead> {
        self.inner.own_head.subscribe()
    }

    fn verify_own(&self, chain: &[Vec<u8>]) -> Result<Option<VerifiedNode>, LocalError> {
        let Some(verifier) = &self.inner.verifier else {
            return Ok(None);
        };
        let verified = verifier.verify(chain).map_err(LocalError::Certificate)?;
        if verified.id != self.inner.own {
            return Err(LocalError::Certificate(format!(
                "it is node {}'s, this is {}",
                verified.id, self.inner.own
            )));
        }
        Ok(Some(verified))
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("own", &self.inner.own)
            .field("revision", &self.revision())
            .finish()
    }
}

/// Looks up `name` in lower case, without a copy where it is so already.
fn lower<T>(name: &str, find: impl Fn(&str) -> Option<T>) -> Option<T> {
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        find(&name.to_ascii_lowercase())
    } else {
        find(name)
    }
}

fn unix_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
