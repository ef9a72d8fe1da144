//! The task that keeps this node's catalog and its peers' in step.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::codec::{CodecError, DeltaReply, Digest, Frame, Messages, PullRequest, Want};
use super::pace::Pace;
use super::{CallFailed, SyncCall, SyncTransport, exchange};
use crate::catalog::log::Head;
use crate::catalog::{Catalog, OwnHead};
use crate::member::{Member, MemberEvent, MemberState, Membership};
use crate::model::{Liveness, NodeId};

/// Calls under way at most, to all peers together.
const CALLS_MAX: usize = 64;
/// Every so many exchanges the contents are compared, too.
const CONTENT_EVERY: u64 = 6;
/// Two exchanges because a peer came up are at least this far apart.
const UP_EXCHANGE_APART: Duration = Duration::from_secs(1);
/// Longest wait before a peer that failed is tried again.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

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
    catalog: Catalog,
    transport: Arc<dyn SyncTransport>,
    config: Config,
    calls: Arc<Semaphore>,
    /// What was made last for a push: most peers are at the same head, so one signature serves them all.
    pub(super) made: Arc<Mutex<Option<Made>>>,
}

pub(super) struct Made {
    have: Head,
    at: Head,
    pub(super) bodies: Vec<Bytes>,
}

impl Plane {
    /// A plane over `transport`.
    pub fn new(catalog: Catalog, transport: Arc<dyn SyncTransport>, config: Config) -> Self {
        Self {
            catalog,
            transport,
            config,
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            made: Arc::default(),
        }
    }

    /// Serves `/catalog/delta`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_delta(&self, body: Bytes) -> Result<Bytes, CodecError> {
        exchange::handle_delta(&self.catalog, &body)
    }

    /// Serves `/catalog/digest`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_digest(&self, body: Bytes) -> Result<Bytes, CodecError> {
        exchange::handle_digest(&self.catalog, &body)
    }

    /// Serves `/catalog/pull`.
    ///
    /// # Errors
    /// [`CodecError`]: the caller sent something else (400).
    pub async fn handle_pull(&self, body: Bytes) -> Result<Bytes, CodecError> {
        exchange::handle_pull(&self.catalog, &body)
    }

    /// Tells the catalog who is alive, tells live peers what changes here, and compares with them, until `stop`.
    pub async fn run(self, members: Members, stop: CancellationToken) {
        let mut worker = Worker::new(self, members);
        worker.resync();
        tokio::select! {
            () = stop.cancelled() => {}
            () = worker.work() => {}
        }
    }

    async fn call(&self, peer: Member, call: SyncCall, body: Bytes) -> Result<Bytes, CallFailed> {
        let failed = |reason: &str| CallFailed {
            call,
            peer,
            reason: reason.to_owned(),
        };
        let _permit = self.calls.acquire().await.map_err(|_| failed("stopped"))?;
        tokio::time::timeout(
            self.config.call_deadline,
            self.transport.call(peer, call, body),
        )
        .await
        .unwrap_or_else(|_| Err(failed("no answer in time")))
    }

    async fn ask<T: Frame>(
        &self,
        peer: Member,
        call: SyncCall,
        body: Bytes,
    ) -> Result<T, CallFailed> {
        let reply = self.call(peer, call, body).await?;
        T::decode(&reply).map_err(|error| CallFailed {
            call,
            peer,
            reason: error.to_string(),
        })
    }

    /// Brings `peer` from `have` to where our own log is. Without knowing what it has, sends the last change: it
    /// answers with what it lacks.
    async fn push(&self, peer: Member, have: Option<Head>) -> Result<Head, CallFailed> {
        let own = self.catalog.own();
        let at = self.catalog.own_head();
        let mut have = have.unwrap_or(Head {
            epoch: at.epoch,
            head: at.head.saturating_sub(1),
        });
        // The second turn closes the gap that the first one found, the third one what changed in between.
        for _ in 0..3 {
            let mut lacks = None;
            for body in self.own_bodies(have) {
                let reply: DeltaReply = self.ask(peer, SyncCall::Delta, body).await?;
                lacks = reply
                    .wants
                    .iter()
                    .find(|want| want.node == own)
                    .map(|want| want.have)
                    .or(lacks);
                if reply.rejected > 0 {
                    let reason = "it does not believe our records; its log says why".to_owned();
                    return Err(CallFailed {
                        call: SyncCall::Delta,
                        peer,
                        reason,
                    });
                }
            }
            match lacks {
                Some(lacks) => have = lacks,
                None => return Ok(at),
            }
        }
        Err(CallFailed {
            call: SyncCall::Delta,
            peer,
            reason: "it keeps missing what was sent before".to_owned(),
        })
    }

    /// What someone at `have` lacks of our own log.
    fn own_bodies(&self, have: Head) -> Vec<Bytes> {
        let at = self.catalog.own_head();
        let mut made = self.made.lock();
        if let Some(made) = &*made
            && (made.have, made.at) == (have, at)
        {
            return made.bodies.clone();
        }
        let bodies = exchange::in_bodies(self.catalog.messages_since(self.catalog.own(), have));
        *made = Some(Made {
            have,
            at,
            bodies: bodies.clone(),
        });
        bodies
    }

    /// Compares with `peer` and fetches what we lack. Returns how far it is with our own log.
    async fn exchange(
        &self,
        peer: Member,
        with_content: bool,
        owners: &[Member],
    ) -> Result<Head, CallFailed> {
        let ours = exchange::digest(&self.catalog, with_content).encode();
        let theirs: Digest = self.ask(peer, SyncCall::Digest, ours).await?;
        let plan = exchange::compare(&self.catalog, &theirs.heads);
        self.pull(peer, plan.wants).await?;
        for node in plan.damaged {
            tracing::warn!(%node, peer = %peer.addr, "a node's records differ at the same head; fetching them anew");
            self.catalog.distrust(&node);
            let from = owners
                .iter()
                .copied()
                .find(|member| member.id == node)
                .unwrap_or(peer);
            self.pull(
                from,
                vec![Want {
                    node,
                    have: Head::default(),
                    skip: 0,
                }],
            )
            .await?;
        }
        Ok(plan.knows_us)
    }

    async fn pull(&self, peer: Member, mut wants: Vec<Want>) -> Result<(), CallFailed> {
        while !wants.is_empty() {
            let request = PullRequest { wants };
            let reply: Messages = self.ask(peer, SyncCall::Pull, request.encode()).await?;
            if reply.messages.is_empty() {
                break;
            }
            exchange::take_in(&self.catalog, reply.messages);
            wants = reply.next;
        }
        Ok(())
    }
}

