//! `sys/version-history`: which versions ran on this store.

use std::collections::BTreeMap;

use serde_json::{Map, json};

use super::Api;
use crate::clock::{Clock, rfc3339_unix};
use crate::db::{Batch, By, Db};
use crate::http::ApiError;
use crate::http::reply::Answer;

const RECORD: &str = "sys/versions";
const OWN: &str = env!("CARGO_PKG_VERSION");

/// Versions, with unix seconds of when each was first unsealed.
type Versions = BTreeMap<String, i64>;

/// A new store knows the version that made it.
pub(super) fn initialise(batch: &mut Batch) -> Result<(), ApiError> {
    let versions = Versions::from([(OWN.to_owned(), Clock::default().unix())]);
    batch.put(RECORD, &versions)?;
    Ok(())
}

/// Writes this version down, if it is new here.
pub(super) async fn note(db: Db, clock: Clock) {
    let noted = async {
        let (mut versions, seen) = match db.get::<Versions>(RECORD)? {
            Some((versions, index)) => (versions, Some(index)),
            None => (Versions::default(), None),
        };
        if versions.contains_key(OWN) {
            return Ok(());
        }
        versions.insert(OWN.into(), clock.unix());
        let mut batch = Batch::new(&By::system("start"), "version/first use");
        batch
            .expect(RECORD, seen)
            .put(RECORD, &versions)?
            .key(format!("version {OWN}"));
        db.commit(batch).await
    };
    match noted.await {
        Ok(()) | Err(ApiError::Sealed) => {}
        Err(error) => tracing::warn!(%error, "the first use of this version is not written down"),
    }
}

impl Api {
    pub(super) fn version_history(&self) -> Result<Answer, ApiError> {
        let versions: Versions = self.db.get(RECORD)?.map(|(v, _)| v).unwrap_or_default();
        let mut in_order: Vec<_> = versions.iter().collect();
        in_order.sort_by_key(|(_, at)| **at);
        let mut info = Map::new();
        let mut previous = None;
        for (version, at) in &in_order {
            let seen = json!({
                "build_date": "", "previous_version": previous, "timestamp_installed": rfc3339_unix(**at),
            });
            info.insert((*version).clone(), seen);
            previous = Some(version.as_str());
        }
        let keys: Vec<_> = in_order
            .iter()
            .map(|(version, _)| version.as_str())
            .collect();
        Ok(Answer::data(json!({"keys": keys, "key_info": info})))
    }
}
