//! When each check looks and what follows from what it found: a state machine without clock, sockets or tasks.
//!
//! Inputs are method calls with `now` (a duration since the unix epoch that never goes back); what is to be done comes
//! out of [`Core::outputs`]. The shell around it is the [`Scheduler`](super::Scheduler).
//!
//! * A check begins at a random time within its interval (30 s at most) and looks again every interval ± 5 %, so that
//!   a fleet of checks never looks at once. It never overlaps itself.
//! * At most [`LOOKS_MAX`] checks look at once, at most [`PROCESSES_MAX`] of them by starting a process; the others
//!   wait in turn.
//! * A status for the worse is published at once; one for the better at most once a second.
//! * Cost: a heap operation per look (O(log checks)); an idle check is one entry and one heap item, no task.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::check::{Check, CheckState, How};
use super::damping::Damping;
use super::probe::ProbeResult;
use super::thresholds::Fold;
use crate::model::{CheckRecord, Health, InstanceId};

/// Looks under way at most.
const LOOKS_MAX: usize = 256;
/// Looks that start a process, under way at most.
const PROCESSES_MAX: usize = 16;
/// The first look comes within this time, also when the interval is longer.
const FIRST_WITHIN: Duration = Duration::from_secs(30);
/// Between two changes for the better that are published, in the long run.
const PACE: Duration = Duration::from_secs(1);
/// How many such changes a check that is told may make in one go.
const TOLD_BURST: u32 = 8;

/// Names one look (and the check that looks) for as long as it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    slot: u32,
    look: u32,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Output {
    /// Look, within the check's timeout, and tell [`Core::found`].
    Look(Ticket, Arc<Check>),
    /// Stop looking; nobody waits for the result.
    Abort(Ticket),
    /// Publish.
    Publish(CheckRecord),
    /// The instance was critical for too long.
    Deregister(InstanceId, Arc<Check>),
}

#[derive(Debug)]
pub(super) struct Core {
    rng: Xoshiro256PlusPlus,
    slots: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_id: HashMap<Arc<str>, u32>,
    /// When to look after which slot. A slot has an item at its entry's `queued`; others of it are void.
    timers: BinaryHeap<Reverse<(Duration, u32)>>,
    /// By [`lane`].
    waiting: [VecDeque<Ticket>; 2],
    looking: [usize; 2],
    looks: u32,
    outputs: VecDeque<Output>,
    /// How often what a check printed became something else.
    said: u64,
}

#[derive(Debug)]
struct Entry {
    check: Arc<Check>,
    phase: Phase,
    output: Box<str>,
    fold: Fold,
    /// Any result came yet.
    seen: bool,
    damping: Damping,
    shown: Health,
    shown_flapping: bool,
    /// Changes for the better that were published run ahead of the clock by [`PACE`] each.
    paced: Duration,
    critical_since: Duration,
    /// When its item in the timers is due.
    queued: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Looks at that time.
    Idle(Duration),
    /// Looks as soon as others have finished; was due at that time.
    Waiting(u32, Duration),
    /// Looks now; was due at that time.
    Looking(u32, Duration),
    /// Must be told by that time.
    Fresh(Duration),
    /// Is told some time.
    Untimed,
}

