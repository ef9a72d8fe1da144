//! What the proxy carries now, what it carried lately, and the totals: for people, `/connections` and metrics.
//!
//! A connection is entered when it is let through and leaves when its [`Open`] is dropped, so that no way out
//! of a task can forget it. Attempts that were refused are kept among the recent ones with their reason.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::Serialize;

use super::relay::Flow;

/// How many ended or refused connections are remembered.
const RECENT: usize = 64;

/// Which way a connection goes, seen from the application beside this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the mesh to the application.
    Inbound,
    /// From the application to the mesh.
    Outbound,
}

/// Why a connection was not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// As many connections as allowed are open.
    Limit,
    /// The TLS handshake failed or took too long.
    Handshake,
    /// The peer has no identity of this mesh, or another one than asked for.
    Identity,
    /// The intentions do not allow this pair of services.
    Intention,
    /// No healthy instance of the service can be reached over the mesh.
    NoInstance,
    /// The peer's sidecar could not be reached.
    Unreachable,
    /// The application does not take connections on its port.
    Application,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::Limit,
        Self::Handshake,
        Self::Identity,
        Self::Intention,
        Self::NoInstance,
        Self::Unreachable,
        Self::Application,
    ];

    /// The reason as one word, as in JSON and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Handshake => "handshake",
            Self::Identity => "identity",
            Self::Intention => "intention",
            Self::NoInstance => "no_instance",
            Self::Unreachable => "unreachable",
            Self::Application => "application",
        }
    }
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The SPIFFE ID.
    pub spiffe: Arc<str>,
    /// The certificate it showed, once there was a handshake.
    pub certificate: Option<Certificate>,
}

/// What `/connections` shows of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its serial number in hexadecimal.
    pub serial: Arc<str>,
    /// When it expires.
    pub not_after: SystemTime,
}

/// Who talks to whom.
#[derive(Debug, Clone)]
pub struct Parties {
    /// Inbound or outbound.
    pub direction: Direction,
    /// The service at the other end, or the one that was asked for; empty when it is not known.
    pub service: Arc<str>,
    /// Our end.
    pub local: End,
    /// The other end: as it proved to be, or, of a refused outbound attempt, as it should have been.
    pub peer: Option<End>,
    /// The other end's address in the mesh; of a refused outbound attempt, the application's.
    pub address: SocketAddr,
}

/// A line of `/connections`. Times are RFC 3339.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Counts up from 1 in this process.
    pub id: u64,
    /// Inbound or outbound.
    pub direction: Direction,
    /// The service at the other end.
    pub service: Arc<str>,
    /// Our SPIFFE ID.
    pub local: Arc<str>,
    /// Serial number of the certificate that we showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_serial: Option<Arc<str>>,
    /// When that certificate expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_not_after: Option<String>,
    /// The other end's SPIFFE ID.
    pub peer: Option<Arc<str>>,
    /// Serial number of its certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_serial: Option<Arc<str>>,
    /// When that certificate expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_not_after: Option<String>,
    /// See [`Parties::address`].
    pub address: SocketAddr,
    /// When it was let through or refused.
    pub started: String,
    /// When it ended; not set while it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
    /// Bytes from the caller to the application that answers.
    pub bytes_sent: u64,
    /// Bytes back to the caller.
    pub bytes_received: u64,
    /// Why it was refused; not set when it was let through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    /// How it ended ("closed", "no longer allowed: …"), or the refusal in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Arc<str>>,
}

/// Counts of one direction since the start.
#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    cut: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// Counts of one direction at one moment, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Connections let through.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Bytes from callers to the applications that answer.
    pub bytes_sent: u64,
    /// Bytes back to the callers.
    pub bytes_received: u64,
    /// Connections that this proxy closed: no longer allowed, idle, drained.
    pub cut: u64,
    /// Attempts that were refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

/// `/connections` as JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Open connections, oldest first.
    pub open: Vec<Report>,
    /// Ended and refused ones, newest first; at most 64.
    pub recent: Vec<Report>,
    /// Since the start, both directions.
    pub totals: BothTotals,
}

/// [`Totals`] of both directions.
#[derive(Debug, Clone, Serialize)]
pub struct BothTotals {
    /// From the mesh to the application.
    pub inbound: Totals,
    /// From the application to the mesh.
    pub outbound: Totals,
}

/// The connections of one proxy. Cheap to clone; all clones are the same.
#[derive(Clone, Default)]
pub struct Connections {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    last_id: AtomicU64,
    inbound: Counters,
    outbound: Counters,
    open: Mutex<BTreeMap<u64, Arc<Record>>>,
    recent: Mutex<VecDeque<Report>>,
}

struct Record {
    id: u64,
    parties: Parties,
    started: SystemTime,
    flow: Flow,
    cut: Cut,
}

/// Tells the task of a connection to end it.
#[derive(Default)]
struct Cut {
    reason: OnceLock<Arc<str>>,
    waiting: Mutex<Option<Waker>>,
}

