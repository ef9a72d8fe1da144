//! The thin shell around the core: one UDP socket, one task, one `select!`.
//!
//! It seals and opens datagrams, keeps the clock, asks stream questions, and publishes what changed. Packets that wait
//! are read before timers fire (an answer that is in the socket's buffer must not become a suspicion), at most
//! [`BATCH`] a turn, so that a flood cannot hold up timers and commands for ever.
//!
//! Every queue is bounded: commands 256, events 4,096 per subscriber, stream questions 64; a datagram that the socket
//! does not take is dropped and counted, which the protocol survives by design.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::net::UdpSocket;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::Config;
use super::core::{Core, Output, Route};
use super::counters::{Counters, count};
use super::handle::{AnswerError, Command, MAX_COMMANDS, MAX_EVENTS, Membership, Shared};
use super::keyring::{Keyring, KeyringError, MAX_DATAGRAM, OpenError, Opener, Sealer};
use super::stream::{Peer, StreamReply, StreamTransport};
use super::{MemberEvent, MemberState};
use crate::model::{Liveness, NodeId};

/// Datagrams read in one turn.
const BATCH: usize = 256;
/// Stream questions that wait for our answer at most.
const MAX_ANSWERS: usize = 256;
/// Sources of bad datagrams that the log tells of; anybody can invent more.
const MAX_TOLD: usize = 256;

type Answer = oneshot::Sender<Result<Bytes, AnswerError>>;

