//! Secrets engines: what is mounted at a path and answers below it.
//!
//! An engine sees a path below its mount, an operation and the request's fields. It knows nothing of tokens, policies
//! or HTTP; whoever calls it has checked those.

use std::io;

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::core::MAX_VALUE;
use crate::http::{ApiError, reply::Answer};
use crate::request::Data;

pub(crate) mod cubbyhole;
pub(crate) mod kv1;
pub(crate) mod kv2;
pub(crate) mod ssh;

/// Stored names that an answer hangs on.
pub(crate) enum Watched {
    Name(String),
    Below(String),
}

/// A secret as JSON in a buffer that is wiped and that never moved while it grew.
///
/// # Errors
/// 413 when it is longer than the store takes.
pub(crate) fn encode(map: &Map<String, Value>) -> Result<Zeroizing<Vec<u8>>, ApiError> {
    let unwritable = |_| ApiError::Internal("a secret cannot be written as JSON".into());
    let mut length = Length(0);
    serde_json::to_writer(&mut length, map).map_err(unwritable)?;
    if length.0 > MAX_VALUE {
        return Err(ApiError::TooLarge);
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, map).map_err(unwritable)?;
    Ok(bytes)
}

/// The reverse. The parser's own message could quote the secret.
pub(crate) fn decode(bytes: &[u8]) -> Result<Data, ApiError> {
    serde_json::from_slice::<Map<String, Value>>(bytes)
        .map(Data::from)
        .map_err(|_| ApiError::Internal("a stored secret is not readable by this version".into()))
}

/// The answer to LIST and SCAN, with OpenBao's `after` and `limit`.
pub(crate) fn page(mut keys: Vec<String>, query: &Data) -> Result<Answer, ApiError> {
    if let Some(after) = query.text("after")?.filter(|after| !after.is_empty()) {
        keys.retain(|key| *key > after);
    }
    if let Some(limit) = query.int("limit")?
        && let Ok(limit @ 1..) = usize::try_from(limit)
    {
        keys.truncate(limit);
    }
    Answer::keys(keys)
}

/// Counts what would be written.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
