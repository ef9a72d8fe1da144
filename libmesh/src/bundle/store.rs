//! The newest bundle a node has seen: in memory for every decision, in its directory for the next start.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, watch};

use super::{
    Action, BundleError, ConfigBundle, Decision, Intentions, MAX_BUNDLE, Revocation, SignedBundle,
};
use crate::{
    files,
    identity::{Revoked, SpiffeId, Trust, TrustBundle},
    model::{Datacenter, ServiceName},
};

/// What became of an offered bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is newer and holds now.
    Applied,
    /// It is the one held, or the same content signed earlier.
    Known,
}

/// Holds the newest bundle and enforces it on [`Trust`]. Cheap to clone.
#[derive(Clone)]
pub struct BundleStore {
    inner: Arc<Inner>,
}

struct Inner {
    trust: Trust,
    datacenter: Datacenter,
    cache: Option<PathBuf>,
    held: ArcSwapOption<Held>,
    changes: watch::Sender<u64>,
    applying: Mutex<()>,
}

struct Held {
    signed: Arc<SignedBundle>,
    bundle: Arc<ConfigBundle>,
    intentions: Intentions,
}

impl BundleStore {
    /// A store that enforces on `trust`, starting with what `cache` holds (`None`: memory only).
    ///
    /// A cache that does not verify is left in place and not used: the next bundle replaces it.
    ///
    /// # Errors
    /// [`BundleError::Cache`] if the file is there and cannot be read.
    pub fn open(
        trust: Trust,
        datacenter: Datacenter,
        cache: Option<PathBuf>,
    ) -> Result<Self, BundleError> {
        let inner = Inner {
            trust,
            datacenter,
            cache,
            held: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
            applying: Mutex::default(),
        };
        let store = Self {
            inner: Arc::new(inner),
        };
        if let Some(path) = &store.inner.cache {
            let cached = files::read_private(path);
            let cached = cached.map_err(|source| BundleError::Cache {
                path: path.clone(),
                source,
            })?;
            if let Some(bytes) = cached {
                let decoded = postcard::from_bytes(&bytes).map_err(|_| BundleError::Malformed);
                let applied = decoded.and_then(|signed| store.apply(signed));
                if let Err(error) = applied {
                    tracing::warn!(path = %path.display(), %error, "the cached config bundle is not used");
                }
            }
        }
        Ok(store)
    }

    /// Takes a bundle if it verifies and is newer; then enforces it, wakes watchers and caches it.
    ///
    /// # Errors
    /// Every [`BundleError`]; with `Cache` the bundle holds already, but not for the next start.
    pub async fn offer(&self, signed: SignedBundle) -> Result<Offered, BundleError> {
        let size = signed.bytes.len()
            + signed.signature.len()
            + signed.chain.iter().map(Vec::len).sum::<usize>();
        if size > MAX_BUNDLE {
            return Err(BundleError::TooLarge(size));
        }
        let _one_at_a_time = self.inner.applying.lock().await;
        let Some(signed) = self.apply(signed)? else {
            return Ok(Offered::Known);
        };
        if let Some(path) = self.inner.cache.clone() {
            let bytes = postcard::to_stdvec(&*signed).map_err(|_| BundleError::Malformed)?;
            let written = tokio::task::spawn_blocking({
                let path = path.clone();
                move || files::write_private(&path, &bytes)
            });
            let written = written
                .await
                .unwrap_or_else(|panicked| Err(std::io::Error::other(panicked)));
            written.map_err(|source| BundleError::Cache { path, source })?;
        }
        Ok(Offered::Applied)
    }

    /// The bundle that holds.
    pub fn current(&self) -> Option<Arc<ConfigBundle>> {
        self.inner
            .held
            .load()
            .as_ref()
            .map(|held| held.bundle.clone())
    }

    /// The bundle that holds, as it is passed on.
    pub fn signed(&self) -> Option<Arc<SignedBundle>> {
        self.inner
            .held
            .load()
            .as_ref()
            .map(|held| held.signed.clone())
    }

    /// Its index; 0 without a bundle.
    pub fn index(&self) -> u64 {
        self.inner
            .held
            .load()
            .as_ref()
            .map_or(0, |held| held.bundle.index)
    }

    /// How long ago the bundle was signed; `None` without one.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let bundle = self.current()?;
        let issued_at = UNIX_EPOCH.checked_add(Duration::from_secs(bundle.issued_at))?;
        Some(now.duration_since(issued_at).unwrap_or_default())
    }

    /// Wakes at each bundle that starts to hold; the value counts them.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// What holds for a call from `source` to `destination`. Without a bundle, and for callers that are
    /// no service: deny.
    pub fn decide(&self, source: &SpiffeId, destination: &ServiceName) -> Decision {
        let held = self.inner.held.load();
        match (held.as_ref(), source.as_service()) {
            (Some(held), Some(source)) => held.intentions.evaluate(source, destination),
            _ => Decision {
                action: Action::Deny,
                rule: None,
            },
        }
    }

    /// Whom the bundles are believed for, and enforced on.
    pub fn trust(&self) -> &Trust {
        &self.inner.trust
    }

    /// The bundle, if it is newer than the one held and now holds.
    fn apply(&self, signed: SignedBundle) -> Result<Option<Arc<SignedBundle>>, BundleError> {
        let held = self.inner.held.load_full();
        if held.as_ref().is_some_and(|held| *held.signed == signed) {
            return Ok(None);
        }
        let bundle = signed.verify(&self.inner.trust, &self.inner.datacenter)?;
        if let Some(held) = held {
            let seen = &held.bundle;
            if bundle.index < seen.index {
                return Err(BundleError::Older {
                    offered: bundle.index,
                    seen: seen.index,
                });
            }
            if bundle.index == seen.index && bundle.head != seen.head {
                return Err(BundleError::Forked(seen.index));
            }
            if bundle.index == seen.index && bundle.issued_at <= seen.issued_at {
                return Ok(None);
            }
        }
        if !bundle.roots.is_empty() {
            self.inner.trust.set_bundle(TrustBundle {
                roots: bundle.roots.clone(),
            })?;
        }
        let mut revoked = Revoked::default();
        for revocation in &bundle.revoked {
            match revocation {
                Revocation::Serial(serial) => revoked.serials.insert(serial.clone()),
                Revocation::Identity(id) => revoked.identities.insert(id.to_string()),
            };
        }
        let intentions = Intentions::new(&bundle.intentions, bundle.default_action);
        let signed = Arc::new(signed);
        let held = Held {
            signed: signed.clone(),
            bundle: Arc::new(bundle),
            intentions,
        };
        self.inner.held.store(Some(Arc::new(held)));
        self.inner.trust.set_revoked(revoked);
        self.inner.changes.send_modify(|n| *n += 1);
        Ok(Some(signed))
    }
}
