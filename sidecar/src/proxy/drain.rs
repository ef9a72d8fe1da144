//! Ending a proxy without cutting what it carries.
//!
//! [`Drain::begin`] stops the listeners; connections that are open go on. [`Drain::finish`] waits for them up
//! to a limit and then cuts the rest. Both are seen by every clone.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The shared end of a set of listeners and connections. Cheap to clone.
#[derive(Clone, Default)]
pub struct Drain {
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// A new one, not draining.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts `task` among those that [`Drain::finish`] waits for.
    pub fn track<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(task)
    }

    /// Resolves when accepting has to stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Whether accepting has stopped.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when open connections have to end at once.
    pub async fn cutting(&self) {
        self.cut.cancelled().await;
    }

    /// Stops accepting.
    pub fn begin(&self) {
        self.stop.cancel();
    }

    /// Stops accepting, waits until all tracked tasks have ended, and cuts those that have not after `within`;
    /// `cut` tells those that do not look at [`Drain::cutting`].
    ///
    /// Returns how many had to be cut.
    pub async fn finish(&self, within: Duration, cut: impl FnOnce()) -> usize {
        self.begin();
        self.tasks.close();
        if tokio::time::timeout(within, self.tasks.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let left = self.tasks.len();
        self.cut.cancel();
        cut();
        self.tasks.wait().await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn open_work_ends_by_itself_or_is_cut_after_the_limit() {
        let drain = Drain::new();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let ends_itself = tokio::spawn(drain.track(async move { ended.await.is_ok() }));
        let hangs = drain.clone();
        let hangs = tokio::spawn(drain.track(async move { hangs.cutting().await }));
        let finishing = drain.clone();
        let finishing =
            tokio::spawn(async move { finishing.finish(Duration::from_millis(50), || ()).await });
        drain.stopping().await;
        end.send(()).unwrap();
        assert!(ends_itself.await.unwrap());
        assert_eq!(finishing.await.unwrap(), 1);
        hangs.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_open_is_done_at_once() {
        let drain = Drain::new();
        let done = drain.finish(Duration::from_secs(3600), || ());
        assert_eq!(
            tokio::time::timeout(Duration::from_secs(10), done).await,
            Ok(0)
        );
    }
}