impl Core {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            timers: BinaryHeap::new(),
            waiting: Default::default(),
            looking: [0; 2],
            looks: 0,
            outputs: VecDeque::new(),
            said: 0,
        }
    }

    /// Begins with a check that is published as `status`, critical since `critical_since` if it is; in place of the one
    /// with its id, whose output it keeps, and whose damping if it asks the same.
    pub(super) fn add(
        &mut self,
        now: Duration,
        check: Arc<Check>,
        status: Health,
        critical_since: Duration,
    ) {
        let old = self.take(&check.id);
        let phase = match &check.how {
            How::Every { interval, .. } => {
                let first = now + self.random(Duration::ZERO, (*interval).min(FIRST_WITHIN));
                // Adding it again and again must not put it off for ever.
                match old.as_ref().map(|old| old.phase) {
                    Some(Phase::Idle(at) | Phase::Waiting(_, at)) => Phase::Idle(first.min(at)),
                    _ => Phase::Idle(first),
                }
            }
            How::Ttl { ttl } => Phase::Fresh(now + *ttl),
            How::Alias(_) => Phase::Untimed,
        };
        let mut entry = Entry {
            phase,
            output: "".into(),
            fold: Fold::new(status),
            seen: false,
            damping: Damping::default(),
            shown: status,
            shown_flapping: false,
            paced: Duration::ZERO,
            critical_since: critical_since.min(now),
            queued: Duration::MAX,
            check,
        };
        if let Some(old) = old {
            entry.output = old.output;
            if entry.check.asks_as(&old.check) {
                entry.damping = old.damping;
            }
            entry.paced = old.paced;
            entry.seen = old.seen;
            if old.fold.status == Health::Critical && status == Health::Critical {
                entry.critical_since = old.critical_since;
            }
        }
        let id = Arc::clone(&entry.check.id);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.slots.push(Some(entry));
                // Memory ends long before 2^32 checks.
                self.slots.len() as u32 - 1
            }
        };
        self.by_id.insert(id, slot);
        self.queue(slot);
    }

    /// Forgets a check; whether there was one.
    pub(super) fn remove(&mut self, now: Duration, id: &str) -> bool {
        let found = self.take(id).is_some();
        self.start_waiting(now);
        found
    }

    /// Forgets the checks of an instance.
    pub(super) fn remove_instance(&mut self, now: Duration, instance: &InstanceId) {
        let of = |entry: &Entry| entry.check.instance.as_ref() == Some(instance);
        let own = self.slots.iter().flatten().filter(|entry| of(entry));
        let ids: Vec<_> = own.map(|entry| Arc::clone(&entry.check.id)).collect();
        for id in ids {
            self.take(&id);
        }
        self.start_waiting(now);
    }

    /// Takes in what a look found. The result of a look that was stopped means nothing.
    pub(super) fn found(&mut self, now: Duration, ticket: Ticket, result: ProbeResult) {
        let Some(entry) = self.slots[ticket.slot as usize].as_mut() else {
            return;
        };
        let Phase::Looking(look, due) = entry.phase else {
            return;
        };
        let How::Every { interval, .. } = entry.check.how else {
            return;
        };
        if look != ticket.look {
            return;
        }
        self.looking[lane(&entry.check)] -= 1;
        let next = due + self.random(interval.mul_f64(0.95), interval.mul_f64(1.05));
        let entry = self.slots[ticket.slot as usize].as_mut();
        let entry = entry.expect("it was there a moment ago");
        entry.phase = Phase::Idle(next.max(now));
        self.result(now, ticket.slot, result);
        self.start_waiting(now);
    }

    /// Takes in what a check is told; whether there is such a check.
    pub(super) fn told(&mut self, now: Duration, id: &str, result: ProbeResult) -> bool {
        let Some(&slot) = self.by_id.get(id) else {
            return false;
        };
        let entry = self.slots[slot as usize].as_mut();
        let entry = entry.expect("ids lead to entries");
        if let How::Ttl { ttl } = entry.check.how {
            entry.phase = Phase::Fresh(now + ttl);
        }
        self.result(now, slot, result);
        true
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Duration) {
        while let Some(&Reverse((at, slot))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let valid = self.slots[slot as usize].as_mut();
            if let Some(entry) = valid.filter(|entry| entry.queued == at) {
                entry.queued = Duration::MAX;
                self.wake(now, slot);
            }
        }
    }

    /// When [`tick`](Self::tick) has something to do next. May be early.
    pub(super) fn next(&self) -> Option<Duration> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Grows whenever what some check printed last changes.
    pub(super) fn said(&self) -> u64 {
        self.said
    }

    /// What is to be done, oldest first.
    pub(super) fn outputs(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn check(&self, id: &str) -> Option<&Arc<Check>> {
        self.entry(id).map(|entry| &entry.check)
    }

    pub(super) fn checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.slots.iter().flatten().map(|entry| &entry.check)
    }

    pub(super) fn state(&self, id: &str) -> Option<CheckState> {
        self.entry(id).map(|entry| CheckState {
            status: entry.fold.status,
            flapping: entry.shown_flapping,
            output: entry.output.to_string(),
        })
    }

    fn entry(&self, id: &str) -> Option<&Entry> {
        self.slots[*self.by_id.get(id)? as usize].as_ref()
    }

    fn take(&mut self, id: &str) -> Option<Entry> {
        let slot = self.by_id.remove(id)?;
        let entry = self.slots[slot as usize].take()?;
        if let Phase::Looking(look, _) = entry.phase {
            self.looking[lane(&entry.check)] -= 1;
            self.outputs.push_back(Output::Abort(Ticket { slot, look }));
        }
        self.free.push(slot);
        Some(entry)
    }

    fn wake(&mut self, now: Duration, slot: u32) {
        let Some(entry) = self.slots[slot as usize].as_mut() else {
            return;
        };
        if let Some(at) = entry.deregister_at()
            && at <= now
            && let Some(instance) = entry.check.instance.clone()
        {
            let check = Arc::clone(&entry.check);
            self.outputs.push_back(Output::Deregister(instance, check));
            return;
        }
        match entry.phase {
            Phase::Fresh(until) if until <= now => {
                entry.phase = Phase::Untimed;
                let output = format!(
                    "TTL expired (last output before timeout follows): {}",
                    entry.output
                );
                return self.result(now, slot, ProbeResult::critical(output));
            }
            Phase::Idle(at) if at <= now => {
                self.looks = self.looks.wrapping_add(1);
                let look = self.looks;
                entry.phase = Phase::Waiting(look, at);
                self.waiting[lane(&entry.check)].push_back(Ticket { slot, look });
            }
            Phase::Idle(_)
            | Phase::Waiting(..)
            | Phase::Looking(..)
            | Phase::Fresh(_)
            | Phase::Untimed => {}
        }
        self.show(now, slot);
        self.start_waiting(now);
    }

    fn start_waiting(&mut self, now: Duration) {
        for lane in [LOOKS, PROCESSES] {
            let most = [LOOKS_MAX, PROCESSES_MAX][lane];
            while self.looking[lane] < most
                && let Some(ticket) = self.waiting[lane].pop_front()
            {
                let entry = self.slots[ticket.slot as usize].as_mut();
                if let Some(entry) = entry
                    && let Phase::Waiting(look, due) = entry.phase
                    && look == ticket.look
                {
                    // Those that had to wait long do not hurry after what they missed.
                    let late = now.saturating_sub(due) > Duration::from_secs(1);
                    entry.phase = Phase::Looking(look, if late { now } else { due });
                    self.looking[lane] += 1;
                    let check = Arc::clone(&entry.check);
                    self.outputs.push_back(Output::Look(ticket, check));
                }
            }
        }
    }

    fn result(&mut self, now: Duration, slot: u32, mut result: ProbeResult) {
        let Some(entry) = self.slots[slot as usize].as_mut() else {
            return;
        };
        let room = entry.check.output_max;
        let end = result.output.floor_char_boundary(room);
        result.output.truncate(end);
        if *entry.output != *result.output {
            entry.output = result.output.into_boxed_str();
            self.said += 1;
        }
        let before = entry.fold.status;
        match entry.check.how {
            How::Every { .. } => entry.fold.take(&entry.check.thresholds, now, result.health),
            How::Ttl { .. } | How::Alias(_) => entry.fold.status = result.health,
        }
        let after = entry.fold.status;
        if before != Health::Critical && after == Health::Critical {
            entry.critical_since = now;
        }
        // The first result ends not knowing, which is no change of mind.
        let flip = entry.seen && before.is_usable() != after.is_usable();
        if flip && entry.check.damping {
            entry.damping.flip(now);
        }
        entry.seen = true;
        self.show(now, slot);
    }

    /// Publishes what is to be seen of a check, if that is another thing than before and it may.
    fn show(&mut self, now: Duration, slot: u32) {
        let Some(entry) = self.slots[slot as usize].as_mut() else {
            return;
        };
        let flapping = entry.damping.suppresses(now);
        let status = entry.wanted(flapping);
        let changed = status != entry.shown || flapping != entry.shown_flapping;
        if changed && (status > entry.shown || entry.paced <= entry.pace_limit(now)) {
            if flapping && !entry.shown_flapping {
                tracing::warn!(
                    check = &*entry.check.id,
                    "flapping: critical until it is steady"
                );
            }
            entry.paced = entry.paced.max(now) + PACE;
            (entry.shown, entry.shown_flapping) = (status, flapping);
            let record = entry.check.record(status, flapping);
            self.outputs.push_back(Output::Publish(record));
        }
        self.queue(slot);
    }

    /// Sees to it that the slot is looked after in time.
    fn queue(&mut self, slot: u32) {
        let Some(entry) = self.slots[slot as usize].as_mut() else {
            return;
        };
        let at = entry.next();
        if at < entry.queued {
            entry.queued = at;
            self.timers.push(Reverse((at, slot)));
        }
    }

    fn random(&mut self, low: Duration, high: Duration) -> Duration {
        low + (high - low).mul_f64(self.rng.random_range(0.0..1.0))
    }
}