struct Worker {
    plane: Plane,
    members: Members,
    peers: HashMap<NodeId, PeerState>,
    tasks: JoinSet<Done>,
    pace: Pace,
    /// What peers are brought to; changes beyond it wait for their batch.
    sent: Head,
    urgent: u64,
    exchanging: bool,
    exchanges: u64,
    next_exchange: Instant,
    last_exchange: Option<Instant>,
}

struct PeerState {
    member: Member,
    /// How far it is with our log, as far as we know.
    acked: Option<Head>,
    busy: bool,
    failures: u32,
    retry_at: Instant,
}

enum Done {
    Push {
        to: Member,
        result: Result<Head, CallFailed>,
    },
    Exchange {
        with: Member,
        result: Result<Head, CallFailed>,
    },
}

impl Worker {
    fn new(plane: Plane, members: Members) -> Self {
        let now = Instant::now();
        let next_exchange = now + jittered(plane.config.exchange_every);
        Self {
            sent: plane.catalog.own_head(),
            plane,
            members,
            peers: HashMap::new(),
            tasks: JoinSet::new(),
            pace: Pace::new(),
            urgent: 0,
            exchanging: false,
            exchanges: 0,
            next_exchange,
            last_exchange: None,
        }
    }

    async fn work(&mut self) {
        let mut own = self.plane.catalog.local().watch();
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.pace.due();
            tokio::select! {
                event = self.members.events.recv() => match event {
                    Ok(event) => self.member(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.resync(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                changed = own.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let head = *own.borrow_and_update();
                    self.changed(head);
                }
                () = sleep_until(due.unwrap_or(self.next_exchange)), if due.is_some() => self.send(),
                () = sleep_until(self.next_exchange) => self.exchange_with_anybody(),
                _ = tick.tick() => {
                    self.plane.catalog.tick();
                    self.push_to_all();
                }
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => tracing::error!(%error, "a catalog call ended abnormally"),
                },
            }
        }
    }

    fn changed(&mut self, head: OwnHead) {
        let urgent = head.urgent > self.urgent || head.at.epoch != self.sent.epoch;
        self.urgent = head.urgent;
        self.pace.changed(urgent, Instant::now());
    }

    fn send(&mut self) {
        self.pace.sent(Instant::now());
        self.sent = self.plane.catalog.own_head();
        self.push_to_all();
    }