/// An open connection; dropping it moves it to the recent ones.
pub struct Open {
    connections: Connections,
    record: Arc<Record>,
    outcome: Option<Arc<str>>,
}

impl Connections {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Enters a connection that is let through.
    pub fn enter(&self, parties: Parties) -> Open {
        self.counters(parties.direction)
            .accepted
            .fetch_add(1, Ordering::Relaxed);
        let record = Arc::new(Record {
            id: self.id(),
            parties,
            started: SystemTime::now(),
            flow: Flow::default(),
            cut: Cut::default(),
        });
        self.inner
            .open
            .lock()
            .insert(record.id, Arc::clone(&record));
        Open {
            connections: self.clone(),
            record,
            outcome: None,
        }
    }

    /// Counts and remembers an attempt that was refused.
    pub fn refuse(&self, parties: Parties, reason: Refusal, detail: &str) {
        self.counters(parties.direction).refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        let record = Record {
            id: self.id(),
            parties,
            started: SystemTime::now(),
            flow: Flow::default(),
            cut: Cut::default(),
        };
        let report = record.report(Some(record.started), Some(detail.into()));
        self.remember(Report {
            refused: Some(reason),
            ..report
        });
    }

    /// How many are open now.
    pub fn open_count(&self) -> usize {
        self.inner.open.lock().len()
    }

    /// Bytes moved so far by each open connection, by id.
    pub fn progress(&self) -> Vec<(u64, u64)> {
        self.inner
            .open
            .lock()
            .values()
            .map(|record| (record.id, record.flow.total()))
            .collect()
    }

    /// Has the connection ended by its task, if it is still open.
    pub fn cut(&self, id: u64, reason: &str) {
        let record = self.inner.open.lock().get(&id).cloned();
        if let Some(record) = record {
            record.cut.ask(reason.into());
        }
    }

    /// Has all connections ended.
    pub fn cut_all(&self, reason: &str) {
        let reason: Arc<str> = reason.into();
        let open: Vec<_> = self.inner.open.lock().values().cloned().collect();
        open.iter()
            .for_each(|record| record.cut.ask(Arc::clone(&reason)));
    }

    /// Everything there is to see.
    pub fn snapshot(&self) -> Snapshot {
        let open: Vec<Report> = self
            .inner
            .open
            .lock()
            .values()
            .map(|record| record.report(None, None))
            .collect();
        let recent = self.inner.recent.lock().iter().rev().cloned().collect();
        let totals = BothTotals {
            inbound: self.totals(Direction::Inbound, &open),
            outbound: self.totals(Direction::Outbound, &open),
        };
        Snapshot {
            open,
            recent,
            totals,
        }
    }

    fn totals(&self, direction: Direction, open: &[Report]) -> Totals {
        let counters = self.counters(direction);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut totals = Totals {
            accepted: read(&counters.accepted),
            bytes_sent: read(&counters.bytes_sent),
            bytes_received: read(&counters.bytes_received),
            cut: read(&counters.cut),
            refused: Refusal::ALL
                .iter()
                .map(|&reason| (reason.as_str(), read(&counters.refused[reason as usize])))
                .filter(|(_, n)| *n > 0)
                .collect(),
            open: 0,
        };
        for report in open.iter().filter(|report| report.direction == direction) {
            totals.open += 1;
            totals.bytes_sent += report.bytes_sent;
            totals.bytes_received += report.bytes_received;
        }
        totals
    }

    fn counters(&self, direction: Direction) -> &Counters {
        match direction {
            Direction::Inbound => &self.inner.inbound,
            Direction::Outbound => &self.inner.outbound,
        }
    }

    fn id(&self) -> u64 {
        self.inner.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn remember(&self, report: Report) {
        let mut recent = self.inner.recent.lock();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(report);
    }
}

impl Record {
    fn report(&self, ended: Option<SystemTime>, outcome: Option<Arc<str>>) -> Report {
        let written = |time| humantime::format_rfc3339_millis(time).to_string();
        let Parties {
            direction,
            service,
            local,
            peer,
            address,
        } = self.parties.clone();
        let serial = |end: &End| end.certificate.as_ref().map(|c| Arc::clone(&c.serial));
        let not_after = |end: &End| end.certificate.as_ref().map(|c| rfc3339(c.not_after));
        Report {
            id: self.id,
            direction,
            service,
            local_serial: serial(&local),
            local_not_after: not_after(&local),
            local: local.spiffe,
            peer_serial: peer.as_ref().and_then(serial),
            peer_not_after: peer.as_ref().and_then(not_after),
            peer: peer.map(|end| end.spiffe),
            address,
            started: written(self.started),
            ended: ended.map(written),
            bytes_sent: self.flow.forward.load(Ordering::Relaxed),
            bytes_received: self.flow.backward.load(Ordering::Relaxed),
            refused: None,
            outcome,
        }
    }
}

impl Cut {
    fn ask(&self, reason: Arc<str>) {
        if self.reason.set(reason).is_ok()
            && let Some(waker) = self.waiting.lock().take()
        {
            waker.wake();
        }
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Arc<str>> {
        if self.reason.get().is_none() {
            let mut waiting = self.waiting.lock();
            if !waiting
                .as_ref()
                .is_some_and(|waker| waker.will_wake(cx.waker()))
            {
                *waiting = Some(cx.waker().clone());
            }
        }
        // Looked at after the waker is in place, so that no request falls in between.
        self.reason
            .get()
            .map_or(Poll::Pending, |reason| Poll::Ready(Arc::clone(reason)))
    }
}

impl Open {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.record.id
    }

