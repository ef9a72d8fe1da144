//! The ledger as the interface shows it.

use std::sync::{Arc, Weak};

use serde_json::{Value, json};

use super::Api;
use crate::http::ApiError;
use crate::vault::{Inner, Vault};

/// Reading and checking the ledger, as JSON. The calls block.
pub(crate) trait LedgerRead: Send + Sync {
    /// The newest `last` entries, newest first.
    fn history(&self, last: usize) -> Result<Value, ApiError>;
    /// Check the whole chain.
    fn verify(&self) -> Result<Value, ApiError>;
}

/// The ledger of a vault that it does not keep alive: the vault owns the interface that owns this.
pub(crate) struct LedgerOf(Weak<Inner>);

impl LedgerOf {
    pub fn new(vault: &Vault) -> Self {
        Self(Arc::downgrade(&vault.inner))
    }

    fn ledger(&self) -> Result<crate::ledger::Ledger, ApiError> {
        let inner = self.0.upgrade().ok_or(ApiError::Sealed)?;
        Ok(Vault { inner }.ledger())
    }
}

impl LedgerRead for LedgerOf {
    fn history(&self, last: usize) -> Result<Value, ApiError> {
        let items = self.ledger()?.history(last, None).map_err(failure)?;
        serde_json::to_value(items)
            .map_err(|_| ApiError::Internal("the history cannot be written as JSON".into()))
    }

    fn verify(&self) -> Result<Value, ApiError> {
        let verified = self.ledger()?.verify().map_err(failure)?;
        let hash = verified.head.hash.iter();
        let hash: String = hash.map(|byte| format!("{byte:02x}")).collect();
        Ok(json!({
            "entries": verified.entries, "head_index": verified.head.index, "head_hash": hash,
            "redacted": verified.redacted,
        }))
    }
}

impl Api {
    /// Ask the ledger on a thread that may block.
    pub(super) async fn ledger(
        &self,
        ask: impl FnOnce(&dyn LedgerRead) -> Result<Value, ApiError> + Send + 'static,
    ) -> Result<Value, ApiError> {
        let ledger = Arc::clone(&self.ledger);
        tokio::task::spawn_blocking(move || ask(&*ledger))
            .await
            .map_err(|_| ApiError::Internal("reading the ledger was cut off".into()))?
    }
}

fn failure(error: crate::core::Error) -> ApiError {
    match error {
        crate::core::Error::Sealed => ApiError::Sealed,
        other => ApiError::Internal(other.to_string()),
    }
}
