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

use crate::auth::{
    approle::AppRole, cert::Cert, jwt::Jwt, kubernetes::Kubernetes, userpass::Userpass,
};
use crate::clock::Clock;
use crate::db::{Batch, By, Db};
use crate::engine::{cubbyhole::Cubbyhole, kv1::Kv1, kv2::Kv2, ssh::Ssh};
use crate::http::ApiError;
use crate::outbound::Outbound;
use crate::request::Data;
use crate::token::NameKey;

mod config;

pub(crate) use config::MountConfig;

const PREFIX: &str = "mount/";
/// The version of every engine: they are all part of this crate.
pub(crate) const BUILTIN_VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"), "+builtin.mesh");
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
    /// One-time passwords for SSH.
    Ssh,
    System,
    Identity,
    /// The login method of tokens.
    Token,
    /// The login method of verified SPIFFE IDs.
    Spiffe,
    /// The login method of people with passwords.
    Userpass,
    /// The login method of machines with a role and a secret id.
    Approle,
    /// The login method of those with a JSON Web Token.
    Jwt,
    /// The login method of those with a TLS certificate.
    Cert,
    /// The login method of workloads in a Kubernetes cluster.
    Kubernetes,
}

impl Kind {
    /// The name clients know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kv | Self::Kv1 => "kv",
            Self::Cubbyhole => "cubbyhole",
            Self::Ssh => "ssh",
            Self::System => "system",
            Self::Identity => "identity",
            Self::Token => "token",
            Self::Spiffe => "spiffe",
            Self::Userpass => "userpass",
            Self::Approle => "approle",
            Self::Jwt => "jwt",
            Self::Cert => "cert",
            Self::Kubernetes => "kubernetes",
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
    #[serde(default)]
    pub config: MountConfig,
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
            config: MountConfig::default(),
        }
    }

    /// Whether it is a login method.
    pub fn is_auth(&self) -> bool {
        self.path.starts_with("auth/")
    }

    /// Its path as `sys/mounts` and `sys/auth` have it.
    pub fn shown(&self) -> &str {
        self.path.strip_prefix("auth/").unwrap_or(&self.path)
    }

    /// Where the engine's records are.
    pub fn storage(&self) -> String {
        format!("logical/{}/", self.uuid)
    }

    fn record(&self) -> String {
        format!("{PREFIX}{}", self.uuid)
    }

    fn options(&self) -> Value {
        match self.kind {
            Kind::Kv => json!({"version": "2"}),
            Kind::Kv1 => json!({"version": "1"}),
            Kind::Userpass | Kind::Approle | Kind::Jwt | Kind::Cert | Kind::Kubernetes => json!({}),
            _ => Value::Null,
        }
    }

    /// The form `sys/mounts` and `sys/auth` show.
    pub fn describe(&self) -> Value {
        let mut out = json!({
            "type": self.kind.as_str(), "description": self.description, "accessor": self.accessor, "uuid": self.uuid,
            "local": matches!(self.kind, Kind::Cubbyhole), "seal_wrap": matches!(self.kind, Kind::System), "external_entropy_access": false,
            "options": self.options(), "plugin_version": "", "running_plugin_version": BUILTIN_VERSION,
            "running_sha256": "", "config": self.config.describe(self.is_auth()),
        });
        if !self.options().is_null() {
            out["deprecation_status"] = "supported".into();
        }
        out
    }

    /// The form `sys/mounts/:path/tune` shows.
    pub fn tune(&self) -> Value {
        let mut out = self.config.tune(self.is_auth());
        out.insert("description".into(), self.description.as_str().into());
        if matches!(self.kind, Kind::Kv | Kind::Kv1) {
            out.insert("options".into(), self.options());
        }
        Value::Object(out)
    }
}

/// What a new mount is to be.
pub(crate) struct NewMount {
    pub kind: Kind,
    pub description: String,
    pub config: MountConfig,
}

