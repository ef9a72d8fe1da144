//! Quotas of leases: how many there may be of a path, tokens among them.
//!
//! Who would make one more than that is answered with 429, until one of those ends. What counts where is told by
//! [`Places`]. A token with the policy `root` is made all the same: somebody must be able to clean up. Batch tokens are refused as others
//! are, and do not count: they are kept nowhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Quotas;
use crate::auth::item_name;
use crate::db::{Batch, By};
use crate::http::{ApiError, reply::Answer};
use crate::lease::Places;
use crate::request::{Data, Operation};

const PREFIX: &str = "sys/quota-leases/";

/// One quota.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LeaseCount {
    /// A mount, or a path below one; empty: everything.
    path: String,
    max_leases: u64,
}

pub(super) type LeaseCounts = BTreeMap<Arc<str>, LeaseCount>;

/// Has them count, from now on.
pub(super) fn apply(quotas: &LeaseCounts, places: &Places) {
    let quotas = quotas.values();
    places.limit(quotas.map(|quota| (quota.path.clone(), quota.max_leases)));
}

impl Quotas {
    pub(super) fn lease_counts(&self) -> Result<LeaseCounts, ApiError> {
        let mut quotas = LeaseCounts::new();
        for name in self.db.names_from(PREFIX)? {
            if let Some((quota, _)) = self.db.get(&record(&name))? {
                quotas.insert(name.into(), quota);
            }
        }
        Ok(quotas)
    }

    /// `sys/quotas/lease-count/…`
    pub(super) async fn handle_lease_count(
        &self,
        by: &By,
        operation: Operation,
        name: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        use Operation::{Delete, List, Read, Write};
        if name.is_empty() {
            return match operation {
                List => Answer::keys(self.db.list(PREFIX)?),
                _ => Err(ApiError::UnsupportedOperation),
            };
        }
        let name = item_name(name)?;
        match operation {
            Read => {
                let state = self.state.load();
                let quota = state.lease_counts.get(&*name).ok_or(ApiError::NotFound)?;
                let counter = self.places.counted_at(&quota.path);
                Ok(Answer::data(quota.describe(&name, counter)))
            }
            Write => {
                let _order = self.db.lock(super::PREFIX).await;
                let state = self.state.load_full();
                let quota = LeaseCount::parse(data, state.lease_counts.get(&*name))?;
                let mut others = state.lease_counts.iter();
                if let Some((other, _)) =
                    others.find(|(other, there)| ***other != *name && there.path == quota.path)
                {
                    return Err(ApiError::bad(format!(
                        "quota rule with similar properties exists under the name {other:?}"
                    )));
                }
                let mut batch = Batch::new(by, "quota write");
                batch
                    .key(format!("quota {name}"))
                    .put(&record(&name), &quota)?;
                self.change_in_order(batch).await
            }
            Delete => {
                let mut batch = Batch::new(by, "quota delete");
                batch.key(format!("quota {name}")).delete(&record(&name));
                self.change(batch).await
            }
            _ => Err(ApiError::UnsupportedOperation),
        }
    }
}

impl LeaseCount {
    /// What is not said stays as it is in `old`.
    ///
    /// # Errors
    /// 400 with the field.
    fn parse(data: &Data, old: Option<&Self>) -> Result<Self, ApiError> {
        super::refuse_role(data)?;
        let max_leases = match data.int("max_leases")? {
            None => old.map(|old| old.max_leases),
            Some(most) => u64::try_from(most).ok(),
        };
        let path = match data.text("path")? {
            None => old.map(|old| old.path.clone()).unwrap_or_default(),
            Some(path) => path.trim_start_matches('/').to_owned(),
        };
        Ok(Self {
            path,
            max_leases: max_leases.filter(|most| *most > 0).ok_or_else(|| {
                ApiError::bad("'max_leases' is invalid: it is a whole number above 0")
            })?,
        })
    }

    fn describe(&self, name: &str, counter: u64) -> Value {
        json!({
            "name": name, "type": "lease-count", "path": self.path, "max_leases": self.max_leases, "counter": counter,
            "role": "", "inheritable": self.path.is_empty(),
        })
    }
}

fn record(name: &str) -> String {
    format!("{PREFIX}{name}")
}
