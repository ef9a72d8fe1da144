//! Which links carry what: an eager-push tree with lazy digests beside it (after Plumtree, Leitão et al. 2007), without
//! I/O or clock.
//!
//! Every node keeps a few *links*: four that it chooses by a hash of both ends, and those that chose it. A link is
//! *eager* (new messages go over it at once) or *lazy* (it gets a digest of them: node, epoch, head). Links begin
//! eager. Who gets over a link, three times, only what it had already, makes it lazy; what is left is a tree. Who learns
//! from a digest of something that does not come within 50 ms pulls it from there and makes that link eager: so the tree
//! mends itself when members come, go, stall or lose a frame. Messages are signed by their owners, so a link needs no
//! trust; a liar costs a pull.
//!
//! Up to eight peers there is no tree: the owner pushes to all, and they do not pass it on (digests they do, for who the
//! owner does not reach).
//!
//! Bounds: a link has one push and one digest under way; its queue holds at most a megabyte or 1,024 messages. What
//! does not fit, and what a failed push carried, becomes an entry of the link's digest; when those are more than 4,096,
//! the link gets a comparison instead. So a peer that is slow or away costs at most that, and catches up by pulling at
//! its own speed.
//!
//! No relay waits: timers are only for digests (40 ms after a quiet time, else 125 to 375 ms apart), grafts and failed
//! links.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::catalog::log::Head;
use crate::model::NodeId;

/// Up to so many peers an owner pushes to all of them itself.
pub(super) const DIRECT_MAX: usize = 8;
/// Links that a node chooses.
const CHOSEN: usize = 4;
/// Links it keeps, with those that chose it: far more than ever choose one.
const LINKS_MAX: usize = 64;
/// Who failed so often in turn does not count as chosen.
const FAILED: u32 = 2;
/// A link that brought nothing new so often becomes lazy.
const PRUNE_AFTER: u8 = 3;
/// How long a digest collects, and how far two of a link are apart, more or less.
const LAZY_AFTER: Duration = Duration::from_millis(40);
const LAZY_APART: Duration = Duration::from_millis(250);
/// How long after a change of members links that nobody chooses any more are dropped.
const TRIM_AFTER: Duration = Duration::from_secs(2);
/// How long something that a digest told of may take to come by itself.
const GRAFT_AFTER: Duration = Duration::from_millis(50);
/// How long a graft may take before the next one who told of it is asked.
const GRAFT_RETRY: Duration = Duration::from_secs(1);
/// Who is remembered of those that told of something.
const ANNOUNCERS: usize = 4;
/// Things that are known to be missing, at most.
const MISSING_MAX: usize = 8192;
/// Nodes in one graft.
const GRAFT_NODES: usize = 1024;
/// What one push carries.
const PUSH_BYTES: usize = 1024 * 1024;
/// What waits for a link at most.
const QUEUE_BYTES: usize = 1024 * 1024;
const QUEUE_ITEMS: usize = 1024;
/// Entries of a link's digest.
const DIGEST_MAX: usize = 4096;
/// Waits after a failed call: doubling from the first to the second.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Something new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Whose log.
    pub node: NodeId,
    /// How far one is with it.
    pub at: Head,
    /// The message as signed; `None` when it is too much to be pushed: others are told of it, and pull.
    pub raw: Option<Bytes>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send messages; to be answered by [`Tree::pushed`].
    Push {
        /// Whom.
        to: NodeId,
        /// The owner sends this to all itself: not to be passed on.
        direct: bool,
        /// The messages.
        items: Vec<Item>,
    },
    /// Say what is here; to be answered by [`Tree::told`].
    Digest {
        /// Whom.
        to: NodeId,
        /// What.
        heads: Vec<(NodeId, Head)>,
    },
    /// Pull what is missing of these nodes' logs; to be answered by [`Tree::grafted`].
    Graft {
        /// From whom.
        from: NodeId,
        /// Whose logs.
        nodes: Vec<NodeId>,
    },
    /// Compare everything with a peer.
    Compare {
        /// With whom.
        with: NodeId,
    },
}

