//! One sealed store as an object: open, init, unseal, use, seal.

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{
    api::{Api, LedgerOf},
    audit::{Audit, AuditError, AuditSink},
    barrier::{Barrier, SecretKey},
    ca::Signer,
    core::{Core, Error, first_entry, now_micros},
    db::{Batch, By},
    http::ApiError,
    kv::{
        Kv,
        timers::{self, Timers},
    },
    ledger::Ledger,
    outbound::Outbound,
    rotation::Rotation,
    seal::{
        self, NotOpened, SealConfig, SealKind, attempts::Attempts, progress::Progress, shares,
        static_key,
    },
    store::{Head, Store, StoreError, local::LocalStore, memory::MemoryStore},
};

pub(crate) mod ceremony;
pub(crate) mod heads;
#[cfg(test)]
mod tests;

pub use heads::SeenHead;
pub use seal::static_key::StaticKeyError;

/// Where the store is kept.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// In this directory, which is created when its parent exists.
    Dir(PathBuf),
    /// In memory, as sealed as on disk, and gone with the process.
    Memory,
}

/// What a [`Vault`] needs to open.
#[derive(Debug, Clone)]
pub struct VaultConfig {
    /// Where the store is kept.
    pub store: StoreConfig,
    /// File with the unseal key (mode 0600); `None`: people hold shares.
    pub static_key: Option<PathBuf>,
    /// File outside of the store that remembers its newest head, so that a store put back to an older state does
    /// not unseal: see [`VaultError::RolledBack`]. Its folder must exist. `None`: only the record of the last
    /// seal, beside the log, does.
    pub head_file: Option<PathBuf>,
    /// Audit log files; each request is in all of them before it is answered.
    pub audit: Vec<AuditSink>,
    /// How long the old values of overwritten records are kept; those of deleted ones go at the next
    /// compaction. Who changed what is kept for ever.
    pub history_retention: Duration,
    /// Shown by `sys/health` and `sys/seal-status`.
    pub cluster_name: String,
    /// Where clients reach this server, as a URL.
    pub api_addr: String,
    /// The version told to clients of the Vault interface, in Vault's numbering: they switch features by it.
    pub reported_version: String,
    /// Makes requests to others, which some login methods need; `None`: nothing does.
    pub outbound: Option<Arc<dyn Outbound>>,
}

/// The default of [`VaultConfig::history_retention`]: 30 days.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

impl VaultConfig {
    /// A store kept there, unsealed by shares, without audit log.
    pub fn new(store: StoreConfig) -> Self {
        Self {
            store,
            static_key: None,
            head_file: None,
            audit: Vec::new(),
            history_retention: DEFAULT_RETENTION,
            cluster_name: "mesh".to_owned(),
            api_addr: String::new(),
            reported_version: "1.15.6".to_owned(),
            outbound: None,
        }
    }
}

