//! Quotas. Of leases: [`lease_count`]. Rate limits: how many requests one address may send to a path in a time.
//!
//! Of all quotas the one with the longest path counts, so that a mount can be given more or less than the rest. Each address has a
//! bucket that fills evenly; a request that finds it empty is answered with 429 before anybody is authenticated or anything is
//! parsed for it. An address of IPv6 counts as the /64 that it is in. Buckets are in memory only, and bounded: when more networks ask than are kept,
//! all of them begin anew.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::auth::item_name;
use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::http::{ApiError, reply::Answer};
use crate::lease::Places;
use crate::request::{Data, Operation, Remote};

mod lease_count;

use lease_count::LeaseCounts;

const PREFIX: &str = "sys/quota/";
const CONFIG: &str = "sys/quotas-config";
/// Buckets that are kept.
const BUCKETS: usize = 65_536;

/// One rate limit. Times are seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Quota {
    /// A mount, or a path below one; empty: everything.
    path: String,
    /// Requests in an interval.
    rate: f64,
    interval: u64,
    /// For how long an address that asked too often is refused; 0: until its bucket has something.
    block_interval: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Paths that no quota is for.
    rate_limit_exempt_paths: Vec<String>,
}

/// All quotas of an unsealed server.
pub(crate) struct Quotas {
    db: Db,
    state: ArcSwap<State>,
    clock: Clock,
    buckets: Mutex<HashMap<Asker, Bucket>>,
    /// Where leases are counted.
    places: Arc<Places>,
}

/// A quota's name, and an address; `None`: the Unix socket.
type Asker = (Arc<str>, Option<IpAddr>);

#[derive(Default)]
struct State {
    quotas: BTreeMap<Arc<str>, Quota>,
    lease_counts: LeaseCounts,
    config: Config,
}

struct Bucket {
    left: f64,
    at: OffsetDateTime,
    blocked_until: Option<OffsetDateTime>,
}

impl Quotas {
    pub fn load(db: Db, clock: Clock, places: Arc<Places>) -> Result<Self, ApiError> {
        let quotas = Self {
            db,
            clock,
            state: ArcSwap::default(),
            buckets: Mutex::default(),
            places,
        };
        quotas.reload()?;
        Ok(quotas)
    }

    fn reload(&self) -> Result<(), ApiError> {
        let mut state = State::default();
        for name in self.db.names_from(PREFIX)? {
            if let Some((quota, _)) = self.db.get::<Quota>(&record(&name))? {
                state.quotas.insert(name.into(), quota);
            }
        }
        if let Some((config, _)) = self.db.get(CONFIG)? {
            state.config = config;
        }
        state.lease_counts = self.lease_counts()?;
        lease_count::apply(&state.lease_counts, &self.places);
        self.state.store(Arc::new(state));
        Ok(())
    }

    /// Counts a request.
    ///
    /// # Errors
    /// 429: the address has asked too often.
    pub fn admit(&self, path: &str, remote: &Remote) -> Result<(), ApiError> {
        let state = self.state.load();
        if state.quotas.is_empty() {
            return Ok(());
        }
        let exempt = &state.config.rate_limit_exempt_paths;
        if exempt.iter().any(|exempt| is_below(path, exempt)) {
            return Ok(());
        }
        let fitting = state
            .quotas
            .iter()
            .filter(|(_, quota)| is_below(path, &quota.path));
        let Some((name, quota)) = fitting.max_by_key(|(_, quota)| quota.path.len()) else {
            return Ok(());
        };
        let ip = match remote {
            Remote::Ip(ip) => Some(network(ip.to_canonical())),
            Remote::Unix => None,
        };
        let mut buckets = self.buckets.lock();
        let now = self.clock.now();
        let before = buckets.len();
        if before >= BUCKETS {
            // Those who did not ask for an interval have a full one again.
            buckets.retain(|_, bucket| {
                now - bucket.at < Duration::from_secs(quota.interval)
                    || bucket.blocked_until.is_some_and(|until| until > now)
            });
        }
        // Looking through them must not be what every request does.
        if before >= BUCKETS && buckets.len() > BUCKETS / 2 {
            buckets.clear();
        }
        let bucket = buckets
            .entry((Arc::clone(name), ip))
            .or_insert_with(|| Bucket {
                left: quota.rate.max(1.0),
                at: now,
                blocked_until: None,
            });
        match bucket.take(quota, now) {
            true => Ok(()),
            false => Err(ApiError::TooMany(path.to_owned())),
        }
    }

