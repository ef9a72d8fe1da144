//! Following one service, all services or the nodes: first what is there, then what changes.
//!
//! A [`Watch`] remembers what it said last and compares that with what is there now. So a consumer that is slow, or
//! does not look for an hour, gets one merged [`Diff`]; what is kept for it is one old snapshot (shared with the
//! catalog), never a queue; and whatever it misses on the way, applying each diff to the one before gives the present.
//!
//! Costs: a watch of one service is woken by changes of that service only, and a diff is one pass over its instances.
//! A watch of all services, or of the nodes, looks at every service (or node) after a change of anything, at most fifty
//! times a second; one of all services keeps the views of all of them in memory.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, InstanceView, NodeView, ServiceView, ServiceWatch},
    identity::BoxFuture,
    model::ServiceName,
};

pub use crate::catalog::Diff;

/// The shortest time between two looks at everything.
const PAUSE: Duration = Duration::from_millis(20);

/// A stream of [`Diff`]s. The first one comes at once and holds everything; each further one waits until something
/// changes. It ends (`None`) when its node does.
///
/// Ask with [`next`](Self::next), or use it as a [`Stream`]. Dropping it, or a future of `next`, loses nothing.
#[must_use = "a watch says nothing unless it is asked"]
pub struct Watch<T> {
    /// `None` after the end.
    next: Option<BoxFuture<'static, Looked<T>>>,
}

/// A source, and what it found; nothing after the end.
type Looked<T> = Option<(Box<dyn Source<T>>, Diff<T>)>;

trait Source<T>: Send {
    fn next(self: Box<Self>) -> BoxFuture<'static, Looked<T>>;
}

impl<T> Watch<T> {
    /// The next diff; `None` when the node has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Diff<T>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<T> Stream for Watch<T> {
    type Item = Diff<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Diff<T>>> {
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let looked = ready!(next.as_mut().poll(cx));
        let (source, diff) = looked.unzip();
        self.next = source.map(Source::next);
        Poll::Ready(diff)
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watch")
    }
}

impl Watch<InstanceView> {
    /// The instances of one service, which need not exist (yet), until `stop`.
    pub fn service(catalog: &Catalog, name: &ServiceName, stop: CancellationToken) -> Self {
        let one = One {
            watch: catalog.watch_service(name),
            seen: None,
            last: None,
            stop,
        };
        Self {
            next: Some(Box::new(one).next()),
        }
    }

    /// The instances of all services, until `stop`.
    pub fn services(catalog: &Catalog, stop: CancellationToken) -> Self {
        Self {
            next: Some(Box::new(All(Table::new(catalog, stop))).next()),
        }
    }
}

impl Watch<NodeView> {
    /// The nodes that did not leave, until `stop`. One that goes down has changed; one that leaves is removed.
    pub fn nodes(catalog: &Catalog, stop: CancellationToken) -> Self {
        Self {
            next: Some(Box::new(Nodes(Table::new(catalog, stop))).next()),
        }
    }
}

struct One {
    watch: ServiceWatch,
    /// The revision before the last look; `None` before the first.
    seen: Option<u64>,
    last: Option<Arc<ServiceView>>,
    stop: CancellationToken,
}

impl Source<InstanceView> for One {
    fn next(mut self: Box<Self>) -> BoxFuture<'static, Looked<InstanceView>> {
        Box::pin(async move {
            loop {
                if let Some(seen) = self.seen {
                    let changed = self.watch.changed_after(seen);
                    self.stop.run_until_cancelled(changed).await?;
                }
                let first = self.seen.is_none();
                // Read before the view: a view newer than this only makes the next look find nothing.
                let revision = self.watch.revision();
                let now = self.watch.view();
                let diff = Diff::instances(revision, self.last.as_slice(), now.as_slice());
                (self.seen, self.last) = (Some(revision), now);
                if first || !diff.is_empty() {
                    return Some((self as Box<dyn Source<_>>, diff));
                }
            }
        })
    }
}

/// What looking at a whole table takes.
struct Table<V> {
    catalog: Catalog,
    changes: Receiver<u64>,
    last: Vec<Arc<V>>,
    looked: Option<Instant>,
    stop: CancellationToken,
}

impl<V> Table<V> {
    fn new(catalog: &Catalog, stop: CancellationToken) -> Self {
        Self {
            catalog: catalog.clone(),
            changes: catalog.watch_all(),
            last: Vec::new(),
            looked: None,
            stop,
        }
    }

    /// Waits until there may be something new, and returns the revision to look at; at once for the first look.
    async fn revision(&mut self) -> Option<u64> {
        if let Some(looked) = self.looked {
            let changed = async {
                let changed = self.changes.changed().await;
                sleep_until(looked + PAUSE).await;
                changed
            };
            self.stop.run_until_cancelled(changed).await?.ok()?;
        }
        Some(*self.changes.borrow_and_update())
    }

    /// Notes what was seen; whether it was the first look.
    fn looked(&mut self, now: Vec<Arc<V>>) -> bool {
        self.last = now;
        self.looked.replace(Instant::now()).is_none()
    }
}

struct All(Table<ServiceView>);

impl Source<InstanceView> for All {
    fn next(mut self: Box<Self>) -> BoxFuture<'static, Looked<InstanceView>> {
        Box::pin(async move {
            loop {
                let revision = self.0.revision().await?;
                let now = self.0.catalog.services();
                let (old, new) = without_equals(&self.0.last, &now);
                let diff = Diff::instances(revision, &old, &new);
                if self.0.looked(now) || !diff.is_empty() {
                    return Some((self as Box<dyn Source<_>>, diff));
                }
            }
        })
    }
}

struct Nodes(Table<NodeView>);

impl Source<NodeView> for Nodes {
    fn next(mut self: Box<Self>) -> BoxFuture<'static, Looked<NodeView>> {
        Box::pin(async move {
            loop {
                let revision = self.0.revision().await?;
                let now = self.0.catalog.nodes();
                let diff = Diff::nodes(revision, &self.0.last, &now);
                if self.0.looked(now) || !diff.is_empty() {
                    return Some((self as Box<dyn Source<_>>, diff));
                }
            }
        })
    }
}

/// Two lists by name, without the views that are in both.
fn without_equals(
    old: &[Arc<ServiceView>],
    new: &[Arc<ServiceView>],
) -> (Vec<Arc<ServiceView>>, Vec<Arc<ServiceView>>) {
    let missing = |from: &[Arc<ServiceView>], there: &[Arc<ServiceView>]| {
        let same = |view: &&Arc<ServiceView>| {
            let at = there.binary_search_by(|other| other.name.cmp(&view.name));
            !at.is_ok_and(|at| there[at].revision == view.revision)
        };
        from.iter().filter(same).cloned().collect()
    };
    (missing(old, new), missing(new, old))
}

#[cfg(test)]
mod tests;
