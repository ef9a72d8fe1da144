//! What is checked, and how often.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::probe::{OUTPUT_MAX, Probe};
use super::thresholds::Thresholds;
use crate::catalog::LocalError;
use crate::model::{CheckRecord, Health, InstanceId, InvalidField, NodeName};

/// Shortest interval and TTL.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Shortest time before an instance is deregistered, as Consul's.
const DEREGISTER_MIN: Duration = Duration::from_secs(60);
/// Most output that may be kept of one check, in bytes.
const OUTPUT_LIMIT: usize = 1 << 20;
/// What the notes of a flapping check begin with.
const FLAPPING: &str = "[flapping]";
/// Longest notes a record takes.
const NOTES_MAX: usize = 1024;

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
    /// How many results in a row it takes. For checks that look; what is told is the status at once.
    pub thresholds: Thresholds,
    /// Whether a check that changes between fit and unfit four times within half a minute stays critical until it is
    /// steady (two to three minutes). Default true for checks that look, false for those that are told.
    pub damping: bool,
    /// Deregister the instance when the check finds it critical for so long without a break; at least one minute.
    pub deregister_after: Option<Duration>,
    /// Bytes of output kept. Default 4 KiB, at most 1 MiB.
    pub output_max: usize,
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
    /// By being told ([`Scheduler::update`](super::Scheduler::update)) at least this often; else critical.
    Ttl {
        /// How often.
        ttl: Duration,
    },
    /// By what other checks say, here or on another node.
    Alias(Alias),
}

/// Whose checks an alias follows: all of an instance and of its node, or only those of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The node; `None` = this one.
    pub node: Option<NodeName>,
    /// The instance there; `None` = the node itself.
    pub instance: Option<InstanceId>,
}

impl Check {
    /// A check of the node that looks at `probe` every `interval`, with nothing else set.
    pub fn every(id: &str, interval: Duration, probe: impl Probe + 'static) -> Self {
        Self::looking(id, interval, Arc::new(probe))
    }

    /// The same for a probe of any kind.
    pub fn looking(id: &str, interval: Duration, probe: Arc<dyn Probe>) -> Self {
        let timeout = Duration::from_secs(10);
        Self::new(
            id,
            How::Every {
                interval,
                timeout,
                probe,
            },
        )
    }

    /// A check of the node that must be told within `ttl`, with nothing else set.
    pub fn ttl(id: &str, ttl: Duration) -> Self {
        Self::new(id, How::Ttl { ttl })
    }

    /// A check of the node that is as well as what `of` names, with nothing else set.
    pub fn alias(id: &str, of: Alias) -> Self {
        Self::new(id, How::Alias(of))
    }

    fn new(id: &str, how: How) -> Self {
        let damping = matches!(how, How::Every { .. });
        Self {
            id: Arc::from(id),
            name: Arc::from(id),
            instance: None,
            notes: Arc::from(""),
            how,
            initial: None,
            thresholds: Thresholds::default(),
            damping,
            deregister_after: None,
            output_max: OUTPUT_MAX,
        }
    }

    /// The same, for an instance.
    pub fn of(self, instance: InstanceId) -> Self {
        Self {
            instance: Some(instance),
            ..self
        }
    }

    /// The same, with another time for one look; for checks that do not look nothing changes.
    pub fn within(mut self, patience: Duration) -> Self {
        if let How::Every { timeout, .. } = &mut self.how {
            *timeout = patience;
        }
        self
    }

    /// `http`, `tcp`, `ttl`, …
    pub fn kind(&self) -> &'static str {
        match &self.how {
            How::Every { probe, .. } => probe.kind(),
            How::Ttl { .. } => "ttl",
            How::Alias(_) => "alias",
        }
    }

    /// Whether it asks what `other` asks.
    pub(super) fn asks_as(&self, other: &Check) -> bool {
        match (&self.how, &other.how) {
            (How::Every { probe, .. }, How::Every { probe: with, .. }) => {
                probe.kind() == with.kind() && probe.target() == with.target()
            }
            (How::Ttl { .. }, How::Ttl { .. }) => true,
            (How::Alias(of), How::Alias(with)) => of == with,
            _ => false,
        }
    }

    /// How long it must be critical before its instance goes.
    pub(super) fn deregistration(&self) -> Option<Duration> {
        self.instance.as_ref()?;
        Some(self.deregister_after?.max(DEREGISTER_MIN))
    }

    pub(super) fn record(&self, status: Health, flapping: bool) -> CheckRecord {
        CheckRecord {
            id: Arc::clone(&self.id),
            name: Arc::clone(&self.name),
            service: self.instance.clone(),
            status,
            kind: Arc::from(self.kind()),
            notes: match flapping {
                true => flapping_notes(&self.notes),
                false => Arc::clone(&self.notes),
            },
            create_stamp: 0,
            modify_stamp: 0,
        }
    }

    /// Checks what the types alone do not; [`Scheduler::add`](super::Scheduler::add) does it, too.
    ///
    /// # Errors
    /// [`InvalidField`] for an `interval` or `ttl` below 100 ms, a `timeout` of 0, `output_max` above 1 MiB.
    pub fn validate(&self) -> Result<(), InvalidField> {
        let too_short = |field| {
            InvalidField::new(
                field,
                format!("must be at least {} ms", INTERVAL_MIN.as_millis()),
            )
        };
        match self.how {
            How::Every { interval, .. } if interval < INTERVAL_MIN => {
                return Err(too_short("interval"));
            }
            How::Every { timeout, .. } if timeout.is_zero() => {
                return Err(InvalidField::new("timeout", "must not be 0"));
            }
            How::Ttl { ttl } if ttl < INTERVAL_MIN => return Err(too_short("ttl")),
            How::Every { .. } | How::Ttl { .. } | How::Alias(_) => {}
        }
        if self.output_max > OUTPUT_LIMIT {
            return Err(InvalidField::new(
                "output_max",
                format!("must be at most {OUTPUT_LIMIT} bytes"),
            ));
        }
        Ok(())
    }
}

fn flapping_notes(notes: &str) -> Arc<str> {
    let room = NOTES_MAX - FLAPPING.len() - 1;
    match &notes[..notes.floor_char_boundary(room)] {
        "" => FLAPPING.into(),
        notes => format!("{FLAPPING} {notes}").into(),
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

/// What a check says on its own node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckState {
    /// What it finds, after its thresholds. While it is flapping, what is published is critical all the same.
    pub status: Health,
    /// It changed too often to be believed; its published notes begin with `[flapping]`.
    pub flapping: bool,
    /// What it printed last. It never leaves the node by itself.
    pub output: String,
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
