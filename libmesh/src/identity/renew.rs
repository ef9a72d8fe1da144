//! Renewal: at half of a certificate's life, with jitter so that a fleet started together does not ask
//! together, and with back-off while the authority is away. The old certificate serves until it expires.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio_util::sync::CancellationToken;

use super::{CertificateSource, Identity, IdentityError, NodeKey, ServiceKey, SigningKeyPair};
use crate::model::ServiceName;

/// The first pause after a failed renewal.
const RETRY_MIN: Duration = Duration::from_millis(500);
/// The longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// The longest sleep at once, so that a suspended machine or a moved clock is noticed.
const NAP: Duration = Duration::from_secs(60);

/// Whose certificate is renewed, and with which key.
#[derive(Debug, Clone)]
pub enum Subject {
    /// This node: the key stays, as it is the node's id.
    Node(NodeKey),
    /// A service: every certificate gets a new key.
    Service {
        /// Its name.
        name: ServiceName,
        /// The life to ask for; `None` is the authority's default.
        ttl: Option<Duration>,
    },
}

impl Identity {
    /// Gets one new certificate and swaps it in.
    pub async fn renew(
        &self,
        source: &dyn CertificateSource,
        subject: &Subject,
    ) -> Result<(), IdentityError> {
        match subject {
            Subject::Node(key) => {
                let issued = source.sign_node(key.csr_der()?).await?;
                self.install(issued.chain, key)
            }
            Subject::Service { name, ttl } => {
                let key = ServiceKey::generate()?;
                let issued = source
                    .sign_service(name.clone(), key.csr_der()?, *ttl)
                    .await?;
                self.install(issued.chain, &key)
            }
        }
    }

    /// Renews until cancelled. To be spawned once per identity.
    pub async fn keep_renewed(
        self,
        source: Arc<dyn CertificateSource>,
        subject: Subject,
        stop: CancellationToken,
    ) {
        let mut failures = 0;
        let mut due = half_life(&self);
        let mut trust = self.trust().watch();
        loop {
            let until_due = due.duration_since(SystemTime::now()).unwrap_or_default();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(until_due.min(NAP)) => {}
                // A revoked certificate is replaced at once, if the authority gives another.
                Ok(()) = trust.changed() => {
                    if self.trust().revoked().covers(&self.leaf()) {
                        due = due.min(SystemTime::now());
                    }
                }
            }
            if SystemTime::now() < due {
                continue;
            }
            let renewed = tokio::select! {
                () = stop.cancelled() => return,
                renewed = self.renew(&*source, &subject) => renewed,
            };
            match renewed {
                Ok(()) => {
                    failures = 0;
                    due = half_life(&self);
                    tracing::info!(identity = %self.spiffe_id(), serial = %self.serial(), "certificate renewed");
                }
                Err(error) => {
                    failures += 1;
                    let left = self
                        .not_after()
                        .duration_since(SystemTime::now())
                        .unwrap_or_default();
                    let pause = back_off(failures, left);
                    due = SystemTime::now() + pause;
                    tracing::warn!(
                        identity = %self.spiffe_id(), seconds_left = left.as_secs(), retry_in = ?pause,
                        error = &error as &dyn std::error::Error, "certificate not renewed"
                    );
                }
            }
        }
    }
}

/// When to renew: after 45–55 % of what is left of the certificate's life. What was before counts for
/// nothing, as authorities date certificates back against slow clocks.
fn half_life(identity: &Identity) -> SystemTime {
    let now = SystemTime::now();
    let left = identity.not_after().duration_since(now).unwrap_or_default();
    now + left.mul_f64(rand::random_range(0.45..0.55)).max(RETRY_MIN)
}

/// Doubling with jitter, but at least eight attempts in what is left of the certificate's life.
fn back_off(failures: u32, left: Duration) -> Duration {
    let doubled = RETRY_MIN.saturating_mul(1 << failures.min(10));
    let most = (left / 8).clamp(RETRY_MIN, RETRY_MAX);
    doubled.min(most).mul_f64(rand::random_range(0.5..1.0))
}
