//! `delete_version_after`: when its time comes a version is not only hidden, its value goes.
//!
//! Each version that will go has a name that starts with the time, so what is due next is the first of them: nothing is
//! kept in memory for it, and unsealing reads nothing.

use super::Kv2;
use super::record::Stamp;
use crate::db::By;
use crate::http::ApiError;

/// Versions that are looked at in one go.
const CHUNK: usize = 64;

impl Kv2 {
    /// Destroy versions whose time is over; seconds until the next one's is.
    pub async fn expire(&self) -> Result<Option<u64>, ApiError> {
        let prefix = format!("{}expiry/", self.prefix);
        loop {
            let now = self.now();
            let names = self.db.names_after(&prefix, &prefix, CHUNK)?;
            if names.is_empty() {
                return Ok(None);
            }
            for name in &names {
                let parts = split(&name[prefix.len()..]);
                let Some((at, number, key)) = parts else {
                    return Err(ApiError::Internal(format!(
                        "the record {name:?} is not readable by this version"
                    )));
                };
                let left = at.seconds_from(now);
                if left > 0 {
                    return Ok(Some(left));
                }
                self.let_go(name, at, number, key).await?;
            }
        }
    }

    async fn let_go(&self, name: &str, at: Stamp, number: u64, key: &str) -> Result<(), ApiError> {
        let by = By::system("delete_version_after");
        let _order = self.db.lock(&self.record_path(key)).await;
        let found = self.record(key)?;
        let mut batch = match found {
            Some((mut record, seen)) => {
                let version = record.versions.get_mut(&number);
                let due = version.filter(|version| version.expires == Some(at));
                if let Some(version) = due {
                    version.expires = None;
                    version.destroyed = true;
                }
                self.change(&by, "kv2 expire", "data", key, &record, Some(seen))?
            }
            None => crate::db::Batch::new(&by, "kv2 expire"),
        };
        batch.delete(name).delete(&self.value_path(key, number));
        self.db.commit(batch).await
    }
}

fn split(name: &str) -> Option<(Stamp, u64, &str)> {
    let (at, rest) = name.split_once('/')?;
    let (number, key) = rest.split_once('/')?;
    Some((Stamp::from_sortable(at)?, number.parse().ok()?, key))
}
