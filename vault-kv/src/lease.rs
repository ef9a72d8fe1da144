//! Leases: what an engine handed out for a time, and takes back.
//!
//! An engine makes a credential and says for how long ([`Offer`]); the lease becomes durable with whatever the engine
//! wrote for it, in one entry. It ends when its time is over, when somebody revokes it, or with its owner: the token it
//! was given to, or all of one SPIFFE ID at once. Ending asks the engine to take the credential back. If that fails it is tried again,
//! and after [`ATTEMPTS`] the lease is *irrevocable*: kept and listed until somebody looks after it.
//!
//! Costs. In memory a lease is its name, twice, and two entries in ordered sets, whatever was handed out; with what the
//! engine and the store keep of it 1.3 KB of a process are measured for each of a million (`mesh-bench secrets`).
//! What there is to know of it is in the store. Unsealing does not wait for leases: they are read in
//! the background, a piece at a time, and what expired meanwhile is refused all the same.

use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::http::ApiError;
use crate::mount::Mounts;
use crate::token::{TokenId, Tokens, base62};

mod timetable;
mod upkeep;

use timetable::Timetable;
pub(crate) use upkeep::upkeep;

const PREFIX: &str = "lease/";
/// Leases that end with one ledger entry, and that are looked at in one go.
const CHUNK: usize = 256;
/// Times that taking back is tried (as in Vault).
const ATTEMPTS: u8 = 6;

/// Whom a lease belongs to, and ends with.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Owner {
    Token(TokenId),
    /// The holder of a certificate, who has no token.
    Spiffe(String),
    /// Nobody who could end: a batch token, whose leases live no longer than itself.
    Nobody,
}

/// Leases that an engine could not take back, and why.
pub(crate) type Refused = Vec<(String, ApiError)>;

/// What an engine hands out for a time. Times are seconds.
pub(crate) struct Offer {
    /// What becomes durable with the lease.
    pub batch: Batch,
    pub ttl: u64,
    pub max_ttl: u64,
    pub renewable: bool,
    /// What the engine needs to take it back.
    pub data: Value,
}

/// A lease as it is stored. Times are unix seconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub owner: Owner,
    pub issued: i64,
    pub expires: i64,
    pub renewed: Option<i64>,
    /// Seconds that it was given or last renewed for.
    pub ttl: u64,
    /// Seconds from when it was issued that renewing does not go beyond.
    pub max_ttl: u64,
    pub renewable: bool,
    /// What the engine needs to take it back.
    pub data: Value,
    /// Why it could not be taken back; nobody tries any more.
    #[serde(default)]
    pub failed: Option<String>,
}

impl Lease {
    /// Seconds left.
    pub fn left(&self, now: i64) -> u64 {
        u64::try_from(self.expires - now).unwrap_or(0)
    }
}

/// All leases of an unsealed server.
pub(crate) struct Leases {
    db: Db,
    clock: Clock,
    mounts: Arc<Mounts>,
    tokens: Arc<Tokens>,
    timetable: Mutex<Timetable>,
    /// An earlier end than all others came.
    changed: Arc<Notify>,
}

impl Leases {
    /// Knows no lease yet: [`upkeep`] reads them.
    pub fn new(db: Db, clock: Clock, mounts: Arc<Mounts>, tokens: Arc<Tokens>) -> Self {
        Self {
            db,
            clock,
            mounts,
            tokens,
            timetable: Mutex::default(),
            changed: Arc::default(),
        }
    }

    /// Make a lease on what an engine offers at `path`; its id.
    ///
    /// # Errors
    /// 403 when the owner is gone by now: then what was offered is taken back.
    pub async fn grant(
        &self,
        by: &By,
        path: &str,
        owner: Owner,
        offer: Offer,
    ) -> Result<(String, Lease), ApiError> {
        let id = format!("{}/{}", path.trim_end_matches('/'), base62(24));
        let now = self.clock.unix();
        let lease = Lease {
            owner,
            issued: now,
            expires: after(now, offer.ttl),
            renewed: None,
            ttl: offer.ttl,
            max_ttl: offer.max_ttl.max(offer.ttl),
            renewable: offer.renewable,
            data: offer.data,
            failed: None,
        };
        let mut batch = offer.batch;
        batch.key(id.clone()).put(&record(&id), &lease)?;
        self.db.commit(batch).await?;
        self.note(&id, &lease);
        if !self.is_owned(&lease)? {
            self.end(by, std::slice::from_ref(&id), true).await?;
            return Err(ApiError::Unauthenticated);
        }
        Ok((id, lease))
    }

