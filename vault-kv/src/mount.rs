//! The mount table: which engine answers below which path.
//!
//! Mounts never overlap, so a path belongs to at most one of them. Each has a random id, and its data lies below that id:
//! a mount that is deleted and made again at the same path starts empty.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::engine::{cubbyhole::Cubbyhole, kv1::Kv1, kv2::Kv2};
use crate::http::ApiError;
use crate::token::MAX_TTL;

const PREFIX: &str = "mount/";
/// The version of every engine: they are all part of this crate.
const BUILTIN_VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.mesh");
/// Records deleted with one ledger entry when a mount goes.
const CHUNK: usize = 256;

/// What answers below a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Versioned secrets (KV version 2).
    Kv,
    /// Plain secrets (KV version 1).
    Kv1,
    /// Every token's own store.
    Cubbyhole,
    System,
    Identity,
    /// The login method of tokens.
    Token,
    /// The login method of verified SPIFFE IDs.
    Spiffe,
}

impl Kind {
    /// The name clients know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kv | Self::Kv1 => "kv",
            Self::Cubbyhole => "cubbyhole",
            Self::System => "system",
            Self::Identity => "identity",
            Self::Token => "token",
            Self::Spiffe => "spiffe",
        }
    }
}

/// One mount, as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Ends in `/`.
    pub path: String,
    pub kind: Kind,
    pub description: String,
    pub accessor: String,
    pub uuid: String,
}

impl Mount {
    fn new(path: &str, kind: Kind, description: &str) -> Self {
        let id = uuid::Uuid::new_v4();
        let prefix = if path.starts_with("auth/") {
            "auth_"
        } else {
            ""
        };
        Self {
            path: path.into(),
            kind,
            description: description.into(),
            accessor: format!("{prefix}{}_{:08x}", kind.as_str(), rand::random::<u32>()),
            uuid: id.to_string(),
        }
    }

    /// What the audit log says of it; `version` ends the name of the field with the running version, which Vault
    /// calls differently in requests and responses.
    pub fn audited(&self, version: &str) -> [(String, Value); 5] {
        let class = match self.path.starts_with("auth/") {
            true => "auth",
            false => "secret",
        };
        [
            ("mount_point".to_owned(), self.path.as_str().into()),
            ("mount_type".to_owned(), self.kind.as_str().into()),
            ("mount_accessor".to_owned(), self.accessor.as_str().into()),
            ("mount_class".to_owned(), class.into()),
            (format!("mount_running_{version}"), BUILTIN_VERSION.into()),
        ]
    }

    /// Where the engine's records are.
    pub fn storage(&self) -> String {
        format!("logical/{}/", self.uuid)
    }

    fn record(&self) -> String {
        format!("{PREFIX}{}", self.uuid)
    }

    /// The form `sys/mounts` and `sys/auth` show.
    pub fn describe(&self) -> Value {
        let options = match self.kind {
            Kind::Kv => json!({"version": "2"}),
            Kind::Kv1 => json!({"version": "1"}),
            _ => Value::Null,
        };
        let mut out = json!({
            "type": self.kind.as_str(), "description": self.description, "accessor": self.accessor, "uuid": self.uuid,
            "local": matches!(self.kind, Kind::Cubbyhole), "seal_wrap": false, "external_entropy_access": false, "options": options,
            "plugin_version": "", "running_plugin_version": BUILTIN_VERSION, "running_sha256": "",
            "config": {"default_lease_ttl": 0, "max_lease_ttl": 0, "force_no_cache": false},
        });
        if matches!(self.kind, Kind::Kv | Kind::Kv1) {
            out["deprecation_status"] = "supported".into();
        }
        if self.path.starts_with("auth/") {
            out["config"]["token_type"] = "default-service".into();
        }
        out
    }

    /// The form `sys/mounts/:path/tune` shows.
    pub fn tune(&self) -> Value {
        let mut out = json!({
            "default_lease_ttl": MAX_TTL, "max_lease_ttl": MAX_TTL, "force_no_cache": false, "description": self.description,
        });
        if matches!(self.kind, Kind::Kv | Kind::Kv1) {
            out["options"] = self.describe()["options"].take();
        }
        out
    }
}

/// All mounts of an unsealed server.
pub(crate) struct Mounts {
    db: Db,
    table: RwLock<BTreeMap<String, Arc<Served>>>,
    clock: Clock,
}

/// A mount with what answers it.
pub(crate) struct Served {
    pub mount: Mount,
    pub engine: Engine,
}

/// The engine of a mount.
pub(crate) enum Engine {
    Kv(Kv2),
    Kv1(Kv1),
    Cubbyhole(Cubbyhole),
    /// Answered by the interface itself.
    System,
    Token,
    Spiffe,
    /// Listed only.
    Identity,
}

impl Mounts {
    /// The mounts of a new store.
    pub fn initialise(batch: &mut Batch) -> Result<(), ApiError> {
        for (path, kind, description) in [
            (
                "cubbyhole/",
                Kind::Cubbyhole,
                "per-token private secret storage",
            ),
            ("identity/", Kind::Identity, "identity store"),
            ("secret/", Kind::Kv, "key/value secret storage"),
            (
                "sys/",
                Kind::System,
                "system endpoints used for control, policy and debugging",
            ),
            ("auth/token/", Kind::Token, "token based credentials"),
            (
                "auth/spiffe/",
                Kind::Spiffe,
                "verified SPIFFE IDs of the mesh",
            ),
        ] {
            let mount = Mount::new(path, kind, description);
            batch.put(&mount.record(), &mount)?;
        }
        Ok(())
    }

