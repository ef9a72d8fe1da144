//! What a node keeps on disk while it runs: its newest certificate and roots, its records, and whom to ask after
//! a restart.

use std::time::Duration;

use tokio::{
    sync::broadcast::error::RecvError,
    task::JoinError,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::Catalog,
    health::kept_in_maintenance,
    identity::{Identity, Trust},
    join::{DirectoryError, NodeCredentials, NodeDirectory},
    member::Membership,
};

/// How long after a change the own log is written: what comes meanwhile costs no further write.
const LOG: Duration = Duration::from_millis(250);
/// And at least so many times as long as the last write took: a large log may use a twentieth of the time.
const LOG_SHARE: u32 = 20;
/// How long after a change of members the candidates are written: what comes meanwhile is one write.
const SETTLE: Duration = Duration::from_millis(200);
/// How often they are written at the least, if they changed.
const CANDIDATES: Duration = Duration::from_secs(10);

/// How soon what could not be written is tried again: the disk may be full.
const RETRY: Duration = Duration::from_secs(3);
/// How often revoked nodes are looked at again: one may have got a new certificate.
const REVOKED: Duration = Duration::from_secs(30);

/// Whether something is on disk. A failure is told once, and so is its end.
struct Kept {
    what: &'static str,
    failing: bool,
}

impl Kept {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            failing: false,
        }
    }

    fn note(&mut self, saved: Result<Result<(), DirectoryError>, JoinError>) {
        let failed = match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            // The runtime ends.
            Err(_) => return,
        };
        let was_failing = std::mem::replace(&mut self.failing, failed.is_some());
        match failed {
            Some(error) if !was_failing => tracing::error!(
                error = &error as &dyn std::error::Error,
                "{} cannot be kept; the node goes on and tries again until it can",
                self.what
            ),
            None if was_failing => tracing::info!("{} can be kept again", self.what),
            _ => {}
        }
    }
}

/// Publishes each new certificate of the node, and keeps it with the roots in the directory.
pub(super) async fn follow_certificate(
    identity: Identity,
    catalog: Catalog,
    mut credentials: NodeCredentials,
    directory: Option<NodeDirectory>,
    stop: CancellationToken,
) {
    let mut serials = identity.watch_serial();
    let mut trust = identity.trust().watch();
    let mut kept = Kept::new("the new node certificate");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = serials.changed() => {}
            _ = trust.changed() => {}
            () = sleep(RETRY), if kept.failing => {}
        }
        let (chain, bundle) = (identity.chain(), identity.trust().bundle());
        if chain != credentials.chain
            && let Err(error) = catalog.local().set_certificate(&chain)
        {
            tracing::error!(%error, "the new node certificate cannot be published");
        }
        if chain == credentials.chain && bundle == credentials.bundle && !kept.failing {
            continue;
        }
        (credentials.chain, credentials.bundle) = (chain, bundle);
        let Some(directory) = directory.clone() else {
            continue;
        };
        let credentials = credentials.clone();
        let save = move || directory.save(&credentials);
        kept.note(tokio::task::spawn_blocking(save).await);
    }
}

/// Hides nodes whose certificates no longer count and evicts them from the pool, and lets them back when they do.
pub(super) async fn follow_trust(
    trust: Trust,
    catalog: Catalog,
    membership: Membership,
    stop: CancellationToken,
) {
    let mut changes = trust.watch();
    let mut evicted = Vec::new();
    loop {
        // At the start, too: revocations may have come before this task.
        let catalog = catalog.clone();
        let verified = tokio::task::spawn_blocking(move || catalog.reverify());
        match verified.await {
            Ok(disowned) if disowned != evicted => {
                evicted = disowned;
                if membership.evict(evicted.clone()).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(_) => tracing::error!("the certificates of the nodes were not verified again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = sleep(REVOKED), if !evicted.is_empty() => {}
        }
    }
}

/// Keeps the addresses of present members for the next start.
pub(super) async fn follow_members(
    membership: Membership,
    directory: NodeDirectory,
    stop: CancellationToken,
) {
    let mut tick = interval(CANDIDATES);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut events = membership.events();
    let mut written = Vec::new();
    let mut kept = Kept::new("the list of members to ask after a restart");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
            // A node that ends soon after it has joined must find the others again. Events that were
            // missed are one more reason to look.
            event = events.recv() => {
                if event == Err(RecvError::Closed) {
                    return;
                }
                sleep(SETTLE).await;
                events = events.resubscribe();
            }
        }
        let Ok(candidates) = membership.candidates().await else {
            return;
        };
        if candidates == written {
            continue;
        }
        let (directory, bytes) = (directory.clone(), candidates.clone());
        let save = move || directory.save_candidates(&bytes);
        kept.note(tokio::task::spawn_blocking(save).await);
        if !kept.failing {
            written = candidates;
        }
    }
}

/// Takes away what the node's last life has left and nobody has registered again, once, `after` the start.
pub(super) async fn settle(catalog: Catalog, after: Duration, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sleep(after) => {
            let local = catalog.local();
            local.settle(kept_in_maintenance(&local));
        }
    }
}

/// Keeps the own log, a while after each change.
pub(super) async fn follow_log(
    catalog: Catalog,
    directory: NodeDirectory,
    stop: CancellationToken,
) {
    let mut head = catalog.local().watch();
    let mut took = Duration::ZERO;
    let mut kept = Kept::new("the own records");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = head.changed() => if changed.is_err() {
                return;
            },
            () = sleep(RETRY), if kept.failing => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LOG.max(took * LOG_SHARE)) => {}
        }
        head.mark_unchanged();
        let began = Instant::now();
        write_log(&catalog, &directory, false, &mut kept).await;
        took = Instant::now() - began;
    }
}

/// Keeps the own log; `clean` when nothing after it is told to others.
pub(super) async fn save_log(catalog: &Catalog, directory: &NodeDirectory, clean: bool) {
    write_log(catalog, directory, clean, &mut Kept::new("the own records")).await;
}

async fn write_log(catalog: &Catalog, directory: &NodeDirectory, clean: bool, kept: &mut Kept) {
    let (catalog, directory) = (catalog.clone(), directory.clone());
    let save = move || directory.save_log(&catalog.save(clean));
    kept.note(tokio::task::spawn_blocking(save).await);
}

/// Tells membership of connections that broke: the peer may be gone.
pub(super) async fn follow_broken(
    mut broken: tokio::sync::broadcast::Receiver<crate::model::NodeId>,
    membership: Membership,
    stop: CancellationToken,
) {
    use tokio::sync::broadcast::error::RecvError;

    loop {
        let peer = tokio::select! {
            () = stop.cancelled() => return,
            peer = broken.recv() => peer,
        };
        match peer {
            Ok(peer) => {
                if membership.peer_closed(peer).await.is_err() {
                    return;
                }
            }
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
