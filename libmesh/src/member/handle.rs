//! The handle that the rest of the mesh holds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::wire::WireError;
use super::{Counters, Keyring, Member, MemberEvent, MemberState, NodeMeta};
use crate::model::NodeId;

/// Commands that wait for the driver at most.
pub(crate) const MAX_COMMANDS: usize = 256;
/// Events that a slow subscriber may lag behind.
pub(crate) const MAX_EVENTS: usize = 4096;

/// The driver ended: the node left, or its task was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("membership has ended on this node")]
pub struct MembershipGone;

/// Why a stream question could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The asker is not let in.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The body is not what it should be: the asker's fault.
    #[error("malformed membership message: {0}")]
    Malformed(#[from] WireError),
    /// This node has left.
    #[error(transparent)]
    Gone(#[from] MembershipGone),
}

/// Why a node is not let into the pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is of another pool.
    #[error(
        "this is pool {ours}, the node is of pool {theirs}: join it through seeds of its own datacenter"
    )]
    Pool {
        /// Its pool.
        theirs: Arc<str>,
        /// The answering node's.
        ours: Arc<str>,
    },
    /// The pool has as many nodes as it may.
    #[error("the pool is full: its limit is {0} nodes; split it, or raise the limit on every node")]
    Full(usize),
    /// Its id is in use at another address, which answers.
    #[error("a node with the same key answers at {0}")]
    Copy(SocketAddr),
    /// It speaks no version of the protocol that the answering node does.
    #[error(
        "the node speaks membership's protocol from version {0} on, which is newer than this node: upgrade this one first"
    )]
    Protocol(u8),
    /// Its certificate is revoked.
    #[error("the node's certificate is revoked")]
    Evicted,
    /// Whether to let it in is being found out.
    #[error("the node's old address is being asked first; try again")]
    Busy,
}

pub(crate) enum Command {
    Restart(Duration, oneshot::Sender<()>),
    Evict(Vec<NodeId>),
    Announce(SocketAddr),
    PeerClosed(NodeId),
    AnswerPing(Bytes, oneshot::Sender<Result<Bytes, AnswerError>>),
    AnswerSync(Bytes, oneshot::Sender<Result<Bytes, AnswerError>>),
    State(oneshot::Sender<Vec<u8>>),
    Candidates(oneshot::Sender<Vec<u8>>),
    Leave(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// What the driver publishes.
pub(crate) struct Shared {
    pub(crate) local: RwLock<Member>,
    pub(crate) members: RwLock<BTreeMap<NodeId, MemberState>>,
    pub(crate) events: broadcast::Sender<MemberEvent>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) metas: RwLock<BTreeMap<NodeId, Arc<NodeMeta>>>,
    pub(crate) keyring: Keyring,
    /// A datagram came that is sealed with a key that is not installed here.
    pub(crate) unknown_key: tokio::sync::Notify,
    pub(crate) failure: RwLock<Option<String>>,
}

/// The membership of this node. Cheap to clone; the protocol runs in the [`Driver`](super::Driver)'s task until
/// [`leave`](Self::leave), [`stop`](Self::stop), or until all handles are dropped (routes that answer `/member/*` hold
/// one too).
#[derive(Clone)]
pub struct Membership {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Membership {
    /// This node as others see it. Its generation rises when it was declared down and came back.
    pub fn local(&self) -> Member {
        *self.shared.local.read()
    }

    /// All other members that were present since this node started, ordered by id: those that are down or left
    /// included, until they are forgotten.
    pub fn members(&self) -> Vec<MemberState> {
        self.shared.members.read().values().copied().collect()
    }

    /// One other member.
    pub fn member(&self, id: NodeId) -> Option<MemberState> {
        self.shared.members.read().get(&id).copied()
    }

    /// What a member says of itself; `None` if it is unknown or of a version that does not say.
    pub fn meta(&self, id: NodeId) -> Option<Arc<NodeMeta>> {
        self.shared.metas.read().get(&id).cloned()
    }

    /// The keyring in use: what is installed, used or removed here takes effect with the next datagram.
    pub fn keyring(&self) -> &Keyring {
        &self.shared.keyring
    }

    /// Waits for a datagram that is sealed with a key which is not installed here: a rotation may have been missed.
    pub async fn unknown_key(&self) {
        self.shared.unknown_key.notified().await;
    }

