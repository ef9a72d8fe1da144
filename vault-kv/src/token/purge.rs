//! When tokens expire, and that they leave the store then.

use std::sync::Weak;
use std::time::Duration;

use super::{Token, TokenId, Tokens};
use crate::db::By;
use crate::http::ApiError;
use crate::lease::{Due, Full, Reading};

const PREFIX: &str = "token/id/";
/// Tokens that are read in one go.
const CHUNK: usize = 256;

/// Longest sleep: a token with a shorter life may be made meanwhile, or the system's clock changed.
const LONGEST: Duration = Duration::from_secs(10);
/// Pause after a failed round.
const RETRY: Duration = Duration::from_secs(5);

/// Read when tokens expire, which unsealing does not wait for, and revoke them, with their children, as they do. Ends when
/// the token store is dropped (at seal).
pub(crate) async fn purge_expired(tokens: Weak<Tokens>, reading: Reading) {
    let mut last = PREFIX.to_owned();
    loop {
        let Some(store) = tokens.upgrade() else {
            return;
        };
        match store.read_some(&mut last) {
            Ok(true) => tokio::task::yield_now().await,
            Ok(false) => break,
            Err(ApiError::Sealed) => return,
            Err(error) => {
                tracing::warn!(%error, "tokens cannot be read; they are tried again");
                drop(store);
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    drop(reading);
    loop {
        let Some(store) = tokens.upgrade() else {
            return;
        };
        let (due, next) = store.due();
        let mut failed = false;
        for due in due {
            match store.end(&TokenId::of(due.name), &due.path).await {
                Ok(()) => store.forget(&due),
                Err(error) => {
                    tracing::warn!(%error, "an expired token could not be removed; it is refused all the same");
                    failed = true;
                    break;
                }
            }
        }
        let nap = if failed {
            RETRY
        } else {
            next.unwrap_or(LONGEST).min(LONGEST)
        };
        // The strong reference must not outlive the wait: dropping it is how this task ends.
        drop(store);
        tokio::time::sleep(nap.max(Duration::from_millis(200))).await;
    }
}

impl Tokens {
    /// Remember when it ends; with `always` whatever quotas say.
    pub(super) fn schedule(&self, id: &TokenId, token: &Token, always: bool) -> Result<(), Full> {
        let (Some(at), Some(name)) = (token.expires, id.name()) else {
            return Ok(());
        };
        let nobody = None::<&()>;
        let mut expiries = self.expiries.lock();
        expiries.insert(&token.path, name, Some(at), nobody, always)?;
        Ok(())
    }

    /// The same for one that was in the store a moment ago.
    pub(super) fn schedule_again(&self, id: &TokenId, token: &Token) -> Result<(), ApiError> {
        let _ = self.schedule(id, token, true);
        // Whoever ended it meanwhile may have looked before.
        if self.db.index(&id.path())?.is_none() {
            self.drop_expiry(id, &token.path);
        }
        Ok(())
    }

    pub(super) fn drop_expiry(&self, id: &TokenId, path: &str) {
        if let Some(name) = id.name() {
            self.expiries.lock().remove(path, name);
        }
    }

    /// The tokens that may have expired by now, and how long until the next one does.
    fn due(&self) -> (Vec<Due>, Option<Duration>) {
        let now = self.clock.unix();
        let expiries = self.expiries.lock();
        let next = expiries.next_after(now);
        let next = next.map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0)));
        (expiries.due(now, usize::MAX), next)
    }

    /// Drop an expiry that is seen to.
    fn forget(&self, due: &Due) {
        self.expiries.lock().strike(due);
    }

    /// Reads the next piece after the name `last`; whether there may be more.
    fn read_some(&self, last: &mut String) -> Result<bool, ApiError> {
        let names = self.db.names_after(PREFIX, last, CHUNK)?;
        for name in &names {
            match self.db.get::<Token>(name) {
                Ok(Some((token, _))) => {
                    self.schedule_again(&TokenId::from(&name[PREFIX.len()..]), &token)?;
                }
                Ok(None) => {}
                Err(ApiError::Sealed) => return Err(ApiError::Sealed),
                // One that is no good must not keep the others from ending.
                Err(error) => tracing::error!(%error, "a token is passed over"),
            }
        }
        if let Some(newest) = names.last() {
            last.clone_from(newest);
        }
        Ok(names.len() == CHUNK)
    }

    /// Revokes a token if it has expired: it may have been renewed while it was read.
    async fn end(&self, id: &TokenId, path: &str) -> Result<(), ApiError> {
        match self.db.get::<Token>(&id.path())? {
            Some((token, _)) if token.expires.is_some_and(|at| at > self.clock.unix()) => {
                self.schedule_again(id, &token)
            }
            Some(_) => self.revoke(&By::system("token expiry"), id).await,
            None => {
                self.drop_expiry(id, path);
                Ok(())
            }
        }
    }
}
