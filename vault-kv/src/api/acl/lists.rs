//! When the lists of tokens, policies and roles last changed, and who waits for that.

use crate::acl::List;
use crate::api::Api;
use crate::core::Error;
use crate::policy::{POLICIES, ROLES};
use crate::token::LINKED;
use crate::vault::Vault;

impl Vault {
    /// The ledger's index of the last change of a list, deletions included. What is read after this call shows it.
    ///
    /// # Errors
    /// Sealed.
    pub async fn list_changed(&self, list: List) -> Result<u64, Error> {
        self.unsealed()?.api.list_changed(list).await
    }

    /// Waits until a list changed after `index`.
    ///
    /// # Errors
    /// Sealed, also while waiting.
    pub async fn list_changed_after(&self, list: List, index: u64) -> Result<(), Error> {
        let open = self.unsealed()?;
        let changed = open.api.db.core().wait_under(prefix(list), index);
        changed.await.map(|_| ())
    }
}

impl Api {
    async fn list_changed(&self, list: List) -> Result<u64, Error> {
        // Policies and roles are read from memory: whoever changes them holds this until they are there.
        let _order = match list {
            List::Tokens => None,
            List::Policies | List::Roles => Some(self.db.lock(prefix(list)).await),
        };
        self.db.core().changed_under(prefix(list))
    }
}

fn prefix(list: List) -> &'static str {
    match list {
        List::Tokens => LINKED,
        List::Policies => POLICIES,
        List::Roles => ROLES,
    }
}
