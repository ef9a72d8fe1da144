//! Taking in what other nodes say, and passing it on.
//!
//! Bytes come from a peer that is in the mesh but need not be honest about others, so nothing is believed that its
//! owner did not sign. Costs of a message: what is known already, one lock and two comparisons; news, one Ed25519
//! check outside the lock, then O(items · log n), and the views of those of its services that are read.

use std::sync::Arc;

use bytes::Bytes;

use super::log::{Delta, Head};
use super::quota::Limit;
use super::read::{self, kind};
use super::refusals::Refusals;
use super::replica::{Effect, Note};
use super::state::NodeState;
use super::verify::{Signer, VerifiedNode};
use super::wire::{Message, PART_BYTES, WireError};
use super::{Catalog, record, wire};
use crate::model::{Liveness, NodeId};

/// For how long a log that is too large is not asked for: 30 s in µs.
const PAUSE: u64 = 30_000_000;
/// So many records of a message cost its owner as much as a change does, even when they change nothing.
const READ_FOR_ONE: usize = 16;
/// Most reasons that [`Catalog::quarantined`] gives for one node.
const REASONS_MAX: usize = 64;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Its changes are shown.
    Applied,
    /// Nothing new in it.
    Known,
    /// A part of a snapshot; shown when the others are there.
    Staged,
    /// Something before it is missing: ask for what comes after this.
    Pull(Head),
    /// Not believed.
    Rejected(Rejection),
}

/// Why a message is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is no message.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// The node's certificate does not verify.
    #[error("the certificate of node {node} is not valid: {reason}")]
    Certificate {
        /// The node that the message speaks for.
        node: NodeId,
        /// What is wrong.
        reason: String,
    },
    /// The node's certificate has expired and no newer one is known.
    #[error("the certificate of node {node} has expired")]
    Expired {
        /// The node that the message speaks for.
        node: NodeId,
    },
    /// Not signed by the node that it speaks for.
    #[error("the message was not signed by node {node}")]
    Signature {
        /// The node that the message speaks for.
        node: NodeId,
    },
    /// The node says more than one may.
    #[error("node {node} says more than it may: too many {limit}")]
    Quota {
        /// The node that the message speaks for.
        node: NodeId,
        /// Which limit.
        limit: Limit,
    },
}

/// How far the catalog is with one node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHead {
    /// Whose log.
    pub node: NodeId,
    /// How far.
    pub at: Head,
    /// Hash of its records.
    pub content: u128,
}

/// A record that is shown to nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Who published it.
    pub node: NodeId,
    /// Why it is not shown.
    pub reason: String,
}

/// Who hands a message over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A peer, a file: what is not signed as it should be is refused.
    Anybody,
    /// A log of this process, which has just signed it with the key that the node's id is made of.
    SignedHere,
}

impl Catalog {
    /// Takes in a message, as made by [`messages_since`](Self::messages_since) of any node.
    pub fn apply(&self, raw: Bytes) -> Outcome {
        self.apply_of(Origin::Anybody, raw)
    }

    /// The same; a message that was signed in this process costs no look at its signature.
    pub(crate) fn apply_of(&self, origin: Origin, raw: Bytes) -> Outcome {
        let source = wire::node_of(&raw);
        let message = Message::decode(raw).map_err(Rejection::from);
        match message.and_then(|message| self.apply_message(origin, message)) {
            Ok(outcome) => outcome,
            Err(rejection) => {
                let now = (self.inner.clock)();
                self.inner.refusals.note(source, &rejection, now);
                Outcome::Rejected(rejection)
            }
        }
    }

    fn apply_message(&self, origin: Origin, message: Message) -> Result<Outcome, Rejection> {
        let node = message.node;
        let now = (self.inner.clock)();
        let brought = certificate_in(&message);
        let (verified, certificate, trust) = {
            let mut state = self.inner.state.lock();
            // Nothing is kept of a node before something that it signed is here.
            let own = state.own_log.head();
            let trust = state.trust;
            let known = state.nodes.get_mut(&node);
            let is_news = if node == self.inner.own {
                message.to > own
            } else {
                let known = known.as_ref();
                known.is_none_or(|known| !known.reaped && known.replica.is_news(&message))
            };
            if !is_news {
                return Ok(Outcome::Known);
            }
            let mut known = known;
            let refused = known
                .as_mut()
                .and_then(|known| known.refused(&self.inner.others, now));
            if let Some(limit) = refused {
                return Err(Rejection::Quota { node, limit });
            }
            let brings_another = || {
                let known = known.as_ref();
                known.is_some_and(|known| {
                    brought
                        .as_ref()
                        .is_some_and(|body| *body != known.certificate)
                })
            };
            if let Some(reason) = known.as_ref().and_then(|known| known.disowned.clone())
                && !brings_another()
            {
                return Err(Rejection::Certificate { node, reason });
            }
            let (verified, certificate) = known.map_or_else(Default::default, |known| {
                (known.verified.clone(), known.certificate.clone())
            });
            (verified, certificate, trust)
        };
        let (verified, certificate) = match brought {
            Some(body) if body != certificate => (self.verify(node, &body)?, body),
            _ => match verified {
                Some(verified) => (verified, certificate),
                None => return Ok(Outcome::Pull(Head::default())),
            },
        };
        if now / 1_000_000 > verified.not_after {
            return Err(Rejection::Expired { node });
        }
        if origin == Origin::Anybody && !message.is_signed_by(&verified) {
            return Err(Rejection::Signature { node });
        }
        if node == self.inner.own {
            self.outrank(message.to.epoch, now);
            return Ok(Outcome::Known);
        }
        self.take_in(origin, message, verified, certificate, trust)
    }