/// Runs the protocol; see [`Driver::spawn`].
pub struct Driver {
    core: Core,
    socket: UdpSocket,
    sealer: Sealer,
    opener: Opener,
    transport: Arc<dyn StreamTransport>,
    streams: JoinSet<(u64, StreamReply)>,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// Stream questions of others that take longer.
    answers: HashMap<u64, Answer>,
    last_answer: u64,
    leavers: Vec<oneshot::Sender<()>>,
    ended: bool,
    /// Sources whose datagrams do not open, and that were told of.
    told: HashSet<IpAddr>,
    origin: Instant,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Driver {
    /// Takes part in the cluster named `label` (datagrams of another label do not open) until
    /// [`Membership::leave`], [`Membership::stop`], or until every handle is dropped. `socket` is bound by the caller,
    /// so that UDP and TCP share a port number. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`KeyringError::Random`].
    pub fn spawn(
        config: &Config,
        keyring: Keyring,
        label: &[u8],
        socket: UdpSocket,
        transport: Arc<dyn StreamTransport>,
    ) -> Result<Membership, KeyringError> {
        let counters = Arc::new(Counters::default());
        let core = Core::new(
            config,
            Duration::ZERO,
            rand::random(),
            Arc::clone(&counters),
        );
        let shared = Arc::new(Shared {
            local: RwLock::new(core.local()),
            members: RwLock::new(BTreeMap::new()),
            events: broadcast::channel(MAX_EVENTS).0,
            counters,
            metas: RwLock::default(),
            keyring: keyring.clone(),
            unknown_key: tokio::sync::Notify::new(),
            failure: RwLock::default(),
        });
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        let driver = Self {
            core,
            socket,
            sealer: Sealer::new(keyring.clone(), label)?,
            opener: Opener::new(keyring, label),
            transport,
            streams: JoinSet::new(),
            commands,
            shared: Arc::clone(&shared),
            answers: HashMap::new(),
            last_answer: 0,
            leavers: Vec::new(),
            ended: false,
            told: HashSet::new(),
            origin: Instant::now(),
            // One more than may come, so that a longer one shows.
            incoming: vec![0; MAX_DATAGRAM + 1],
            outgoing: Vec::with_capacity(MAX_DATAGRAM),
        };
        tokio::spawn(driver.run());
        Ok(Membership {
            shared,
            commands: sender,
        })
    }

    async fn run(mut self) {
        while !self.ended {
            let next = self
                .core
                .next_timeout()
                .map_or(Duration::from_secs(60), |next| next);
            tokio::select! {
                ready = self.socket.readable() => match ready {
                    Ok(()) => self.receive(),
                    Err(error) => {
                        tracing::error!(%error, "the membership socket is broken, this node leaves the mesh");
                        self.ended = true;
                    }
                },
                Some(done) = self.streams.join_next() => {
                    if let Ok((id, reply)) = done {
                        self.core.handle_stream_reply(self.now(), id, &reply);
                    }
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => self.ended = true,
                },
                () = tokio::time::sleep_until(self.origin + next) => {}
            }
            if self
                .core
                .next_timeout()
                .is_some_and(|next| next <= self.now())
            {
                self.receive();
                self.core.handle_timeout(self.now());
            }
            self.drain();
        }
        for leaver in self.leavers {
            // Nobody waits any more: fine.
            let _ = leaver.send(());
        }
    }

    fn now(&self) -> Duration {
        Instant::now() - self.origin
    }

    fn receive(&mut self) {
        let mut incoming = std::mem::take(&mut self.incoming);
        for _ in 0..BATCH {
            match self.socket.try_recv_from(&mut incoming) {
                Ok((len, from)) => self.datagram(from, &mut incoming[..len]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // An earlier send that failed is told here on some systems.
                Err(error) => tracing::debug!(%error, "receiving a membership datagram failed"),
            }
        }
        self.incoming = incoming;
    }

    fn datagram(&mut self, from: SocketAddr, datagram: &mut [u8]) {
        let counters = Arc::clone(&self.shared.counters);
        count(&counters.datagrams_received);
        counters
            .bytes_received
            .fetch_add(datagram.len() as u64, Ordering::Relaxed);
        match self.opener.open(datagram) {
            Ok(packet) => self
                .core
                .handle_datagram(Instant::now() - self.origin, packet),
            Err(error) => {
                count(match error {
                    OpenError::Oversized => &counters.dropped_oversized,
                    OpenError::Malformed => &counters.dropped_malformed,
                    OpenError::UnknownKey(_) => &counters.dropped_unknown_key,
                    OpenError::NotAuthentic => &counters.dropped_not_authentic,
                    OpenError::Replayed => &counters.dropped_replayed,
                });
                if matches!(error, OpenError::UnknownKey(_)) {
                    self.shared.unknown_key.notify_one();
                }
                let strange = !matches!(error, OpenError::Replayed);
                if strange && self.told.len() < MAX_TOLD && self.told.insert(from.ip()) {
                    tracing::warn!(
                        %from, %error,
                        "a membership datagram is not believed: its sender is of another mesh, has an old gossip keyring, \
                         or is no node at all"
                    );
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        let now = self.now();
        // Whoever asked may have gone meanwhile; then a reply is dropped.
        match command {
            Command::Announce(seed) => self.core.add_seed(now, seed),
            Command::PeerClosed(peer) => self.core.peer_closed(now, peer),
            Command::AnswerPing(body, reply) => {
                self.last_answer += 1;
                match self.core.answer_ping(now, &body, self.last_answer) {
                    Ok(Some(answer)) => drop(reply.send(Ok(answer))),
                    Ok(None) => self.keep_for_later(reply),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::AnswerSync(body, reply) => drop(reply.send(self.core.answer_sync(now, &body))),
            Command::State(reply) => drop(reply.send(self.core.state())),
            Command::Candidates(reply) => drop(reply.send(self.core.candidates())),
            Command::Evict(nodes) => self.core.evict(now, nodes),
            Command::Restart(within, done) => {
                self.leavers.push(done);
                self.core.restart(now, within);
            }
            Command::Leave(done) => {
                self.leavers.push(done);
                self.core.leave(now);
            }
            Command::Stop(done) => {
                self.leavers.push(done);
                self.ended = true;
            }
        }
    }

    fn keep_for_later(&mut self, reply: Answer) {
        if self.answers.len() >= MAX_ANSWERS {
            self.answers.retain(|_, waiting| !waiting.is_closed());
        }
        if self.answers.len() < MAX_ANSWERS {
            self.answers.insert(self.last_answer, reply);
        } else {
            count(&self.shared.counters.streams_shed);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { to, packet } => self.send(to, &packet),
                Output::Ask {
                    id,
                    to,
                    route,
                    body,
                    deadline,
                } => self.ask(id, to, route, body, deadline),
                Output::Answer { token, body } => {
                    if let Some(reply) = self.answers.remove(&token) {
                        // The asker's connection may have gone.
                        let _ = reply.send(Ok(body));
                    }
                }
                Output::Event(event) => self.publish(event),
                Output::Forgotten(node) => {
                    self.shared.metas.write().remove(&node);
                    self.shared.members.write().remove(&node);
                }
                Output::Local(member) => *self.shared.local.write() = member,
                Output::Left => {
                    *self.shared.failure.write() = self.core.failure().map(str::to_owned);
                    self.ended = true;
                }
            }
        }
        for node in self.core.take_changed_metas() {
            self.publish_meta(node);
        }
    }

    fn publish_meta(&self, node: NodeId) {
        let is_member = self.shared.members.read().contains_key(&node);
        if let Some(meta) = self.core.meta(node).filter(|_| is_member) {
            self.shared.metas.write().insert(node, meta);
        }
    }

    fn send(&mut self, to: SocketAddr, packet: &[u8]) {
        let counters = &self.shared.counters;
        if let Err(error) = self.sealer.seal(packet, &mut self.outgoing) {
            tracing::error!(%error, "sealing a membership datagram failed");
            count(&counters.send_failed);
            return;
        }
        match self.socket.try_send_to(&self.outgoing, to) {
            Ok(len) => {
                count(&counters.datagrams_sent);
                counters.bytes_sent.fetch_add(len as u64, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(%error, %to, "a membership datagram was not sent");
                count(&counters.send_failed);
            }
        }
    }

    fn ask(&mut self, id: u64, to: Peer, route: Route, body: Bytes, deadline: Duration) {
        let question = match route {
            Route::Ping => self.transport.ping(to, body, deadline),
            Route::Sync => self.transport.sync(to, body, deadline),
        };
        self.streams.spawn(async move {
            let reply = tokio::time::timeout(deadline, question).await;
            (id, reply.unwrap_or(StreamReply::Timeout))
        });
    }

    /// The list first, then the event: whoever sees the event finds it in the list.
    fn publish(&self, event: MemberEvent) {
        {
            let mut members = self.shared.members.write();
            let liveness = match event {
                MemberEvent::Up(member) => {
                    if let Some(meta) = self.core.meta(member.id) {
                        self.shared.metas.write().insert(member.id, meta);
                    }
                    members.insert(
                        member.id,
                        MemberState {
                            member,
                            liveness: Liveness::Alive,
                        },
                    );
                    Liveness::Alive
                }
                MemberEvent::Alive(_) => Liveness::Alive,
                MemberEvent::Suspect(_) => Liveness::Suspect,
                MemberEvent::Down(_) => Liveness::Down,
                MemberEvent::Left(_) => Liveness::Left,
            };
            if let Some(state) = members.get_mut(&event.id()) {
                state.liveness = liveness;
            }
        }
        // Nobody subscribed: fine.
        let _ = self.shared.events.send(event);
    }
}

#[cfg(test)]
mod tests;
