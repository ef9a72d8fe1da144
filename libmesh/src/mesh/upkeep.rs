//! What a node keeps on disk while it runs: its newest certificate and roots, its records, and whom to ask after
//! a restart.

use std::time::Duration;

use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::Catalog,
    identity::{Identity, Trust},
    join::{NodeCredentials, NodeDirectory},
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
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = serials.changed() => {}
            _ = trust.changed() => {}
        }
        let (chain, bundle) = (identity.chain(), identity.trust().bundle());
        if chain != credentials.chain
            && let Err(error) = catalog.local().set_certificate(&chain)
        {
            tracing::error!(%error, "the new node certificate cannot be published");
        }
        if chain == credentials.chain && bundle == credentials.bundle {
            continue;
        }
        (credentials.chain, credentials.bundle) = (chain, bundle);
        let Some(directory) = directory.clone() else {
            continue;
        };
        let credentials = credentials.clone();
        let saved = tokio::task::spawn_blocking(move || directory.save(&credentials)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the new node certificate is not kept"
            );
        }
    }
}

/// Hides nodes whose certificates no longer count, and shows them again when they do.
pub(super) async fn follow_trust(trust: Trust, catalog: Catalog, stop: CancellationToken) {
    let mut changes = trust.watch();
    loop {
        // At the start, too: revocations may have come before this task.
        let catalog = catalog.clone();
        let verified = tokio::task::spawn_blocking(move || catalog.reverify());
        if verified.await.is_err() {
            tracing::error!("the certificates of the nodes were not verified again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() {
                return;
            }
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
    let mut kept = Vec::new();
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
        if candidates == kept {
            continue;
        }
        let (directory, bytes) = (directory.clone(), candidates.clone());
        match tokio::task::spawn_blocking(move || directory.save_candidates(&bytes)).await {
            Ok(Ok(())) => kept = candidates,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "member candidates are not kept"
                );
            }
            Err(_) => return,
        }
    }
}

/// Takes away what the node's last life has left and nobody has registered again, once, `after` the start.
pub(super) async fn settle(catalog: Catalog, after: Duration, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = sleep(after) => catalog.local().settle(|_| false),
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
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = head.changed() => if changed.is_err() {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LOG.max(took * LOG_SHARE)) => {}
        }
        head.mark_unchanged();
        let began = Instant::now();
        save_log(&catalog, &directory, false).await;
        took = Instant::now() - began;
    }
}

/// Keeps the own log; `clean` when nothing after it is told to others.
pub(super) async fn save_log(catalog: &Catalog, directory: &NodeDirectory, clean: bool) {
    let (catalog, directory) = (catalog.clone(), directory.clone());
    let save = move || directory.save_log(&catalog.save(clean));
    if let Ok(Err(error)) = tokio::task::spawn_blocking(save).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the own records are not kept"
        );
    }
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
