//! Leases end by themselves.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::{CHUNK, Lease, Leases, Owner, PREFIX, Reading, id_of};
use crate::db::By;
use crate::http::ApiError;
use crate::token::TokenId;

/// Longest sleep: the system's clock may change.
const LONGEST: Duration = Duration::from_secs(10);
/// Pause after the store failed.
const RETRY: Duration = Duration::from_secs(1);

/// Reads all leases, then ends them when they are due or their token has `ended`. Ends when the leases are dropped (at
/// seal).
pub(crate) async fn upkeep(
    leases: Weak<Leases>,
    mut ended: UnboundedReceiver<TokenId>,
    reading: Reading,
) {
    let mut last = PREFIX.to_owned();
    loop {
        let Some(leases) = leases.upgrade() else {
            return;
        };
        match leases.read_some(&mut last) {
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => break,
            Err(ApiError::Sealed) => return,
            Err(error) => {
                tracing::warn!(%error, "leases cannot be read; they are tried again");
                drop(leases);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    drop(reading);
    loop {
        let Some(store) = leases.upgrade() else {
            return;
        };
        let nap = match store.run_due().await {
            Ok(true) => continue,
            Ok(false) => store.until_next(),
            Err(ApiError::Sealed) => return,
            Err(error) => {
                tracing::warn!(%error, "leases that are over cannot be ended; they are refused all the same");
                RETRY
            }
        };
        let changed = Arc::clone(&store.changed);
        // The strong reference must not outlive the wait: dropping it is how this task ends.
        drop(store);
        tokio::select! {
            token = ended.recv() => {
                let (Some(token), Some(store)) = (token, leases.upgrade()) else {
                    return;
                };
                let by = By::system("token revocation");
                match store.end_owned(&by, &Owner::Token(token)).await {
                    Ok(refused) => for (id, error) in refused {
                        let _ = store.put_off(&by, &id, error).await;
                    }
                    Err(error) => tracing::warn!(%error, "leases of a revoked token cannot be ended; they end with their time"),
                }
            }
            () = changed.notified() => {}
            () = tokio::time::sleep(nap) => {}
        }
    }
}

impl Leases {
    /// Reads the next piece after the name `last`; whether there may be more.
    fn read_some(&self, last: &mut String) -> Result<bool, ApiError> {
        let names = self.db.names_after(PREFIX, last, CHUNK)?;
        for name in &names {
            let lease = match self.db.get::<Lease>(name) {
                Ok(Some((lease, _))) => lease,
                Ok(None) => continue,
                Err(ApiError::Sealed) => return Err(ApiError::Sealed),
                // One that is no good must not keep the others from ending.
                Err(error) => {
                    tracing::error!(lease = id_of(name), %error, "a lease is passed over");
                    continue;
                }
            };
            let id = id_of(name);
            let at = match &lease.failed {
                Some(why) => {
                    self.give_up(id, &lease, why.clone());
                    continue;
                }
                // Its token ended, and then the process did.
                None if !self.is_owned(&lease)? => 0,
                None => lease.expires,
            };
            let lease = Lease {
                expires: at,
                ..lease
            };
            self.note_again(id, &lease)?;
        }
        if let Some(newest) = names.last() {
            last.clone_from(newest);
        }
        Ok(names.len() == CHUNK)
    }

    fn until_next(&self) -> Duration {
        let next = self.timetable.lock().next();
        let left = next.map_or(i64::MAX, |at| at - self.clock.unix());
        Duration::from_secs(u64::try_from(left).unwrap_or(0)).min(LONGEST)
    }
}
