//! Changing keys while the store is in use: a new term of the keyring (*rotate*), or new shares with a new
//! unseal and root key above it (*rekey*).
//!
//! Each is one ledger entry, so a crash leaves the old keys or the new ones, never half of both. The keyring
//! is rotated by itself when its newest term has sealed [`MAX_OPERATIONS`] records (random nonces of
//! AES-GCM are safe for 2^32 of them) or, if so configured, at an age; [`upkeep`] looks once a minute.
//!
//! The number of sealed records is kept in memory and saved when it has grown by [`SAVE_EVERY`] and at a
//! clean seal: a crash forgets at most that many and what a minute adds, far less than the tenth of 2^32 that
//! the limit leaves.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    barrier::SecretKey,
    clock::Clock,
    core::{Core, Error},
    db::{Batch, By, Db, failure},
    http::ApiError,
    seal::{self, SealConfig},
    store::FoldKey,
};

#[cfg(test)]
mod tests;

/// Most records that one term seals: 90 % of 2^32, as in Vault.
pub(crate) const MAX_OPERATIONS: u64 = 3_865_470_566;
/// The least that can be configured.
pub(crate) const MIN_OPERATIONS: u64 = 1_000_000;
/// The shortest age that can be configured, in seconds.
pub(crate) const MIN_INTERVAL: u64 = 24 * 3600;

const RECORD: &str = "core/rotation";
const SAVE_EVERY: u64 = 1 << 20;
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// When the keyring is rotated by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RotationConfig {
    pub enabled: bool,
    /// Records sealed with one term.
    pub max_operations: u64,
    /// Seconds; 0: age does not matter.
    pub interval: u64,
}

impl Default for RotationConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            max_operations: MAX_OPERATIONS,
            interval: 0,
        }
    }
}

/// The newest term, as `sys/key-status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyStatus {
    pub term: u32,
    /// Unix seconds.
    pub installed: i64,
    /// Records sealed with it.
    pub encryptions: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Record {
    config: RotationConfig,
    /// Unix seconds at which the newest term was made.
    installed: i64,
    /// Records sealed with it when this was saved.
    encryptions: u64,
}

/// The keys of an unsealed store, as far as they change.
pub(crate) struct Rotation {
    db: Db,
    clock: Clock,
    state: tokio::sync::Mutex<State>,
}

struct State {
    record: Record,
    /// What the keyring in memory had counted when the record was read or saved.
    counted: u64,
}

impl Rotation {
    /// The first record of a new store.
    pub fn initialise(batch: &mut Batch) -> Result<(), ApiError> {
        let record = Record {
            config: RotationConfig::default(),
            installed: Clock::default().unix(),
            encryptions: 0,
        };
        batch.put(RECORD, &record)?;
        Ok(())
    }

    pub fn load(db: Db, clock: Clock) -> Result<Self, ApiError> {
        let record = db.get::<Record>(RECORD)?.map(|(record, _)| record);
        // A store made before there was such a record: its term is as old as this start.
        let record = record.unwrap_or(Record {
            config: RotationConfig::default(),
            installed: clock.unix(),
            encryptions: 0,
        });
        let state = State { record, counted: 0 };
        Ok(Self {
            db,
            clock,
            state: tokio::sync::Mutex::new(state),
        })
    }

    pub async fn status(&self) -> Result<KeyStatus, ApiError> {
        let state = self.state.lock().await;
        let barrier = self.core().barrier().map_err(failure)?;
        Ok(KeyStatus {
            term: barrier.term(),
            installed: state.record.installed,
            encryptions: state.encryptions(barrier.sealed()),
        })
    }

    pub async fn config(&self) -> RotationConfig {
        self.state.lock().await.record.config
    }

    /// # Errors
    /// 400 for a number out of bounds.
    pub async fn configure(&self, by: &By, config: RotationConfig) -> Result<(), ApiError> {
        if !(MIN_OPERATIONS..=MAX_OPERATIONS).contains(&config.max_operations) {
            return Err(ApiError::bad(format!(
                "max_operations must be between {MIN_OPERATIONS} and {MAX_OPERATIONS}"
            )));
        }
        if config.interval != 0 && config.interval < MIN_INTERVAL {
            return Err(ApiError::bad("interval must be at least 24h, or 0"));
        }
        let mut state = self.state.lock().await;
        self.save(&mut state, by, "rotate/config", |record| {
            record.config = config;
        })
        .await
    }

    /// Adds a term to the keyring; what is sealed from here on is sealed with it. Its number.
    pub async fn rotate(&self, by: &By) -> Result<u32, ApiError> {
        let mut state = self.state.lock().await;
        self.add_term(&mut state, by).await
    }