    /// A lease that has not ended, or could not be ended.
    pub fn get(&self, id: &str) -> Result<Option<Lease>, ApiError> {
        Ok(self.db.get::<Lease>(&record(id))?.map(|(lease, _)| lease))
    }

    /// Names directly below a path; folders end in `/`.
    pub fn list(&self, path: &str) -> Result<Vec<String>, ApiError> {
        self.db.list(&record(path))
    }

    /// Extend a lease's life. `increment`: seconds wished for; `None` = as the last time.
    ///
    /// # Errors
    /// 400 when there is no such lease, its time is over, or it is not renewable.
    pub async fn renew(
        &self,
        by: &By,
        id: &str,
        increment: Option<u64>,
    ) -> Result<(Lease, Vec<String>), ApiError> {
        let path = record(id);
        let Some((mut lease, index)) = self.db.get::<Lease>(&path)? else {
            return Err(ApiError::bad("lease not found"));
        };
        let now = self.clock.unix();
        if lease.expires <= now || lease.failed.is_some() || !self.is_owned(&lease)? {
            return Err(ApiError::bad("lease expired"));
        }
        if !lease.renewable {
            return Err(ApiError::bad("lease is not renewable"));
        }
        let mut warnings = Vec::new();
        let wished = increment.filter(|i| *i > 0).unwrap_or(lease.ttl);
        let age = u64::try_from(now - lease.issued).unwrap_or(0);
        let most = lease.max_ttl.saturating_sub(age);
        if most == 0 {
            return Err(ApiError::bad("past the max TTL, cannot renew"));
        }
        if wished > most {
            warnings.push(format!("TTL of \"{wished}s\" exceeded the effective max_ttl of \"{most}s\"; TTL value is capped accordingly"));
        }
        let old = lease.expires;
        lease.ttl = wished.min(most);
        lease.expires = after(now, lease.ttl);
        lease.renewed = Some(now);
        let mut batch = Batch::new(by, "lease/renew");
        batch.expect(&path, Some(index)).put(&path, &lease)?.key(id);
        self.db.commit(batch).await?;
        self.timetable.lock().remove(id, old, &lease.owner);
        self.note(id, &lease);
        Ok((lease, warnings))
    }

    /// End these leases, whose engines take back what they gave. Unknown ones are fine. Those that an engine cannot
    /// take back stay, and are returned with the reason; with `force` they end all the same.
    ///
    /// # Errors
    /// The store failed.
    pub async fn end(&self, by: &By, ids: &[String], force: bool) -> Result<Refused, ApiError> {
        let mut refused = Vec::new();
        for some in ids.chunks(CHUNK) {
            let mut batch = Batch::new(by, "lease/revoke");
            let mut gone = Vec::new();
            for id in some {
                let Some((lease, _)) = self.db.get::<Lease>(&record(id))? else {
                    continue;
                };
                let taken = self.mounts.take_back(id, &lease.data, &mut batch).await;
                match taken {
                    Err(error) if !force => refused.push((id.clone(), error)),
                    _ => {
                        batch.delete(&record(id)).key(id.clone());
                        gone.push((id, lease));
                    }
                }
            }
            self.db.commit(batch).await?;
            let mut timetable = self.timetable.lock();
            for (id, lease) in gone {
                timetable.remove(id, lease.expires, &lease.owner);
                timetable.forget(id);
            }
        }
        Ok(refused)
    }

