//! Taking in what other nodes say, and passing it on.
//!
//! Bytes come from a peer that is in the mesh but need not be honest about others, so nothing is believed that its
//! owner did not sign. Costs of a message: what is known already, one lock and two comparisons; news, one Ed25519
//! check outside the lock, then O(items · log n) and the views of the services it touches.

use std::sync::Arc;

use bytes::Bytes;

use super::facts::Touched;
use super::log::{Delta, Head};
use super::record::{self, Key};
use super::replica::Effect;
use super::state::NodeState;
use super::strings::Strings;
use super::verify::{Signer, VerifiedNode};
use super::wire::{Message, PART_BYTES, WireError};
use super::{Catalog, wire};
use crate::model::{Liveness, NodeId};

/// Most records of one node.
const RECORDS_MAX: usize = 1 << 20;
/// Most bytes of messages kept of one node.
const KEPT_MAX: usize = 512 * 1024 * 1024;

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
    /// The node has too many records.
    #[error("node {node} has more records than allowed")]
    Quota {
        /// The node that the message speaks for.
        node: NodeId,
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

impl Catalog {
    /// Takes in a message, as made by [`messages_since`](Self::messages_since) of any node.
    pub fn apply(&self, raw: Bytes) -> Outcome {
        let message = match Message::decode(raw) {
            Ok(message) => message,
            Err(error) => return self.rejected(error.into()),
        };
        match self.apply_message(message) {
            Ok(outcome) => outcome,
            Err(rejection) => self.rejected(rejection),
        }
    }

    fn rejected(&self, rejection: Rejection) -> Outcome {
        self.inner
            .rejected
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        tracing::warn!(error = %rejection, "catalog message rejected");
        Outcome::Rejected(rejection)
    }

    fn apply_message(&self, message: Message) -> Result<Outcome, Rejection> {
        let node = message.delta.node;
        let now = (self.inner.clock)();
        let (verified, certificate, trust) = {
            let state = self.inner.state.lock();
            // Nothing is kept of a node before something that it signed is here.
            let known = state.nodes.get(&node);
            let is_news = if node == self.inner.own {
                Head {
                    epoch: message.delta.epoch,
                    head: message.delta.to,
                } > state.own_log.head()
            } else {
                known.is_none_or(|known| !known.reaped && known.replica.is_news(&message.delta))
            };
            if !is_news {
                return Ok(Outcome::Known);
            }
            let brings_another = || {
                let brought = certificate_in(&message.delta);
                known.is_some_and(|known| brought.is_some_and(|body| body != known.certificate))
            };
            if let Some(reason) = known.and_then(|known| known.disowned.clone())
                && !brings_another()
            {
                return Err(Rejection::Certificate { node, reason });
            }
            let (verified, certificate) = known.map_or_else(Default::default, |known| {
                (known.verified.clone(), known.certificate.clone())
            });
            (verified, certificate, state.trust)
        };
        let (verified, certificate) = match certificate_in(&message.delta) {
            Some(body) if body != certificate => (self.verify(node, &body)?, body),
            _ => match verified {
                Some(verified) => (verified, certificate),
                None => return Ok(Outcome::Pull(Head::default())),
            },
        };
        if now / 1_000_000 > verified.not_after {
            return Err(Rejection::Expired { node });
        }
        if !message.is_signed_by(&verified) {
            return Err(Rejection::Signature { node });
        }
        if node == self.inner.own {
            self.outrank(message.delta.epoch, now);
            return Ok(Outcome::Known);
        }
        self.take_in(message, verified, certificate, trust)
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
        message: Message,
        verified: VerifiedNode,
        certificate: Bytes,
        trust: u64,
    ) -> Result<Outcome, Rejection> {
        let node = message.delta.node;
        let now = (self.inner.clock)();
        let mut state = self.inner.state.lock();
        if state.trust != trust {
            drop(state);
            return self.apply_message(message);
        }
        let mut known = state.node(node, now);
        if known.replica.kept_bytes() + message.raw.len() > KEPT_MAX
            || known.replica.records() + message.delta.items.len() > RECORDS_MAX
        {
            return Err(Rejection::Quota { node });
        }
        if known.certificate != certificate {
            known.rights_changed = known.verified.is_some();
            (known.verified, known.certificate) = (Some(verified), certificate);
            if known.disowned.take().is_some() {
                state.publish(&self.inner.index, node, Touched::whole_node(), now);
                known = state.node(node, now);
            }
        }
        let mut changes = match known.replica.apply(message.delta, message.raw) {
            Effect::Known => return Ok(Outcome::Known),
            Effect::Staged => return Ok(Outcome::Staged),
            Effect::Pull(have) => return Ok(Outcome::Pull(have)),
            Effect::Applied(changes) => changes,
        };
        if std::mem::take(&mut known.rights_changed) {
            changes.extend(
                known
                    .replica
                    .live()
                    .map(|(key, body)| (key.clone(), Some(body.clone()))),
            );
        }
        let mut strings = std::mem::take(&mut state.strings);
        let touched = read_records(state.node(node, now), &mut strings, node, changes);
        state.strings = strings;
        state.publish(&self.inner.index, node, touched, now);
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
            let state = self.inner.state.lock();
            if !state.own_log.needs_snapshot(have) {
                let deltas = state.own_log.since(have, PART_BYTES);
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
        let state = self.inner.state.lock();
        let ours = if *node == self.inner.own {
            state.own_log.head()
        } else {
            match state.nodes.get(node) {
                Some(known) if !wanted(known) => return None,
                Some(known) => known.replica.wanted_after(),
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

    /// The records that are shown to nobody, with the reason.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        let state = self.inner.state.lock();
        let of = |(node, state): (&NodeId, &NodeState)| {
            let node = *node;
            state
                .poison
                .values()
                .map(move |reason| Quarantined {
                    node,
                    reason: reason.clone(),
                })
                .collect::<Vec<_>>()
        };
        state.nodes.iter().flat_map(of).collect()
    }

    /// How many messages were not believed since the start.
    pub fn rejected_messages(&self) -> u64 {
        self.inner
            .rejected
            .load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn wanted(node: &NodeState) -> bool {
    !node.reaped && node.liveness != Liveness::Left
}

fn certificate_in(delta: &Delta) -> Option<Bytes> {
    let key = Key::Certificate.encode();
    delta
        .items
        .iter()
        .find(|item| item.key == key)?
        .body
        .clone()
}

/// Reads changed records into the node's facts; the poison among them is noted and otherwise passed over.
fn read_records(
    node: &mut NodeState,
    strings: &mut Strings,
    id: NodeId,
    changes: Vec<(Bytes, Option<Bytes>)>,
) -> Touched {
    let mut touched = Touched::default();
    let Some(verified) = &node.verified else {
        return touched;
    };
    for (key, body) in changes {
        match record::take(
            &mut node.facts,
            &mut touched,
            strings,
            Some(verified),
            &key,
            body.as_deref(),
        ) {
            Err(reason) if body.is_some() => {
                tracing::warn!(node = %id, reason, "record quarantined");
                node.poison.insert(key, reason);
            }
            _ => drop(node.poison.remove(&key)),
        }
    }
    touched
}

/// Feeds arbitrary bytes to the decoders of messages and records; for fuzzing.
#[doc(hidden)]
pub fn fuzz_message(bytes: &[u8]) {
    let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    let verified = VerifiedNode {
        id: message.delta.node,
        name: crate::model::NodeName::parse("node").expect("well formed"),
        public_key: [0; 32],
        not_after: u64::MAX,
        may_publish: Arc::new(|_| true),
    };
    let mut node = NodeState::new(Liveness::Alive, 0);
    node.verified = Some(verified);
    let changes = message
        .delta
        .items
        .iter()
        .map(|item| (item.key.clone(), item.body.clone()))
        .collect();
    read_records(
        &mut node,
        &mut Strings::default(),
        message.delta.node,
        changes,
    );
    if let Some(body) = certificate_in(&message.delta) {
        let _ = record::decode_chain(&body);
    }
    let _ = message.is_signed_by(node.verified.as_ref().expect("set above"));
}
