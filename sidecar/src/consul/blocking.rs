//! Blocking queries: `index`, `wait`, and the headers that go with them.
//!
//! Behaviour recorded from Consul 1.21: an index above the data's waits the whole time; 0 or an old one
//! answers at once; `wait` defaults to 5 min, is cut at 10 min, and grows by up to a sixteenth, so that
//! many clients do not come back at once.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use libmesh::model::ServiceName;
use serde::Serialize;
use tokio::time::timeout;

use super::{Inner, JSON, Refused, bad_request, decode::go_duration};
use crate::http::{Call, Reply, json};

const DEFAULT_WAIT: Duration = Duration::from_secs(300);
const MAX_WAIT: Duration = Duration::from_secs(600);

/// What a read asks for besides its data.
pub struct Blocking {
    /// The index to wait beyond; 0 = answer at once.
    pub index: u64,
    wait: Duration,
    consistency: &'static str,
    /// It may be answered from a cache, as far as the client is concerned.
    cached: bool,
}

impl Blocking {
    /// Reads `index`, `wait` and the consistency parameters.
    pub fn of(call: &Call) -> Result<Blocking, Refused> {
        let query = &call.query;
        let index = match query.filled("index") {
            Some(index) => index.parse().map_err(|_| bad_request("Invalid index"))?,
            None => 0,
        };
        let wait = match query.filled("wait") {
            Some(wait) if wait.starts_with('-') => Duration::ZERO,
            Some(wait) => go_duration(wait).map_err(|_| bad_request("Invalid wait time"))?,
            None => DEFAULT_WAIT,
        };
        let wait = if wait.is_zero() { DEFAULT_WAIT } else { wait };
        let (stale, consistent) = (query.has("stale"), query.has("consistent"));
        if stale && consistent {
            return Err(bad_request(
                "Cannot specify ?stale with ?consistent, conflicting semantics.",
            ));
        }
        Ok(Blocking {
            index,
            wait: wait.min(MAX_WAIT),
            // Every replica answers for itself; what was asked for is what is echoed.
            consistency: match (stale, consistent) {
                (true, _) => "stale",
                (_, true) => "consistent",
                _ => "leader",
            },
            cached: query.has("cached"),
        })
    }

    /// How long to wait for data that was last changed at `index`; `None` = answer at once.
    pub fn wait_beyond(&self, index: u64) -> Option<Duration> {
        let jitter = self.wait.mul_f64(rand::random::<f64>() / 16.0);
        (self.index > 0 && self.index >= index).then_some(self.wait + jitter)
    }

    /// Waits until `changed` ends, the time is over, or the listener drains.
    pub async fn until(&self, call: &Call, wait: Duration, changed: impl Future<Output = u64>) {
        tokio::select! {
            _ = timeout(wait, changed) => {}
            () = call.conn.shutdown.cancelled() => {}
        }
    }

    /// Waits for the service, or the one beside it, to change beyond the index; returns the index to answer with. Changes
    /// of other services do not end the wait.
    pub async fn service(
        &self,
        inner: &Inner,
        call: &Call,
        name: &str,
        beside: Option<&str>,
    ) -> u64 {
        let Ok(name) = ServiceName::parse(name) else {
            // Nothing by such a name will ever be registered.
            self.table(inner, call).await;
            return inner.floor(0);
        };
        let beside = beside.and_then(|beside| ServiceName::parse(beside).ok());
        let revision = |name: &ServiceName| inner.catalog.service_revision(name.as_str());
        let now = || inner.floor(revision(&name).max(beside.as_ref().map_or(0, revision)));
        if let Some(wait) = self.wait_beyond(now()) {
            let watch = inner.catalog.watch_service(&name);
            let watch_beside = beside
                .as_ref()
                .map(|beside| inner.catalog.watch_service(beside));
            let changed = async {
                match &watch_beside {
                    None => watch.changed_after(self.index).await,
                    Some(beside) => tokio::select! {
                        index = watch.changed_after(self.index) => index,
                        index = beside.changed_after(self.index) => index,
                    },
                }
            };
            self.until(call, wait, changed).await;
        }
        now()
    }

    /// Waits for anything in the catalog to change beyond the index; returns the index to answer with.
    pub async fn table(&self, inner: &Inner, call: &Call) -> u64 {
        if let Some(wait) = self.wait_beyond(inner.floor(inner.catalog.revision())) {
            let mut revisions = inner.catalog.watch_all();
            let beyond = |revision: &u64| *revision > self.index;
            let changed = async { revisions.wait_for(beyond).await.map_or(0, |r| *r) };
            self.until(call, wait, changed).await;
        }
        inner.floor(inner.catalog.revision())
    }

    /// Waits while `holds` does, looking at each change of the catalog.
    pub async fn while_holds(&self, inner: &Inner, call: &Call, holds: impl Fn() -> bool) {
        let mut revisions = inner.catalog.watch_all();
        let over = async {
            while holds() && revisions.changed().await.is_ok() {}
            0
        };
        self.until(call, self.wait, over).await;
    }

    /// An answer that was made before, with the headers of a read.
    pub fn kept(&self, index: u64, body: Bytes) -> Reply {
        let mut reply = Reply::new(body.into());
        reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
        self.decorate(index, &mut reply);
        reply
    }

    /// A JSON answer with the headers of a read.
    pub fn reply<T: Serialize + ?Sized>(&self, index: u64, value: &T) -> Reply {
        let mut reply = json(StatusCode::OK, value);
        self.decorate(index, &mut reply);
        reply
    }

    /// Adds the headers of a read.
    pub fn decorate(&self, index: u64, reply: &mut Reply) {
        decorate(reply.headers_mut(), index, "true", "blocking-query");
        reply.headers_mut().insert(
            "x-consul-effective-consistency",
            HeaderValue::from_static(self.consistency),
        );
        if self.cached && self.index == 0 {
            // Always: the replica here is no cache of answers.
            let miss = HeaderValue::from_static("MISS");
            reply.headers_mut().insert("x-cache", miss);
        }
    }

    /// The same for instances of a service with their health. Consul answers those that wait, or that are said to be for
    /// its cache, from what it was sent before, without asking a leader, and so says that it knows of none. That is how
    /// everything is answered here.
    pub fn health_reply<T: Serialize + ?Sized>(&self, index: u64, value: &T) -> Reply {
        self.of_health(index, self.reply(index, value))
    }

    /// The same of an answer that was made before.
    pub fn health_kept(&self, index: u64, body: Bytes) -> Reply {
        self.of_health(index, self.kept(index, body))
    }

    fn of_health(&self, index: u64, mut reply: Reply) -> Reply {
        if self.index > 0 || self.cached {
            decorate(reply.headers_mut(), index, "false", "streaming");
        }
        reply
    }
}

fn decorate(headers: &mut HeaderMap, index: u64, leader: &'static str, backend: &'static str) {
    headers.insert("x-consul-index", HeaderValue::from(index.max(1)));
    headers.insert("x-consul-knownleader", HeaderValue::from_static(leader));
    headers.insert("x-consul-lastcontact", HeaderValue::from_static("0"));
    headers.insert("x-consul-query-backend", HeaderValue::from_static(backend));
}

/// A read that came to nothing, as Consul answers it.
pub fn unanswered(refused: Refused) -> Reply {
    let mut reply = Reply::from(refused);
    decorate(reply.headers_mut(), 1, "false", "blocking-query");
    reply
}

impl Inner {
    /// No index is below the birth of this interface.
    pub fn floor(&self, revision: u64) -> u64 {
        revision.max(self.birth)
    }
}
