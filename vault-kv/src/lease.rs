//! Leases: what an engine handed out for a time, and takes back.
//!
//! An engine makes a credential and says for how long ([`Offer`]); the lease becomes durable with whatever the engine
//! wrote for it, in one entry. It ends when its time is over, when somebody revokes it, or with its owner: the token it
//! was given to, or all of one SPIFFE ID at once. Ending asks the engine to take the credential back. If that fails it is tried again,
//! and after [`ATTEMPTS`] the lease is *irrevocable*: kept and listed until somebody looks after it.
//!
//! Costs. In memory a lease is some 80 bytes of the [`Timetable`], whatever was handed out; what there is to know of it is in the
//! store. With what that and the engine keep of it 1.2 KB of a process are measured for each (`mesh-bench secrets`), nearly all of
//! it pages of sled that are in its cache. Unsealing does not wait for leases: they are read in
//! the background, a piece at a time, and what expired meanwhile is refused all the same.

use std::collections::BTreeMap;
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

mod places;
mod timetable;
mod upkeep;

pub(crate) use places::{Full, Places, Reading};
pub(crate) use timetable::{Due, Name, Timetable};
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
    trouble: Mutex<Trouble>,
    /// An earlier end than all others came.
    changed: Arc<Notify>,
}

/// Leases that could not be taken back, by id.
#[derive(Default)]
struct Trouble {
    /// How often that failed so far.
    attempts: BTreeMap<String, u8>,
    /// Nobody tries any more; and why.
    irrevocable: BTreeMap<String, String>,
}

impl Leases {
    /// Knows no lease yet: [`upkeep`] reads them.
    pub fn new(
        db: Db,
        clock: Clock,
        mounts: Arc<Mounts>,
        tokens: Arc<Tokens>,
        places: Arc<Places>,
    ) -> Self {
        Self {
            db,
            clock,
            mounts,
            tokens,
            timetable: Mutex::new(Timetable::new(places)),
            trouble: Mutex::default(),
            changed: Arc::default(),
        }
    }

    /// Make a lease on what an engine offers at `path`; its id.
    ///
    /// # Errors
    /// 429 when there are as many leases as there may be; what was offered is then not written. 403 when the owner is gone by now:
    /// then what was offered is taken back.
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
        // Before it is written, so that there are never more than there may be.
        self.note(&id, &lease, false)
            .map_err(|Full| ApiError::TooManyLeases(path.to_owned()))?;
        if let Err(error) = self.db.commit(batch).await {
            self.drop_note(&id);
            return Err(error);
        }
        self.note_again(&id, &lease)?;
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
        lease.ttl = wished.min(most);
        lease.expires = after(now, lease.ttl);
        lease.renewed = Some(now);
        let mut batch = Batch::new(by, "lease/renew");
        batch.expect(&path, Some(index)).put(&path, &lease)?.key(id);
        self.db.commit(batch).await?;
        self.note_again(id, &lease)?;
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
                        gone.push(id);
                    }
                }
            }
            self.db.commit(batch).await?;
            let mut trouble = self.trouble.lock();
            for id in gone {
                self.drop_note(id);
                trouble.attempts.remove(id);
                trouble.irrevocable.remove(id);
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
        let all = self.timetable.lock().of(owner);
        // Two owners may share a place in the timetable.
        let mut owned = Vec::with_capacity(all.len());
        for (path, name) in all {
            let id = id_in(&path, name);
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
        let trouble = self.trouble.lock();
        let all = trouble.irrevocable.iter();
        all.map(|(id, why)| (id.clone(), why.clone())).collect()
    }

    /// End what is due, a piece of it; whether there may be more.
    ///
    /// # Errors
    /// The store failed: what is due stays so.
    pub async fn run_due(&self) -> Result<bool, ApiError> {
        let now = self.clock.unix();
        let due = self.timetable.lock().due(now, CHUNK);
        let mut ending = Vec::with_capacity(due.len());
        for due in &due {
            let id = id_in(&due.path, due.name);
            match self.get(&id)? {
                // It was renewed while it was being read.
                Some(lease) if lease.expires > now && self.is_owned(&lease)? => {
                    self.note_again(&id, &lease)?;
                }
                Some(_) => ending.push(id),
                None => self.drop_note(&id),
            }
        }
        let by = By::system("lease expiry");
        let refused = self.end(&by, &ending, false).await?;
        {
            let mut timetable = self.timetable.lock();
            due.iter().for_each(|due| timetable.strike(due));
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
            let mut trouble = self.trouble.lock();
            let attempts = trouble.attempts.entry(id.to_owned()).or_default();
            *attempts += 1;
            *attempts
        };
        tracing::warn!(lease = id, %error, attempts, "a lease could not be taken back");
        if attempts < ATTEMPTS {
            let at = self.clock.unix() + (10 << attempts);
            // It has its place already.
            let _ = self.note_at(id, Some(at), &lease.owner, true);
            return Ok(());
        }
        lease.failed = Some(error.to_string());
        self.give_up(id, &lease, error.to_string());
        let mut batch = Batch::new(by, "lease/irrevocable");
        batch.expect(&path, Some(index)).put(&path, &lease)?.key(id);
        self.db.commit(batch).await
    }

    /// Nobody tries any more to take it back; it counts for as long as it is there.
    fn give_up(&self, id: &str, lease: &Lease, why: String) {
        let mut trouble = self.trouble.lock();
        trouble.attempts.remove(id);
        trouble.irrevocable.insert(id.to_owned(), why);
        let _ = self.note_at(id, None, &lease.owner, true);
    }

    /// Whether there still is somebody it was given to.
    fn is_owned(&self, lease: &Lease) -> Result<bool, ApiError> {
        match &lease.owner {
            Owner::Token(token) => self.tokens.exists(token),
            Owner::Spiffe(_) | Owner::Nobody => Ok(true),
        }
    }

    /// Remember when it ends; with `always` whatever quotas say.
    fn note(&self, id: &str, lease: &Lease, always: bool) -> Result<(), Full> {
        self.note_at(id, Some(lease.expires), &lease.owner, always)
    }

    fn note_at(&self, id: &str, at: Option<i64>, owner: &Owner, always: bool) -> Result<(), Full> {
        let Some((path, name)) = parts(id) else {
            tracing::error!(
                lease = id,
                "not the id of a lease: it does not end by itself"
            );
            return Ok(());
        };
        let owner = (*owner != Owner::Nobody).then_some(owner);
        let mut timetable = self.timetable.lock();
        if timetable.insert(path, name, at, owner, always)? {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The same for one that was in the store a moment ago.
    fn note_again(&self, id: &str, lease: &Lease) -> Result<(), ApiError> {
        let _ = self.note(id, lease, true);
        // Whoever ended it meanwhile may have looked before.
        if self.db.index(&record(id))?.is_none() {
            self.drop_note(id);
        }
        Ok(())
    }

    fn drop_note(&self, id: &str) {
        if let Some((path, name)) = parts(id) {
            self.timetable.lock().remove(path, name);
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

/// The path of a lease, and its name there.
fn parts(id: &str) -> Option<(&str, Name)> {
    let (path, name) = id.rsplit_once('/')?;
    Some((path, Name(name.as_bytes().try_into().ok()?)))
}

fn id_in(path: &str, name: Name) -> String {
    format!("{path}/{}", String::from_utf8_lossy(&name.0))
}
