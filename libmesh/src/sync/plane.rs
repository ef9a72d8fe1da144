//! Dissemination of one node over its transport: the calls that the tree asks for, and the answers to those of others.
//!
//! What a peer pushes is applied, and passed on, in the handler of its call: no task in between, no timer.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::codec::{
    CodecError, Differences, Digest, Frame, Heads, Messages, PullRequest, Push, PushReply, Want,
};
use super::exchange::Taken;
use super::publisher::Subscribers;
use super::thin::Thin;
use super::tree::{Item, Output, Tree};
use super::worker::Worker;
use super::{CallFailed, SyncCall, SyncTransport, exchange};
use crate::catalog::log::Head;
use crate::catalog::wire::header_of;
use crate::catalog::{Catalog, Origin};
use crate::member::{Member, MemberEvent, MemberState, Membership};
use crate::model::NodeId;

/// Calls under way at most, to all peers together.
const CALLS_MAX: usize = 64;
/// Messages worth more than this are taken in on a thread that may block.
const BLOCKING_BYTES: usize = 128 * 1024;
/// Who lacks the logs of more nodes than this fetches them from several peers, and tells nobody that it has them now.
const BULK_NODES: usize = 64;
/// From so many.
const BULK_PEERS: usize = 4;

/// How often things happen.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Between two exchanges with a random peer, ± 20 % (10 s).
    pub exchange_every: Duration,
    /// For one call (5 s).
    pub call_deadline: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            exchange_every: Duration::from_secs(10),
            call_deadline: Duration::from_secs(5),
        }
    }
}

/// Where the members come from.
pub struct Members {
    /// Changes.
    pub events: broadcast::Receiver<MemberEvent>,
    /// All of them now; asked at the start and when events were missed.
    pub list: Box<dyn Fn() -> Vec<MemberState> + Send>,
}

impl From<&Membership> for Members {
    fn from(membership: &Membership) -> Self {
        let handle = membership.clone();
        Self {
            events: membership.events(),
            list: Box::new(move || handle.members()),
        }
    }
}

/// Catalog dissemination of one node. Cheap to clone; [`run`](Self::run) is to be spawned once.
#[derive(Clone)]
pub struct Plane {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) catalog: Catalog,
    transport: Arc<dyn SyncTransport>,
    pub(super) config: Config,
    calls: Semaphore,
    started: Instant,
    pub(super) shared: Mutex<Shared>,
    /// The tree wants to be called earlier than the worker knows.
    pub(super) wake: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
    pub(super) subscribers: Subscribers,
    /// Tells this life of the replica from others, whose revisions mean nothing here.
    pub(super) life: u64,
    /// Peers were asked, or there are none.
    pub(super) caught_up: watch::Sender<bool>,
}

pub(super) struct Shared {
    pub(super) tree: Tree,
    pub(super) peers: HashMap<NodeId, Peer>,
    /// When the worker will call the tree.
    pub(super) armed: Option<Duration>,
}

pub(super) struct Peer {
    pub(super) member: Member,
    /// It speaks the first version only.
    pub(super) thin: Option<Thin>,
}

impl Plane {
    /// A plane over `transport`.
    pub fn new(catalog: Catalog, transport: Arc<dyn SyncTransport>, config: Config) -> Self {
        let shared = Shared {
            tree: Tree::new(catalog.own()),
            peers: HashMap::new(),
            armed: None,
        };
        Self {
            inner: Arc::new(Inner {
                catalog,
                transport,
                config,
                calls: Semaphore::new(CALLS_MAX),
                started: Instant::now(),
                shared: Mutex::new(shared),
                wake: Notify::new(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
                subscribers: Subscribers::default(),
                life: rand::random_range(1..=u64::MAX),
                caught_up: watch::Sender::new(false),
            }),
        }
    }

    /// Tells the catalog who is alive, tells peers what changes here, and compares with them, until `stop`.
    pub async fn run(self, members: Members, stop: CancellationToken) {
        let mut worker = Worker::new(self.clone(), members);
        worker.resync();
        tokio::select! {
            () = stop.cancelled() => {}
            () = worker.work() => {}
        }
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// Becomes true when peers were asked for what they have, or there are none.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.inner.caught_up.subscribe()
    }

    /// Takes in what another log of this process says, which has no plane of its own, and tells peers.
    pub async fn introduce(&self, messages: Vec<Bytes>) {
        let taken = self.take_in(Origin::SignedHere, messages).await;
        let own = self.inner.catalog.own();
        let mut shared = self.inner.shared.lock();
        let now = self.now();
        shared.tree.fetched(now, own, &taken.new);
        self.act(&mut shared);
    }

    /// Serves `/catalog/push` of `from`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_push(&self, from: NodeId, body: Bytes) -> Result<Bytes, CodecError> {
        let Push { direct, messages } = Push::decode(&body)?;
        let taken = self.take_in(Origin::Anybody, messages).await;
        let mut shared = self.inner.shared.lock();
        let now = self.now();
        let prune = shared
            .tree
            .received(now, from, direct, &taken.new, taken.known);
        for (node, (at, _)) in &taken.gaps {
            shared.tree.announced(now, from, *node, *at, true);
        }
        self.act(&mut shared);
        let rejected = taken.rejected;
        Ok(PushReply { prune, rejected }.encode())
    }