/// What stands in the way.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// `init` was called on a store that has been initialised.
    #[error("Vault is already initialized")]
    AlreadyInitialized,
    /// The store has not been initialised.
    #[error("the store is not initialised; run `mesh operator init`")]
    NotInitialized,
    /// The numbers of shares make no sense.
    #[error("invalid seal configuration: {0}")]
    Shares(&'static str),
    /// The share has a length that no share has.
    #[error("a share has 33 bytes (32 where there is only one share), not {0}")]
    ShareLength(usize),
    /// The shares (or the key file) do not open this store.
    #[error(
        "the unseal key is wrong: these shares do not belong together or not to this store; start again with the first share"
    )]
    WrongKey,
    /// The unseal key is right, and the keyring behind it does not open.
    #[error(
        "the unseal key is right, but the keyring of this store is damaged: nothing in it can be read; run `mesh operator verify --dir` on the store to see where, then restore it from a snapshot"
    )]
    Keyring,
    /// The ledger lacks what others remember of it.
    #[error(
        "this store ends at entry {ends} ({ends_hash}…), but {by} remembers entry {seen} ({seen_hash}…): the store was rolled back, cut off or replaced; put the newer one back, or, if it was restored from a backup on purpose, run `mesh operator unseal --accept-rollback`"
    )]
    RolledBack {
        /// Index of the newest entry here.
        ends: u64,
        /// The first digits of its chain hash.
        ends_hash: String,
        /// The published index that is remembered.
        seen: u64,
        /// The first digits of that chain hash.
        seen_hash: String,
        /// Who remembers it.
        by: String,
    },
    /// What is remembered is another store's.
    #[error(
        "{} belongs to the store {remembered}, but this is the store {found}: two data directories are mixed up; name the right one (node.data_dir, server.store), or remove that file if this store is to take its place", file.display()
    )]
    OtherStore {
        /// Where it is remembered.
        file: PathBuf,
        /// The store that is remembered.
        remembered: String,
        /// The store that is here.
        found: String,
    },
    /// The store is unsealed by shares, not by a key file (or the other way round).
    #[error("this store is unsealed {0}")]
    OtherSeal(&'static str),
    /// The key file cannot be used.
    #[error(transparent)]
    StaticKey(#[from] StaticKeyError),
    /// The audit log cannot be opened.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Storage failed, or is sealed.
    #[error(transparent)]
    Store(#[from] Error),
    /// The interface's own records could not be read or written.
    #[error("{0}")]
    Interface(String),
}

impl From<StoreError> for VaultError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.into())
    }
}

/// How many shares `init` makes, and how many of them unseal. Ignored with a key file.
#[derive(Debug, Clone, Copy)]
pub struct InitOptions {
    /// 1 to 255.
    pub shares: u8,
    /// At most `shares`; at least 2 when there are several.
    pub threshold: u8,
}

/// What `init` hands out, once. Nobody can ask for it again.
pub struct InitOutcome {
    /// The shares; empty with a key file.
    pub keys: Vec<Zeroizing<Vec<u8>>>,
    /// The first token: it may do everything.
    pub root_token: Zeroizing<String>,
}

/// Where the seal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealStatus {
    /// `shamir` or `static`.
    pub kind: &'static str,
    /// Whether `init` has been done.
    pub initialized: bool,
    /// Whether the keys are out of memory.
    pub sealed: bool,
    /// Number of shares; 0 before `init`.
    pub shares: u8,
    /// Shares needed; 0 before `init`.
    pub threshold: u8,
    /// Shares given so far.
    pub progress: u8,
    /// Names the attempt; empty when none is under way.
    pub nonce: String,
    /// Names the store; empty before `init`.
    pub cluster_id: String,
}

/// A sealed store. Cheap to clone. It opens sealed; dropping the last handle drops the keys.
#[derive(Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: VaultConfig,
    store: Arc<dyn Store>,
    open: parking_lot::RwLock<Option<Arc<Open>>>,
    progress: Mutex<Progress>,
    /// Held while sealing state changes, so that two do not start at once.
    changing: tokio::sync::Mutex<()>,
    sealed: watch::Sender<bool>,
    audit: Arc<Audit>,
    /// Heads that others remember.
    seen: Mutex<Vec<SeenHead>>,
    /// The next unseal passes although the ledger lacks some of them.
    accepting: Mutex<bool>,
}

/// What there is only while unsealed.
pub(crate) struct Open {
    pub(crate) core: Core,
    /// The Vault interface.
    pub(crate) api: Api,
    /// The certificate authority, read at its first use.
    pub(crate) signer: OnceLock<Arc<Signer>>,
    /// Keys that change while the store is open.
    pub(crate) rotation: Arc<Rotation>,
    /// What share holders are doing together.
    pub(crate) attempts: Mutex<Attempts>,
    /// What ends by itself.
    pub(crate) timers: Arc<Timers>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.timers.close();
        self.core.seal();
    }
}

