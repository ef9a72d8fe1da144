//! `sys/key-status`, `sys/rotate`, `sys/rotate/config`: the keyring's terms.

use serde_json::json;

use super::Api;
use crate::{
    clock::rfc3339_unix,
    db::By,
    http::{ApiError, reply::Answer},
    request::{Data, Operation},
    rotation::RotationConfig,
};

impl Api {
    /// `None`: none of these paths. Below `sys/`.
    pub(super) async fn keys(
        &self,
        by: &By,
        operation: Operation,
        path: &str,
        data: &Data,
    ) -> Option<Result<Answer, ApiError>> {
        use Operation::{Read, Write};
        Some(match (path, operation) {
            ("key-status", Read) => self.key_status().await,
            ("rotate" | "rotate/keyring", Write) => {
                self.rotation.rotate(by).await.map(|_| Answer::none())
            }
            ("rotate/config" | "rotate/keyring/config", Read) => Ok(self.rotation_config().await),
            ("rotate/config" | "rotate/keyring/config", Write) => {
                self.configure_rotation(by, data).await
            }
            (
                "key-status"
                | "rotate"
                | "rotate/keyring"
                | "rotate/config"
                | "rotate/keyring/config",
                _,
            ) => Err(ApiError::UnsupportedOperation),
            _ => return None,
        })
    }

    async fn key_status(&self) -> Result<Answer, ApiError> {
        let status = self.rotation.status().await?;
        let data = json!({
            "term": status.term, "install_time": rfc3339_unix(status.installed),
            "encryptions": status.encryptions,
        });
        Ok(Answer::data(data).top_level())
    }

    async fn rotation_config(&self) -> Answer {
        let config = self.rotation.config().await;
        Answer::data(json!({
            "enabled": config.enabled, "max_operations": config.max_operations,
            "interval": config.interval,
        }))
    }

    async fn configure_rotation(&self, by: &By, data: &Data) -> Result<Answer, ApiError> {
        let mut config: RotationConfig = self.rotation.config().await;
        if let Some(enabled) = data.flag("enabled")? {
            config.enabled = enabled;
        }
        if let Some(most) = data.int("max_operations")? {
            config.max_operations = u64::try_from(most).unwrap_or(0);
        }
        if let Some(interval) = data.duration("interval")? {
            config.interval = interval.as_secs();
        }
        self.rotation.configure(by, config).await?;
        Ok(Answer::none())
    }
}