#[derive(Debug)]
struct Link {
    eager: bool,
    /// How often in turn, or nearly, it brought nothing new.
    useless: u8,
    queue: VecDeque<Item>,
    queued: usize,
    /// What the push under way says.
    pushing: Option<Vec<(NodeId, Head)>>,
    digest: BTreeMap<NodeId, Head>,
    telling: Option<Vec<(NodeId, Head)>>,
    told_at: Option<Duration>,
    /// How far two digests are apart: not the same for all links, so that some neighbour of everybody tells soon.
    apart: Duration,
    /// Too much for a digest happened.
    overflowed: bool,
    failures: u32,
    retry_at: Duration,
}

impl Link {
    fn new(own: NodeId, peer: NodeId) -> Self {
        let apart = LAZY_APART.mul_f64(0.5 + (rank(own, peer) >> 32) as f64 / f64::from(u32::MAX));
        Self {
            eager: true,
            useless: 0,
            queue: VecDeque::new(),
            queued: 0,
            pushing: None,
            digest: BTreeMap::new(),
            telling: None,
            told_at: None,
            apart,
            overflowed: false,
            failures: 0,
            retry_at: Duration::ZERO,
        }
    }

    fn tell(&mut self, node: NodeId, at: Head) {
        if self.digest.len() >= DIGEST_MAX && !self.digest.contains_key(&node) {
            self.digest.clear();
            self.overflowed = true;
        }
        if !self.overflowed {
            let known = self.digest.entry(node).or_default();
            *known = at.max(*known);
        }
    }

    fn push(&mut self, now: Duration, item: &Item) {
        let size = item.raw.as_ref().map_or(0, Bytes::len);
        let full = self.queued + size > QUEUE_BYTES || self.queue.len() >= QUEUE_ITEMS;
        if full && self.pushing.is_some() {
            self.give_up();
        }
        if item.raw.is_none() || self.retry_at > now || (full && self.pushing.is_some()) {
            return self.tell(item.node, item.at);
        }
        self.queued += size;
        self.queue.push_back(item.clone());
    }

    /// What waits is told of instead.
    fn give_up(&mut self) {
        self.queued = 0;
        for item in std::mem::take(&mut self.queue) {
            self.tell(item.node, item.at);
        }
    }

    fn failed(&mut self, now: Duration) {
        let wait = BACK_OFF.0 * 2u32.saturating_pow(self.failures.min(8));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + wait.min(BACK_OFF.1);
        self.give_up();
    }

    /// When what there is to tell is told.
    fn digest_at(&self, now: Duration) -> Option<Duration> {
        let waits = self.telling.is_none() && (self.overflowed || !self.digest.is_empty());
        let apart = self
            .told_at
            .map_or(Duration::ZERO, |told| told + self.apart);
        waits.then(|| self.retry_at.max(now + LAZY_AFTER).max(apart))
    }
}

#[derive(Debug)]
struct Missing {
    at: Head,
    due: Duration,
    announcers: VecDeque<NodeId>,
}

/// The dissemination of one node.
#[derive(Debug)]
pub struct Tree {
    own: NodeId,
    own_head: Head,
    /// All peers, the preferred ones as links first.
    ranked: BTreeSet<(u64, NodeId)>,
    links: BTreeMap<NodeId, Link>,
    missing: HashMap<NodeId, Missing>,
    grafts: BTreeSet<(Duration, NodeId)>,
    digests_at: Option<Duration>,
    trim_at: Option<Duration>,
    outputs: VecDeque<Output>,
}

