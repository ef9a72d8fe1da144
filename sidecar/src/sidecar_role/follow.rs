//! Keeping up with the agent: each loop holds what it knows when the agent is away, and asks on.

use std::future::Future;
use std::time::Duration;

use libmesh::bundle::BundleStore;
use libmesh::connect::{Balancer, Endpoint, Split};
use libmesh::model::ServiceName;
use tokio::time::{Instant, Sleep, sleep};

use crate::attach::client::{AgentClient, AgentError};
use crate::attach::wire::{AttachRequest, EndpointWire, HEARTBEAT, decode_bundle};
use crate::proxy::readiness::Pending;

/// How long one long poll waits.
const WAIT: Duration = Duration::from_secs(55);
/// The first and the longest pause after a failure.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long after the agent came back "there is no instance" is not believed: its catalog is still filling.
const SETTLING: Duration = Duration::from_secs(15);

/// Growing pauses, and one line in the log for each outage.
struct Outage {
    what: String,
    pause: Duration,
}

impl Outage {
    fn of(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            pause: PAUSE.0,
        }
    }

    /// The pause after `error`; says so once for each outage.
    fn wait(&mut self, error: &(dyn std::error::Error + 'static)) -> Sleep {
        if self.pause == PAUSE.0 {
            tracing::warn!(
                error,
                "{} cannot be reached; going on with what is known, and trying again",
                self.what
            );
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        sleep(pause.mul_f64(rand::random_range(0.5..1.0)))
    }

    /// Whether there was one.
    fn over(&mut self) -> bool {
        let was = std::mem::replace(&mut self.pause, PAUSE.0) != PAUSE.0;
        if was {
            tracing::info!("{} answers again", self.what);
        }
        was
    }
}

/// Asks until there is an answer, or an error that asking again will not cure.
pub(super) async fn patiently<T, E, F>(
    what: &str,
    mut ask: impl FnMut() -> F,
    transient: impl Fn(&E) -> bool,
) -> Result<T, E>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut outage = Outage::of(what);
    loop {
        match ask().await {
            Err(error) if transient(&error) => outage.wait(&error).await,
            answer => return answer,
        }
    }
}

/// Attaches, and repeats it for as long as the future lives. Resolves only when the agent refuses the first time.
pub(super) async fn attach(agent: AgentClient, request: AttachRequest, up: Pending) -> AgentError {
    if let Err(refused) = patiently(
        "the agent",
        || agent.attach(&request),
        AgentError::is_transient,
    )
    .await
    {
        return refused;
    }
    tracing::info!(service = %request.service, mesh_port = request.mesh_port, "attached");
    drop(up);
    let mut outage = Outage::of("the agent");
    loop {
        sleep(HEARTBEAT).await;
        while let Err(error) = agent.attach(&request).await {
            outage.wait(&error).await;
        }
        outage.over();
    }
}

/// Puts the endpoints of `service` into `balancer` for as long as the future lives.
pub(super) async fn endpoints(
    agent: AgentClient,
    service: ServiceName,
    balancer: Balancer,
    up: Pending,
) {
    let mut up = Some(up);
    let mut after = None;
    let mut outage = Outage::of(format!("the agent, for the endpoints of {service},"));
    let mut settled: Option<Instant> = None;
    loop {
        let settling = settled.is_some_and(|at| Instant::now() < at);
        let wait = if settling {
            Duration::from_secs(1)
        } else {
            WAIT
        };
        let reply = match agent.endpoints(&service, after, wait).await {
            Ok(reply) => reply,
            Err(error) => {
                // Another agent process may count from elsewhere: ask it for what holds, not for what is new.
                after = None;
                outage.wait(&error).await;
                continue;
            }
        };
        if outage.over() {
            settled = Some(Instant::now() + SETTLING);
        }
        after = Some(reply.index);
        drop(up.take());
        let known = balancer.endpoints();
        let believed = !reply.endpoints.is_empty() || settled.is_none_or(|at| Instant::now() >= at);
        if believed || known.is_empty() {
            let now: Vec<Endpoint> = reply
                .endpoints
                .into_iter()
                .filter_map(|wire| endpoint(&service, wire))
                .collect();
            if now.len() != known.len() {
                tracing::debug!(%service, endpoints = now.len(), "endpoints changed");
            }
            let split = Split {
                weights: reply.weights,
                connect_timeout: reply.connect_timeout,
            };
            balancer.set_split(now, split);
        }
    }
}

/// `None`: of a service whose name is none.
fn endpoint(asked: &ServiceName, wire: EndpointWire) -> Option<Endpoint> {
    let service = match &wire.service {
        Some(other) => ServiceName::parse(other).ok()?,
        None => asked.clone(),
    };
    Some(Endpoint {
        id: wire.id,
        addr: wire.address,
        service,
        version: wire.version,
        weight: wire.weight,
        distance: wire.distance,
        suspect: wire.suspect,
        part: wire.part,
    })
}

/// Offers each new config bundle to `bundles`, which verifies it, for as long as the future lives.
pub(super) async fn bundle(agent: AgentClient, bundles: BundleStore, up: Pending) {
    let mut up = Some(up);
    let mut outage = Outage::of("the agent, for the mesh's configuration,");
    let mut asked = None;
    loop {
        let reply = match agent.bundle(asked, WAIT).await {
            Ok(reply) => reply,
            Err(error) => {
                asked = None;
                outage.wait(&error).await;
                continue;
            }
        };
        outage.over();
        asked = Some(reply.index);
        let Some(text) = reply.bundle else { continue };
        let Some(signed) = decode_bundle(&text) else {
            tracing::warn!("the agent's config bundle is malformed; the last one holds");
            continue;
        };
        match bundles.offer(signed).await {
            Ok(_) => drop(up.take()),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the config bundle is not taken; the last one holds"
                );
            }
        }
    }
}
