//! `metadata/`: settings, custom fields and history of a key; its complete removal; the list of keys.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;

use super::Kv2;
use super::record::Config;
use super::record::Record;
use super::settings::max_versions;
use crate::db::{Batch, By};
use crate::engine::page;
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

/// Vault's limits of `custom_metadata`: pairs, bytes of a name, bytes of a value.
const MAX_PAIRS: usize = 64;
const MAX_NAME: usize = 128;
const MAX_TEXT: usize = 512;

impl Kv2 {
    pub(super) fn list(&self, folder: &str, query: &Data) -> Result<Answer, ApiError> {
        let slash = if folder.is_empty() || folder.ends_with('/') {
            ""
        } else {
            "/"
        };
        page(
            self.db
                .list(&format!("{}metadata/{folder}{slash}", self.prefix))?,
            query,
        )
    }

    pub(super) fn read_metadata(&self, key: &str) -> Result<Answer, ApiError> {
        let record = self.seen(key)?.ok_or(ApiError::NotFound)?;
        Ok(Answer::data(record.answer()))
    }

    /// Set what is given; `custom_metadata` is replaced as a whole. Makes a key without versions if there is none.
    pub(super) async fn write_metadata(
        &self,
        by: &By,
        key: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.record_path(key)).await;
        let (mut record, seen) = match self.record(key)? {
            Some((record, index)) => (record, Some(index)),
            None => (Record::new(self.now()), None),
        };
        if let Some(custom) = data.text_map("custom_metadata")? {
            record.custom = custom;
        }
        self.settle(by, key, data, record, seen).await
    }

    /// The same as a merge patch: `null` puts a setting back to its default or removes a custom field.
    pub(super) async fn patch_metadata(
        &self,
        by: &By,
        key: &str,
        data: &Data,
    ) -> Result<Answer, ApiError> {
        let _order = self.db.lock(&self.record_path(key)).await;
        let Some((mut record, seen)) = self.record(key)? else {
            return Ok(Answer::none().status(StatusCode::NOT_FOUND));
        };
        let null = |name: &str| data.map().get(name).is_some_and(Value::is_null);
        if null("max_versions") {
            record.max_versions = 0;
        }
        if null("cas_required") {
            record.cas_required = false;
        }
        if null("delete_version_after") {
            record.delete_version_after = Duration::ZERO;
        }
        if null("custom_metadata") {
            record.custom.clear();
        }
        if let Some(Value::Object(changes)) = data.raw("custom_metadata") {
            let mut changes = changes.clone();
            changes.retain(|name, value| {
                if value.is_null() {
                    record.custom.remove(name);
                }
                !value.is_null()
            });
            let mut set = Data::default();
            set.insert("custom_metadata", changes);
            record
                .custom
                .extend(set.text_map("custom_metadata")?.unwrap_or_default());
        } else {
            // Anything but an object is refused there.
            data.text_map("custom_metadata")?;
        }
        self.settle(by, key, data, record, Some(seen)).await
    }

    /// The settings both ways of writing share, and the commit.
    async fn settle(
        &self,
        by: &By,
        key: &str,
        data: &Data,
        mut record: Record,
        seen: Option<u64>,
    ) -> Result<Answer, ApiError> {
        check_and_set(data, &self.config()?, &record, seen)?;
        if let Some(required) = data.flag("metadata_cas_required")? {
            record.metadata_cas_required = required;
        }
        check_custom(&record.custom)?;
        if let Some(count) = max_versions(data)? {
            record.max_versions = count;
        }
        if let Some(required) = data.flag("cas_required")? {
            record.cas_required = required;
        }
        if let Some(after) = data.duration("delete_version_after")? {
            record.delete_version_after = after;
        }
        record.updated = self.now();
        record.revision += 1;
        let batch = self.change(by, "kv2 metadata", "metadata", key, &record, seen)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    /// Remove a key with all its versions.
    pub(super) async fn remove(&self, by: &By, key: &str) -> Result<Answer, ApiError> {
        let path = self.record_path(key);
        let _order = self.db.lock(&path).await;
        let Some((record, seen)) = self.record(key)? else {
            return Ok(Answer::none());
        };
        let mut batch = Batch::new(by, "kv2 remove");
        batch
            .key(format!("{}metadata/{key}", self.mount))
            .expect(&path, Some(seen))
            .delete(&path);
        self.delete_values(&mut batch, key, &record);
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }
}

/// `metadata_cas` must be how often the settings have changed, 0 for a key that is not there.
fn check_and_set(
    data: &Data,
    config: &Config,
    record: &Record,
    seen: Option<u64>,
) -> Result<(), ApiError> {
    match data.int("metadata_cas")? {
        None if config.metadata_cas_required || record.metadata_cas_required => Err(ApiError::bad(
            "metadata check-and-set parameter required for this call",
        )),
        None => Ok(()),
        Some(0) if seen.is_none() => Ok(()),
        Some(given) if seen.is_some() && u64::try_from(given) == Ok(record.revision) => Ok(()),
        Some(_) => Err(ApiError::bad(
            "metadata check-and-set parameter did not match the current version",
        )),
    }
}

fn check_custom(custom: &BTreeMap<String, String>) -> Result<(), ApiError> {
    const WHAT: &str = "custom_metadata validation failed";
    if custom.len() > MAX_PAIRS {
        return Err(ApiError::bad(format!(
            "{WHAT}: payload must contain at most {MAX_PAIRS} keys, provided {}",
            custom.len()
        )));
    }
    for (name, text) in custom {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(ApiError::bad(format!(
                "{WHAT}: length of a key is {} but 1 to {MAX_NAME} is allowed",
                name.len()
            )));
        }
        if text.len() > MAX_TEXT {
            return Err(ApiError::bad(format!(
                "{WHAT}: length of a value is {} but max allowed is {MAX_TEXT}",
                text.len()
            )));
        }
        if name.chars().chain(text.chars()).any(char::is_control) {
            return Err(ApiError::bad(format!(
                "{WHAT}: a key or value contains unprintable characters"
            )));
        }
    }
    Ok(())
}
