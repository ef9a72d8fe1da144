//! The handle that the rest of the mesh holds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::{broadcast, mpsc, oneshot};

use super::wire::WireError;
use super::{Counters, Member, MemberEvent, MemberState};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The body is not what it should be: the asker's fault.
    #[error("malformed membership message: {0}")]
    Malformed(#[from] WireError),
    /// This node has left.
    #[error(transparent)]
    Gone(#[from] MembershipGone),
}

pub(crate) enum Command {
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