    fn verify(&self, node: NodeId, body: &[u8]) -> Result<VerifiedNode, Rejection> {
        let wrong = |reason| Rejection::Certificate { node, reason };
        let verifier = self
            .inner
            .verifier
            .as_ref()
            .ok_or_else(|| wrong("this catalog verifies nobody".to_owned()))?;
        let verified = verifier
            .verify(&record::decode_chain(body).map_err(wrong)?)
            .map_err(wrong)?;
        if verified.id != node {
            return Err(wrong(format!("it is node {}'s", verified.id)));
        }
        Ok(verified)
    }

    /// Someone has more of our log than we have: our last state was lost, so a greater epoch replaces it everywhere.
    fn outrank(&self, epoch: u64, now: u64) {
        let mut state = self.inner.state.lock();
        if state.own_log.head().epoch <= epoch {
            tracing::info!(
                epoch,
                "peers know a later log of this node; publishing everything anew"
            );
            state.own_log.renew(now.max(epoch.saturating_add(1)));
            self.inner.announce(&state.own_log, true);
        }
    }

    fn take_in(
        &self,
        origin: Origin,
        message: Message,
        verified: VerifiedNode,
        certificate: Bytes,
        trust: u64,
    ) -> Result<Outcome, Rejection> {
        let node = message.node;
        let now = (self.inner.clock)();
        let mut guard = self.inner.state.lock();
        if guard.trust != trust {
            drop(guard);
            return self.apply_message(origin, message);
        }
        let state = &mut *guard;
        let (index, quota) = (&self.inner.index, &self.inner.others);
        let known = state.node(node, now);
        let over = if known.replica.records_with(&message) > quota.records {
            Some(Limit::Records)
        } else if known.replica.kept_bytes() + message.frame.raw.len() > quota.bytes {
            Some(Limit::Bytes)
        } else {
            None
        };
        if let Some(limit) = over {
            // What is too much now need not be later: then the whole of it tells, whatever came in between.
            known.replica.forget_staged();
            known.replica.distrust();
            known.paused = Some((now + PAUSE, limit));
            return Err(Rejection::Quota { node, limit });
        }
        if known.certificate != certificate {
            known.rights_changed = known.verified.is_some();
            if verified.external {
                // Nobody will say so: it is no member.
                known.liveness = Liveness::Alive;
            }
            (known.verified, known.certificate) = (Some(verified), certificate);
            if known.disowned.take().is_some() {
                state.show_whole(index, node, now);
            }
        }
        let cost = message.items / READ_FOR_ONE;
        let longest = quota.record_bytes;
        let read = state.read(index, node, (longest, now), |replica, reading| {
            replica.apply(message, reading)
        });
        let Some((effect, mut changed)) = read else {
            return Ok(Outcome::Pull(Head::default()));
        };
        let known = state.node(node, now);
        let changes = match effect {
            Effect::Known => return Ok(Outcome::Known),
            Effect::Staged => return Ok(Outcome::Staged),
            Effect::Pull(have) => return Ok(Outcome::Pull(have)),
            Effect::Applied(changes) => changes,
        };
        known.pace.add(cost + changes);
        known.paused = None;
        if std::mem::take(&mut known.rights_changed) {
            let again = state.read(index, node, (longest, now), |replica, reading| {
                replica.read_again(reading);
            });
            if let Some(((), more)) = again {
                changed.node |= more.node;
                changed.instances.extend(more.instances);
            }
        }
        state.show(index, node, changed, now);
        Ok(Outcome::Applied)
    }

    /// The messages that bring someone who has `node`'s log up to `have` to where this catalog is; the own node's are
    /// signed now. Empty when there is nothing to tell.
    pub fn messages_since(&self, node: NodeId, have: Head) -> Vec<Bytes> {
        if node != self.inner.own {
            return self
                .inner
                .state
                .lock()
                .nodes
                .get(&node)
                .filter(|known| known.disowned.is_none())
                .map_or_else(Vec::new, |n| n.replica.messages_since(have));
        }
        self.inner
            .signer
            .as_ref()
            .map_or_else(Vec::new, |signer| self.own_messages_since(have, &**signer))
    }

