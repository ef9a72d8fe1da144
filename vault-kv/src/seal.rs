//! The seal: how the root key is protected while nobody needs it.
//!
//! The *unseal key* (32 bytes) wraps the root key; the root key wraps the keyring of the
//! [`barrier`](crate::barrier). The unseal key is either split into shares by Shamir's scheme over
//! GF(2^8), of which a threshold rebuilds it, or kept in a file for unattended starts.
//!
//! What must be readable while sealed is kept in *control records* of the ledger: [`CONFIG`], [`ROOT`]
//! and [`KEYRING`]. The latter two are ciphertext.

use serde::{Deserialize, Serialize};

use crate::{
    barrier::{Barrier, SecretKey},
    store::{FoldKey, Store, StoreError},
    sys::without_traces,
};

pub(crate) mod attempts;
pub(crate) mod progress;
pub(crate) mod shares;
pub(crate) mod static_key;

/// Control record: [`SealConfig`].
pub(crate) const CONFIG: &str = "seal/config";
/// Control record: the root key, wrapped by the unseal key.
pub(crate) const ROOT: &str = "seal/root-key";
/// Control record: the keyring, wrapped by the root key.
pub(crate) const KEYRING: &str = "seal/keyring";

/// How the unseal key is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SealKind {
    /// As shares of people.
    Shamir,
    /// In a file.
    Static,
}

/// The seal's configuration, readable while sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealConfig {
    pub(crate) kind: SealKind,
    /// Number of shares; 1 for a static key.
    pub(crate) shares: u8,
    /// Shares that rebuild the unseal key; 1 for a static key.
    pub(crate) threshold: u8,
    /// Names this store among all stores.
    pub(crate) cluster_id: String,
}

impl SealConfig {
    /// The configuration of a store; `None` before `init`.
    pub(crate) fn load(store: &dyn Store) -> Result<Option<Self>, StoreError> {
        let Some(record) = store.control(&FoldKey::control(CONFIG))? else {
            return Ok(None);
        };
        postcard::from_bytes(&record.value)
            .map(Some)
            .map_err(|_| StoreError::Unknown {
                what: "the seal configuration",
            })
    }

    /// Bytes of one share.
    pub(crate) fn share_length(&self) -> usize {
        if self.shares == 1 { 32 } else { shares::SHARE }
    }

    /// What [`SealConfig::encode`] wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain data always encodes")
    }
}

/// Why the keys of a store are not opened.
pub(crate) enum NotOpened {
    /// It is not this store's unseal key.
    WrongKey,
    /// It is, and what lies behind it is damaged.
    Damaged,
    Store(StoreError),
}

impl From<StoreError> for NotOpened {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Opens the barrier of a store with its unseal key.
pub(crate) fn open_barrier(store: &dyn Store, unseal: &SecretKey) -> Result<Barrier, NotOpened> {
    let wrapped = |name: &str| -> Result<Vec<u8>, StoreError> {
        let record = store.control(&FoldKey::control(name))?;
        record
            .map(|record| record.value)
            .ok_or_else(|| StoreError::Fold {
                what: format!("the control record {name} is missing"),
            })
    };
    let root = unseal.unwrap_root(&wrapped(ROOT)?);
    let root = root.map_err(|_| NotOpened::WrongKey)?;
    Barrier::open_keyring(root, &wrapped(KEYRING)?).map_err(|_| NotOpened::Damaged)
}

/// An unseal key from 32 bytes; `None` for any other length.
pub(crate) fn unseal_key(bytes: &[u8]) -> Option<SecretKey> {
    without_traces(|| Some(SecretKey::new(bytes.try_into().ok()?)))
}
