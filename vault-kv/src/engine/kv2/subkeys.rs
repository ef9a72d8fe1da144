//! `subkeys/`: the shape of a secret without its values.

use http::StatusCode;
use serde_json::{Map, Value};

use super::Kv2;
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

impl Kv2 {
    /// Names of the fields of a version, down to `depth` levels (0: all).
    pub(super) fn subkeys(&self, key: &str, query: &Data) -> Result<Answer, ApiError> {
        let depth = query.int("depth")?.unwrap_or(0);
        let depth = match usize::try_from(depth) {
            Ok(0) => usize::MAX,
            Ok(depth) => depth,
            Err(_) => return Err(ApiError::bad("depth must be 0 (no limit) or more")),
        };
        let found = self.find(key, query)?;
        let names = found.secret()?.map(|value| names(value.map(), depth));
        let gone = names.is_none();
        let mut answer = Answer::data(Map::from_iter([
            ("metadata".to_string(), found.description()),
            ("subkeys".to_string(), names.into()),
        ]));
        answer.status = gone.then_some(StatusCode::NOT_FOUND);
        Ok(answer)
    }
}

fn names(map: &Map<String, Value>, depth: usize) -> Value {
    map.iter()
        .map(|(name, value)| {
            let below = match value {
                Value::Object(inner) if depth > 1 && !inner.is_empty() => names(inner, depth - 1),
                _ => Value::Null,
            };
            (name.clone(), below)
        })
        .collect::<Map<_, _>>()
        .into()
}
