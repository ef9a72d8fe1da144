//! Who asked for what: the audit log, in Vault's JSON format.
//!
//! A request line is written before the engine runs and a response line before the client sees a byte. If no
//! sink can take a line the request fails with 503 and the reason; it never waits longer than [`PATIENCE`] for
//! a sink. With several sinks one that takes it is enough. [`Audit::reopen`] lets files be rotated. Sinks come from the local
//! configuration only: an API that opens files on the host is how CVE-2025-6000 began.
//!
//! Values are not written. Every string in request and response data, every token and accessor becomes
//! `hmac-sha256:<hex>` under a key that lives inside the barrier ([`Hasher`]); map keys, numbers and booleans stay.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ring::hmac;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use crate::http::{ApiError, push_hex};
use crate::sys::{Locked, hash_without_traces, without_traces};

mod file;
mod record;

use file::{FileSink, HandedOver};
pub(crate) use record::{AuthRecord, Exchange, Said, TokenHashes};

/// Longest wait for a sink to take one line.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Where audit lines go. Configured on the host, never over the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSink {
    /// Name shown by `sys/audit` (`file` is usual).
    pub name: String,
    /// The file; created with mode 0600, appended to. An existing file that others may read is refused.
    pub path: PathBuf,
}

/// A sink that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened or created.
    #[error("cannot open the audit log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file at its path cannot be opened anew; the one that was open is written to as before.
    #[error("the audit log {} is not reopened, the old file goes on: {reason}", path.display())]
    Reopen {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Others than its owner may read it.
    #[error("the audit log {} is readable by others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
}

/// All open sinks.
pub(crate) struct Audit {
    sinks: Vec<Arc<FileSink>>,
}

impl Audit {
    /// Open every sink.
    ///
    /// # Errors
    /// The first sink that cannot be opened: a server that was told to audit does not start without.
    pub fn open(sinks: &[AuditSink]) -> Result<Self, AuditError> {
        Ok(Self {
            sinks: sinks
                .iter()
                .map(|sink| FileSink::open(sink).map(Arc::new))
                .collect::<Result<_, _>>()?,
        })
    }

    /// True when nothing is configured.
    pub fn is_off(&self) -> bool {
        self.sinks.is_empty()
    }

    pub fn names(&self) -> impl Iterator<Item = &AuditSink> {
        self.sinks.iter().map(|s| &s.config)
    }

    /// Write one line to every sink; one that takes it is enough.
    pub async fn write(&self, line: impl FnOnce() -> Vec<u8>) -> Result<(), ApiError> {
        self.submit(line).taken().await
    }

    /// Hand one line to every sink, behind those before it.
    pub fn submit(&self, line: impl FnOnce() -> Vec<u8>) -> Submitted {
        let mut pending = Vec::with_capacity(self.sinks.len());
        // Without a sink a line costs nothing.
        if let Some((last, others)) = self.sinks.split_last() {
            let text = line();
            for sink in others {
                pending.push((Arc::clone(sink), sink.submit(text.clone())));
            }
            pending.push((Arc::clone(last), last.submit(text)));
        }
        Submitted {
            pending,
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// Opens every file at its path again, after the old one was renamed: what is written from here on goes to
    /// the new one.
    ///
    /// # Errors
    /// The first that cannot be opened; all are tried.
    pub async fn reopen(&self) -> Result<(), AuditError> {
        let mut outcome = Ok(());
        for sink in &self.sinks {
            let failed = |reason| AuditError::Reopen {
                path: sink.config.path.clone(),
                reason,
            };
            let reopened = match sink.reopen() {
                Err(full) => Err(full),
                Ok(done) => match timeout(PATIENCE, done).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err("its writer has stopped".into()),
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                },
            };
            if let Err(reason) = reopened {
                let error = failed(reason);
                tracing::error!(%error, "audit log");
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }
}

/// A line that the sinks have, or not.
pub(crate) struct Submitted {
    pending: Vec<(Arc<FileSink>, HandedOver)>,
    deadline: Instant,
}

impl Submitted {
    /// Wait until one sink has written it.
    ///
    /// # Errors
    /// 503: none does, or not in time.
    pub async fn taken(self) -> Result<(), ApiError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let (mut taken, mut failures) = (false, Vec::new());
        for (sink, done) in self.pending {
            let outcome = match done {
                Err(full) => Err(full),
                Ok(done) => match timeout_at(self.deadline, done).await {
                    Ok(Ok(result)) => result,
                    Ok(Err(_)) => Err("its writer has stopped".into()),
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                },
            };
            match outcome {
                Ok(()) => taken = true,
                Err(why) => {
                    tracing::error!(sink = %sink.config.path.display(), %why, "audit line not written");
                    failures.push(format!("{}: {why}", sink.config.name));
                }
            }
        }
        if taken {
            return Ok(());
        }
        Err(ApiError::Unavailable(format!(
            "no audit sink takes this request ({}); it was not carried out, or its answer is withheld",
            failures.join("; ")
        )))
    }
}

/// Turns secrets into `hmac-sha256:` texts that can be compared but not read back.
pub(crate) struct Hasher(Locked<hmac::Key>);

impl Hasher {
    /// `key` comes from inside the barrier.
    pub fn new(key: &[u8]) -> Self {
        without_traces(|| Self(Locked::new(hmac::Key::new(hmac::HMAC_SHA256, key))))
    }

    /// The form in which a text appears in the log.
    pub fn text(&self, text: &str) -> String {
        let tag = hash_without_traces(|| hmac::sign(&self.0, text.as_bytes()));
        let mut out = String::with_capacity(77);
        out.push_str("hmac-sha256:");
        push_hex(&mut out, tag.as_ref());
        out
    }

    /// A value with every text replaced, but for those at the top whose key is in `plain`.
    pub fn hashed<'a>(&'a self, value: &'a Value, plain: &'a [String]) -> Hashed<'a> {
        match value {
            Value::Object(map) => self.hashed_map(map, plain),
            value => Hashed::Value(self, value),
        }
    }

    /// The same for an object.
    pub fn hashed_map<'a>(
        &'a self,
        map: &'a Map<String, Value>,
        plain: &'a [String],
    ) -> Hashed<'a> {
        Hashed::Map(self, map, plain)
    }
}

/// What serialises with its texts replaced; keys, numbers and booleans stay.
pub(crate) enum Hashed<'a> {
    Map(&'a Hasher, &'a Map<String, Value>, &'a [String]),
    Value(&'a Hasher, &'a Value),
    Plain(&'a Value),
}

impl Serialize for Hashed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Map(hasher, map, plain) => {
                serializer.collect_map(map.iter().map(|(key, value)| {
                    let value = match plain.contains(key) {
                        true => Self::Plain(value),
                        false => hasher.hashed(value, &[]),
                    };
                    (key, value)
                }))
            }
            Self::Value(hasher, Value::String(text)) => {
                serializer.serialize_str(&hasher.text(text))
            }
            Self::Value(hasher, Value::Array(items)) => {
                serializer.collect_seq(items.iter().map(|item| hasher.hashed(item, &[])))
            }
            Self::Value(_, value) | Self::Plain(value) => value.serialize(serializer),
        }
    }
}

/// What `sys/audit` says about the sinks.
pub(crate) fn describe(audit: &Audit) -> Map<String, Value> {
    let one = |sink: &AuditSink| {
        let name = format!("{}/", sink.name);
        let body = json!({"type": "file", "description": "from the local configuration", "local": true, "path": name, "options": {"file_path": sink.path}});
        (name, body)
    };
    audit.names().map(one).collect()
}

#[cfg(test)]
mod tests;