impl Entry {
    fn wanted(&self, flapping: bool) -> Health {
        match flapping {
            true => self.fold.status.max(Health::Critical),
            false => self.fold.status,
        }
    }

    /// How far ahead `paced` may be.
    fn pace_limit(&self, now: Duration) -> Duration {
        match self.check.how {
            How::Every { .. } => now,
            How::Ttl { .. } | How::Alias(_) => now + PACE * (TOLD_BURST - 1),
        }
    }

    fn deregister_at(&self) -> Option<Duration> {
        let after = self.check.deregistration()?;
        // What an earlier life of the node found counts only when this one finds it, too.
        let critical = self.seen && self.fold.status == Health::Critical;
        critical.then(|| self.critical_since + after)
    }

    /// When something happens by itself.
    fn next(&self) -> Duration {
        let phase = match self.phase {
            Phase::Idle(at) | Phase::Fresh(at) => Some(at),
            Phase::Waiting(..) | Phase::Looking(..) | Phase::Untimed => None,
        };
        let held_back = self.wanted(self.shown_flapping) != self.shown
            || self.shown_flapping != self.damping.reuse_at().is_some();
        let show = held_back.then(|| match self.check.how {
            How::Every { .. } => self.paced,
            How::Ttl { .. } | How::Alias(_) => self.paced.saturating_sub(PACE * (TOLD_BURST - 1)),
        });
        let times = [phase, show, self.damping.reuse_at(), self.deregister_at()];
        times.into_iter().flatten().min().unwrap_or(Duration::MAX)
    }
}

const LOOKS: usize = 0;
const PROCESSES: usize = 1;

fn lane(check: &Check) -> usize {
    match &check.how {
        How::Every { probe, .. } if probe.starts_process() => PROCESSES,
        How::Every { .. } | How::Ttl { .. } | How::Alias(_) => LOOKS,
    }
}

#[cfg(test)]
mod tests;
