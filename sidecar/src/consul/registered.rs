//! What was registered over HTTP, kept for the agent's next start as Consul keeps it.
//!
//! The file holds the requests as they came, except for their ACL tokens, and is read by what reads requests. What is
//! gone from the node's records, whatever took it away, goes from the file too.
//!
//! Costs: a registration is one line at the end of the file and one `fdatasync` for all that wait, however much is kept; a
//! deregistration the same. See [`journal`] for when the file is written anew. Each takes what its text takes in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use libmesh::{
    catalog::{Gone, LocalLog},
    files,
    model::InstanceId,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{Refused, server_error};

mod journal;

use journal::{Journal, Line};

/// The requests of one agent. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registered {
    kept: Arc<Mutex<Kept>>,
    /// Whoever has it writes, for all that wait for it.
    journal: Arc<tokio::sync::Mutex<Journal>>,
}

/// What is kept, and what of it the file does not say yet.
#[derive(Default)]
struct Kept {
    /// There is a file.
    on: bool,
    requests: Requests,
    /// The instance that a check was registered with.
    of: HashMap<String, String>,
    /// Up to here it is known what is gone.
    seen: libmesh::catalog::log::Head,
    /// Lines for the file.
    waiting: Vec<u8>,
    /// How many lines there were ever, and how many of them are durable.
    noted: u64,
    written: u64,
}

/// Requests by what they registered.
#[derive(Default, Serialize, Deserialize)]
pub struct Requests {
    /// By instance id.
    pub services: BTreeMap<String, ServiceRequest>,
    /// Checks that were registered by themselves, by check id.
    pub checks: BTreeMap<String, Box<RawValue>>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct ServiceRequest {
    /// The request's body.
    pub body: Box<RawValue>,
    /// Those of its checks that were not taken away since.
    pub checks: BTreeSet<String>,
}

impl Registered {
    /// Keeps everything in `file` from now on; what it holds of an earlier time, without the instances in `others`.
    pub fn open(&self, file: &Path, others: &[InstanceId]) -> io::Result<Requests> {
        let mut kept = Kept {
            on: true,
            ..Kept::default()
        };
        if let Some(text) = files::read_private(file)? {
            kept.requests = journal::read(&text)?;
        }
        for other in others {
            kept.requests.services.remove(other.as_str());
        }
        for (id, request) in &kept.requests.services {
            let checks = request.checks.iter();
            kept.of
                .extend(checks.map(|check| (check.clone(), id.clone())));
        }
        let requests = Requests {
            services: kept.requests.services.clone(),
            checks: kept.requests.checks.clone(),
        };
        *self.kept.lock() = kept;
        let mut journal = self.journal.try_lock().map_err(io::Error::other)?;
        *journal = Journal::new(file);
        Ok(requests)
    }

    pub async fn service(
        &self,
        local: LocalLog,
        id: &InstanceId,
        body: &Bytes,
        checks: BTreeSet<String>,
    ) -> Result<(), Refused> {
        self.change(&local, |kept| {
            // Somebody may have taken it away again already.
            if local.service(id).is_some() {
                let body = without_tokens(body);
                kept.note(Line::service(
                    id.to_string(),
                    ServiceRequest { body, checks },
                ));
            }
        })
        .await
    }

    pub async fn check(&self, local: LocalLog, id: &str, body: &Bytes) -> Result<(), Refused> {
        self.change(&local, |kept| {
            if local.check(id).is_some() {
                kept.note(Line::check(id.to_owned(), without_tokens(body)));
            }
        })
        .await
    }

    /// Forgets what is no longer among the node's records.
    pub async fn forget_gone(&self, local: LocalLog) -> Result<(), Refused> {
        self.change(&local, |_| {}).await
    }

    async fn change(
        &self,
        local: &LocalLog,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), Refused> {
        let noted = {
            let mut kept = self.kept.lock();
            if !kept.on {
                return Ok(());
            }
            kept.forget_gone(local);
            change(&mut kept);
            if kept.written == kept.noted {
                return Ok(());
            }
            kept.noted
        };
        let mut journal = Arc::clone(&self.journal).lock_owned().await;
        if self.kept.lock().written >= noted {
            return Ok(());
        }
        let kept = Arc::clone(&self.kept);
        let write = move || {
            let mut upto = 0;
            journal.write(|whole| {
                let mut kept = kept.lock();
                upto = kept.noted;
                let lines = std::mem::take(&mut kept.waiting);
                if whole { kept.requests.lines() } else { lines }
            })?;
            kept.lock().written = upto;
            io::Result::Ok(())
        };
        let written = tokio::task::spawn_blocking(write).await;
        let written = written.map_err(|error| server_error(error.to_string()))?;
        written.map_err(|error| {
            server_error(format!(
                "done, but not kept for the agent's next start: {error}"
            ))
        })
    }
}

impl Kept {
    fn forget_gone(&mut self, local: &LocalLog) {
        let (seen, gone) = local.gone_since(self.seen);
        self.seen = seen;
        let gone = gone.unwrap_or_else(|| self.requests.missing(local));
        for gone in gone {
            self.note(match gone {
                Gone::Instance(id) => Line::NoService(id.to_string()),
                Gone::Check(id) => Line::NoCheck(id.to_string()),
            });
        }
    }

    /// Takes a line in, and has it written if it changes anything.
    fn note(&mut self, line: Line) {
        let text = serde_json::to_vec(&line).expect("requests were read as JSON");
        if self.requests.take(line, &mut self.of) {
            self.waiting.extend(text);
            self.waiting.push(b'\n');
            self.noted += 1;
        }
    }
}

impl Requests {
    /// What is here and not among the node's records. Looks at everything.
    fn missing(&self, local: &LocalLog) -> Vec<Gone> {
        let services = local.services();
        let services: BTreeSet<_> = services.iter().map(|it| it.id.as_str()).collect();
        let checks = local.checks();
        let checks: BTreeSet<_> = checks.iter().map(|check| &*check.id).collect();
        let gone = self.services.keys().filter(|id| !services.contains(&***id));
        let gone = gone.filter_map(|id| Some(Gone::Instance(InstanceId::parse(id).ok()?)));
        let own = self.services.values().flat_map(|it| &it.checks);
        let no_checks = own.chain(self.checks.keys());
        let no_checks = no_checks.filter(|id| !checks.contains(&***id));
        gone.chain(no_checks.map(|id| Gone::Check(id.as_str().into())))
            .collect()
    }
}

/// The request without the ACL tokens that it carries, in its own fields and its checks'.
fn without_tokens(body: &[u8]) -> Box<RawValue> {
    // It was read as JSON a moment ago.
    let mut body = serde_json::from_slice(body).unwrap_or_default();
    if let Value::Object(fields) = &mut body {
        fields.retain(|name, _| !name.eq_ignore_ascii_case("token"));
        for (name, value) in fields {
            let checks = match value {
                Value::Array(checks) if name.eq_ignore_ascii_case("checks") => &mut checks[..],
                check if name.eq_ignore_ascii_case("check") => std::slice::from_mut(check),
                _ => continue,
            };
            for check in checks.iter_mut().filter_map(Value::as_object_mut) {
                check.retain(|name, _| !name.eq_ignore_ascii_case("token"));
            }
        }
    }
    serde_json::value::to_raw_value(&body).expect("a value is JSON")
}

#[cfg(test)]
mod tests;
