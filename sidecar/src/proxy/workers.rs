//! The threads of the data plane.
//!
//! Each worker is one thread with an event loop of its own; a connection stays on the worker it was given to
//! for all its life. A byte that comes in is read, sealed and sent on by the thread that the kernel woke, with
//! no queue and no other thread in between. Workers take turns in getting new connections.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The running workers. Dropping them ends their threads, and with them what still runs there.
pub struct Workers {
    handles: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    next: AtomicUsize,
}

impl Workers {
    /// Starts `count` workers (at least one).
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let mut workers = Self {
            handles: Vec::new(),
            threads: Vec::new(),
            stop: CancellationToken::new(),
            next: AtomicUsize::new(0),
        };
        for n in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            workers.handles.push(runtime.handle().clone());
            let stop = workers.stop.clone();
            let thread = std::thread::Builder::new().name(format!("proxy-{n}"));
            workers
                .threads
                .push(thread.spawn(move || runtime.block_on(stop.cancelled()))?);
        }
        Ok(workers)
    }

    /// The worker whose turn it is.
    pub fn next(&self) -> &Handle {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        &self.handles[n % self.handles.len()]
    }

    /// As many workers as the machine has processors.
    ///
    /// # Errors
    /// As [`Workers::start`].
    pub fn one_per_processor() -> io::Result<Self> {
        Self::start(std::thread::available_parallelism().map_or(1, Into::into))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // The last owner may be a task of a worker, which cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                // A worker that panicked has said so already.
                let _ = thread.join();
            }
        }
    }
}
