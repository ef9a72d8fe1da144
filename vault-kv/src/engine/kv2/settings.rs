//! `config` of a mount, and the settings that a mount and a key share.

use std::time::Duration;

use serde_json::Value;

use super::Kv2;
use super::record::{Config, Expiry};
use crate::db::{Batch, By};
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

impl Kv2 {
    pub(super) fn config(&self) -> Result<Config, ApiError> {
        let stored = self.db.get::<Config>(&self.config_path())?;
        Ok(stored.map(|(config, _)| config).unwrap_or_default())
    }

    pub(super) fn read_config(&self) -> Result<Answer, ApiError> {
        Ok(Answer::data(self.config()?.answer()))
    }

    /// Fields that are not given stay as they are.
    pub(super) async fn write_config(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let path = self.config_path();
        let _order = self.db.lock(&path).await;
        let (mut config, seen) = match self.db.get::<Config>(&path)? {
            Some((config, index)) => (config, Some(index)),
            None => (Config::default(), None),
        };
        if let Some(count) = max_versions(data)? {
            config.max_versions = count;
        }
        if let Some(required) = data.flag("cas_required")? {
            config.cas_required = required;
        }
        if let Some(required) = data.flag("metadata_cas_required")? {
            config.metadata_cas_required = required;
        }
        if let Some(expiry) = mount_expiry(data)? {
            config.delete_version_after = expiry;
        }
        let mut batch = Batch::new(by, "kv2 config");
        batch
            .key(format!("{}config", self.mount))
            .expect(&path, seen)
            .put(&path, &config)?;
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }

    fn config_path(&self) -> String {
        format!("{}config", self.prefix)
    }
}

/// The field `max_versions`.
pub(super) fn max_versions(data: &Data) -> Result<Option<u64>, ApiError> {
    data.int("max_versions")?
        .map(|count| {
            u32::try_from(count)
                .map(u64::from)
                .map_err(|_| ApiError::bad("max_versions must be 0 (the default) or more"))
        })
        .transpose()
}

/// `delete_version_after` of a mount: a negative time switches expiry off.
fn mount_expiry(data: &Data) -> Result<Option<Expiry>, ApiError> {
    let negative = match data.raw("delete_version_after") {
        Some(Value::Number(number)) => number.as_f64().is_some_and(|n| n < 0.0),
        Some(Value::String(text)) => text.trim().starts_with('-'),
        _ => false,
    };
    if negative {
        return Ok(Some(Expiry::Never));
    }
    let given = data.duration("delete_version_after")?;
    Ok(given.map(|after| match after {
        Duration::ZERO => Expiry::Unset,
        after => Expiry::After(after),
    }))
}