    /// Serves `/catalog/heads` of `from`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_heads(&self, from: NodeId, body: Bytes) -> Result<Bytes, CodecError> {
        let Heads { link, heads } = Heads::decode(&body)?;
        let catalog = &self.inner.catalog;
        let lacking = |(node, at): &(NodeId, Head)| catalog.lacks(node, *at).is_some();
        let lacking: Vec<_> = heads.into_iter().filter(lacking).collect();
        let mut shared = self.inner.shared.lock();
        let now = self.now();
        if link {
            shared.tree.heard(from);
        }
        for (node, at) in lacking {
            shared.tree.announced(now, from, node, at, false);
        }
        self.act(&mut shared);
        Ok(Bytes::new())
    }

    /// Serves `/catalog/graft` of `from`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_graft(&self, from: NodeId, body: Bytes) -> Result<Bytes, CodecError> {
        self.inner.shared.lock().tree.grafted_by(from);
        self.handle_pull(body).await
    }

    /// Serves `/catalog/compare`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_compare(&self, body: Bytes) -> Result<Bytes, CodecError> {
        exchange::handle_compare(&self.inner.catalog, &body)
    }

    /// Serves `/catalog/pull`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_pull(&self, body: Bytes) -> Result<Bytes, CodecError> {
        exchange::handle_pull(&self.inner.catalog, &body)
    }

    /// Serves `/catalog/delta` of `from`, which speaks the first version only.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_delta(&self, from: NodeId, body: Bytes) -> Result<Bytes, CodecError> {
        let messages = Messages::decode(&body)?.messages;
        let taken = self.take_in(Origin::Anybody, messages).await;
        let mut shared = self.inner.shared.lock();
        self.mark_thin(&mut shared, from);
        // It tells all others itself.
        let now = self.now();
        shared.tree.received(now, from, true, &taken.new, 0);
        self.act(&mut shared);
        Ok(taken.reply().encode())
    }

    /// Serves `/catalog/digest` of `from`, which speaks the first version only.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_digest(&self, from: NodeId, body: Bytes) -> Result<Bytes, CodecError> {
        self.mark_thin(&mut self.inner.shared.lock(), from);
        exchange::handle_digest(&self.inner.catalog, &body)
    }

    /// Time since the start, as the tree counts it.
    pub(super) fn now(&self) -> Duration {
        Instant::now() - self.inner.started
    }

    /// The instant of a tree's time.
    pub(super) fn instant(&self, at: Duration) -> Instant {
        self.inner.started + at
    }

    /// Tells others of a change of the own log, from `since` on. Returns how far that brings them.
    pub(super) fn publish(&self, since: Head) -> Head {
        let catalog = &self.inner.catalog;
        let messages = catalog.messages_since(catalog.own(), since);
        let headers: Vec<_> = messages.iter().filter_map(|raw| header_of(raw)).collect();
        let Some(last) = headers.last().copied() else {
            return catalog.own_head();
        };
        let item = |(node, at, raw)| Item { node, at, raw };
        // A snapshot in parts is pulled, from whoever has it.
        let items: Vec<_> = if headers.iter().any(|header| header.partial) {
            vec![item((last.node, last.at, None))]
        } else {
            let all = headers.iter().zip(messages);
            all.map(|(header, raw)| item((header.node, header.at, Some(raw))))
                .collect()
        };
        let mut shared = self.inner.shared.lock();
        shared.tree.publish(self.now(), last.at, &items);
        self.act(&mut shared);
        last.at
    }

    /// Does what the tree asks for.
    pub(super) fn act(&self, shared: &mut Shared) {
        while let Some(output) = shared.tree.poll() {
            let (Output::Push { to: id, .. }
            | Output::Digest { to: id, .. }
            | Output::Graft { from: id, .. }
            | Output::Compare { with: id }) = &output;
            let Some(peer) = shared.peers.get(id).map(|peer| peer.member) else {
                continue;
            };
            let plane = self.clone();
            self.spawn(async move { plane.perform(peer, output).await });
        }
        let due = shared.tree.due();
        if due.is_some_and(|due| shared.armed.is_none_or(|armed| due < armed)) {
            shared.armed = due;
            self.inner.wake.notify_one();
        }
    }

    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.inner.stop.clone();
        self.inner.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    async fn perform(&self, peer: Member, output: Output) {
        match output {
            Output::Push { direct, items, .. } => {
                let messages = items.into_iter().filter_map(|item| item.raw).collect();
                let body = Push { direct, messages }.encode();
                let reply = self.ask::<PushReply>(peer, SyncCall::Push, body).await;
                if let Ok(PushReply { rejected: 1.., .. }) = reply {
                    tracing::debug!(peer = %peer.addr, "a peer does not believe what was passed on to it");
                }
                let answer = self.answered(peer, reply);
                let mut shared = self.inner.shared.lock();
                let prune = answer.map(|reply| reply.prune);
                shared.tree.pushed(self.now(), peer.id, prune);
                self.act(&mut shared);
            }
            Output::Digest { heads, .. } => {
                let body = Heads { link: true, heads }.encode();
                let reply = self.call(peer, SyncCall::Heads, body).await;
                let ok = self.answered(peer, reply).is_some();
                let mut shared = self.inner.shared.lock();
                shared.tree.told(self.now(), peer.id, ok);
                self.act(&mut shared);
            }
            Output::Graft { nodes, .. } => {
                let wants = self.wants(&nodes);
                let pulled = self.pull(peer, SyncCall::Graft, wants, true).await;
                self.answered(peer, pulled);
                let mut shared = self.inner.shared.lock();
                shared.tree.grafted(self.now(), &nodes);
                self.act(&mut shared);
            }
            Output::Compare { .. } => {
                let exchanged = self.exchange(peer, false, &[]).await;
                self.answered(peer, exchanged);
            }
        }
    }

    /// What a call brought; one that failed is noted.
    fn answered<T>(&self, peer: Member, answer: Result<T, CallFailed>) -> Option<T> {
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "catalog call failed");
                if error.unsupported {
                    self.mark_thin(&mut self.inner.shared.lock(), peer.id);
                }
                None
            }
        }
    }

    fn wants(&self, nodes: &[NodeId]) -> Vec<Want> {
        let beyond = Head {
            epoch: u64::MAX,
            head: u64::MAX,
        };
        let want = |node: &NodeId| {
            let have = self.inner.catalog.lacks(node, beyond)?;
            let node = *node;
            Some(Want {
                node,
                have,
                skip: 0,
            })
        };
        nodes.iter().filter_map(want).collect()
    }

    pub(super) async fn call(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> Result<Bytes, CallFailed> {
        let failed = |reason: &str| CallFailed {
            call,
            peer,
            unsupported: false,
            reason: reason.to_owned(),
        };
        let calls = self.inner.calls.acquire();
        let _permit = calls.await.map_err(|_| failed("stopped"))?;
        tokio::time::timeout(
            self.inner.config.call_deadline,
            self.inner.transport.call(peer, call, body),
        )
        .await
        .unwrap_or_else(|_| Err(failed("no answer in time")))
    }

    pub(super) async fn ask<T: Frame>(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> Result<T, CallFailed> {
        let reply = self.call(peer, call, body).await?;
        T::decode(&reply).map_err(|error| CallFailed {
            call,
            peer,
            unsupported: false,
            reason: error.to_string(),
        })
    }

    async fn take_in(&self, origin: Origin, messages: Vec<Bytes>) -> Taken {
        let catalog = self.inner.catalog.clone();
        if messages.iter().map(Bytes::len).sum::<usize>() <= BLOCKING_BYTES {
            return exchange::take_in(&catalog, origin, messages);
        }
        let taken = move || exchange::take_in(&catalog, origin, messages);
        tokio::task::spawn_blocking(taken)
            .await
            .unwrap_or_else(|error| {
                tracing::error!(%error, "taking in catalog messages ended abnormally");
                Taken::default()
            })
    }

    /// Compares with `peer`, fetches what we lack (from some of `others` as well when it is much), and tells it what it
    /// lacks.
    pub(super) async fn exchange(
        &self,
        peer: Member,
        content: bool,
        others: &[Member],
    ) -> Result<Exchanged, CallFailed> {
        let catalog = &self.inner.catalog;
        let heads = catalog.heads();
        let ours = exchange::hashed(&heads, content);
        let buckets = ours.buckets.len();
        let compared = self.ask(peer, SyncCall::Compare, ours.encode()).await;
        let theirs: Differences = match compared {
            Err(error) if error.unsupported => {
                self.mark_thin(&mut self.inner.shared.lock(), peer.id);
                return self.exchange_thin(peer, content, others).await;
            }
            compared => compared?,
        };
        let plan = exchange::compare(catalog, &theirs.heads);
        let lacking = exchange::ahead(&heads, buckets, &theirs);
        if !lacking.is_empty() {
            let heads = lacking;
            let body = Heads { link: false, heads }.encode();
            self.call(peer, SyncCall::Heads, body).await?;
        }
        self.carry_out(peer, plan, others).await
    }

    /// The exchange with a peer of the first version.
    pub(super) async fn exchange_thin(
        &self,
        peer: Member,
        content: bool,
        others: &[Member],
    ) -> Result<Exchanged, CallFailed> {
        let ours = exchange::digest(&self.inner.catalog, content).encode();
        let theirs: Digest = self.ask(peer, SyncCall::Digest, ours).await?;
        let plan = exchange::compare(&self.inner.catalog, &theirs.heads);
        self.carry_out(peer, plan, others).await
    }

    async fn carry_out(
        &self,
        peer: Member,
        plan: exchange::Plan,
        others: &[Member],
    ) -> Result<Exchanged, CallFailed> {
        let exchanged = Exchanged {
            knows_us: plan.knows_us,
            lacked: plan.wants.len(),
        };
        self.fetch(peer, plan.wants, others).await?;
        for node in plan.damaged {
            tracing::warn!(%node, peer = %peer.addr, "a node's records differ at the same head; fetching them anew");
            self.inner.catalog.distrust(&node);
            let owner = others.iter().find(|member| member.id == node);
            let want = Want {
                node,
                have: Head::default(),
                skip: 0,
            };
            let from = owner.copied().unwrap_or(peer);
            self.pull(from, SyncCall::Pull, vec![want], false).await?;
        }
        Ok(exchanged)
    }

    async fn fetch(
        &self,
        peer: Member,
        wants: Vec<Want>,
        others: &[Member],
    ) -> Result<(), CallFailed> {
        if wants.len() <= BULK_NODES {
            return self.pull(peer, SyncCall::Pull, wants, true).await;
        }
        let mut from = vec![peer];
        let mut others: Vec<_> = others.iter().filter(|other| other.id != peer.id).collect();
        while from.len() < BULK_PEERS && !others.is_empty() {
            from.push(*others.swap_remove(rand::random_range(0..others.len())));
        }
        let mut pulls = JoinSet::new();
        for (at, share) in wants.chunks(wants.len().div_ceil(from.len())).enumerate() {
            let (plane, share, from) = (self.clone(), share.to_vec(), from[at]);
            pulls.spawn(async move {
                let pulled = plane.pull(from, SyncCall::Pull, share.clone(), false).await;
                if pulled.is_ok() || from.id == peer.id {
                    return pulled;
                }
                let left = plane.still_lacking(&share);
                plane.pull(peer, SyncCall::Pull, left, false).await
            });
        }
        let mut result = Ok(());
        while let Some(pulled) = pulls.join_next().await {
            result = result.and(pulled.unwrap_or(Ok(())));
        }
        result
    }

    fn still_lacking(&self, wants: &[Want]) -> Vec<Want> {
        let before: HashMap<_, _> = wants.iter().map(|want| (want.node, want.have)).collect();
        let nodes: Vec<_> = wants.iter().map(|want| want.node).collect();
        let mut wants = self.wants(&nodes);
        wants.retain(|want| before[&want.node] == want.have);
        wants
    }

    /// Fetches what is wanted, in as many turns as it takes; with `tell`, links are told of what came.
    async fn pull(
        &self,
        peer: Member,
        call: SyncCall,
        mut wants: Vec<Want>,
        tell: bool,
    ) -> Result<(), CallFailed> {
        while !wants.is_empty() {
            let request = PullRequest { wants };
            let reply: Messages = self.ask(peer, call, request.encode()).await?;
            if reply.messages.is_empty() {
                break;
            }
            let taken = self.take_in(Origin::Anybody, reply.messages).await;
            wants = reply.next;
            if tell && !taken.new.is_empty() {
                self.pass_on(peer, call, &taken.new);
            }
        }
        Ok(())
    }

    /// What was missing in the tree goes on through it; of what a comparison found, others are told.
    fn pass_on(&self, from: Member, call: SyncCall, new: &[Item]) {
        let mut shared = self.inner.shared.lock();
        let now = self.now();
        if call == SyncCall::Graft {
            shared.tree.fetched(now, from.id, new);
        } else {
            let heads: HashSet<_> = new.iter().map(|item| (item.node, item.at)).collect();
            let heads: Vec<_> = heads.into_iter().collect();
            shared.tree.caught_up(now, from.id, &heads);
        }
        self.act(&mut shared);
    }
}

/// What an exchange found.
pub(super) struct Exchanged {
    /// How far the peer is with our log.
    pub(super) knows_us: Head,
    /// How many logs we were behind with.
    pub(super) lacked: usize,
}
