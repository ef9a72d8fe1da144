//! What was registered over HTTP, kept for the agent's next start as Consul keeps it.
//!
//! The file holds the requests as they came, except for their ACL tokens, and is read by what reads requests. What is
//! gone from the node's records, whatever took it away, goes from the file too.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use libmesh::{catalog::LocalLog, files, model::InstanceId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Refused, server_error};

/// The requests of one agent. Cheap to clone.
#[derive(Clone, Default)]
pub struct Registered {
    inner: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    file: Option<PathBuf>,
    requests: Requests,
}

/// The file's content.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Requests {
    /// By instance id.
    pub services: BTreeMap<String, ServiceRequest>,
    /// Checks that were registered by themselves, by check id.
    pub checks: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceRequest {
    /// The request's body.
    pub body: Value,
    /// Those of its checks that were not taken away since.
    pub checks: BTreeSet<String>,
}

impl Registered {
    /// Keeps everything in `file` from now on; what it holds of an earlier time, without the instances in `others`.
    pub fn open(&self, file: &Path, others: &[InstanceId]) -> io::Result<Requests> {
        let mut requests = match files::read_private(file)? {
            Some(bytes) => serde_json::from_slice(&bytes)?,
            None => Requests::default(),
        };
        for other in others {
            requests.services.remove(other.as_str());
        }
        *self.inner.lock() = Kept {
            file: Some(file.to_owned()),
            requests: Requests::clone(&requests),
        };
        Ok(requests)
    }

    pub async fn service(
        &self,
        local: LocalLog,
        id: &InstanceId,
        body: &Bytes,
        checks: BTreeSet<String>,
    ) -> Result<(), Refused> {
        let (id, body) = (id.to_string(), without_tokens(body));
        self.change(local, move |requests| {
            requests.checks.retain(|check, _| !checks.contains(check));
            let request = ServiceRequest { body, checks };
            requests.services.insert(id, request);
        })
        .await
    }

    pub async fn check(&self, local: LocalLog, id: &str, body: &Bytes) -> Result<(), Refused> {
        let (id, body) = (id.to_owned(), without_tokens(body));
        self.change(local, move |requests| {
            requests.checks.insert(id, body);
        })
        .await
    }

    /// Forgets what is no longer among the node's records.
    pub async fn forget_gone(&self, local: LocalLog) -> Result<(), Refused> {
        self.change(local, |_| {}).await
    }

    async fn change(
        &self,
        local: LocalLog,
        change: impl FnOnce(&mut Requests) + Send + 'static,
    ) -> Result<(), Refused> {
        let inner = Arc::clone(&self.inner);
        let write = move || {
            let mut kept = inner.lock();
            let Some(file) = kept.file.clone() else {
                return Ok(());
            };
            let mut requests = kept.requests.clone();
            change(&mut requests);
            requests.keep_present(&local);
            if requests != kept.requests {
                files::write_private(&file, &serde_json::to_vec(&requests)?)?;
                kept.requests = requests;
            }
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

impl Requests {
    fn keep_present(&mut self, local: &LocalLog) {
        let services = local.services();
        let services: BTreeSet<_> = services.iter().map(|it| it.id.as_str()).collect();
        let checks = local.checks();
        let checks: BTreeSet<_> = checks.iter().map(|check| &*check.id).collect();
        self.services.retain(|id, _| services.contains(&**id));
        for service in self.services.values_mut() {
            service.checks.retain(|id| checks.contains(&**id));
        }
        self.checks.retain(|id, _| checks.contains(&**id));
    }
}

/// The request without the ACL tokens that it carries, in its own fields and its checks'.
fn without_tokens(body: &[u8]) -> Value {
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
    body
}