    /// Where its bytes are counted.
    pub fn flow(&self) -> &Flow {
        &self.record.flow
    }

    /// Who talks to whom.
    pub fn parties(&self) -> &Parties {
        &self.record.parties
    }

    /// Resolves, with the reason, when this connection has to end.
    pub async fn asked_to_end(&self) -> Arc<str> {
        poll_fn(|cx| self.record.cut.poll(cx)).await
    }

    /// Ends it, saying how. `cut`: this proxy ended it, not one of the two ends.
    pub fn end(mut self, cut: bool, outcome: &str) {
        if cut {
            let counters = self.connections.counters(self.record.parties.direction);
            counters.cut.fetch_add(1, Ordering::Relaxed);
        }
        self.outcome = Some(outcome.into());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let record = &self.record;
        self.connections.inner.open.lock().remove(&record.id);
        let outcome = self.outcome.take().unwrap_or_else(|| "stopped".into());
        let report = record.report(Some(SystemTime::now()), Some(outcome));
        let counters = self.connections.counters(record.parties.direction);
        counters
            .bytes_sent
            .fetch_add(report.bytes_sent, Ordering::Relaxed);
        counters
            .bytes_received
            .fetch_add(report.bytes_received, Ordering::Relaxed);
        self.connections.remember(report);
    }
}

/// A certificate's time as text, to the second as in the certificate.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parties(direction: Direction) -> Parties {
        Parties {
            direction,
            service: "db".into(),
            local: End {
                spiffe: "spiffe://x/svc/db".into(),
                certificate: None,
            },
            peer: None,
            address: ([127, 0, 0, 1], 5432).into(),
        }
    }

    #[test]
    fn totals_count_what_is_open_and_what_has_ended() {
        let all = Connections::new();
        let first = all.enter(parties(Direction::Inbound));
        first.flow().forward.store(10, Ordering::Relaxed);
        first.end(true, "no longer allowed");
        let second = all.enter(parties(Direction::Inbound));
        second.flow().forward.store(5, Ordering::Relaxed);
        second.flow().backward.store(3, Ordering::Relaxed);
        all.refuse(
            parties(Direction::Outbound),
            Refusal::Intention,
            "web may not call db",
        );

        let seen = all.snapshot();
        let inbound = Totals {
            accepted: 2,
            open: 1,
            bytes_sent: 15,
            bytes_received: 3,
            cut: 1,
            refused: BTreeMap::new(),
        };
        assert_eq!(seen.totals.inbound, inbound);
        assert_eq!(
            seen.totals.outbound.refused,
            BTreeMap::from([("intention", 1)])
        );
        assert_eq!(seen.open.len(), 1);
        let outcomes: Vec<_> = seen
            .recent
            .iter()
            .map(|r| r.outcome.as_deref().unwrap())
            .collect();
        assert_eq!(outcomes, ["web may not call db", "no longer allowed"]);

        drop(second);
        assert_eq!(all.open_count(), 0);
        assert_eq!(all.snapshot().totals.inbound.bytes_sent, 15);
    }

    #[tokio::test]
    async fn a_cut_reaches_the_waiting_task_and_no_other() {
        let all = Connections::new();
        let (one, other) = (
            all.enter(parties(Direction::Inbound)),
            all.enter(parties(Direction::Inbound)),
        );
        let id = one.id();
        let asked = tokio::spawn(async move { one.asked_to_end().await });
        tokio::task::yield_now().await;
        all.cut(id, "idle");
        assert_eq!(&*asked.await.unwrap(), "idle");
        let cx = Context::from_waker(Waker::noop());
        assert!(other.record.cut.poll(&cx).is_pending());
        all.cut_all("drained");
        assert_eq!(&*other.asked_to_end().await, "drained");
    }

    #[test]
    fn recent_ones_are_bounded() {
        let all = Connections::new();
        for _ in 0..3 * RECENT {
            all.enter(parties(Direction::Inbound)).end(false, "closed");
        }
        let recent = all.snapshot().recent;
        assert_eq!(recent.len(), RECENT);
        assert_eq!(recent[0].id, 3 * RECENT as u64);
    }

    #[test]
    fn reasons_are_in_the_order_of_their_counters() {
        for (n, reason) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
        }
    }
}