    fn push_to_all(&mut self) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            self.push_to(id);
        }
    }

    fn push_to(&mut self, id: NodeId) {
        let now = Instant::now();
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        if peer.busy || peer.retry_at > now || peer.acked.is_some_and(|acked| acked >= self.sent) {
            return;
        }
        peer.busy = true;
        let (plane, to, have) = (self.plane.clone(), peer.member, peer.acked);
        self.tasks.spawn(async move {
            Done::Push {
                to,
                result: plane.push(to, have).await,
            }
        });
    }

    fn exchange_with_anybody(&mut self) {
        self.next_exchange = Instant::now() + jittered(self.plane.config.exchange_every);
        // Those that answered last time, as long as there are any.
        let fewest = self.peers.values().map(|peer| peer.failures.min(1)).min();
        let alive: Vec<_> = self
            .peers
            .values()
            .filter(|peer| Some(peer.failures.min(1)) == fewest)
            .map(|peer| peer.member)
            .collect();
        if !alive.is_empty() {
            self.exchange_with(alive[rand::random_range(0..alive.len())]);
        }
    }

    fn exchange_with(&mut self, with: Member) {
        if self.exchanging {
            return;
        }
        (self.exchanging, self.last_exchange) = (true, Some(Instant::now()));
        self.exchanges += 1;
        let with_content = self.exchanges.is_multiple_of(CONTENT_EVERY);
        let owners: Vec<_> = self.peers.values().map(|peer| peer.member).collect();
        let plane = self.plane.clone();
        self.tasks.spawn(async move {
            let result = plane.exchange(with, with_content, &owners).await;
            Done::Exchange { with, result }
        });
    }

    fn done(&mut self, done: Done) {
        let (to, result) = match done {
            Done::Push { to, result } => {
                if let Some(peer) = self.peers.get_mut(&to.id).filter(|peer| peer.member == to) {
                    peer.busy = false;
                }
                (to, result)
            }
            Done::Exchange { with, result } => {
                self.exchanging = false;
                (with, result)
            }
        };
        let Some(peer) = self.peers.get_mut(&to.id).filter(|peer| peer.member == to) else {
            return;
        };
        match result {
            Ok(head) => {
                peer.acked = Some(head);
                (peer.failures, peer.retry_at) = (0, Instant::now());
                self.push_to(to.id);
            }
            Err(error) => {
                tracing::debug!(%error, "catalog call failed");
                peer.acked = None;
                peer.failures += 1;
                let wait = Duration::from_millis(250) * 2u32.saturating_pow(peer.failures.min(8));
                peer.retry_at = Instant::now() + jittered(wait.min(BACK_OFF_MAX));
            }
        }
    }

    fn member(&mut self, event: MemberEvent) {
        let catalog = &self.plane.catalog;
        if event.id() == catalog.own() {
            return;
        }
        match event {
            MemberEvent::Up(member) => self.up(member),
            MemberEvent::Suspect(id) => catalog.set_liveness(id, Liveness::Suspect),
            MemberEvent::Alive(id) => catalog.set_liveness(id, Liveness::Alive),
            MemberEvent::Down(id) | MemberEvent::Left(id) => {
                let liveness = if event == MemberEvent::Down(id) {
                    Liveness::Down
                } else {
                    Liveness::Left
                };
                catalog.set_liveness(id, liveness);
                self.peers.remove(&id);
            }
        }
    }

    fn up(&mut self, member: Member) {
        self.plane.catalog.set_liveness(member.id, Liveness::Alive);
        let now = Instant::now();
        let state = PeerState {
            member,
            acked: None,
            busy: false,
            failures: 0,
            retry_at: now,
        };
        self.peers.insert(member.id, state);
        self.push_to(member.id);
        if self
            .last_exchange
            .is_none_or(|last| now - last >= UP_EXCHANGE_APART)
        {
            self.exchange_with(member);
        } else {
            self.next_exchange = self.next_exchange.min(now + UP_EXCHANGE_APART);
        }
    }

    /// Takes over all members: at the start, and when events were missed.
    fn resync(&mut self) {
        let catalog = self.plane.catalog.clone();
        let mut members: HashMap<_, _> = (self.members.list)()
            .into_iter()
            .map(|state| (state.member.id, state))
            .collect();
        members.remove(&catalog.own());
        self.peers.retain(|id, peer| {
            let state = members.get(id);
            state.is_some_and(|state| state.member == peer.member && state.liveness.is_present())
        });
        for (id, state) in &members {
            if state.liveness.is_present() && !self.peers.contains_key(id) {
                self.up(state.member);
            }
            catalog.set_liveness(*id, state.liveness);
        }
        // Membership has forgotten them: whatever they were, they are not here.
        let present = catalog
            .nodes()
            .into_iter()
            .filter(|node| node.liveness.is_present());
        for id in present.map(|node| node.record.id) {
            if id != catalog.own() && !members.contains_key(&id) {
                catalog.set_liveness(id, Liveness::Down);
            }
        }
    }
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}