impl Vault {
    /// Opens the store, sealed.
    ///
    /// # Errors
    /// The directory is in use, not accessible or damaged; an audit file cannot be opened.
    pub fn open(config: VaultConfig) -> Result<Self, VaultError> {
        let audit = Arc::new(Audit::open(&config.audit)?);
        let store: Arc<dyn Store> = match &config.store {
            StoreConfig::Dir(dir) => Arc::new(LocalStore::open(dir)?),
            StoreConfig::Memory => Arc::new(MemoryStore::new()),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                store,
                open: parking_lot::RwLock::new(None),
                progress: Mutex::default(),
                changing: tokio::sync::Mutex::new(()),
                sealed: watch::Sender::new(true),
                audit,
                seen: Mutex::default(),
                accepting: Mutex::default(),
            }),
        })
    }

    /// Makes a new store: keys, shares and the root token. With shares it is sealed afterwards; with a
    /// key file it is unsealed.
    ///
    /// # Errors
    /// Initialised already, impossible numbers of shares, an unusable key file, storage.
    pub async fn init(&self, options: InitOptions) -> Result<InitOutcome, VaultError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        if SealConfig::load(&*self.inner.store)?.is_some() {
            return Err(VaultError::AlreadyInitialized);
        }
        let (kind, unseal, keys) = match &self.inner.config.static_key {
            Some(path) => (SealKind::Static, static_key::read(path)?, Vec::new()),
            None => {
                check(options)?;
                let unseal = SecretKey::random();
                let keys = shares::split(&unseal, options.shares, options.threshold);
                (SealKind::Shamir, unseal, keys)
            }
        };
        let one = |count| if kind == SealKind::Static { 1 } else { count };
        let config = SealConfig {
            kind,
            shares: one(options.shares),
            threshold: one(options.threshold),
            cluster_id: uuid::Uuid::new_v4().to_string(),
        };
        let root_token = self.write_first_entry(&config, &unseal)?;
        if kind == SealKind::Static {
            let core = self.start(unseal).await?;
            self.publish(Open::load(core, self)?);
        }
        Ok(InitOutcome { keys, root_token })
    }

    /// The entry that makes a ledger of nothing: seal configuration, wrapped keys, and all that the interface
    /// begins with, in one. A crash leaves all of it or a store that is as new as before.
    fn write_first_entry(
        &self,
        config: &SealConfig,
        unseal: &SecretKey,
    ) -> Result<Zeroizing<String>, VaultError> {
        let (barrier, keyring) = Barrier::create(SecretKey::random());
        let mut batch = Batch::new(&By::system("init"), "init");
        batch
            .control(seal::CONFIG, config.encode())
            .control(seal::ROOT, barrier.rewrap_root(unseal))
            .control(seal::KEYRING, keyring);
        let root_token = Api::initialise(&mut batch).map_err(interface)?;
        let mut first = batch.into_change();
        first.meta.time = now_micros();
        let entry = first_entry(&*self.inner.store, &barrier, first)?;
        self.inner.store.commit(&Head::default(), vec![entry])?;
        Ok(root_token)
    }

    /// Adds one share. The store is unsealed when the threshold is reached.
    ///
    /// # Errors
    /// [`VaultError::WrongKey`] when the threshold was reached with shares that do not open the store: all
    /// that were gathered are forgotten.
    pub async fn submit_share(&self, share: Zeroizing<Vec<u8>>) -> Result<SealStatus, VaultError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let config = self.config_of(SealKind::Shamir)?;
        if !self.is_sealed() {
            return self.seal_status();
        }
        if share.len() != config.share_length() {
            return Err(VaultError::ShareLength(share.len()));
        }
        let complete = {
            let mut progress = self.inner.progress.lock();
            progress.add(share);
            progress.take(config.threshold)
        };
        if let Some(complete) = complete {
            let unseal = shares::combine(&complete).ok_or(VaultError::WrongKey)?;
            drop(complete);
            let core = self.start(unseal).await?;
            self.publish(Open::load(core, self)?);
        }
        self.seal_status()
    }

    /// Forgets the shares gathered so far.
    pub fn reset_unseal(&self) {
        self.inner.progress.lock().reset();
    }

    /// Unseals with the key file of the configuration.
    ///
    /// # Errors
    /// No key file is configured, it cannot be used, or it belongs to another store.
    pub async fn unseal_static(&self) -> Result<(), VaultError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        self.config_of(SealKind::Static)?;
        let path = self.inner.config.static_key.as_ref();
        let path = path.ok_or(VaultError::OtherSeal(
            "by a key file, and none is configured: set server.seal.key_file",
        ))?;
        if self.is_sealed() {
            let core = self.start(static_key::read(path)?).await?;
            self.publish(Open::load(core, self)?);
        }
        Ok(())
    }

    /// Seals after saving what is only counted in memory. Better than [`Vault::seal`] where waiting for the disk
    /// is possible.
    pub async fn close(&self) {
        if let Ok(open) = self.unsealed()
            && let Err(error) = open.rotation.close().await
        {
            tracing::warn!(%error, "the use of the newest key term is not saved; it is counted from the last time");
        }
        self.seal();
    }

    /// Drops the keys and everything that was read with them. Nothing happens when sealed already.
    pub fn seal(&self) {
        let open = self.inner.open.write().take();
        if let Some(open) = open {
            // Requests under way may hold on to it; the core refuses them from here on.
            open.timers.close();
            open.core.seal();
            *open.attempts.lock() = Attempts::default();
            self.keep_head(true);
        }
        self.inner.progress.lock().reset();
        self.inner.sealed.send_replace(true);
    }

    /// Opens the audit files at their paths again, after they were renamed.
    ///
    /// # Errors
    /// One cannot be opened: the file that is open is written to as before.
    pub async fn reopen_audit(&self) -> Result<(), AuditError> {
        self.inner.audit.reopen().await
    }

    /// Where the seal stands.
    ///
    /// # Errors
    /// Storage cannot be read.
    pub fn seal_status(&self) -> Result<SealStatus, VaultError> {
        let config = SealConfig::load(&*self.inner.store)?;
        let progress = self.inner.progress.lock();
        let kind = config.as_ref().map(|config| config.kind);
        let by_file = self.inner.config.static_key.is_some();
        Ok(SealStatus {
            kind: match kind {
                Some(SealKind::Static) => "static",
                None if by_file => "static",
                _ => "shamir",
            },
            initialized: config.is_some(),
            sealed: self.is_sealed(),
            shares: config.as_ref().map_or(0, |config| config.shares),
            threshold: config.as_ref().map_or(0, |config| config.threshold),
            progress: progress.count(),
            nonce: progress.nonce().to_owned(),
            cluster_id: config.map(|config| config.cluster_id).unwrap_or_default(),
        })
    }

    /// How far this machine's clock is behind the newest entry of the ledger, if it is by more than a minute: then
    /// it was set back. Nothing is lost by it, but what expires does so later. `None` while sealed.
    pub fn clock_behind(&self) -> Option<Duration> {
        let micros = heads::clock_behind(self, now_micros());
        let micros = u64::try_from(micros).ok().filter(|micros| *micros > 0)?;
        Some(Duration::from_micros(micros))
    }

    /// Whether the keys are out of memory.
    pub fn is_sealed(&self) -> bool {
        self.inner.open.read().is_none()
    }

    /// Follows [`Vault::is_sealed`].
    pub fn watch_sealed(&self) -> watch::Receiver<bool> {
        self.inner.sealed.subscribe()
    }

    /// Plain keys of `namespace`, for the program that embeds this store.
    pub fn kv(&self, namespace: &'static str) -> Kv {
        Kv::new(self.clone(), namespace)
    }

    /// The history of changes.
    pub fn ledger(&self) -> Ledger {
        Ledger::new(self.clone())
    }

    /// What there is only while unsealed.
    pub(crate) fn unsealed(&self) -> Result<Arc<Open>, Error> {
        self.inner.open.read().clone().ok_or(Error::Sealed)
    }

    /// The store below, sealed or not.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.inner.store
    }

    /// See [`VaultConfig::history_retention`].
    pub(crate) fn history_retention(&self) -> Duration {
        self.inner.config.history_retention
    }

    fn config_of(&self, wanted: SealKind) -> Result<SealConfig, VaultError> {
        let config = SealConfig::load(&*self.inner.store)?.ok_or(VaultError::NotInitialized)?;
        match config.kind {
            kind if kind == wanted => Ok(config),
            SealKind::Static => Err(VaultError::OtherSeal("by a key file, not by shares")),
            SealKind::Shamir => Err(VaultError::OtherSeal("by shares, not by a key file")),
        }
    }

    async fn start(&self, unseal: SecretKey) -> Result<Core, VaultError> {
        let vault = self.clone();
        let retention = self.history_retention();
        // Comparing heads reads the log, and building the name index reads every name.
        let core = tokio::task::spawn_blocking(move || {
            let store = Arc::clone(&vault.inner.store);
            let barrier = seal::open_barrier(&*store, &unseal).map_err(|error| match error {
                NotOpened::WrongKey => VaultError::WrongKey,
                NotOpened::Damaged => VaultError::Keyring,
                NotOpened::Store(error) => error.into(),
            })?;
            let missing = vault.compare_heads()?;
            let epoch = store.head().epoch + 1;
            let core = Core::start(store, barrier, epoch)?;
            core.compact_behind(retention);
            Ok::<_, VaultError>((core, missing))
        });
        let (core, missing) = core
            .await
            .map_err(|_| VaultError::Interface("unsealing was cut off".to_owned()))??;
        if let Some(missing) = missing {
            self.give_up(&core, &missing).await?;
        }
        Ok(core)
    }

    fn publish(&self, open: Open) {
        let open = Arc::new(open);
        let timers = Arc::clone(&open.timers);
        tokio::spawn(timers::run(timers, Arc::downgrade(&open)));
        *self.inner.open.write() = Some(open);
        if let Some(behind) = self.clock_behind() {
            tracing::warn!(
                seconds = behind.as_secs(),
                "the clock is behind the newest entry of the ledger: it was set back; tokens and certificates live longer than they should until it is right again (timedatectl status)"
            );
        }
        self.keep_head(false);
        tokio::spawn(heads::keep(Arc::downgrade(&self.inner)));
        self.inner.sealed.send_replace(false);
    }
}

