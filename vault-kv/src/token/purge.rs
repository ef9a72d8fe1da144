//! Expired tokens leave the store.

use std::sync::Weak;
use std::time::Duration;

use super::Tokens;
use crate::db::By;

/// Longest sleep: a token with a shorter life may be made meanwhile, or the system's clock changed.
const LONGEST: Duration = Duration::from_secs(10);
/// Pause after a failed round.
const RETRY: Duration = Duration::from_secs(5);

/// Revoke tokens, with their children, as they expire. Ends when the token store is dropped (at seal).
pub(crate) async fn purge_expired(tokens: Weak<Tokens>) {
    loop {
        let Some(store) = tokens.upgrade() else {
            return;
        };
        let (due, next) = store.due();
        let mut failed = false;
        for id in due {
            match store.revoke(&By::system("token expiry"), &id).await {
                Ok(()) => store.forget(&id),
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
