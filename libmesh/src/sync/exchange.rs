//! Anti-entropy without I/O: who lacks what, and what became of what came.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::codec::{
    BUCKETS_MAX, CodecError, Compare, DeltaReply, Differences, Digest, DigestEntry, FRAME_MAX,
    Frame, Messages, PullRequest, Want,
};
use super::tree::{Item, mix};
use crate::catalog::log::Head;
use crate::catalog::wire::header_of;
use crate::catalog::{Catalog, LogHead, Origin, Outcome};
use crate::model::NodeId;

/// Room for what surrounds the messages in a body.
const FRAME_PAYLOAD: usize = FRAME_MAX - 512 * 1024;
/// Nodes in a bucket of a comparison, on average, as long as there are not too many of both.
const BUCKET_NODES: usize = 16;

/// How far `catalog` is; `with_content` adds the hashes.
pub(super) fn digest(catalog: &Catalog, with_content: bool) -> Digest {
    let entry = |log: LogHead| as_entry(&log, with_content);
    Digest {
        heads: catalog.heads().into_iter().map(entry).collect(),
    }
}

fn as_entry(log: &LogHead, with_content: bool) -> DigestEntry {
    DigestEntry {
        node: log.node,
        at: log.at,
        content: with_content.then_some(log.content),
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

/// The first half of a comparison: hashes instead of heads. Costs 8 bytes for sixteen nodes, 2 KiB at most.
pub(super) fn hashed(heads: &[LogHead], content: bool) -> Compare {
    let buckets = (heads.len() / BUCKET_NODES).clamp(1, BUCKETS_MAX);
    Compare {
        content,
        buckets: hashes(heads, buckets.next_power_of_two().min(BUCKETS_MAX), content),
    }
}

fn hashes(heads: &[LogHead], buckets: usize, content: bool) -> Vec<u64> {
    let mut sums = vec![0u64; buckets];
    for log in heads {
        let (epoch, head) = (log.at.epoch.to_le_bytes(), log.at.head.to_le_bytes());
        let hash = if content { log.content } else { 0 };
        let hash = hash.to_le_bytes();
        let bytes = log.node.as_bytes().iter().chain(&epoch).chain(&head);
        let sum = &mut sums[bucket(&log.node, buckets)];
        *sum = sum.wrapping_add(mix(bytes.chain(&hash)));
    }
    sums
}

fn bucket(node: &NodeId, buckets: usize) -> usize {
    usize::from(node.as_bytes()[0]) * buckets / 256
}

/// The second half: all heads in the buckets that differ.
pub(super) fn differences(heads: &[LogHead], theirs: &Compare) -> Differences {
    let count = theirs.buckets.len();
    let ours = hashes(heads, count, theirs.content);
    let differs = |at: &usize| ours[*at] != theirs.buckets[*at];
    let buckets: Vec<_> = (0..count).filter(differs).map(|at| at as u8).collect();
    let named: HashSet<_> = buckets.iter().map(|at| usize::from(*at)).collect();
    let heads = heads
        .iter()
        .filter(|log| named.contains(&bucket(&log.node, count)))
        .map(|log| as_entry(log, theirs.content))
        .collect();
    Differences { buckets, heads }
}

/// What the peer lacks, by its answer to [`hashed`] with so many buckets.
pub(super) fn ahead(heads: &[LogHead], count: usize, theirs: &Differences) -> Vec<(NodeId, Head)> {
    let named: HashSet<_> = theirs.buckets.iter().map(|at| usize::from(*at)).collect();
    let known: HashMap<_, _> = theirs.heads.iter().map(|log| (log.node, log.at)).collect();
    heads
        .iter()
        .filter(|log| named.contains(&bucket(&log.node, count)))
        .filter(|log| known.get(&log.node).is_none_or(|at| *at < log.at))
        .map(|log| (log.node, log.at))
        .collect()
}

/// What became of messages.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// News, to be passed on.
    pub(super) new: Vec<Item>,
    /// How many were known already.
    pub(super) known: usize,
    /// How many were not believed.
    pub(super) rejected: u32,
    /// Something before them is missing: whose, how far they would have brought us, and how far we are.
    pub(super) gaps: HashMap<NodeId, (Head, Head)>,
}

/// Takes messages in, in their order.
pub(super) fn take_in(catalog: &Catalog, origin: Origin, messages: Vec<Bytes>) -> Taken {
    let mut taken = Taken::default();
    for raw in messages {
        let header = header_of(&raw);
        let outcome = catalog.apply_of(origin, raw.clone());
        let Some(header) = header else {
            taken.rejected += 1;
            continue;
        };
        match outcome {
            Outcome::Applied => {
                // What came after the gap may have closed it.
                taken.gaps.remove(&header.node);
                taken.new.push(Item {
                    node: header.node,
                    at: header.at,
                    raw: (!header.partial).then_some(raw),
                });
            }
            Outcome::Pull(have) => drop(taken.gaps.insert(header.node, (header.at, have))),
            Outcome::Rejected(_) => taken.rejected += 1,
            Outcome::Known => taken.known += 1,
            Outcome::Staged => {}
        }
    }
    taken
}

impl Taken {
    /// The answer to a sender of the first version.
    pub(super) fn reply(&self) -> DeltaReply {
        let want = |(node, (_, have)): (&NodeId, &(Head, Head))| Want {
            node: *node,
            have: *have,
            skip: 0,
        };
        DeltaReply {
            wants: self.gaps.iter().map(want).collect(),
            rejected: self.rejected,
        }
    }
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

/// Serves `/catalog/digest`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_digest(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    let theirs = Digest::decode(body)?;
    let with_content = theirs.heads.iter().any(|entry| entry.content.is_some());
    Ok(digest(catalog, with_content).encode())
}

/// Serves `/catalog/compare`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_compare(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    Ok(differences(&catalog.heads(), &Compare::decode(body)?).encode())
}

/// Serves `/catalog/pull` and `/catalog/graft`.
///
/// # Errors
/// [`CodecError`]: the caller sent something else (400).
pub fn handle_pull(catalog: &Catalog, body: &Bytes) -> Result<Bytes, CodecError> {
    Ok(answer(catalog, &PullRequest::decode(body)?.wants).encode())
}
