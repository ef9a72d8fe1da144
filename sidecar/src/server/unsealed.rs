//! What a server does while its store is unsealed.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vault_kv::Vault;

use super::ServerError;

/// Pause after a failure: what is needed may be about to be opened, too.
const FIRST_RETRY: Duration = Duration::from_millis(20);
/// Pause after many; each is twice as long as the one before.
const RETRY: Duration = Duration::from_secs(2);

/// Does `work` at each unseal, and again when it has ended, until `stop`. Sealing makes it fail. `what` is for the log.
pub async fn follow<W>(vault: &Vault, what: &str, stop: &CancellationToken, work: impl Fn() -> W)
where
    W: Future<Output = Result<(), ServerError>>,
{
    let mut sealed = vault.watch_sealed();
    let follow = async {
        let mut pause = FIRST_RETRY;
        // The sender lives in the vault.
        while sealed.wait_for(|sealed| !sealed).await.is_ok() {
            let begun = Instant::now();
            if let Err(error) = work().await {
                tracing::debug!(%error, "{what} pauses");
                if begun.elapsed() > RETRY {
                    pause = FIRST_RETRY;
                }
                sleep(pause).await;
                pause = (pause * 2).min(RETRY);
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}
