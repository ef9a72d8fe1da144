//! The tasks that run checks.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::probe::{OUTPUT_MAX, Probe, ProbeResult};
use super::thresholds::{Fold, Thresholds};
use crate::catalog::{LocalError, LocalLog};
use crate::model::{CheckRecord, Health, InstanceId, InvalidField};

/// Shortest interval and TTL.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// TTL updates waiting for their check at most.
const UPDATES_MAX: usize = 16;

/// A check to be run.
#[derive(Clone)]
pub struct Check {
    /// Unique on this node.
    pub id: Arc<str>,
    /// For people.
    pub name: Arc<str>,
    /// The instance it speaks for; `None` = the whole node.
    pub instance: Option<InstanceId>,
    /// For people.
    pub notes: Arc<str>,
    /// How its results come about.
    pub how: How,
    /// Status until the first result; `None` = what the check with this id said last, or critical.
    pub initial: Option<Health>,
    /// How many results in a row it takes. Not for TTL checks.
    pub thresholds: Thresholds,
    /// Deregister the instance when the check stays critical for so long.
    pub deregister_after: Option<Duration>,
}

/// How a check's results come about.
#[derive(Clone)]
pub enum How {
    /// By looking.
    Every {
        /// Between two looks.
        interval: Duration,
        /// For one look (10 s by default).
        timeout: Duration,
        /// What to look at.
        probe: Arc<dyn Probe>,
    },
    /// By being told ([`Scheduler::update`]) at least this often; else critical.
    Ttl {
        /// How often.
        ttl: Duration,
    },
}

impl Check {
    /// A check of the node that looks at `probe` every `interval`, with nothing else set.
    pub fn every(id: &str, interval: Duration, probe: impl Probe + 'static) -> Self {
        Self::new(
            id,
            How::Every {
                interval,
                timeout: Duration::from_secs(10),
                probe: Arc::new(probe),
            },
        )
    }

    /// A check of the node that must be told within `ttl`, with nothing else set.
    pub fn ttl(id: &str, ttl: Duration) -> Self {
        Self::new(id, How::Ttl { ttl })
    }

    fn new(id: &str, how: How) -> Self {
        Self {
            id: Arc::from(id),
            name: Arc::from(id),
            instance: None,
            notes: Arc::from(""),
            how,
            initial: None,
            thresholds: Thresholds::default(),
            deregister_after: None,
        }
    }

    /// The same, for an instance.
    pub fn of(self, instance: InstanceId) -> Self {
        Self {
            instance: Some(instance),
            ..self
        }
    }