    /// `sys/quotas/…`
    pub async fn handle(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if path == "config" {
            return match operation {
                Read => {
                    let state = self.state.load();
                    Ok(Answer::data(json!({
                        "enable_rate_limit_audit_logging": false, "enable_rate_limit_response_headers": false,
                        "rate_limit_exempt_paths": state.config.rate_limit_exempt_paths,
                    })))
                }
                Write => self.configure(by, data).await,
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        if let Some(name) = path.strip_prefix("lease-count/") {
            return self.handle_lease_count(by, operation, name, data).await;
        }
        let name = path
            .strip_prefix("rate-limit/")
            .ok_or(ApiError::UnsupportedPath)?;
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(PREFIX)?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = item_name(name)?;
        match operation {
            Read => {
                let state = self.state.load();
                let quota = state.quotas.get(&*name).ok_or(ApiError::NotFound)?;
                Ok(Answer::data(quota.describe(&name)))
            }
            Write => {
                let quota = Quota::parse(data)?;
                let mut batch = Batch::new(by, "quota write");
                batch
                    .key(format!("quota {name}"))
                    .put(&record(&name), &quota)?;
                self.change(batch).await
            }
            Delete => {
                let mut batch = Batch::new(by, "quota delete");
                batch.key(format!("quota {name}")).delete(&record(&name));
                self.change(batch).await
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }

    async fn configure(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        for name in [
            "enable_rate_limit_audit_logging",
            "enable_rate_limit_response_headers",
        ] {
            if data.flag(name)?.unwrap_or(false) {
                return Err(ApiError::bad(format!("field \"{name}\" is not available")));
            }
        }
        let mut config = self.state.load().config.clone();
        if let Some(exempt) = data.list("rate_limit_exempt_paths")? {
            config.rate_limit_exempt_paths = exempt;
        }
        let mut batch = Batch::new(by, "quota config");
        batch.key("quotas").put(CONFIG, &config)?;
        self.change(batch).await
    }

    async fn change(&self, batch: Batch) -> Result<Answer, ApiError> {
        let _order = self.db.lock(PREFIX).await;
        self.change_in_order(batch).await
    }

    /// The same for who holds the lock already.
    async fn change_in_order(&self, batch: Batch) -> Result<Answer, ApiError> {
        self.db.commit(batch).await?;
        self.reload()?;
        Ok(Answer::none())
    }
}

impl Bucket {
    fn take(&mut self, quota: &Quota, now: OffsetDateTime) -> bool {
        // The clock may have been set back.
        let passed = (now - self.at).as_seconds_f64().max(0.0);
        #[allow(clippy::cast_precision_loss, reason = "seconds of an interval")]
        let filled = passed * quota.rate / quota.interval as f64;
        self.left = (self.left + filled).min(quota.rate.max(1.0));
        self.at = now;
        if self.blocked_until.is_some_and(|until| now < until) {
            return false;
        }
        self.blocked_until = None;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return true;
        }
        if quota.block_interval > 0 {
            self.blocked_until = Some(now + Duration::from_secs(quota.block_interval));
        }
        false
    }
}

impl Quota {
    /// # Errors
    /// 400 with the field.
    fn parse(data: &Data) -> Result<Self, ApiError> {
        refuse_role(data)?;
        let rate = match data.raw("rate") {
            Some(Value::Number(rate)) => rate.as_f64(),
            Some(Value::String(rate)) => rate.parse().ok(),
            _ => None,
        };
        let seconds = |name| Ok::<_, ApiError>(data.duration(name)?.map(|time| time.as_secs()));
        Ok(Self {
            path: data.text("path")?.unwrap_or_default(),
            rate: rate
                .filter(|rate| rate.is_finite() && *rate > 0.0)
                .ok_or_else(|| ApiError::bad("'rate' is invalid: it is a number above 0"))?,
            interval: match seconds("interval")? {
                None => 1,
                Some(0) => return Err(ApiError::bad("'interval' is invalid: it is at least 1s")),
                Some(interval) => interval,
            },
            block_interval: seconds("block_interval")?.unwrap_or(0),
        })
    }

    fn describe(&self, name: &str) -> Value {
        json!({
            "name": name, "type": "rate-limit", "path": self.path, "rate": self.rate, "interval": self.interval,
            "block_interval": self.block_interval, "role": "", "inheritable": self.path.is_empty(),
        })
    }
}

fn refuse_role(data: &Data) -> Result<(), ApiError> {
    match data.text("role")? {
        Some(role) if !role.is_empty() => Err(ApiError::bad(
            "field \"role\" is not available: a quota is for a path",
        )),
        _ => Ok(()),
    }
}

/// Whoever has one address of a /64 has them all.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        v4 => v4,
    }
}

fn record(name: &str) -> String {
    format!("{PREFIX}{name}")
}

/// Whether a path is the other one or below it; a `*` at the end stands for any rest.
pub(crate) fn is_below(path: &str, of: &str) -> bool {
    if let Some(start) = of.strip_suffix('*') {
        return path.starts_with(start);
    }
    let of = of.trim_end_matches('/');
    of.is_empty()
        || path
            .strip_prefix(of)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
