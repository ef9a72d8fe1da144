//! What the interface does at the moment and did so far: `sys/metrics`, `sys/in-flight-req`.

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
    in_flight: Mutex<InFlight>,
}

/// Every request makes an entry: places, and what they have allocated, are used again.
#[derive(Default)]
struct InFlight {
    places: Vec<Place>,
    free: Vec<usize>,
}

impl InFlight {
    fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

#[derive(Default)]
struct Place {
    id: String,
    path: String,
    asked: Option<Asked>,
}

/// `None`: nobody is in this place.
#[derive(Clone, Copy)]
struct Asked {
    operation: &'static str,
    remote: Remote,
    since: OffsetDateTime,
}

/// A request that is being answered; it is not any more when this is dropped.
pub(super) struct Flight<'a> {
    figures: &'a Figures,
    place: usize,
}

impl Figures {
    pub fn begin(&self, request: &Request, clock: &Clock) -> Flight<'_> {
        self.requests.fetch_add(1, Relaxed);
        let asked = Asked {
            operation: request.operation.as_str(),
            remote: request.caller.remote,
            since: clock.now(),
        };
        let mut in_flight = self.in_flight.lock();
        let place = in_flight.free.pop().unwrap_or_else(|| {
            in_flight.places.push(Place::default());
            in_flight.places.len() - 1
        });
        let taken = &mut in_flight.places[place];
        taken.asked = Some(asked);
        taken.id.push_str(&request.id);
        taken.path.push_str(request.path.as_str());
        drop(in_flight);
        Flight {
            figures: self,
            place,
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
        let mut in_flight = self.figures.in_flight.lock();
        let left = &mut in_flight.places[self.place];
        left.asked = None;
        left.id.clear();
        left.path.clear();
        in_flight.free.push(self.place);
    }
}

impl Api {
    /// `sys/in-flight-req`
    pub(super) fn in_flight(&self) -> Answer {
        let in_flight = self.figures.in_flight.lock();
        let all: Map<_, _> = in_flight
            .places
            .iter()
            .filter_map(|place| {
                let asked = place.asked?;
                let seen = json!({
                    "start_time": rfc3339(asked.since), "client_remote_address": asked.remote.to_string(),
                    "request_path": place.path, "request_method": asked.operation, "client_id": "",
                });
                Some((place.id.clone(), seen))
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
                self.figures.in_flight.lock().count() as u64,
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