    /// Waits for the end of this node's membership; why, if it is not because it was asked to.
    pub async fn ended(&self) -> Option<String> {
        self.commands.closed().await;
        self.shared.failure.read().clone()
    }

    /// From now on exactly `nodes` (whose certificates are revoked) are neither heard nor believed; those among them that
    /// are members are down.
    ///
    /// # Errors
    /// [`MembershipGone`].
    pub async fn evict(&self, nodes: Vec<NodeId>) -> Result<(), MembershipGone> {
        self.send(Command::Evict(nodes)).await
    }

    /// Changes from now on. Subscribe first, then read [`members`](Self::members): an event is published after the
    /// list shows it. A subscriber that lags by more than 4,096 events gets `Lagged` and should read the list again.
    pub fn events(&self) -> broadcast::Receiver<MemberEvent> {
        self.shared.events.subscribe()
    }

    /// Counters for metrics.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Announces to `seed` now and, with back-off, for as long as nobody with that address is a member.
    ///
    /// # Errors
    /// [`MembershipGone`].
    pub async fn announce(&self, seed: SocketAddr) -> Result<(), MembershipGone> {
        self.send(Command::Announce(seed)).await
    }

    /// Tells that a stream from `peer` ended without a goodbye: it is pinged over the stream at once instead of at its
    /// next turn.
    ///
    /// # Errors
    /// [`MembershipGone`].
    pub async fn peer_closed(&self, peer: NodeId) -> Result<(), MembershipGone> {
        self.send(Command::PeerClosed(peer)).await
    }

    /// The server side of `/member/ping`: the answer to `body`. May take up to two seconds (a witness asks another
    /// member first).
    ///
    /// # Errors
    /// [`AnswerError`]: malformed (400) or gone (503).
    pub async fn answer_ping(&self, body: Bytes) -> Result<Bytes, AnswerError> {
        self.ask(|reply| Command::AnswerPing(body, reply)).await?
    }

    /// The server side of `/member/sync`: believes the state in `body` as far as the protocol allows and returns ours.
    ///
    /// # Errors
    /// [`AnswerError`]: malformed (400) or gone (503).
    pub async fn answer_sync(&self, body: Bytes) -> Result<Bytes, AnswerError> {
        self.ask(|reply| Command::AnswerSync(body, reply)).await?
    }

    /// The full member state as bytes, this node first, members that are down included.
    ///
    /// # Errors
    /// [`MembershipGone`].
    pub async fn push_pull_state(&self) -> Result<Vec<u8>, MembershipGone> {
        self.ask(Command::State).await
    }

    /// Believes a state from [`push_pull_state`](Self::push_pull_state) of another node as far as the protocol allows.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub async fn apply_push_pull(&self, state: &[u8]) -> Result<(), AnswerError> {
        self.answer_sync(Bytes::copy_from_slice(state))
            .await
            .map(drop)
    }

    /// Addresses of present members as bytes for a file, to be given back as
    /// [`Config::candidates`](super::Config::candidates) after a restart (see [`super::decode_candidates`]).
    ///
    /// # Errors
    /// [`MembershipGone`].
    pub async fn candidates(&self) -> Result<Vec<u8>, MembershipGone> {
        self.ask(Command::Candidates).await
    }

    /// Says goodbye and ends: others see [`MemberEvent::Left`]. Takes about half a second; nothing after it has an
    /// effect. Leaving twice is no error.
    pub async fn leave(&self) {
        // Gone is what was asked for.
        let _ = self.ask(Command::Leave).await;
    }

    /// Announces that this node will be back within `within` (15 s at most) and ends, after about half a second: until
    /// then others show nothing bad of it, whatever they see. A node that is not back by then is treated as any other.
    pub async fn restart(&self, within: Duration) {
        // Gone is what was asked for.
        let _ = self.ask(|done| Command::Restart(within, done)).await;
    }

    /// Ends without a goodbye: others find out. For restarts, where the node is back before anybody misses it.
    pub async fn stop(&self) {
        // Gone is what was asked for.
        let _ = self.ask(Command::Stop).await;
    }

    async fn send(&self, command: Command) -> Result<(), MembershipGone> {
        self.commands
            .send(command)
            .await
            .map_err(|_| MembershipGone)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, MembershipGone> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.map_err(|_| MembershipGone)
    }
}