    pub fn load(db: Db, clock: Clock) -> Result<Self, ApiError> {
        let mut table = BTreeMap::new();
        for name in db.names(PREFIX)? {
            if let Some((mount, _)) = db.get::<Mount>(&name)? {
                table.insert(
                    mount.path.clone(),
                    Arc::new(Served::new(&db, &clock, mount)),
                );
            }
        }
        Ok(Self {
            db,
            table: RwLock::new(table),
            clock,
        })
    }

    /// The mount that a path belongs to.
    pub fn find(&self, path: &str) -> Option<Arc<Served>> {
        // Mounts do not overlap: the greatest path not above this one is the only candidate.
        let table = self.table.read();
        let (point, served) = table
            .range::<str, _>((Bound::Unbounded, Bound::Included(path)))
            .next_back()?;
        path.starts_with(point.as_str()).then(|| served.clone())
    }

    /// Every mount, by path.
    pub fn all(&self) -> Vec<Arc<Served>> {
        self.table.read().values().cloned().collect()
    }

    /// The answer of `sys/mounts` (`auth` = false) or `sys/auth`.
    pub fn describe(&self, auth: bool, visible: impl Fn(&str) -> bool) -> Map<String, Value> {
        self.all()
            .iter()
            .filter(|s| s.mount.path.starts_with("auth/") == auth && visible(&s.mount.path))
            .map(|s| {
                let path = s.mount.path.trim_start_matches("auth/").to_string();
                (path, s.mount.describe())
            })
            .collect()
    }

    /// Mount an engine.
    ///
    /// # Errors
    /// 400 for a path that is taken, overlaps another one or cannot be written in a policy.
    pub async fn add(
        &self,
        by: &By,
        path: &str,
        kind: Kind,
        description: &str,
    ) -> Result<(), ApiError> {
        let path = normal(path, "mount")?;
        let _order = self.db.lock(PREFIX).await;
        let taken = self
            .table
            .read()
            .keys()
            .find(|p| p.starts_with(&path) || path.starts_with(p.as_str()))
            .cloned();
        if let Some(taken) = taken {
            return Err(ApiError::bad(format!("path is already in use at {taken}")));
        }
        let mount = Mount::new(&path, kind, description);
        let mut batch = Batch::new(by, "mount/add");
        batch.put(&mount.record(), &mount)?.key(path.clone());
        self.db.commit(batch).await?;
        let served = Arc::new(Served::new(&self.db, &self.clock, mount));
        self.table.write().insert(path, served);
        Ok(())
    }

    /// Remove a mount and everything in it. A path without a mount is fine.
    pub async fn remove(&self, by: &By, path: &str) -> Result<(), ApiError> {
        let path = normal(path, "unmount")?;
        let _order = self.db.lock(PREFIX).await;
        // First no request finds it any more; if deleting fails it is back, and can be deleted again.
        let Some(served) = self.table.write().remove(&path) else {
            return Ok(());
        };
        let done = self.erase(by, &served.mount).await;
        if done.is_err() {
            self.table.write().insert(path, served);
        }
        done
    }

    async fn erase(&self, by: &By, mount: &Mount) -> Result<(), ApiError> {
        for names in self.db.names(&mount.storage())?.chunks(CHUNK) {
            let mut batch = Batch::new(by, "mount/erase");
            batch.key(mount.path.clone());
            for name in names {
                batch.delete(name);
            }
            self.db.commit(batch).await?;
        }
        let mut batch = Batch::new(by, "mount/remove");
        batch.delete(&mount.record()).key(mount.path.clone());
        self.db.commit(batch).await
    }
}

impl Served {
    fn new(db: &Db, clock: &Clock, mount: Mount) -> Self {
        let (db, storage, path) = (db.clone(), mount.storage(), mount.path.clone());
        let engine = match mount.kind {
            Kind::Kv => Engine::Kv(Kv2::new(db, storage, path, clock.clone())),
            Kind::Kv1 => Engine::Kv1(Kv1::new(db, storage, path)),
            Kind::Cubbyhole => Engine::Cubbyhole(Cubbyhole::new(db)),
            Kind::System => Engine::System,
            Kind::Token => Engine::Token,
            Kind::Spiffe => Engine::Spiffe,
            Kind::Identity => Engine::Identity,
        };
        Self { mount, engine }
    }
}

/// A mount path with its slash at the end, fit for a new mount.
fn normal(path: &str, verb: &str) -> Result<String, ApiError> {
    let path = format!("{}/", path.trim_end_matches('/'));
    let first = path.split('/').next().unwrap_or_default();
    if matches!(
        first,
        "sys" | "auth" | "cubbyhole" | "identity" | "audit" | "mesh" | "consul"
    ) {
        return Err(ApiError::bad(format!("cannot {verb} \"{first}/\"")));
    }
    if path == "/" || path.contains(['*', '+', '{', '}']) {
        return Err(ApiError::bad(
            "a mount path is not empty and has none of the characters * + { }",
        ));
    }
    Ok(path)
}