impl Tree {
    /// The tree's part at `own`, without peers.
    pub fn new(own: NodeId) -> Self {
        Self {
            own,
            own_head: Head::default(),
            ranked: BTreeSet::new(),
            links: BTreeMap::new(),
            missing: HashMap::new(),
            grafts: BTreeSet::new(),
            digests_at: None,
            trim_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// A peer is new, or began a new life.
    pub fn up(&mut self, now: Duration, peer: NodeId) {
        self.ranked.insert((rank(self.own, peer), peer));
        if self.links.remove(&peer).is_some() {
            self.link(now, peer);
        }
        self.choose(now);
        self.trim_at.get_or_insert(now + TRIM_AFTER);
    }

    /// A peer is gone.
    pub fn down(&mut self, now: Duration, peer: NodeId) {
        self.ranked.remove(&(rank(self.own, peer), peer));
        self.links.remove(&peer);
        for missing in self.missing.values_mut() {
            missing.announcers.retain(|other| *other != peer);
        }
        self.choose(now);
    }

    /// The own log has changed; `items` is the batch for others.
    pub fn publish(&mut self, now: Duration, at: Head, items: &[Item]) {
        self.own_head = at;
        self.spread(now, None, items, true);
    }

    /// Tells all links how far the own log is. Done now and then, it keeps their connections open, so that the next
    /// change after a quiet time waits for no handshake.
    pub fn refresh(&mut self, now: Duration) {
        for link in self.links.values_mut() {
            link.tell(self.own, self.own_head);
        }
        self.schedule_digests(now);
    }

    /// `from` pushed `items` that were new and `known` that were not. Returns whether it should stop pushing.
    pub fn received(
        &mut self,
        now: Duration,
        from: NodeId,
        direct: bool,
        items: &[Item],
        known: usize,
    ) -> bool {
        let linked = self.touched(from);
        let mut prune = !linked;
        let is_direct = direct || self.is_direct();
        if let Some(link) = self.links.get_mut(&from) {
            if !items.is_empty() {
                link.eager = true;
                link.useless = link.useless.saturating_sub(1);
            } else if known > 0 && !is_direct {
                link.useless += 1;
                // One that is lazy here and eager there is told so again.
                if link.useless >= PRUNE_AFTER || !link.eager {
                    (link.eager, link.useless) = (false, 0);
                    link.give_up();
                    prune = true;
                }
            }
        }
        self.spread(now, Some(from), items, !direct);
        prune && !is_direct
    }

    /// A graft from `from` brought `items`: they go on as if they had been pushed.
    pub fn fetched(&mut self, now: Duration, from: NodeId, items: &[Item]) {
        self.spread(now, Some(from), items, true);
    }

    /// Something came that is not to be pushed on: others are told of it.
    pub fn caught_up(&mut self, now: Duration, from: NodeId, heads: &[(NodeId, Head)]) {
        let item = |(node, at): &(NodeId, Head)| Item {
            node: *node,
            at: *at,
            raw: None,
        };
        let items: Vec<_> = heads.iter().map(item).collect();
        self.spread(now, Some(from), &items, true);
    }

    /// `from` sent a digest because it has a link to us, so we have one to it.
    pub fn heard(&mut self, from: NodeId) {
        self.touched(from);
    }

    /// `from` has what is lacking here. What comes from the owner itself, or after a gap (`at_once`), is not waited for.
    pub fn announced(
        &mut self,
        now: Duration,
        from: NodeId,
        node: NodeId,
        at: Head,
        at_once: bool,
    ) {
        if self.missing.len() >= MISSING_MAX && !self.missing.contains_key(&node) {
            return;
        }
        let at_once = at_once || from == node;
        let due = if at_once { now } else { now + GRAFT_AFTER };
        let missing = self.missing.entry(node).or_insert_with(|| Missing {
            at,
            due,
            announcers: VecDeque::new(),
        });
        missing.at = missing.at.max(at);
        if !missing.announcers.contains(&from) && missing.announcers.len() < ANNOUNCERS {
            if at_once {
                missing.announcers.push_front(from);
            } else {
                missing.announcers.push_back(from);
            }
        }
        self.grafts.remove(&(missing.due, node));
        missing.due = missing.due.min(due);
        self.grafts.insert((missing.due, node));
        self.advance(now);
    }

    /// A push was answered: `Some(prune)`, or it failed.
    pub fn pushed(&mut self, now: Duration, to: NodeId, answer: Option<bool>) {
        let direct = self.is_direct();
        let Some(link) = self.links.get_mut(&to) else {
            return;
        };
        let Some(said) = link.pushing.take() else {
            return;
        };
        match answer {
            Some(prune) => {
                link.failures = 0;
                if prune && !direct {
                    link.eager = false;
                    link.give_up();
                }
            }
            None => {
                link.failed(now);
                for (node, at) in said {
                    link.tell(node, at);
                }
                self.choose(now);
            }
        }
        self.flush(now, to);
        self.schedule_digests(now);
    }

    /// A digest was answered, or failed.
    pub fn told(&mut self, now: Duration, to: NodeId, ok: bool) {
        let Some(link) = self.links.get_mut(&to) else {
            return;
        };
        let Some(said) = link.telling.take() else {
            return;
        };
        if ok {
            link.failures = 0;
        } else {
            link.failed(now);
            for (node, at) in said {
                link.tell(node, at);
            }
            self.choose(now);
        }
        self.schedule_digests(now);
    }

    /// A graft ended. What it did not bring is asked of the next one who told of it.
    pub fn grafted(&mut self, now: Duration, nodes: &[NodeId]) {
        for node in nodes {
            if let Some(missing) = self.missing.get_mut(node) {
                self.grafts.remove(&(missing.due, *node));
                missing.due = now;
                self.grafts.insert((now, *node));
            }
        }
        self.advance(now);
    }

    /// When [`advance`](Self::advance) is to be called at the latest.
    pub fn due(&self) -> Option<Duration> {
        let graft = self.grafts.first().map(|(due, _)| *due);
        let others = [self.digests_at, self.trim_at];
        others.into_iter().flatten().chain(graft).min()
    }

    /// Lets time pass.
    pub fn advance(&mut self, now: Duration) {
        self.graft(now);
        if self.digests_at.is_some_and(|at| at <= now) {
            self.tell_links(now);
        }
        if self.trim_at.is_some_and(|at| at <= now) {
            self.trim_at = None;
            self.trim();
            // Who was full when we chose it has room now.
            self.refresh(now);
        }
    }

    /// The next thing to be done.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Links over which new messages go at once, and all links.
    pub fn links(&self) -> (usize, usize) {
        let eager = self.links.values().filter(|link| link.eager).count();
        (eager, self.links.len())
    }

    /// What waits here: messages, their bytes, entries of digests, things known to be missing.
    pub fn waiting(&self) -> [usize; 4] {
        let sum = |of: fn(&Link) -> usize| self.links.values().map(of).sum();
        [
            sum(|link| link.queue.len()),
            sum(|link| link.queued),
            sum(|link| link.digest.len()),
            self.missing.len(),
        ]
    }

    fn is_direct(&self) -> bool {
        self.ranked.len() <= DIRECT_MAX
    }

    /// Links to those that are preferred, as long as they answer.
    fn choose(&mut self, now: Duration) {
        let wanted = if self.is_direct() { DIRECT_MAX } else { CHOSEN };
        let (mut fit, mut new) = (0, Vec::new());
        for (_, peer) in &self.ranked {
            if fit == wanted {
                break;
            }
            match self.links.get(peer) {
                Some(link) => fit += usize::from(link.failures < FAILED),
                None => {
                    fit += 1;
                    new.push(*peer);
                }
            }
        }
        for peer in new {
            self.link(now, peer);
        }
    }

    /// Drops links that neither end would choose now: as a mesh grows, there would be more and more of them.
    fn trim(&mut self) {
        if self.is_direct() || self.links.len() <= 2 * CHOSEN {
            return;
        }
        let mut kept: BTreeSet<NodeId> = BTreeSet::new();
        for (_, peer) in &self.ranked {
            if self
                .links
                .get(peer)
                .is_some_and(|link| link.failures < FAILED)
            {
                kept.insert(*peer);
            }
            if kept.len() == CHOSEN {
                break;
            }
        }
        let chooses_us = |peer: NodeId| {
            let ours = rank(peer, self.own);
            let others = self.ranked.iter().filter(|(_, other)| *other != peer);
            let before = others.filter(|(_, other)| rank(peer, *other) < ours);
            before.take(CHOSEN).count() < CHOSEN
        };
        let links = self.links.keys().copied();
        kept.extend(links.filter(|peer| chooses_us(*peer)).collect::<Vec<_>>());
        self.links.retain(|peer, _| kept.contains(peer));
    }

    /// A new link begins with what we are ourselves.
    fn link(&mut self, now: Duration, peer: NodeId) {
        let mut link = Link::new(self.own, peer);
        let heads = vec![(self.own, self.own_head)];
        link.telling = Some(heads.clone());
        self.links.insert(peer, link);
        self.outputs.push_back(Output::Digest { to: peer, heads });
        self.schedule_digests(now);
    }

    /// Whoever sends something has a link to us.
    fn touched(&mut self, from: NodeId) -> bool {
        if self.links.contains_key(&from) {
            return true;
        }
        let known = self.ranked.contains(&(rank(self.own, from), from));
        if known && self.links.len() < LINKS_MAX {
            self.links.insert(from, Link::new(self.own, from));
            return true;
        }
        false
    }

    fn spread(&mut self, now: Duration, from: Option<NodeId>, items: &[Item], relay: bool) {
        if items.is_empty() {
            return;
        }
        for item in items {
            self.arrived(item.node, item.at);
        }
        // In a mesh without a tree only owners push.
        let relay = relay && (from.is_none() || !self.is_direct());
        let all = from.is_none() && self.is_direct();
        for (peer, link) in &mut self.links {
            if Some(*peer) == from {
                continue;
            }
            for item in items.iter().filter(|item| item.node != *peer) {
                if (relay && link.eager) || all {
                    link.push(now, item);
                } else {
                    link.tell(item.node, item.at);
                }
            }
        }
        for peer in self.links.keys().copied().collect::<Vec<_>>() {
            self.flush(now, peer);
        }
        self.schedule_digests(now);
    }

    fn arrived(&mut self, node: NodeId, at: Head) {
        if let Some(missing) = self.missing.get(&node).filter(|missing| missing.at <= at) {
            self.grafts.remove(&(missing.due, node));
            self.missing.remove(&node);
        }
    }

    /// Sends what waits, unless something is on its way.
    fn flush(&mut self, now: Duration, to: NodeId) {
        let direct = self.is_direct();
        let Some(link) = self.links.get_mut(&to) else {
            return;
        };
        if link.pushing.is_some() || link.queue.is_empty() || link.retry_at > now {
            return;
        }
        let (mut items, mut size) = (Vec::new(), 0);
        while let Some(item) = link.queue.front() {
            let more = item.raw.as_ref().map_or(0, Bytes::len);
            if !items.is_empty() && size + more > PUSH_BYTES {
                break;
            }
            size += more;
            items.extend(link.queue.pop_front());
        }
        link.queued -= size;
        link.pushing = Some(items.iter().map(|item| (item.node, item.at)).collect());
        let direct = direct && items.iter().all(|item| item.node == self.own);
        self.outputs.push_back(Output::Push { to, direct, items });
    }

    fn schedule_digests(&mut self, now: Duration) {
        let links = self.links.values();
        let soonest = links.filter_map(|link| link.digest_at(now)).min();
        // A digest that collects already is not put off by more of it.
        self.digests_at = match (self.digests_at, soonest) {
            (Some(at), Some(soonest)) => Some(at.min(soonest)),
            (_, soonest) => soonest,
        };
    }

    fn tell_links(&mut self, now: Duration) {
        self.digests_at = None;
        for (to, link) in &mut self.links {
            // What came just now goes with the rest.
            let due = link.digest_at(now).is_some_and(|at| at <= now + LAZY_AFTER);
            if !due {
                continue;
            }
            link.told_at = Some(now);
            if std::mem::take(&mut link.overflowed) {
                link.digest.clear();
                self.outputs.push_back(Output::Compare { with: *to });
                continue;
            }
            let heads: Vec<_> = std::mem::take(&mut link.digest).into_iter().collect();
            link.telling = Some(heads.clone());
            self.outputs.push_back(Output::Digest { to: *to, heads });
        }
        self.schedule_digests(now);
    }

    fn graft(&mut self, now: Duration) {
        let mut asked: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
        while let Some((due, node)) = self.grafts.first().copied().filter(|(due, _)| *due <= now) {
            self.grafts.remove(&(due, node));
            let Some(missing) = self.missing.get_mut(&node) else {
                continue;
            };
            let Some(from) = missing.announcers.pop_front() else {
                // Nobody else told of it: comparison will find it.
                self.missing.remove(&node);
                continue;
            };
            missing.due = now + GRAFT_RETRY;
            self.grafts.insert((missing.due, node));
            asked.entry(from).or_default().push(node);
        }
        for (from, nodes) in asked {
            if let Some(link) = self.links.get_mut(&from) {
                (link.eager, link.useless) = (true, 0);
            }
            for nodes in nodes.chunks(GRAFT_NODES) {
                let nodes = nodes.to_vec();
                self.outputs.push_back(Output::Graft { from, nodes });
            }
        }
    }

    /// A peer pulled what a digest told it of: from now on it gets it at once.
    pub fn grafted_by(&mut self, peer: NodeId) {
        if let Some(link) = self.links.get_mut(&peer) {
            (link.eager, link.useless) = (true, 0);
        }
    }
}

/// How little `peer` is preferred as a link of `own`. Any fixed mixing does: FNV-1a, finished as in SplitMix64.
fn rank(own: NodeId, peer: NodeId) -> u64 {
    mix(own.as_bytes().iter().chain(peer.as_bytes()))
}

pub(super) fn mix<'a>(bytes: impl Iterator<Item = &'a u8>) -> u64 {
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests;