    /// The last snapshot is kept and followed by deltas as long as that works: signing it for each joiner would cost
    /// more, and someone who fetches a long one in several turns finds it unchanged.
    fn own_messages_since(&self, have: Head, signer: &dyn Signer) -> Vec<Bytes> {
        let encode =
            |deltas: Vec<Delta>| deltas.into_iter().map(|delta| wire::encode(&delta, signer));
        {
            let mut state = self.inner.state.lock();
            if !state.own_log.needs_snapshot(have) {
                let deltas = state.own_log.since(have, PART_BYTES);
                state.own_log.tell();
                drop(state);
                return encode(deltas).collect();
            }
        }
        // Held while signing, so that many joiners wait for one snapshot instead of each making its own.
        let mut snapshot = self.inner.own_snapshot.lock();
        let state = self.inner.state.lock();
        let log = &state.own_log;
        if let Some((at, messages)) = &*snapshot
            && !log.needs_snapshot(*at)
        {
            let deltas = log.since(*at, PART_BYTES);
            drop(state);
            return messages.iter().cloned().chain(encode(deltas)).collect();
        }
        let (at, deltas) = (log.head(), log.since(Head::default(), PART_BYTES));
        drop(state);
        let messages: Vec<_> = encode(deltas).collect();
        *snapshot = Some((at, messages.clone()));
        messages
    }

    /// How far this catalog is with each node's log, itself included. Leaves out nodes it wants nothing of, and
    /// those it no longer believes.
    pub fn heads(&self) -> Vec<LogHead> {
        let state = self.inner.state.lock();
        let own = LogHead {
            node: self.inner.own,
            at: state.own_log.head(),
            content: state.own_log.content(),
        };
        let others = state
            .nodes
            .iter()
            .filter(|(id, _)| **id != self.inner.own)
            .filter_map(|(id, node)| {
                let at = node.replica.wanted_after();
                (wanted(node) && node.disowned.is_none()).then(|| LogHead {
                    node: *id,
                    at,
                    content: node.replica.content(),
                })
            });
        std::iter::once(own)
            .chain(others)
            .filter(|log| log.at.head > 0)
            .collect()
    }

    /// What to ask others for of `node`'s log, given that they are at `theirs`; `None` = nothing.
    pub fn lacks(&self, node: &NodeId, theirs: Head) -> Option<Head> {
        let now = (self.inner.clock)();
        let mut state = self.inner.state.lock();
        let ours = if *node == self.inner.own {
            state.own_log.head()
        } else {
            match state.nodes.get_mut(node) {
                Some(known) if !wanted(known) => return None,
                Some(known) => match known.refused(&self.inner.others, now) {
                    Some(_) => return None,
                    None => known.replica.wanted_after(),
                },
                None => Head::default(),
            }
        };
        (theirs > ours).then_some(ours)
    }

    /// The replica of `node`'s log differs from others' at the same head: take the next snapshot whatever its number.
    pub fn distrust(&self, node: &NodeId) {
        if let Some(known) = self.inner.state.lock().nodes.get_mut(node) {
            known.replica.distrust();
        }
    }

    /// The records that are shown to nobody, with the reason; of each node the first 64.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        let state = self.inner.state.lock();
        let longest = self.inner.others.record_bytes;
        let mut found = Vec::new();
        for (id, node) in state.nodes.iter().filter(|(_, node)| node.poison > 0) {
            let Some(verified) = &node.verified else {
                continue;
            };
            let mut left = REASONS_MAX;
            let is_poison = |note: Note| note.kind == kind::POISON;
            node.replica.each(is_poison, |_, key, body| {
                if left > 0
                    && let Err(reason) = read::meaning(verified, longest, key, body)
                {
                    left -= 1;
                    found.push(Quarantined { node: *id, reason });
                }
            });
        }
        found
    }

    /// How many records are shown to nobody.
    pub fn quarantined_records(&self) -> usize {
        let state = self.inner.state.lock();
        state.nodes.values().map(|node| node.poison).sum()
    }

    /// How many messages were not believed since the start.
    pub fn rejected_messages(&self) -> u64 {
        self.refusals().total()
    }

    /// The same, by reason.
    pub fn refusals(&self) -> Refusals {
        self.inner.refusals.counts()
    }
}

fn wanted(node: &NodeState) -> bool {
    !node.reaped && node.liveness != Liveness::Left
}

fn certificate_in(message: &Message) -> Option<Bytes> {
    let item = message.frame.item(message.certificate? as usize)?;
    let mut record = Vec::new();
    let there = message.frame.record(&item, &mut record);
    there.then(|| record.into())
}

/// Feeds arbitrary bytes to the decoders of messages and records; for fuzzing.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let verified = VerifiedNode {
        id: message.node,
        name: crate::model::NodeName::parse("node").expect("well formed"),
        public_key: [0; 32],
        external: false,
        not_after: u64::MAX,
        may_publish: Arc::new(|_| true),
    };
    let mut record = Vec::new();
    for (_, item) in message.frame.items() {
        if !message.frame.record(&item, &mut record) {
            continue;
        }
        let mut key = Vec::new();
        item.key.write(&mut key);
        let Ok(key) = record::Key::decode(&key) else {
            continue;
        };
        if record::check(Some(&verified), key, &record).is_ok() {
            record::fuzz_good(key, &record);
        }
    }
    if let Some(body) = certificate_in(&message) {
        let _ = record::decode_chain(&body);
    }
    let _ = message.is_signed_by(&verified);
}
