//! The shell around the [`Core`]: the clock, the tasks that look, and the node's log.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::alias;
use super::check::{Alias, Check, CheckError, CheckState, How};
use super::core::{Core, Output, Ticket};
use super::probe::ProbeResult;
use crate::catalog::{LocalError, LocalLog};
use crate::model::{Health, InstanceId};

/// Runs checks. Cheap to clone; when the last clone is dropped, all checks stop (their records stay as they are).
///
/// One task keeps the time for all checks, one more follows what the aliases follow; beside these only checks that
/// look right now have a task.
#[derive(Clone)]
pub struct Scheduler {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) log: LocalLog,
    clock: Clock,
    state: Mutex<State>,
    /// See [`Scheduler::said`].
    said: AtomicU64,
    wake: Arc<Notify>,
    stop: CancellationToken,
    _stop_with_last_handle: DropGuard,
}

struct State {
    core: Core,
    /// Dropping one stops the look.
    looks: HashMap<Ticket, oneshot::Sender<()>>,
    aliases: Vec<(Arc<str>, Alias)>,
    following: bool,
    /// Where the tasks run; known from the first check on.
    runtime: Option<Handle>,
    /// Until when the time keeper sleeps.
    asleep_until: Option<Duration>,
}

impl Scheduler {
    /// A scheduler without checks that publishes to `log`.
    pub fn new(log: LocalLog) -> Self {
        let state = State {
            core: Core::new(rand::random()),
            looks: HashMap::new(),
            aliases: Vec::new(),
            following: false,
            runtime: None,
            asleep_until: None,
        };
        let stop = CancellationToken::new();
        Self {
            inner: Arc::new(Inner {
                log,
                clock: Clock::start(),
                state: Mutex::new(state),
                said: AtomicU64::new(0),
                wake: Arc::default(),
                _stop_with_last_handle: stop.clone().drop_guard(),
                stop,
            }),
        }
    }

    /// Publishes a check and begins to run it; in place of the one with its id. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`CheckError::Refused`] when a field is not well formed or the instance is not registered.
    pub fn add(&self, check: Check) -> Result<(), CheckError> {
        check.validate().map_err(LocalError::from)?;
        let inner = &self.inner;
        let runtime = Handle::current();
        let check = Arc::new(check);
        inner.with(|state, now| {
            let known = inner.log.check(&check.id);
            let looked_up = match &check.how {
                How::Alias(of) => Some(alias::look(&inner.log, &check, of)),
                How::Every { .. } | How::Ttl { .. } => None,
            };
            let found = looked_up.as_ref().map(|result| result.health);
            let before = known.as_ref().map(|record| record.status);
            let status = found.or(check.initial).or(before);
            let status = status.unwrap_or(Health::Critical);
            inner.log.put_check(check.record(status, false))?;
            let critical_since = known
                .filter(|record| record.status == Health::Critical)
                .map_or(now, |record| Duration::from_micros(record.modify_stamp));
            state
                .core
                .add(now, Arc::clone(&check), status, critical_since);
            state.aliases.retain(|(id, _)| *id != check.id);
            if let How::Alias(of) = &check.how {
                state.aliases.push((Arc::clone(&check.id), of.clone()));
                if !state.following {
                    state.following = true;
                    runtime.spawn(inner.until_stopped(follow_aliases(Arc::downgrade(inner))));
                }
            }
            if let Some(result) = looked_up {
                state.core.told(now, &check.id, result);
            }
            if state.runtime.is_none() {
                let keeper = keep_time(Arc::downgrade(inner), Arc::clone(&inner.wake));
                runtime.spawn(inner.until_stopped(keeper));
                state.runtime = Some(runtime);
            }
            Ok(())
        })
    }

    /// Stops a check and takes its record away; whether there was one.
    pub fn remove(&self, id: &str) -> bool {
        let known = self.inner.with(|state, now| {
            state.aliases.retain(|(alias, _)| **alias != *id);
            state.core.remove(now, id)
        });
        self.inner.log.remove_check(id) || known
    }

    /// Deregisters an instance and stops its checks; whether there was one.
    pub fn remove_service(&self, id: &InstanceId) -> bool {
        self.inner.with(|state, now| {
            state.core.remove_instance(now, id);
            self.inner.log.remove_service(id)
        })
    }

    /// Tells a TTL check its status; shown when this returns (when the check changes more than once a second for
    /// long, what is better than before is shown up to a second later).
    ///
    /// # Errors
    /// [`CheckError::Unknown`], [`CheckError::NotTtl`].
    pub fn update(&self, id: &str, status: Health, note: &str) -> Result<(), CheckError> {
        self.inner.with(|state, now| {
            let check = state.core.check(id);
            let check = check.ok_or_else(|| CheckError::Unknown(Arc::from(id)))?;
            if !matches!(check.how, How::Ttl { .. }) {
                return Err(CheckError::NotTtl(Arc::clone(&check.id)));
            }
            let told = ProbeResult {
                health: status,
                output: note.to_owned(),
            };
            state.core.told(now, id, told);
            Ok(())
        })
    }

    /// What a check printed last; `None` when there is no such check.
    pub fn output(&self, id: &str) -> Option<String> {
        self.state(id).map(|state| state.output)
    }

