//! `move/`: a key with all its versions and settings gets another name, in one step.

use super::{Kv2, data_key};
use crate::db::By;
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

impl Kv2 {
    /// The key that `to` names is to be new. Whoever calls this has seen to the caller's rights on both.
    pub(super) async fn rename(&self, by: &By, key: &str, data: &Data) -> Result<Answer, ApiError> {
        let to = data_key(data)?;
        if key == to {
            return Err(ApiError::bad("field \"to\": the key has this name"));
        }
        let (from_path, to_path) = (self.record_path(key), self.record_path(&to));
        let (record, seen) = self.record(key)?.ok_or(ApiError::NotFound)?;
        if self.db.index(&to_path)?.is_some() {
            return Err(ApiError::bad("field \"to\": there is a key of this name"));
        }
        // No lock on two names: if either changes meanwhile, nothing happens.
        let mut batch = self.change(by, "kv2 move", "data", &to, &record, None)?;
        batch
            .key(format!("{}data/{key}", self.mount))
            .expect(&from_path, Some(seen))
            .delete(&from_path);
        self.delete_values(&mut batch, key, &record);
        for (number, version) in &record.versions {
            if !version.destroyed {
                let value = self.db.bytes(&self.value_path(key, *number))?;
                let value = value.ok_or_else(|| {
                    ApiError::Unavailable(
                        "the key was changed by another request at the same time; try again".into(),
                    )
                })?;
                batch.put_bytes(&self.value_path(&to, *number), value);
            }
            if let Some(at) = version.expires {
                batch.put(&self.expiry_path(at, *number, &to), &())?;
            }
        }
        self.db.commit(batch).await?;
        Ok(Answer::none())
    }
}
