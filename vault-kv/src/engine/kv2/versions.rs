//! `delete/`, `undelete/` and `destroy/`: what happens to single versions.

use super::Kv2;
use super::record::{Record, Stamp};
use crate::db::By;
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

impl Kv2 {
    /// Hide the newest version until an undelete.
    pub(super) async fn delete_newest(&self, by: &By, key: &str) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.record_path(key)).await;
        let Some((record, seen)) = self.record(key)? else {
            return Ok(Answer::none());
        };
        let newest = [record.current];
        self.hide(by, "data", key, record, seen, &newest).await
    }

    pub(super) async fn delete_versions(
        &self,
        by: &By,
        key: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let numbers = numbers(data)?;
        let _order = self.db.lock(&self.record_path(key)).await;
        let Some((record, seen)) = self.record(key)? else {
            return Ok(Answer::none());
        };
        self.hide(by, "delete", key, record, seen, &numbers).await
    }

    async fn hide(
        &self,
        by: &By,
        api_path: &str,
        key: &str,
        mut record: Record,
        seen: u64,
        numbers: &[u64],
    ) -> Result<Answer, ApiError> {
        let now: Stamp = self.now();
        let mut changed = false;
        for number in numbers {
            if let Some(version) = record.versions.get_mut(number)
                && version.readable(now)
            {
                version.deletion = Some(now);
                changed = true;
            }
        }
        if changed {
            let batch = self.change(by, "kv2 delete", api_path, key, &record, Some(seen))?;
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }

    /// Make versions readable again; their time to expire starts anew.
    pub(super) async fn undelete(
        &self,
        by: &By,
        key: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let numbers = numbers(data)?;
        let _order = self.db.lock(&self.record_path(key)).await;
        let Some((mut record, seen)) = self.record(key)? else {
            return Ok(Answer::none());
        };
        let expiry = record.expiry(&self.config()?, self.now());
        let mut moved = Vec::new();
        for number in &numbers {
            if let Some(version) = record.versions.get_mut(number)
                && !version.destroyed
            {
                version.deletion = expiry;
                moved.push((*number, std::mem::replace(&mut version.expires, expiry)));
            }
        }
        if !moved.is_empty() {
            let mut batch =
                self.change(by, "kv2 undelete", "undelete", key, &record, Some(seen))?;
            for (number, before) in moved {
                if let Some(at) = before {
                    batch.delete(&self.expiry_path(at, number, key));
                }
                if let Some(at) = expiry {
                    batch.put(&self.expiry_path(at, number, key), &())?;
                }
            }
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }

    /// Remove the values of versions for good.
    pub(super) async fn destroy(
        &self,
        by: &By,
        key: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let numbers = numbers(data)?;
        let _order = self.db.lock(&self.record_path(key)).await;
        let Some((mut record, seen)) = self.record(key)? else {
            return Ok(Answer::none());
        };
        let mut destroyed = Vec::new();
        for number in numbers {
            if let Some(version) = record.versions.get_mut(&number)
                && !version.destroyed
            {
                version.destroyed = true;
                destroyed.push(self.value_path(key, number));
                let expiry = version.expires.take();
                destroyed.extend(expiry.map(|at| self.expiry_path(at, number, key)));
            }
        }
        if !destroyed.is_empty() {
            let mut batch = self.change(by, "kv2 destroy", "destroy", key, &record, Some(seen))?;
            for path in destroyed {
                batch.delete(&path);
            }
            self.db.commit(batch).await?;
        }
        Ok(Answer::none())
    }
}

/// The field `versions`: numbers, or text with commas. Numbers below 1 name no version.
fn numbers(data: &Data) -> Result<Vec<u64>, ApiError> {
    let texts = data.list("versions")?.unwrap_or_default();
    if texts.is_empty() {
        return Err(ApiError::bad("No version number provided"));
    }
    texts
        .iter()
        .map(|text| text.parse::<i64>().map(|n| u64::try_from(n).unwrap_or(0)))
        .collect::<Result<_, _>>()
        .map_err(|_| {
            ApiError::bad("Field validation failed: error converting input for field \"versions\": '' cannot parse value as 'int': strconv.ParseInt: invalid syntax")
        })
}
