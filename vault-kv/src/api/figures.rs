//! What the interface does at the moment and did so far: `sys/metrics`, `sys/in-flight-req`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::Api;
use crate::clock::{Clock, rfc3339};
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::request::{Data, Remote, Request};

/// Counted since unsealing.
#[derive(Default)]
pub(super) struct Figures {
    requests: AtomicU64,
    failures: AtomicU64,
    in_flight: Mutex<HashMap<u64, InFlight>>,
}

struct InFlight {
    id: String,
    path: String,
    operation: &'static str,
    remote: Remote,
    since: OffsetDateTime,
}

/// A request that is being answered; it is not any more when this is dropped.
pub(super) struct Flight<'a> {
    figures: &'a Figures,
    number: u64,
}

impl Figures {
    pub fn begin(&self, request: &Request, clock: &Clock) -> Flight<'_> {
        let number = self.requests.fetch_add(1, Relaxed);
        let flight = InFlight {
            id: request.id.clone(),
            path: request.path.as_str().to_owned(),
            operation: request.operation.as_str(),
            remote: request.caller.remote,
            since: clock.now(),
        };
        self.in_flight.lock().insert(number, flight);
        Flight {
            figures: self,
            number,
        }
    }
}

impl Flight<'_> {
    pub fn failed(&self) {
        self.figures.failures.fetch_add(1, Relaxed);
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.figures.in_flight.lock().remove(&self.number);
    }
}

impl Api {
    /// `sys/in-flight-req`
    pub(super) fn in_flight(&self) -> Answer {
        let in_flight = self.figures.in_flight.lock();
        let all: Map<_, _> = in_flight
            .values()
            .map(|flight| {
                let seen = json!({
                    "start_time": rfc3339(flight.since), "client_remote_address": flight.remote.to_string(), "request_path": flight.path,
                    "request_method": flight.operation, "client_id": "",
                });
                (flight.id.clone(), seen)
            })
            .collect();
        Answer::bare(200, Value::Object(all))
    }

    /// `sys/metrics`
    pub(super) fn metrics(&self, data: &Data) -> Result<Answer, ApiError> {
        let leases = self.leases.count() as u64;
        let tokens = self.tokens.expiring() as u64;
        let irrevocable = self.leases.irrevocable().len() as u64;
        let gauges = [
            ("vault.core.unsealed", 1),
            (
                "vault.core.in_flight_requests",
                self.figures.in_flight.lock().len() as u64,
            ),
            ("vault.expire.num_leases", leases + tokens),
            ("vault.expire.num_irrevocable_leases", irrevocable),
            ("vault.token.count", tokens),
            (
                "vault.core.mount_table.num_entries",
                self.mounts.all().len() as u64,
            ),
        ];
        let counters = [
            (
                "vault.core.handle_request",
                self.figures.requests.load(Relaxed),
            ),
            (
                "vault.core.handle_request.failures",
                self.figures.failures.load(Relaxed),
            ),
        ];
        match data.text("format")?.as_deref() {
            Some("prometheus") => {
                let mut text = String::new();
                let all = gauges
                    .iter()
                    .map(|(name, value)| (name, "", "gauge", value));
                let counted = counters
                    .iter()
                    .map(|(name, value)| (name, "_total", "counter", value));
                for (name, ending, kind, value) in all.chain(counted) {
                    let name = name.replace('.', "_");
                    let _ = writeln!(text, "# TYPE {name}{ending} {kind}\n{name}{ending} {value}");
                }
                Ok(Answer::text(text))
            }
            None | Some("") => {
                let gauges: Vec<_> = gauges
                    .iter()
                    .map(|(name, value)| json!({"Name": name, "Value": value, "Labels": {}}))
                    .collect();
                let counters: Vec<_> = counters
                    .iter()
                    .map(|(name, count)| json!({"Name": name, "Count": count, "Sum": count, "Labels": {}}))
                    .collect();
                Ok(Answer::bare(
                    200,
                    json!({
                        "Timestamp": rfc3339(self.clock.now()), "Gauges": gauges, "Points": [], "Counters": counters,
                        "Samples": [],
                    }),
                ))
            }
            Some(_) => Err(ApiError::bad(
                "metric response format unknown: prometheus or none",
            )),
        }
    }
}
