//! `data/`: read a version, write, patch or delete the newest.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;
use zeroize::Zeroizing;

use super::Kv2;
use super::merge::merge;
use super::record::{Config, Record, Seen, Stamp};
use crate::db::By;
use crate::engine::{decode, encode};
use crate::http::{ApiError, reply::Answer};
use crate::request::{Data, fields::mismatch};

/// A version that was asked for.
pub(super) struct Found {
    pub record: Arc<Seen>,
    pub number: u64,
    /// The secret as it is stored, in JSON; absent when deleted or destroyed.
    pub value: Option<Zeroizing<Vec<u8>>>,
}

impl Found {
    /// What is said of the version.
    pub fn description(&self) -> Value {
        let version = &self.record.versions[&self.number];
        self.record.describe(self.number, version)
    }

    /// The secret.
    pub fn secret(&self) -> Result<Option<Data>, ApiError> {
        self.value.as_ref().map(|value| decode(value)).transpose()
    }
}

impl Kv2 {
    /// The secret goes into the answer as it was stored.
    pub(super) fn read(&self, key: &str, query: &Data) -> Result<Answer, ApiError> {
        let found = self.find(key, query)?;
        let version = &found.record.versions[&found.number];
        let metadata = found.record.description(found.number, version);
        let value = found.value.as_ref().map_or(&b"null"[..], |value| value);
        let parts = [
            b"{\"data\":",
            value,
            b",\"metadata\":",
            metadata.as_bytes(),
            b"}",
        ];
        let mut json = Zeroizing::new(Vec::with_capacity(
            parts.iter().map(|part| part.len()).sum(),
        ));
        parts.iter().for_each(|part| json.extend_from_slice(part));
        let mut answer = Answer::json(json);
        answer.status = found.value.is_none().then_some(StatusCode::NOT_FOUND);
        Ok(answer)
    }

    /// The version named in `version`, else the newest.
    pub(super) fn find(&self, key: &str, query: &Data) -> Result<Found, ApiError> {
        let wanted = query.int("version")?.unwrap_or(0);
        let wanted = u64::try_from(wanted).map_err(|_| ApiError::NotFound)?;
        let mut record = self.seen(key)?.ok_or(ApiError::NotFound)?;
        let mut read_again = false;
        loop {
            let number = if wanted == 0 { record.current } else { wanted };
            let version = record.versions.get(&number).ok_or(ApiError::NotFound)?;
            let readable = version.readable(self.now());
            let value = match readable {
                true => self.db.bytes(&self.value_path(key, number))?,
                false => None,
            };
            if value.is_some() || !readable {
                return Ok(Found {
                    record,
                    number,
                    value,
                });
            }
            // A writer may drop the version between the two reads; then the record has changed as well, and the store
            // knows that before it is told to those who keep records.
            let (now, _) = self.record(key)?.ok_or(ApiError::NotFound)?;
            if read_again && now == **record {
                return Err(ApiError::Internal(format!(
                    "the value of version {number} of this key is missing from the store"
                )));
            }
            (record, read_again) = (Arc::new(now.into()), true);
        }
    }

    pub(super) async fn write(
        &self,
        by: &By,
        key: &str,
        data: &mut Data,
    ) -> Result<Answer, ApiError> {
        let secret = secret(data)?;
        let _order = self.db.lock(&self.record_path(key)).await;
        let (config, now) = (self.config()?, self.now());
        let (record, seen) = match self.record(key)? {
            Some((record, index)) => (record, Some(index)),
            None => (Record::new(now), None),
        };
        check_and_set(data, &config, &record)?;
        self.store(by, "kv2 write", key, record, seen, &config, now, &secret)
            .await
    }

    /// RFC 7396 on the newest version; the result is a new one.
    pub(super) async fn patch(
        &self,
        by: &By,
        key: &str,
        data: &mut Data,
    ) -> Result<Answer, ApiError> {
        let mut patch = secret(data)?;
        let _order = self.db.lock(&self.record_path(key)).await;
        let (config, now) = (self.config()?, self.now());
        let Some((record, seen)) = self.record(key)? else {
            return Ok(Answer::none().status(StatusCode::NOT_FOUND));
        };
        check_and_set(data, &config, &record)?;
        let Some(version) = record.versions.get(&record.current) else {
            return Ok(Answer::none().status(StatusCode::NOT_FOUND));
        };
        if !version.readable(now) {
            let description = record.describe(record.current, version);
            return Ok(Answer::data(description).status(StatusCode::NOT_FOUND));
        }
        let found = self.find(key, &Data::default())?;
        let Some(mut secret) = found.secret()? else {
            return Ok(Answer::data(found.description()).status(StatusCode::NOT_FOUND));
        };
        merge(secret.map_mut(), patch.take_all());
        self.store(
            by,
            "kv2 patch",
            key,
            record,
            Some(seen),
            &config,
            now,
            &secret,
        )
        .await
    }

    /// The record and the value of a new version, and no more of the versions that this pushes out, in one batch.
    #[allow(
        clippy::too_many_arguments,
        reason = "the state that its two callers read under their lock"
    )]
    async fn store(
        &self,
        by: &By,
        operation: &str,
        key: &str,
        mut record: Record,
        seen: Option<u64>,
        config: &Config,
        now: Stamp,
        secret: &Data,
    ) -> Result<Answer, ApiError> {
        let (number, gone) = record.add(config, now);
        let mut batch = self.change(by, operation, "data", key, &record, seen)?;
        batch.put_bytes(&self.value_path(key, number), encode(secret.map())?);
        if let Some(at) = record.versions[&number].expires {
            batch.put(&self.expiry_path(at, number, key), &())?;
        }
        for (old, version) in gone {
            batch.delete(&self.value_path(key, old));
            if let Some(at) = version.expires {
                batch.delete(&self.expiry_path(at, old, key));
            }
        }
        self.db.commit(batch).await?;
        let version = &record.versions[&number];
        Ok(Answer::data(record.describe(number, version)))
    }
}

/// The new secret.
fn secret(data: &mut Data) -> Result<Data, ApiError> {
    match data.take("data") {
        None => Err(ApiError::bad("no data provided")),
        Some(Value::Object(map)) => Ok(map.into()),
        Some(mut other) => {
            let error = mismatch("data", "map[string]interface {}", &other);
            crate::request::body::wipe(&mut other);
            Err(error)
        }
    }
}

/// `options.cas` must be the newest version, 0 for a key without any.
fn check_and_set(data: &Data, config: &Config, record: &Record) -> Result<(), ApiError> {
    let given = match data.raw("options") {
        None => None,
        Some(Value::Object(options)) => options.get("cas"),
        Some(other) => return Err(mismatch("options", "map[string]interface {}", other)),
    };
    let Some(given) = given else {
        return if config.cas_required || record.cas_required {
            Err(ApiError::bad(
                "check-and-set parameter required for this call",
            ))
        } else {
            Ok(())
        };
    };
    let mut field = Data::default();
    field.insert("cas", given.clone());
    let number = field
        .int("cas")
        .ok()
        .flatten()
        .ok_or_else(|| ApiError::bad("error parsing check-and-set parameter"))?;
    if u64::try_from(number) == Ok(record.current) {
        Ok(())
    } else {
        Err(ApiError::bad(
            "check-and-set parameter did not match the current version",
        ))
    }
}
