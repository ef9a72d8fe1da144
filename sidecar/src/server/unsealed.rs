//! What a server does while its store is unsealed.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use vault_kv::Vault;

use super::ServerError;

/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Does `work` at each unseal, and again when it has ended, until `stop`. Sealing makes it fail. `what` is for the log.
pub async fn follow<W>(vault: &Vault, what: &str, stop: &CancellationToken, work: impl Fn() -> W)
where
    W: Future<Output = Result<(), ServerError>>,
{
    let mut sealed = vault.watch_sealed();
    let follow = async {
        // The sender lives in the vault.
        while sealed.wait_for(|sealed| !sealed).await.is_ok() {
            if let Err(error) = work().await {
                tracing::debug!(%error, "{what} pauses");
                sleep(RETRY).await;
            }
        }
    };
    stop.run_until_cancelled(follow).await;
}