    /// Grows whenever what some check printed last changes, which its record does not tell: for those who keep what they
    /// made of [`output`](Self::output). To be read before that.
    pub fn said(&self) -> u64 {
        self.inner.said.load(Ordering::Acquire)
    }

    /// What a check says here; `None` when there is no such check.
    pub fn state(&self, id: &str) -> Option<CheckState> {
        self.inner.state.lock().core.state(id)
    }

    /// A check that runs.
    pub fn check(&self, id: &str) -> Option<Arc<Check>> {
        self.inner.state.lock().core.check(id).cloned()
    }

    /// The checks that run, in no order.
    pub fn checks(&self) -> Vec<Arc<Check>> {
        self.inner.state.lock().core.checks().cloned().collect()
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("checks", &self.checks())
            .finish()
    }
}

impl Inner {
    /// Does something with the core, then what follows from it.
    fn with<T>(self: &Arc<Self>, run: impl FnOnce(&mut State, Duration) -> T) -> T {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let answer = run(&mut state, now);
        let looks = self.follow_up(&mut state, now);
        self.said.store(state.core.said(), Ordering::Release);
        let next = state.core.next();
        if next.is_some_and(|next| state.asleep_until.is_none_or(|until| next < until)) {
            self.wake.notify_one();
        }
        let runtime = state.runtime.clone();
        drop(state);
        // Not under the lock: a runtime that ends drops what it is given at once.
        if let Some(runtime) = runtime {
            for (ticket, check, stop) in looks {
                runtime.spawn(look(Arc::downgrade(self), ticket, check, stop));
            }
        }
        answer
    }

    fn until_stopped(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let stop = self.stop.clone();
        async move {
            stop.run_until_cancelled(task).await;
        }
    }

    fn follow_up(
        &self,
        state: &mut State,
        now: Duration,
    ) -> Vec<(Ticket, Arc<Check>, oneshot::Receiver<()>)> {
        let mut looks = Vec::new();
        while let Some(output) = state.core.outputs() {
            match output {
                Output::Look(ticket, check) => {
                    let (stop, stopped) = oneshot::channel();
                    state.looks.insert(ticket, stop);
                    looks.push((ticket, check, stopped));
                }
                Output::Abort(ticket) => {
                    state.looks.remove(&ticket);
                }
                Output::Publish(record) => {
                    let id = Arc::clone(&record.id);
                    if let Err(error) = self.log.put_check(record) {
                        tracing::info!(check = &*id, %error, "the check stops");
                        state.core.remove(now, &id);
                    }
                }
                Output::Deregister(instance, check) => {
                    tracing::info!(
                        instance = instance.as_str(),
                        check = &*check.id,
                        "critical for too long: deregistered"
                    );
                    state.core.remove_instance(now, &instance);
                    self.log.remove_service(&instance);
                }
            }
        }
        looks
    }
}

/// Until the scheduler is gone.
async fn keep_time(inner: Weak<Inner>, wake: Arc<Notify>) {
    while let Some(strong) = inner.upgrade() {
        let until = strong.with(|state, now| {
            state.core.tick(now);
            state.asleep_until = state.core.next();
            state.asleep_until
        });
        let until = until.map(|until| strong.clock.instant(until));
        drop(strong);
        match until {
            Some(until) => tokio::select! {
                () = sleep_until(until) => {}
                () = wake.notified() => {}
            },
            None => wake.notified().await,
        }
    }
}

async fn look(inner: Weak<Inner>, ticket: Ticket, check: Arc<Check>, stop: oneshot::Receiver<()>) {
    let How::Every {
        timeout: patience,
        probe,
        ..
    } = &check.how
    else {
        return;
    };
    let report = Report { inner, ticket };
    let result = tokio::select! {
        result = timeout(*patience, probe.probe()) => result,
        _ = stop => return,
    };
    let result = result.unwrap_or_else(|_| {
        ProbeResult::critical(format!("no answer within {} ms", patience.as_millis()))
    });
    report.found(result);
}

/// Tells what a look found, also when it ends in a panic.
struct Report {
    inner: Weak<Inner>,
    ticket: Ticket,
}

impl Report {
    fn found(&self, result: ProbeResult) {
        if let Some(inner) = self.inner.upgrade() {
            inner.with(|state, now| {
                if state.looks.remove(&self.ticket).is_some() {
                    state.core.found(now, self.ticket, result);
                }
            });
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.found(ProbeResult::critical("the look ended without a result"));
    }
}

/// At once when something changes anywhere, then at most every [`alias::PACE`].
async fn follow_aliases(inner: Weak<Inner>) {
    let Some(mut changes) = inner.upgrade().map(|inner| inner.log.catalog().watch_all()) else {
        return;
    };
    loop {
        let Some(strong) = inner.upgrade() else {
            return;
        };
        strong.with(|state, now| {
            for (id, of) in &state.aliases {
                if let Some(check) = state.core.check(id) {
                    let result = alias::look(&strong.log, check, of);
                    state.core.told(now, id, result);
                }
            }
        });
        drop(strong);
        sleep(alias::PACE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Unix time as it was at the start, going on without ever going back.
struct Clock {
    base: Duration,
    start: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            base: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            start: Instant::now(),
        }
    }

    fn now(&self) -> Duration {
        self.base + (Instant::now() - self.start)
    }

    fn instant(&self, at: Duration) -> Instant {
        self.start + at.saturating_sub(self.base)
    }
}