/// All mounts of an unsealed server.
pub(crate) struct Mounts {
    db: Db,
    table: RwLock<BTreeMap<String, Arc<Served>>>,
    clock: Clock,
    names: Arc<NameKey>,
    outbound: Option<Arc<dyn Outbound>>,
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
    Ssh(Ssh),
    /// This and the next two are answered by the interface itself.
    System,
    Token,
    Spiffe,
    Userpass(Userpass),
    Approle(AppRole),
    Jwt(Jwt),
    Cert(Cert),
    Kubernetes(Kubernetes),
    /// Answered by the interface itself.
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
            let mut mount = Mount::new(path, kind, description);
            mount.config.passthrough_request_headers = match kind {
                Kind::System => vec!["Accept".into()],
                Kind::Identity => vec!["Authorization".into()],
                _ => Vec::new(),
            };
            batch.put(&mount.record(), &mount)?;
        }
        Ok(())
    }

    /// `names`: what names that are secrets are hashed with. `outbound`: who makes requests to others.
    pub fn load(
        db: Db,
        clock: Clock,
        names: Arc<NameKey>,
        outbound: Option<Arc<dyn Outbound>>,
    ) -> Result<Self, ApiError> {
        let mounts = Self {
            db,
            table: RwLock::default(),
            clock,
            names,
            outbound,
        };
        for name in mounts.db.names(PREFIX)? {
            if let Some((mount, _)) = mounts.db.get::<Mount>(&name)? {
                let point = mount.path.clone();
                let served = mounts.serve(mount);
                mounts.table.write().insert(point, served);
            }
        }
        Ok(mounts)
    }

    fn serve(&self, mount: Mount) -> Arc<Served> {
        let (db, storage, path) = (self.db.clone(), mount.storage(), mount.path.clone());
        let clock = self.clock.clone();
        let engine = match mount.kind {
            Kind::Kv => Engine::Kv(Kv2::new(db, storage, path, clock)),
            Kind::Kv1 => Engine::Kv1(Kv1::new(db, storage, path)),
            Kind::Cubbyhole => Engine::Cubbyhole(Cubbyhole::new(db)),
            Kind::Ssh => Engine::Ssh(Ssh::new(db, storage, path, Arc::clone(&self.names))),
            Kind::System => Engine::System,
            Kind::Token => Engine::Token,
            Kind::Spiffe => Engine::Spiffe,
            Kind::Userpass => Engine::Userpass(Userpass::new(db, storage, path)),
            Kind::Approle => {
                let names = Arc::clone(&self.names);
                Engine::Approle(AppRole::new(db, storage, path, clock, names))
            }
            Kind::Jwt => Engine::Jwt(Jwt::new(db, storage, path, clock, self.outbound.clone())),
            Kind::Cert => Engine::Cert(Cert::new(db, storage, path, clock)),
            Kind::Kubernetes => {
                let outbound = self.outbound.clone();
                Engine::Kubernetes(Kubernetes::new(db, storage, path, outbound))
            }
            Kind::Identity => Engine::Identity,
        };
        Arc::new(Served { mount, engine })
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

    /// Have the engine take back what it handed out under a lease; what has to be written for that goes into `batch`.
    ///
    /// # Errors
    /// It cannot. An engine that is gone took everything with it.
    pub async fn take_back(
        &self,
        id: &str,
        lease: &Value,
        batch: &mut Batch,
    ) -> Result<(), ApiError> {
        let Some(served) = self.find(id) else {
            return Ok(());
        };
        match &served.engine {
            Engine::Ssh(ssh) => ssh.take_back(lease, batch),
            _ => Err(ApiError::Internal(
                "what is mounted there now does not hand out anything".into(),
            )),
        }
    }

    pub fn by_accessor(&self, accessor: &str) -> Option<Arc<Served>> {
        let table = self.table.read();
        let mut all = table.values();
        all.find(|served| served.mount.accessor == accessor)
            .cloned()
    }

    /// Every mount, by path.
    pub fn all(&self) -> Vec<Arc<Served>> {
        self.table.read().values().cloned().collect()
    }

    /// The answer of `sys/mounts` (`auth` = false) or `sys/auth`.
    pub fn describe(&self, auth: bool, visible: impl Fn(&str) -> bool) -> Map<String, Value> {
        self.all()
            .iter()
            .filter(|s| s.mount.is_auth() == auth && visible(&s.mount.path))
            .map(|s| (s.mount.shown().to_string(), s.mount.describe()))
            .collect()
    }

    /// What anybody may see of the mounts that are to be shown to everybody.
    pub fn public(&self, auth: bool) -> Map<String, Value> {
        self.all()
            .iter()
            .map(|served| &served.mount)
            .filter(|mount| mount.is_auth() == auth && mount.config.listing_visibility == "unauth")
            .map(|mount| {
                let seen = json!({
                    "type": mount.kind.as_str(), "description": mount.description, "options": mount.options(),
                });
                (mount.shown().to_string(), seen)
            })
            .collect()
    }

    /// Mount an engine, or with a path below `auth/` a login method.
    ///
    /// # Errors
    /// 400 for a path that is taken, overlaps another one or cannot be written in a policy.
    pub async fn add(&self, by: &By, path: &str, new: NewMount) -> Result<(), ApiError> {
        let path = normal(path, "mount")?;
        let _order = self.db.lock(PREFIX).await;
        self.is_free(&path)?;
        let mut mount = Mount::new(&path, new.kind, &new.description);
        mount.config = new.config;
        let mut batch = Batch::new(by, "mount/add");
        batch.put(&mount.record(), &mount)?.key(path.clone());
        self.db.commit(batch).await?;
        let served = self.serve(mount);
        self.table.write().insert(path, served);
        Ok(())
    }

    fn is_free(&self, path: &str) -> Result<(), ApiError> {
        let table = self.table.read();
        let taken = table
            .iter()
            .find(|(taken, _)| taken.starts_with(path) || path.starts_with(taken.as_str()));
        match taken {
            Some((_, served)) => Err(ApiError::bad(format!(
                "path is already in use at {}",
                served.mount.shown()
            ))),
            None => Ok(()),
        }
    }

    /// The mount at exactly this path.
    pub fn at(&self, path: &str) -> Option<Arc<Served>> {
        let point = format!("{}/", path.trim_end_matches('/'));
        self.table.read().get(&point).cloned()
    }

    /// Changes what can be set; `None`: there is no such mount.
    pub async fn tune(&self, by: &By, path: &str, data: &Data) -> Result<Option<()>, ApiError> {
        let _order = self.db.lock(PREFIX).await;
        let Some(served) = self.at(path) else {
            return Ok(None);
        };
        let mut mount = served.mount.clone();
        mount.config.update(data, mount.is_auth())?;
        if let Some(description) = data.text("description")? {
            mount.description = description;
        }
        let mut batch = Batch::new(by, "mount/tune");
        batch.put(&mount.record(), &mount)?.key(mount.path.clone());
        self.db.commit(batch).await?;
        let served = self.serve(mount);
        let point = served.mount.path.clone();
        self.table.write().insert(point, served);
        Ok(Some(()))
    }

    /// Gives a mount another path. What is in it stays: it lies below the mount's id.
    ///
    /// # Errors
    /// 400 when there is none, the new path is taken, or one of the two is not for that.
    pub async fn rename(&self, by: &By, from: &str, to: &str) -> Result<(), ApiError> {
        let (from, to) = (normal(from, "remount")?, normal(to, "remount")?);
        if from.starts_with("auth/") != to.starts_with("auth/") {
            return Err(ApiError::bad(
                "cannot remount a secrets engine as a login method or the other way round",
            ));
        }
        let _order = self.db.lock(PREFIX).await;
        let served = self
            .at(&from)
            .ok_or_else(|| ApiError::bad(format!("no matching mount at \"{from}\"")))?;
        self.is_free(&to)?;
        let mut mount = served.mount.clone();
        mount.path = to.clone();
        let mut batch = Batch::new(by, "mount/rename");
        batch
            .put(&mount.record(), &mount)?
            .key(from.clone())
            .key(to.clone());
        self.db.commit(batch).await?;
        let served = self.serve(mount);
        let mut table = self.table.write();
        table.remove(&from);
        table.insert(to, served);
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

/// A mount path with its slash at the end, fit for a new mount.
fn normal(path: &str, verb: &str) -> Result<String, ApiError> {
    let path = format!("{}/", path.trim_end_matches('/'));
    let refused = || ApiError::bad(format!("cannot {verb} \"{path}\""));
    let shown = match path.strip_prefix("auth/") {
        // Their tokens and roles are part of the server.
        Some("token/" | "spiffe/") => return Err(refused()),
        Some(shown) => shown,
        None => &path,
    };
    let first = path.split('/').next().unwrap_or_default();
    if matches!(
        first,
        "sys" | "cubbyhole" | "identity" | "audit" | "mesh" | "consul"
    ) || shown.starts_with("auth/")
    {
        return Err(refused());
    }
    if matches!(shown, "" | "/") || path.contains(['*', '+', '{', '}']) {
        return Err(ApiError::bad(
            "a mount path is not empty and has none of the characters * + { }",
        ));
    }
    Ok(path)
}