/// The rules of Vault for the numbers of shares.
fn check(options: InitOptions) -> Result<(), VaultError> {
    let InitOptions { shares, threshold } = options;
    let problem = match (shares, threshold) {
        (0, _) => "secret_shares must be at least one",
        (_, 0) => "secret_threshold must be at least one",
        _ if threshold > shares => "secret_threshold cannot be larger than secret_shares",
        _ if shares > 1 && threshold == 1 => {
            "secret_threshold must be greater than one for multiple shares"
        }
        _ => return Ok(()),
    };
    Err(VaultError::Shares(problem))
}

impl Open {
    fn load(core: Core, vault: &Vault) -> Result<Self, VaultError> {
        let audit = Arc::clone(&vault.inner.audit);
        let ledger = Arc::new(LedgerOf::new(vault));
        let config = &vault.inner.config;
        let (outbound, api_addr) = (config.outbound.clone(), config.api_addr.clone());
        let (api, rotation) =
            Api::load(core.clone(), audit, ledger, outbound, api_addr).map_err(interface)?;
        let timers = Arc::new(Timers::default());
        timers.load(&core)?;
        Ok(Self {
            core,
            api,
            signer: OnceLock::new(),
            rotation,
            attempts: Mutex::default(),
            timers,
        })
    }
}

fn interface(error: ApiError) -> VaultError {
    match error {
        ApiError::Sealed => VaultError::Store(Error::Sealed),
        other => VaultError::Interface(other.to_string()),
    }
}
