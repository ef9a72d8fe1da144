//! What plain keys, sessions and locks are kept as.
//!
//! Paths of the namespace `ns` (its name has no slash):
//!
//! | path | record |
//! |---|---|
//! | `kv/ns/KEY` | value, flags, and where used: who holds it, how often it was taken, when it ends |
//! | `kv-session/ns/ID` | a session |
//! | `kv-held/ns/ID/KEY` | nothing: session ID took KEY. Says where to look when it ends; may be stale |
//! | `kv-delay/ns/KEY` | until when nobody takes KEY. While the record is there |
//! | `kv-ttl/ns/KEY` | until when KEY lives; counts only if KEY says that it ends |

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::KvPair;
use crate::core::{Error, Op, Value, now_micros};

/// The paths of one namespace.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Paths {
    namespace: String,
}

/// Top levels whose records have a time at which something happens.
pub(super) const SESSIONS: &str = "kv-session/";
pub(super) const DELAYS: &str = "kv-delay/";
pub(super) const ENDINGS: &str = "kv-ttl/";

impl Paths {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
        }
    }

    pub(super) fn key(&self, key: &str) -> String {
        format!("kv/{}/{key}", self.namespace)
    }

    /// The key of a path that [`Paths::key`] made.
    pub(super) fn key_of<'a>(&self, path: &'a str) -> &'a str {
        &path["kv/".len() + self.namespace.len() + 1..]
    }

    pub(super) fn session(&self, id: &str) -> String {
        format!("{SESSIONS}{}/{id}", self.namespace)
    }

    /// What a session took; with an empty `id`, what any did.
    pub(super) fn held_by(&self, id: &str) -> String {
        match id {
            "" => format!("kv-held/{}/", self.namespace),
            id => format!("kv-held/{}/{id}/", self.namespace),
        }
    }

    pub(super) fn held(&self, id: &str, key: &str) -> String {
        format!("kv-held/{}/{id}/{key}", self.namespace)
    }

    pub(super) fn delay(&self, key: &str) -> String {
        format!("{DELAYS}{}/{key}", self.namespace)
    }

    pub(super) fn ending(&self, key: &str) -> String {
        format!("{ENDINGS}{}/{key}", self.namespace)
    }
}

/// What every version wrote.
#[derive(Deserialize, Zeroize, ZeroizeOnDrop)]
struct Plain {
    flags: u64,
    value: Vec<u8>,
}

/// What follows it where there is something to say.
#[derive(Serialize, Deserialize, Default, PartialEq)]
struct Rest {
    lock_index: u64,
    session: Option<String>,
    ends: Option<i64>,
}

/// A key as it is to be written.
pub(super) fn encode(pair: &KvPair) -> Zeroizing<Vec<u8>> {
    // As `Plain` is encoded, without a copy of the value in one.
    let head = encode_plain(&(pair.flags, pair.value.len()));
    let rest = Rest {
        lock_index: pair.lock_index,
        session: pair.session.clone(),
        ends: pair.ends,
    };
    let rest = match rest == Rest::default() {
        true => Zeroizing::default(),
        false => encode_plain(&rest),
    };
    let parts = [&head[..], &pair.value, &rest];
    let mut encoded = Zeroizing::new(Vec::with_capacity(
        parts.iter().map(|part| part.len()).sum(),
    ));
    parts
        .iter()
        .for_each(|part| encoded.extend_from_slice(part));
    encoded
}

pub(super) fn decode(key: &str, value: &Value) -> Result<KvPair, Error> {
    let taken = postcard::take_from_bytes::<Plain>(&value.bytes);
    let (mut plain, rest) = taken.map_err(|_| Error::Unreadable)?;
    let rest = match rest {
        [] => Rest::default(),
        rest => postcard::from_bytes(rest).map_err(|_| Error::Unreadable)?,
    };
    Ok(KvPair {
        key: key.to_owned(),
        value: Zeroizing::new(std::mem::take(&mut plain.value)),
        flags: plain.flags,
        session: rest.session,
        lock_index: rest.lock_index,
        ends: rest.ends,
        created: value.created,
        modified: value.modified,
    })
}

/// A moment to come, and how far away it was.
#[derive(Serialize, Deserialize, Clone, Copy)]
pub(super) struct Until {
    /// Unix microseconds.
    pub(super) at: i64,
    micros: i64,
}

impl Until {
    pub(super) fn after(time: Duration) -> Self {
        let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        Self {
            at: now_micros().saturating_add(micros),
            micros,
        }
    }

    /// How long that still is: no longer than it ever was, wherever the clock was set to.
    pub(super) fn left(&self) -> Duration {
        let left = self
            .at
            .saturating_sub(now_micros())
            .clamp(0, self.micros.max(0));
        Duration::from_micros(left.unsigned_abs())
    }
}

pub(super) fn encode_plain<T: Serialize>(record: &T) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(postcard::to_stdvec(record).expect("plain data always encodes"))
}

pub(super) fn decode_plain<T: DeserializeOwned>(value: &Value) -> Result<T, Error> {
    postcard::from_bytes(&value.bytes).map_err(|_| Error::Unreadable)
}

/// Writes a record that is no key.
pub(super) fn put<T: Serialize>(path: String, record: &T) -> Op {
    let value = encode_plain(record);
    Op::Put { path, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(value: &[u8]) -> KvPair {
        KvPair {
            key: "k".to_owned(),
            value: Zeroizing::new(value.to_vec()),
            flags: 300,
            session: None,
            lock_index: 0,
            ends: None,
            created: 3,
            modified: 4,
        }
    }

    fn stored(bytes: Zeroizing<Vec<u8>>) -> Value {
        Value {
            bytes,
            created: 3,
            modified: 4,
        }
    }

    #[test]
    fn a_plain_pair_is_kept_as_the_first_version_kept_it() {
        let value = [7; 200];
        let first = postcard::to_stdvec(&(300u64, value.to_vec())).unwrap();
        assert_eq!(encode(&pair(&value))[..], first);
        let read = decode("k", &stored(Zeroizing::new(first))).unwrap();
        assert_eq!((read.flags, &read.value[..]), (300, &value[..]));
        assert_eq!((read.lock_index, read.session, read.ends), (0, None, None));
    }

    #[test]
    fn what_a_lock_adds_comes_back() {
        let held = KvPair {
            session: Some("s".to_owned()),
            lock_index: 9,
            ends: Some(-1),
            ..pair(b"")
        };
        let read = decode("k", &stored(encode(&held))).unwrap();
        assert_eq!(
            (read.lock_index, read.session.as_deref(), read.ends),
            (9, Some("s"), Some(-1))
        );
        let mut cut = encode(&held);
        cut.pop();
        assert!(matches!(decode("k", &stored(cut)), Err(Error::Unreadable)));
    }

    #[test]
    fn nothing_is_further_away_than_it_was() {
        let hour = 3_600_000_000;
        let set_back = Until {
            at: now_micros() + hour,
            micros: 1_000_000,
        };
        assert_eq!(set_back.left(), Duration::from_secs(1));
        let over = Until {
            at: now_micros() - hour,
            micros: 1_000_000,
        };
        assert_eq!(over.left(), Duration::ZERO);
    }
}
