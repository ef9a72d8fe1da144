//! What is kept beside the secrets: one record per key, and the arithmetic of its versions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::clock::rfc3339;
use crate::request::duration;

/// Versions kept when neither the mount nor the key says how many.
const DEFAULT_VERSIONS: u64 = 10;

/// A point in time: nanoseconds since 1970.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[serde(transparent)]
pub(super) struct Stamp(i64);

impl Stamp {
    /// `after` this time, at most the last one that can be written.
    fn plus(self, after: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(after.as_nanos()).unwrap_or(i64::MAX)),
        )
    }

    /// Sorts as the time does.
    pub fn sortable(self) -> String {
        format!("{:016x}", self.0.max(0))
    }

    /// The reverse.
    pub fn from_sortable(text: &str) -> Option<Self> {
        i64::from_str_radix(text, 16).ok().map(Self)
    }

    /// Seconds from `now` until then; 0: it is over.
    pub fn seconds_from(self, now: Self) -> u64 {
        let nanos = self.0.saturating_sub(now.0).max(0);
        u64::try_from(nanos).unwrap_or(0).div_ceil(1_000_000_000)
    }

    fn text(self) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(self.0.into())
            .map(rfc3339)
            .unwrap_or_default()
    }
}

impl From<OffsetDateTime> for Stamp {
    fn from(time: OffsetDateTime) -> Self {
        Self(i64::try_from(time.unix_timestamp_nanos()).unwrap_or(i64::MAX))
    }
}

/// Settings of a mount.
#[derive(Serialize, Deserialize, Default, Clone)]
pub(super) struct Config {
    pub max_versions: u64,
    pub cas_required: bool,
    pub delete_version_after: Expiry,
    #[serde(default)]
    pub metadata_cas_required: bool,
}

/// `delete_version_after` of a mount.
#[derive(Serialize, Deserialize, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The mount has no opinion; a key may.
    #[default]
    Unset,
    /// Nothing on this mount expires, whatever a key says.
    Never,
    After(Duration),
}

impl Config {
    pub fn answer(&self) -> Value {
        json!({
            "cas_required": self.cas_required,
            "delete_version_after": match self.delete_version_after {
                Expiry::Unset => "0s".into(),
                Expiry::Never => "-1s".into(),
                Expiry::After(after) => duration::format(after),
            },
            "max_versions": self.max_versions,
            "metadata_cas_required": self.metadata_cas_required,
        })
    }
}

/// One version of a key.
#[derive(Serialize, Deserialize, Clone, PartialEq)]
pub(super) struct Version {
    pub created: Stamp,
    /// When it becomes (or became) unreadable until an undelete.
    pub deletion: Option<Stamp>,
    /// Its value is gone for good.
    pub destroyed: bool,
    /// When its value goes for good, because its time is over.
    #[serde(default)]
    pub expires: Option<Stamp>,
}

impl Version {
    pub fn readable(&self, now: Stamp) -> bool {
        !self.destroyed && !self.deleted(now)
    }

    pub fn deleted(&self, now: Stamp) -> bool {
        self.deletion.is_some_and(|at| at <= now)
    }

    fn answer(&self) -> Map<String, Value> {
        let deletion = self.deletion.map(Stamp::text).unwrap_or_default();
        Map::from_iter([
            ("created_time".to_string(), self.created.text().into()),
            ("deletion_time".to_string(), deletion.into()),
            ("destroyed".to_string(), self.destroyed.into()),
        ])
    }
}

/// A record as those see it who only read it.
pub(super) struct Seen {
    record: Record,
    /// What reads say of the newest version, as JSON: most reads are of that one.
    newest: OnceLock<String>,
}

impl Seen {
    /// See [`Record::describe`].
    pub fn description(&self, number: u64, version: &Version) -> Cow<'_, str> {
        let text = || self.describe(number, version).to_string();
        match number == self.current {
            true => Cow::Borrowed(self.newest.get_or_init(text)),
            false => Cow::Owned(text()),
        }
    }
}

impl Deref for Seen {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Record::deserialize(deserializer).map(Self::from)
    }
}

impl From<Record> for Seen {
    fn from(record: Record) -> Self {
        Self {
            record,
            newest: OnceLock::new(),
        }
    }
}

/// Everything about a key but its values.
#[derive(Serialize, Deserialize, Clone, PartialEq)]
pub(super) struct Record {
    /// The newest version; 0 before the first.
    pub current: u64,
    pub oldest: u64,
    pub created: Stamp,
    pub updated: Stamp,
    pub versions: BTreeMap<u64, Version>,
    pub max_versions: u64,
    pub cas_required: bool,
    pub delete_version_after: Duration,
    pub custom: BTreeMap<String, String>,
    /// Counts changes of the settings.
    pub revision: u64,
    #[serde(default)]
    pub metadata_cas_required: bool,
}

impl Record {
    pub fn new(now: Stamp) -> Self {
        Self {
            current: 0,
            oldest: 0,
            created: now,
            updated: now,
            versions: BTreeMap::new(),
            max_versions: 0,
            cas_required: false,
            delete_version_after: Duration::ZERO,
            custom: BTreeMap::new(),
            revision: 0,
            metadata_cas_required: false,
        }
    }

    /// Make room for a new version. Returns its number and the versions that had to go.
    pub fn add(&mut self, config: &Config, now: Stamp) -> (u64, BTreeMap<u64, Version>) {
        self.current += 1;
        self.updated = now;
        let expiry = self.expiry(config, now);
        let version = Version {
            created: now,
            deletion: expiry,
            destroyed: false,
            expires: expiry,
        };
        self.versions.insert(self.current, version);
        let keep = match self.max_versions.max(config.max_versions) {
            0 => DEFAULT_VERSIONS,
            keep => keep,
        };
        if self.current - self.oldest >= keep {
            self.oldest = self.current - keep + 1;
        }
        let kept = self.versions.split_off(&self.oldest);
        let gone = std::mem::replace(&mut self.versions, kept);
        (self.current, gone)
    }

    /// When a version that becomes readable now stops being so: the smaller of the mount's and the key's time.
    pub fn expiry(&self, config: &Config, now: Stamp) -> Option<Stamp> {
        let own = (!self.delete_version_after.is_zero()).then_some(self.delete_version_after);
        let after = match config.delete_version_after {
            Expiry::Never => None,
            Expiry::Unset => own,
            Expiry::After(mount) => Some(own.map_or(mount, |own| own.min(mount))),
        };
        after.map(|after| now.plus(after))
    }

    /// What a read or write of a version says about it.
    pub fn describe(&self, number: u64, version: &Version) -> Value {
        let mut map = version.answer();
        map.insert("version".into(), number.into());
        map.insert("custom_metadata".into(), self.custom_answer());
        Value::Object(map)
    }

    /// The answer to `metadata/`.
    pub fn answer(&self) -> Value {
        let versions: Map<String, Value> = self
            .versions
            .iter()
            .map(|(number, version)| (number.to_string(), version.answer().into()))
            .collect();
        json!({
            "cas_required": self.cas_required,
            "created_time": self.created.text(),
            "current_metadata_version": self.revision,
            "current_version": self.current,
            "custom_metadata": self.custom_answer(),
            "delete_version_after": duration::format(self.delete_version_after),
            "max_versions": self.max_versions,
            "metadata_cas_required": self.metadata_cas_required,
            "oldest_version": self.oldest,
            "updated_time": self.updated.text(),
            "versions": versions,
        })
    }

    fn custom_answer(&self) -> Value {
        if self.custom.is_empty() {
            Value::Null
        } else {
            json!(self.custom)
        }
    }
}