    /// End all leases whose id is below this path.
    pub async fn end_below(&self, by: &By, path: &str, force: bool) -> Result<Refused, ApiError> {
        let prefix = format!("{}/", record(path.trim_end_matches('/')));
        let mut refused = Vec::new();
        let mut last = prefix.clone();
        loop {
            let names = self.db.names_after(&prefix, &last, CHUNK)?;
            let Some(newest) = names.last() else {
                return Ok(refused);
            };
            last.clone_from(newest);
            let ids: Vec<_> = names.iter().map(|name| id_of(name).to_owned()).collect();
            refused.extend(self.end(by, &ids, force).await?);
        }
    }

    /// End everything that was given to this owner.
    pub async fn end_owned(&self, by: &By, owner: &Owner) -> Result<Refused, ApiError> {
        let ids = self.timetable.lock().of(owner);
        // Two owners may share a place in the timetable.
        let mut owned = Vec::with_capacity(ids.len());
        for id in ids {
            if self.get(&id)?.is_some_and(|lease| lease.owner == *owner) {
                owned.push(id);
            }
        }
        self.end(by, &owned, false).await
    }

    /// How many there are that end by themselves.
    pub fn count(&self) -> usize {
        self.timetable.lock().len()
    }

    /// Leases that could not be taken back, and why.
    pub fn irrevocable(&self) -> Vec<(String, String)> {
        self.timetable.lock().irrevocable()
    }

    /// End what is due, a piece of it; whether there may be more.
    ///
    /// # Errors
    /// The store failed: what is due stays so.
    pub async fn run_due(&self) -> Result<bool, ApiError> {
        let now = self.clock.unix();
        let due = self.timetable.lock().due(now, CHUNK);
        let mut ending = Vec::with_capacity(due.len());
        for (at, id) in &due {
            match self.get(id)? {
                // It was renewed while it was being read.
                Some(lease) if lease.expires > now && self.is_owned(&lease)? => {
                    let mut timetable = self.timetable.lock();
                    timetable.remove(id, *at, &lease.owner);
                    timetable.insert(id, lease.expires, &lease.owner);
                }
                Some(_) => ending.push(id.clone()),
                None => {}
            }
        }
        let by = By::system("lease expiry");
        let refused = self.end(&by, &ending, false).await?;
        {
            let mut timetable = self.timetable.lock();
            for (at, id) in &due {
                timetable.strike(id, *at);
            }
        }
        for (id, error) in refused {
            self.put_off(&by, &id, error).await?;
        }
        Ok(due.len() == CHUNK)
    }

    /// Try again later, or never.
    async fn put_off(&self, by: &By, id: &str, error: ApiError) -> Result<(), ApiError> {
        let path = record(id);
        let Some((mut lease, index)) = self.db.get::<Lease>(&path)? else {
            return Ok(());
        };
        let attempts = {
            let mut timetable = self.timetable.lock();
            let attempts = timetable.failed(id);
            if attempts < ATTEMPTS {
                timetable.insert(id, self.clock.unix() + (10 << attempts), &lease.owner);
            } else {
                timetable.give_up(id, error.to_string());
            }
            attempts
        };
        tracing::warn!(lease = id, %error, attempts, "a lease could not be taken back");
        if attempts < ATTEMPTS {
            return Ok(());
        }
        lease.failed = Some(error.to_string());
        let mut batch = Batch::new(by, "lease/irrevocable");
        batch.expect(&path, Some(index)).put(&path, &lease)?.key(id);
        self.db.commit(batch).await
    }

    /// Whether there still is somebody it was given to.
    fn is_owned(&self, lease: &Lease) -> Result<bool, ApiError> {
        match &lease.owner {
            Owner::Token(token) => self.tokens.exists(token),
            Owner::Spiffe(_) | Owner::Nobody => Ok(true),
        }
    }

    /// Remember when it ends.
    fn note(&self, id: &str, lease: &Lease) {
        if self
            .timetable
            .lock()
            .insert(id, lease.expires, &lease.owner)
        {
            self.changed.notify_one();
        }
    }
}

fn after(now: i64, ttl: u64) -> i64 {
    now.saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX / 2))
}

fn record(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn id_of(record: &str) -> &str {
    record.strip_prefix(PREFIX).unwrap_or(record)
}