    /// `http`, `tcp`, `ttl`, …
    pub fn kind(&self) -> &'static str {
        match &self.how {
            How::Every { probe, .. } => probe.kind(),
            How::Ttl { .. } => "ttl",
        }
    }

    fn record(&self, status: Health) -> CheckRecord {
        CheckRecord {
            id: Arc::clone(&self.id),
            name: Arc::clone(&self.name),
            service: self.instance.clone(),
            status,
            kind: Arc::from(self.kind()),
            notes: Arc::clone(&self.notes),
            create_stamp: 0,
            modify_stamp: 0,
        }
    }

    fn validate(&self) -> Result<(), InvalidField> {
        let too_short = |field| {
            InvalidField::new(
                field,
                format!("must be at least {} ms", INTERVAL_MIN.as_millis()),
            )
        };
        match self.how {
            How::Every { interval, .. } if interval < INTERVAL_MIN => Err(too_short("interval")),
            How::Every { timeout, .. } if timeout.is_zero() => {
                Err(InvalidField::new("timeout", "must not be 0"))
            }
            How::Ttl { ttl } if ttl < INTERVAL_MIN => Err(too_short("ttl")),
            How::Every { .. } | How::Ttl { .. } => Ok(()),
        }
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check")
            .field("id", &self.id)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

/// Why something could not be done with a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// It cannot be published.
    #[error(transparent)]
    Refused(#[from] LocalError),
    /// There is none with this id.
    #[error("there is no check {0:?}")]
    Unknown(Arc<str>),
    /// Only TTL checks are told their status.
    #[error("check {0:?} has no TTL, so it cannot be told its status")]
    NotTtl(Arc<str>),
}

/// Runs checks. Cheap to clone; when the last clone is dropped, all checks stop (their records stay as they are).
#[derive(Clone)]
pub struct Scheduler {
    inner: Arc<Inner>,
}

struct Inner {
    log: LocalLog,
    checks: Mutex<HashMap<Arc<str>, Running>>,
}

struct Running {
    check: Arc<Check>,
    output: Arc<Mutex<String>>,
    updates: Option<mpsc::Sender<ProbeResult>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Scheduler {
    /// A scheduler without checks that publishes to `log`.
    pub fn new(log: LocalLog) -> Self {
        Self {
            inner: Arc::new(Inner {
                log,
                checks: Mutex::default(),
            }),
        }
    }

    /// Publishes a check and begins to run it; in place of the one with its id. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`CheckError::Refused`] when a field is not well formed or the instance is not registered.
    pub fn add(&self, check: Check) -> Result<(), CheckError> {
        check.validate().map_err(LocalError::from)?;
        let mut checks = self.inner.checks.lock();
        let known = self.inner.log.check(&check.id).map(|record| record.status);
        let status = check.initial.or(known).unwrap_or(Health::Critical);
        self.inner.log.put_check(check.record(status))?;
        let output = checks
            .get(&check.id)
            .map(|known| Arc::clone(&known.output))
            .unwrap_or_default();
        let check = Arc::new(check);
        let run = Run {
            scheduler: Arc::downgrade(&self.inner),
            log: self.inner.log.clone(),
            check: Arc::clone(&check),
            output: Arc::clone(&output),
            fold: Fold::new(check.thresholds, status),
            status,
            critical_since: Instant::now(),
        };
        let (task, updates) = match check.how.clone() {
            How::Every {
                interval,
                timeout,
                probe,
            } => (
                tokio::spawn(run.every(interval, timeout, probe)).abort_handle(),
                None,
            ),
            How::Ttl { ttl } => {
                let (sender, receiver) = mpsc::channel(UPDATES_MAX);
                (
                    tokio::spawn(run.ttl(ttl, receiver)).abort_handle(),
                    Some(sender),
                )
            }
        };
        checks.insert(
            Arc::clone(&check.id),
            Running {
                check,
                output,
                updates,
                task,
            },
        );
        Ok(())
    }

    /// Stops a check and takes its record away; whether there was one.
    pub fn remove(&self, id: &str) -> bool {
        let known = self.inner.checks.lock().remove(id).is_some();
        self.inner.log.remove_check(id) || known
    }

    /// Deregisters an instance and stops its checks; whether there was one.
    pub fn remove_service(&self, id: &InstanceId) -> bool {
        self.inner.remove_service(id)
    }

    /// Tells a TTL check its status. Shown shortly after; when updates come faster than they are taken in, the
    /// newest may be dropped, as the status is fresh anyway.
    ///
    /// # Errors
    /// [`CheckError::Unknown`], [`CheckError::NotTtl`].
    pub fn update(&self, id: &str, status: Health, note: &str) -> Result<(), CheckError> {
        let checks = self.inner.checks.lock();
        let running = checks
            .get(id)
            .ok_or_else(|| CheckError::Unknown(Arc::from(id)))?;
        let updates = running
            .updates
            .as_ref()
            .ok_or_else(|| CheckError::NotTtl(Arc::clone(&running.check.id)))?;
        let _ = updates.try_send(ProbeResult {
            health: status,
            output: note.to_owned(),
        });
        Ok(())
    }

    /// What a check printed last; `None` when there is no such check.
    pub fn output(&self, id: &str) -> Option<String> {
        self.inner
            .checks
            .lock()
            .get(id)
            .map(|running| running.output.lock().clone())
    }

    /// A check that runs.
    pub fn check(&self, id: &str) -> Option<Arc<Check>> {
        self.inner
            .checks
            .lock()
            .get(id)
            .map(|running| Arc::clone(&running.check))
    }

    /// The checks that run, in no order.
    pub fn checks(&self) -> Vec<Arc<Check>> {
        self.inner
            .checks
            .lock()
            .values()
            .map(|running| Arc::clone(&running.check))
            .collect()
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
    fn remove_service(&self, id: &InstanceId) -> bool {
        // The record first: a task that is stopped here may be the caller.
        let found = self.log.remove_service(id);
        self.checks
            .lock()
            .retain(|_, running| running.check.instance.as_ref() != Some(id));
        found
    }
}

/// One check's task.
struct Run {
    scheduler: Weak<Inner>,
    log: LocalLog,
    check: Arc<Check>,
    output: Arc<Mutex<String>>,
    fold: Fold,
    status: Health,
    critical_since: Instant,
}

impl Run {
    async fn every(mut self, interval: Duration, patience: Duration, probe: Arc<dyn Probe>) {
        let mut next = Instant::now() + interval.mul_f64(rand::random_range(0.0..1.0));
        loop {
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.deregistration() => return self.deregister(),
            }
            let result = tokio::select! {
                result = timeout(patience, probe.probe()) => result,
                () = self.deregistration() => return self.deregister(),
            };
            let result = result.unwrap_or_else(|_| {
                ProbeResult::critical(format!("no answer within {} ms", patience.as_millis()))
            });
            let status = self.fold.take(result.health);
            if !self.publish(status, result.output) {
                return;
            }
            next = (next + interval).max(Instant::now());
        }
    }

    async fn ttl(mut self, ttl: Duration, mut updates: mpsc::Receiver<ProbeResult>) {
        let mut until = Some(Instant::now() + ttl);
        loop {
            let expiry = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let (status, output) = tokio::select! {
                biased;
                update = updates.recv() => {
                    let Some(update) = update else { return };
                    until = Some(Instant::now() + ttl);
                    (update.health, update.output)
                }
                () = expiry => {
                    until = None;
                    let before = self.output.lock().clone();
                    (Health::Critical, format!("TTL expired (last output before timeout follows): {before}"))
                }
                () = self.deregistration() => return self.deregister(),
            };
            if !self.publish(status, output) {
                return;
            }
        }
    }

    /// Whether to go on: not when the check's instance is gone.
    fn publish(&mut self, status: Health, mut output: String) -> bool {
        output.truncate(output.floor_char_boundary(OUTPUT_MAX));
        *self.output.lock() = output;
        if status == self.status {
            return true;
        }
        if status == Health::Critical {
            self.critical_since = Instant::now();
        }
        self.status = status;
        match self.log.put_check(self.check.record(status)) {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(check = &*self.check.id, %error, "the check stops");
                false
            }
        }
    }

    /// Ends when the instance has been critical for too long.
    async fn deregistration(&self) {
        match self.check.deregister_after {
            Some(after) if self.status == Health::Critical => {
                sleep_until(self.critical_since + after).await
            }
            _ => std::future::pending().await,
        }
    }

    fn deregister(&self) {
        let Some(instance) = &self.check.instance else {
            return;
        };
        tracing::info!(
            instance = instance.as_str(),
            check = &*self.check.id,
            "critical for too long: deregistered"
        );
        match self.scheduler.upgrade() {
            Some(scheduler) => drop(scheduler.remove_service(instance)),
            None => drop(self.log.remove_service(instance)),
        }
    }
}
