//! How bundles travel: every node waits at a server for the next one (a long poll), and when no server
//! answers, at whatever other node does.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{BundleError, BundleStore, Offered, SignedBundle};
use crate::rpc::{Client, Reply, Request, Router, Target};

const PATH: &str = "/config/bundle";
/// The longest that a caller waits here for a change.
const MAX_WAIT: Duration = Duration::from_secs(30);
/// How long to wait at a server, and at another node before a server is tried again.
const WAIT_SERVER: Duration = Duration::from_secs(25);
const WAIT_OTHER: Duration = Duration::from_secs(2);
/// How much longer than the wait the answer may take.
const GRACE: Duration = Duration::from_secs(5);
/// The pause after a failure, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the caller has, and how long it would wait for something newer.
#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    index: u64,
    issued_at: u64,
    wait_ms: u32,
}

/// Whom a node may ask: servers first.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    pub(crate) servers: Vec<Target>,
    pub(crate) others: Vec<Target>,
}

/// Answers `/config/bundle` from `store`; waiting callers are let go at `stop`.
pub(crate) fn routes(store: BundleStore, stop: CancellationToken) -> Router {
    Router::new().route(PATH, 64, move |request: Request| {
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let Ok(ask) = postcard::from_bytes::<Ask>(&request.body) else {
                return Reply::error(
                    StatusCode::BAD_REQUEST,
                    "malformed question for the config bundle",
                );
            };
            let newer = tokio::select! {
                newer = newer_than(&store, &ask) => newer,
                () = stop.cancelled() => None,
            };
            match postcard::to_stdvec(&newer.as_deref()) {
                Ok(body) => Reply::ok(body),
                Err(error) => Reply::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            }
        }
    })
}

/// Keeps `store` up to date from `peers` until `stop`.
pub(crate) async fn follow(
    store: BundleStore,
    client: Client,
    peers: impl Fn() -> Peers + Send + 'static,
    stop: CancellationToken,
) {
    let mut pause = PAUSE.0;
    let mut servers_answer = true;
    loop {
        let known = peers();
        let server = known
            .servers
            .choose(&mut rand::rng())
            .map(|target| (target, WAIT_SERVER));
        let other = known
            .others
            .choose(&mut rand::rng())
            .map(|target| (target, WAIT_OTHER));
        let choice = if servers_answer {
            server.or(other)
        } else {
            other.or(server)
        };
        let asked = async {
            let (target, wait) = choice?;
            Some(ask(&store, &client, target, wait).await)
        };
        let began = Instant::now();
        let outcome = tokio::select! {
            () = stop.cancelled() => return,
            outcome = asked => outcome,
        };
        match outcome {
            Some(Ok(changed)) => {
                // After another node has answered, the servers get their next chance.
                servers_answer = true;
                if changed || began + WAIT_OTHER / 2 < Instant::now() {
                    pause = PAUSE.0;
                    continue;
                }
            }
            Some(Err(error)) => {
                servers_answer = !servers_answer;
                tracing::debug!(%error, "no config bundle from a peer");
            }
            None => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}

async fn newer_than(store: &BundleStore, ask: &Ask) -> Option<Arc<SignedBundle>> {
    let mut changes = store.watch();
    let newer = async {
        loop {
            changes.mark_unchanged();
            if let Some(bundle) = store.current()
                && (bundle.index, bundle.issued_at) > (ask.index, ask.issued_at)
            {
                return store.signed();
            }
            if changes.changed().await.is_err() {
                return None;
            }
        }
    };
    if store.index() < ask.index {
        tracing::debug!(
            ours = store.index(),
            theirs = ask.index,
            "a peer holds a newer config bundle"
        );
    }
    timeout(
        Duration::from_millis(ask.wait_ms.into()).min(MAX_WAIT),
        newer,
    )
    .await
    .ok()
    .flatten()
}

async fn ask(
    store: &BundleStore,
    client: &Client,
    target: &Target,
    wait: Duration,
) -> Result<bool, String> {
    let held = store.current();
    let ask = Ask {
        index: held.as_ref().map_or(0, |bundle| bundle.index),
        issued_at: held.as_ref().map_or(0, |bundle| bundle.issued_at),
        wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
    };
    let body = postcard::to_stdvec(&ask).map_err(|e| e.to_string())?;
    let answer = client
        .call(target, PATH, Bytes::from(body), wait + GRACE)
        .await
        .map_err(|e| e.to_string())?;
    let newer: Option<SignedBundle> =
        postcard::from_bytes(&answer).map_err(|_| "malformed answer".to_owned())?;
    let Some(signed) = newer else {
        return Ok(false);
    };
    match store.offer(signed).await {
        Ok(offered) => Ok(offered == Offered::Applied),
        Err(error @ (BundleError::Older { .. } | BundleError::Forked(_))) => {
            tracing::error!(peer = %target.addr, %error, "config bundle refused");
            Err(error.to_string())
        }
        Err(error) => Err(error.to_string()),
    }
}