    async fn add_term(&self, state: &mut State, by: &By) -> Result<u32, ApiError> {
        let core = self.core();
        let barrier = core.barrier().map_err(failure)?;
        let (rotated, wrapped) = barrier.rotated(&self.keyring()?).map_err(unreadable)?;
        let record = Record {
            installed: self.clock.unix(),
            encryptions: 0,
            ..state.record
        };
        let mut batch = Batch::new(by, "rotate");
        batch
            .control(seal::KEYRING, wrapped)
            .put(RECORD, &record)?
            .key(format!("term {}", rotated.term()));
        self.db.commit(batch).await?;
        let term = rotated.term();
        core.replace_barrier(rotated);
        *state = State { record, counted: 0 };
        Ok(term)
    }

    /// Puts the keyring under a new root key, and that under `unseal`.
    pub async fn rekey(
        &self,
        by: &By,
        config: &SealConfig,
        unseal: &SecretKey,
    ) -> Result<(), ApiError> {
        // Nobody adds a term meanwhile.
        let _state = self.state.lock().await;
        let core = self.core();
        let barrier = core.barrier().map_err(failure)?;
        let rerooted = barrier.rerooted(SecretKey::random(), &self.keyring()?);
        let (rerooted, wrapped) = rerooted.map_err(unreadable)?;
        let mut batch = Batch::new(by, "rekey");
        batch
            .control(seal::CONFIG, config.encode())
            .control(seal::ROOT, rerooted.rewrap_root(unseal))
            .control(seal::KEYRING, wrapped)
            .key(format!(
                "{} shares, {} needed",
                config.shares, config.threshold
            ));
        self.db.commit(batch).await?;
        core.replace_barrier(rerooted);
        Ok(())
    }

    /// Rotates if it is time to; saves the count if it has grown.
    pub async fn look(&self) -> Result<(), ApiError> {
        let mut state = self.state.lock().await;
        let counted = self.core().barrier().map_err(failure)?.sealed();
        let RotationConfig {
            enabled,
            max_operations,
            interval,
        } = state.record.config;
        let age = u64::try_from(self.clock.unix() - state.record.installed).unwrap_or(0);
        let old = interval != 0 && age >= interval;
        if enabled && (old || state.encryptions(counted) >= max_operations) {
            let term = self
                .add_term(&mut state, &By::system("automatic rotation"))
                .await?;
            tracing::info!(term, age, "the keyring was rotated");
        } else if counted - state.counted >= SAVE_EVERY {
            self.save_count(&mut state).await?;
        }
        Ok(())
    }

    /// Saves the count, if it has grown, before a clean seal.
    pub async fn close(&self) -> Result<(), ApiError> {
        let mut state = self.state.lock().await;
        // The record itself, its name and the entry's meta.
        const OWN: u64 = 3;
        let counted = self.core().barrier().map_err(failure)?.sealed();
        if counted - state.counted > OWN {
            self.save_count(&mut state).await?;
        }
        Ok(())
    }

    async fn save_count(&self, state: &mut State) -> Result<(), ApiError> {
        let by = By::system("key usage");
        self.save(state, &by, "rotate/usage", |_| {}).await
    }

    async fn save(
        &self,
        state: &mut State,
        by: &By,
        operation: &str,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), ApiError> {
        let counted = self.core().barrier().map_err(failure)?.sealed();
        let mut record = state.record;
        record.encryptions = state.encryptions(counted);
        change(&mut record);
        let mut batch = Batch::new(by, operation);
        batch.put(RECORD, &record)?;
        self.db.commit(batch).await?;
        *state = State { record, counted };
        Ok(())
    }

    fn core(&self) -> &Core {
        self.db.core()
    }

    fn keyring(&self) -> Result<Vec<u8>, ApiError> {
        let record = self
            .core()
            .store()
            .control(&FoldKey::control(seal::KEYRING))
            .map_err(|error| failure(error.into()))?;
        let record = record.ok_or_else(|| failure(Error::Unreadable))?;
        Ok(record.value)
    }
}

impl State {
    /// All that the newest term has sealed, the keyring in memory having counted so many.
    fn encryptions(&self, counted: u64) -> u64 {
        self.record.encryptions + (counted - self.counted)
    }
}

fn unreadable(_: crate::barrier::Unopenable) -> ApiError {
    failure(Error::Unreadable)
}

/// Looks after the keyring until the store is sealed.
pub(crate) async fn upkeep(rotation: Weak<Rotation>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(rotation) = Weak::upgrade(&rotation) else {
            return;
        };
        match rotation.look().await {
            Ok(()) => {}
            Err(ApiError::Sealed) => return,
            Err(error) => tracing::error!(%error, "the keyring cannot be looked after"),
        }
    }
}

/// Starts [`upkeep`] on the current runtime.
pub(crate) fn start_upkeep(rotation: &Arc<Rotation>) {
    tokio::spawn(upkeep(Arc::downgrade(rotation)));
}
