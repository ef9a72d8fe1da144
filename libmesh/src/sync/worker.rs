//! The task of a [`Plane`]: members, the pace of our own changes, comparisons, and time.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::CallFailed;
use super::pace::Pace;
use super::plane::{Exchanged, Members, Peer, Plane};
use crate::catalog::OwnHead;
use crate::catalog::log::Head;
use crate::member::{Member, MemberEvent};
use crate::model::{Liveness, NodeId};

/// Every so many exchanges the contents are compared, too.
const CONTENT_EVERY: u64 = 6;
/// After a peer came up, and after an exchange that found much, the next one is this far away.
const SOON: Duration = Duration::from_secs(1);
/// How long others may come up before one is asked.
const GATHER: Duration = Duration::from_millis(20);
/// Being behind with so few logs is what being under way looks like.
const FEW: usize = 16;
/// Who has met nobody for this long after the start is alone.
const ALONE: Duration = Duration::from_secs(3);
/// How often links are told of the own log: sooner than an unused connection is closed.
const REFRESH: Duration = Duration::from_secs(45);
/// With nothing to wait for.
const LONG: Duration = Duration::from_secs(3600);

pub(super) struct Worker {
    plane: Plane,
    members: Members,
    exchanges: JoinSet<(Member, Result<Exchanged, CallFailed>)>,
    pace: Pace,
    /// What others were told of; changes beyond it wait for their batch.
    sent: Head,
    urgent: u64,
    made: u64,
    next_exchange: Instant,
    last_exchange: Option<Instant>,
    /// Who did not answer the last exchange: asked only while there is nobody else.
    silent: HashSet<NodeId>,
    /// Who came up since the last exchange: asked before others.
    fresh: HashSet<NodeId>,
}

impl Worker {
    pub(super) fn new(plane: Plane, members: Members) -> Self {
        let next_exchange = Instant::now() + jittered(plane.inner.config.exchange_every);
        let sent = plane.inner.catalog.own_head();
        plane
            .inner
            .shared
            .lock()
            .tree
            .publish(plane.now(), sent, &[]);
        Self {
            sent,
            plane,
            members,
            exchanges: JoinSet::new(),
            pace: Pace::new(),
            urgent: 0,
            made: 0,
            next_exchange,
            last_exchange: None,
            silent: HashSet::new(),
            fresh: HashSet::new(),
        }
    }

    pub(super) async fn work(&mut self) {
        let mut own = self.plane.inner.catalog.local().watch();
        // In a statement of its own: whoever changes the own log holds its lock while it announces that, and waits
        // for those who look at the announcement.
        let head = *own.borrow_and_update();
        self.changed(head);
        let mut tick = interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refresh = interval(jittered(REFRESH));
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        refresh.reset();
        loop {
            let now = Instant::now();
            let batch = self.pace.due().unwrap_or(now + LONG);
            let tree = self.arm().unwrap_or(now + LONG);
            let plane = self.plane.clone();
            tokio::select! {
                biased;
                changed = own.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let head = *own.borrow_and_update();
                    self.changed(head);
                }
                () = sleep_until(batch) => self.send(),
                event = self.members.events.recv() => match event {
                    Ok(event) => self.member(event),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.resync(),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = plane.inner.wake.notified() => {}
                () = sleep_until(tree) => self.advance(),
                () = sleep_until(self.next_exchange) => self.exchange_with_anybody(),
                _ = refresh.tick() => self.refresh(),
                _ = tick.tick() => {
                    self.plane.inner.catalog.tick();
                    self.alone();
                    self.plane.push_all_thin(&mut self.plane.inner.shared.lock());
                }
                Some(done) = self.exchanges.join_next() => match done {
                    Ok((with, result)) => self.exchanged(with, result),
                    Err(error) => tracing::error!(%error, "a catalog exchange ended abnormally"),
                },
            }
        }
    }

    /// When the tree wants to be called.
    fn arm(&self) -> Option<Instant> {
        let mut shared = self.plane.inner.shared.lock();
        shared.armed = shared.tree.due();
        shared.armed.map(|due| self.plane.instant(due))
    }

    fn advance(&self) {
        let mut shared = self.plane.inner.shared.lock();
        shared.tree.advance(self.plane.now());
        self.plane.act(&mut shared);
    }

    fn refresh(&self) {
        let mut shared = self.plane.inner.shared.lock();
        shared.tree.refresh(self.plane.now());
        self.plane.act(&mut shared);
    }

    fn changed(&mut self, head: OwnHead) {
        if head.at == self.sent {
            return;
        }
        let urgent = head.urgent > self.urgent || head.at.epoch != self.sent.epoch;
        self.urgent = head.urgent;
        self.pace.changed(urgent, Instant::now());
        if self.pace.due().is_some_and(|due| due <= Instant::now()) {
            self.send();
        }
    }

    fn send(&mut self) {
        let before = self.sent;
        self.sent = self.plane.publish(before);
        let changes = self.sent.head.saturating_sub(before.head).max(1);
        self.pace.sent(Instant::now(), changes);
        self.plane
            .push_all_thin(&mut self.plane.inner.shared.lock());
        // What changed while the batch was made.
        let head = *self.plane.inner.catalog.local().watch().borrow();
        if head.at > self.sent {
            self.pace
                .changed(head.urgent > self.sent.head, Instant::now());
        }
    }

