//! A consumer that calls `web` through its sidecar all the time, so that a step can say whether
//! callers noticed anything.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Request;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::http::client::Target;

const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// One HTTP GET; the body of a 200 answer.
pub(super) async fn get(target: &Target, path: &str) -> anyhow::Result<String> {
    let request = Request::get(path).body(Bytes::new())?;
    let answer = target.send(request, CALL_TIMEOUT).await?;
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    if !answer.status().is_success() {
        bail!(
            "{target}{path} answered {}: {}",
            answer.status(),
            text.trim()
        );
    }
    Ok(text)
}

#[derive(Default)]
struct Counts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A loop of calls in the background; it ends when this is dropped.
pub(super) struct Calls {
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Calls {
    pub(super) fn start(target: Target) -> Self {
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            loop {
                match get(&target, "/").await {
                    Ok(_) => {
                        shared.succeeded.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        *shared.last_error.lock() = Some(format!("{error:#}"));
                        shared.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self { counts, task }
    }

    /// Ends the loop; the number of calls made, or the last error if any of them failed.
    pub(super) fn finish(self) -> anyhow::Result<u64> {
        self.task.abort();
        let failed = self.counts.failed.load(Ordering::Relaxed);
        let succeeded = self.counts.succeeded.load(Ordering::Relaxed);
        if failed > 0 {
            let error = self.counts.last_error.lock().take().unwrap_or_default();
            bail!(
                "{failed} of {} calls failed; the last: {error}",
                failed + succeeded
            );
        }
        if succeeded == 0 {
            bail!("no call was made in the meantime");
        }
        Ok(succeeded)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Polls `probe` until it answers `Some`, for at most `limit`.
pub(super) async fn eventually<T, F>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Option<T>>>,
{
    let mut last = None;
    let found = tokio::time::timeout(limit, async {
        loop {
            match probe().await {
                Ok(Some(value)) => return value,
                Ok(None) => last = None,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    match (found, last) {
        (Ok(value), _) => Ok(value),
        (Err(_), Some(error)) => Err(error).context(format!("{what} did not happen in {limit:?}")),
        (Err(_), None) => bail!("{what} did not happen in {limit:?}"),
    }
}
