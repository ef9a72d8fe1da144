//! Anti-entropy without I/O: who lacks what.

use std::collections::HashMap;

use bytes::Bytes;

use super::codec::{
    CodecError, DeltaReply, Digest, DigestEntry, FRAME_MAX, Frame, Messages, PullRequest, Want,
};
use crate::catalog::log::Head;
use crate::catalog::{Catalog, Outcome};
use crate::model::NodeId;

/// Room for what surrounds the messages in a body.
const FRAME_PAYLOAD: usize = FRAME_MAX - 512 * 1024;

/// How far `catalog` is; `with_content` adds the hashes.
pub(super) fn digest(catalog: &Catalog, with_content: bool) -> Digest {
    let entry = |log: crate::catalog::LogHead| DigestEntry {
        node: log.node,
        at: log.at,
        content: with_content.then_some(log.content),
    };
    Digest {
        heads: catalog.heads().into_iter().map(entry).collect(),
    }
}

/// What a comparison of digests says to do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be asked for.
    pub wants: Vec<Want>,
    /// Of these, the copy here or there is damaged: to be fetched whole, best from the owner.
    pub damaged: Vec<NodeId>,
    /// How far the peer is with our own log.
    pub knows_us: Head,
}

/// Compares `catalog` with a peer's digest.
pub fn compare(catalog: &Catalog, theirs: &[DigestEntry]) -> Plan {
    let ours: HashMap<_, _> = catalog
        .heads()
        .into_iter()
        .map(|log| (log.node, log))
        .collect();
    let mut plan = Plan::default();
    for entry in theirs {
        if entry.node == catalog.own() {
            plan.knows_us = entry.at;
        }
        if let Some(have) = catalog.lacks(&entry.node, entry.at) {
            plan.wants.push(Want {
                node: entry.node,
                have,
                skip: 0,
            });
            continue;
        }
        let differs = |content: u128| {
            ours.get(&entry.node)
                .is_some_and(|log| log.at == entry.at && log.content != content)
        };
        if entry.node != catalog.own() && entry.content.is_some_and(differs) {
            plan.damaged.push(entry.node);
        }
    }
    plan
}

/// Takes messages in. Returns the answer for the sender.
pub(super) fn take_in(catalog: &Catalog, messages: Vec<Bytes>) -> DeltaReply {
    let mut lacking = HashMap::new();
    let mut rejected = 0;
    for raw in messages {
        let node = crate::catalog::wire::node_of(&raw);
        match catalog.apply(raw) {
            Outcome::Pull(have) => drop(node.map(|node| lacking.insert(node, have))),
            Outcome::Rejected(_) => rejected += 1,
            // What came after the gap may have closed it.
            Outcome::Applied => drop(node.map(|node| lacking.remove(&node))),
            Outcome::Known | Outcome::Staged => {}
        }
    }
    let wants = lacking
        .into_iter()
        .map(|(node, have)| Want {
            node,
            have,
            skip: 0,
        })
        .collect();
    DeltaReply { wants, rejected }
}

/// Answers what someone lacks, as far as it fits into one body.
pub(super) fn answer(catalog: &Catalog, wants: &[Want]) -> Messages {
    let mut reply = Messages {
        messages: Vec::new(),
        next: Vec::new(),
    };
    let mut size = 0;
    for (at, want) in wants.iter().enumerate() {
        let messages = catalog.messages_since(want.node, want.have);
        for (number, raw) in messages.into_iter().enumerate().skip(want.skip as usize) {
            if size > 0 && size + raw.len() > FRAME_PAYLOAD {
                reply.next.push(Want {
                    skip: number as u32,
                    ..*want
                });
                reply.next.extend(&wants[at + 1..]);
                return reply;
            }
            size += raw.len();
            reply.messages.push(raw);
        }
    }
    reply
}

/// Messages in bodies for `/catalog/delta`.
pub(super) fn in_bodies(messages: Vec<Bytes>) -> Vec<Bytes> {
    let mut bodies = Vec::new();
    let mut group = Messages {
        messages: Vec::new(),
        next: Vec::new(),
    };
    let mut size = 0;
    for raw in messages {
        if size > 0 && size + raw.len() > FRAME_PAYLOAD {
            bodies.push(group.encode());
            (group.messages, size) = (Vec::new(), 0);
        }
        size += raw.len();
        group.messages.push(raw);
    }
    if !group.messages.is_empty() {
        bodies.push(group.encode());
    }
    bodies
}

/// Serves `/catalog/delta`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_delta(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    Ok(take_in(catalog, Messages::decode(body)?.messages).encode())
}

/// Serves `/catalog/digest`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_digest(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    let theirs = Digest::decode(body)?;
    let with_content = theirs.heads.iter().any(|entry| entry.content.is_some());
    Ok(digest(catalog, with_content).encode())
}

/// Serves `/catalog/pull`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_pull(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    Ok(answer(catalog, &PullRequest::decode(body)?.wants).encode())
}