    fn exchange_with_anybody(&mut self) {
        let now = Instant::now();
        if !self.exchanges.is_empty() {
            self.next_exchange = now + SOON;
            return;
        }
        self.next_exchange = now + jittered(self.plane.inner.config.exchange_every);
        let peers = self.peers();
        let fresh = std::mem::take(&mut self.fresh);
        let is_fresh = |peer: &Member| fresh.contains(&peer.id);
        let answers = |peer: &Member| !self.silent.contains(&peer.id);
        let among = [&is_fresh as &dyn Fn(&Member) -> bool, &answers, &|_| true];
        let with = among.into_iter().find_map(|fits| {
            let fit: Vec<_> = peers.iter().filter(|peer| fits(peer)).collect();
            (!fit.is_empty()).then(|| *fit[rand::random_range(0..fit.len())])
        });
        if let Some(with) = with {
            self.exchange_with(with, peers);
        }
    }

    fn peers(&self) -> Vec<Member> {
        let shared = self.plane.inner.shared.lock();
        shared.peers.values().map(|peer| peer.member).collect()
    }

    fn exchange_with(&mut self, with: Member, others: Vec<Member>) {
        self.last_exchange = Some(Instant::now());
        self.made += 1;
        let content = self.made.is_multiple_of(CONTENT_EVERY);
        let plane = self.plane.clone();
        let thin = {
            let shared = plane.inner.shared.lock();
            shared
                .peers
                .get(&with.id)
                .is_some_and(|peer| peer.thin.is_some())
        };
        self.exchanges.spawn(async move {
            let result = if thin {
                plane.exchange_thin(with, content, &others).await
            } else {
                plane.exchange(with, content, &others).await
            };
            (with, result)
        });
    }

    fn exchanged(&mut self, with: Member, result: Result<Exchanged, CallFailed>) {
        let soon = Instant::now() + SOON;
        match result {
            Ok(found) => {
                self.silent.remove(&with.id);
                self.plane.inner.caught_up.send_replace(true);
                if found.lacked > FEW {
                    self.next_exchange = self.next_exchange.min(soon);
                }
                tracing::trace!(peer = %with.addr, lacked = found.lacked, knows_us = ?found.knows_us, "catalogs compared");
            }
            Err(error) => {
                tracing::debug!(%error, "catalog call failed");
                self.silent.insert(with.id);
                self.next_exchange = self.next_exchange.min(soon);
            }
        }
    }

    /// With nobody to ask, what is here is all there is.
    fn alone(&self) {
        let alone = self.plane.inner.shared.lock().peers.is_empty();
        if alone && self.plane.now() >= ALONE {
            self.plane.inner.caught_up.send_replace(true);
        }
    }

    fn member(&mut self, event: MemberEvent) {
        let catalog = &self.plane.inner.catalog;
        if event.id() == catalog.own() {
            return;
        }
        match event {
            MemberEvent::Up(member) => self.up(member),
            MemberEvent::Suspect(id) => catalog.set_liveness(id, Liveness::Suspect),
            MemberEvent::Alive(id) => catalog.set_liveness(id, Liveness::Alive),
            MemberEvent::Down(id) => self.gone(id, Liveness::Down),
            MemberEvent::Left(id) => self.gone(id, Liveness::Left),
        }
    }

    fn gone(&mut self, id: NodeId, liveness: Liveness) {
        self.plane.inner.catalog.set_liveness(id, liveness);
        self.silent.remove(&id);
        self.fresh.remove(&id);
        let mut shared = self.plane.inner.shared.lock();
        shared.peers.remove(&id);
        shared.tree.down(self.plane.now(), id);
        self.plane.act(&mut shared);
    }

    fn up(&mut self, member: Member) {
        self.plane
            .inner
            .catalog
            .set_liveness(member.id, Liveness::Alive);
        let now = Instant::now();
        self.silent.remove(&member.id);
        {
            let mut shared = self.plane.inner.shared.lock();
            let peer = Peer { member, thin: None };
            shared.peers.insert(member.id, peer);
            shared.tree.up(self.plane.now(), member.id);
            self.plane.act(&mut shared);
        }
        self.fresh.insert(member.id);
        // Not at once: when many come up together, what is much is fetched from several.
        let earliest = self.last_exchange.map_or(now, |last| last + SOON);
        self.next_exchange = self.next_exchange.min(earliest.max(now + GATHER));
    }

    /// Takes over all members: at the start, and when events were missed.
    pub(super) fn resync(&mut self) {
        let catalog = self.plane.inner.catalog.clone();
        let mut members: HashMap<_, _> = (self.members.list)()
            .into_iter()
            .map(|state| (state.member.id, state))
            .collect();
        members.remove(&catalog.own());
        for peer in self.peers() {
            let state = members.get(&peer.id);
            let stays = state.is_some_and(|state| state.liveness.is_present());
            if !stays {
                self.gone(
                    peer.id,
                    state.map_or(Liveness::Down, |state| state.liveness),
                );
            }
        }
        let known: HashMap<_, _> = self
            .peers()
            .into_iter()
            .map(|peer| (peer.id, peer))
            .collect();
        for (id, state) in &members {
            if state.liveness.is_present() && known.get(id) != Some(&state.member) {
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

pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}
