//! What a line holds. Written straight into the line's buffer: no tree of values is built of what is only written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Hashed, Hasher};
use crate::clock::rfc3339_unix;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::{BUILTIN_VERSION, Mount, MountConfig};
use crate::policy::{Decision, PolicyName};
use crate::request::{Request, body::wipe};

/// The caller, as the log shows it.
#[derive(Default)]
pub(crate) struct AuthRecord<'a> {
    pub display_name: &'a str,
    pub policies: &'a [PolicyName],
    pub token_type: &'static str,
    pub spiffe: Option<&'a str>,
    /// Unix seconds at which the token was made.
    pub issued: Option<i64>,
    /// Seconds it was made for; 0: it does not expire.
    pub ttl: u64,
    /// Uses left before this one; 0: unlimited.
    pub remaining_uses: i64,
    pub metadata: Option<&'a BTreeMap<String, String>>,
    /// Empty: the caller belongs to no entity.
    pub entity_id: &'a str,
    /// The token, in the form in which it appears.
    pub token: Option<&'a TokenHashes>,
}

/// A token and its accessor in the form in which they appear.
pub(crate) struct TokenHashes {
    pub token: String,
    pub accessor: String,
}

/// One request and what became of it.
pub(crate) struct Exchange<'a> {
    pub hasher: &'a Hasher,
    pub request: &'a Request,
    pub auth: Option<&'a AuthRecord<'a>>,
    pub decision: Option<&'a Decision>,
    /// `create` or `update` for a write, as was found out when it was authorized.
    pub operation: &'a str,
    /// The mount that the path belongs to.
    pub mount: Option<&'a Mount>,
}

/// What both lines of an exchange say, as the inside of a JSON object: written once, also because the engine takes the
/// request's data away.
pub(crate) struct Said(String);

impl Said {
    /// The line before the engine runs. `error`: the request is refused already.
    pub fn request_line(&self, error: Option<&ApiError>) -> Vec<u8> {
        self.line("request", error, None)
    }

    /// The line before the client gets its answer.
    pub fn response_line(
        &self,
        hasher: &Hasher,
        mount: Option<&Mount>,
        result: &Result<Answer, ApiError>,
    ) -> Vec<u8> {
        let answer = result.as_ref().ok();
        let mut data = answer.and_then(Answer::value);
        let plain = plain(mount, |config| &config.audit_non_hmac_response_keys);
        let response = Response {
            auth: answer.and_then(|answer| auth_of(hasher, answer)),
            data: data.as_deref().map(|value| hasher.hashed(value, plain)),
            mount: mount.map(OnMount::of),
            mount_running_plugin_version: mount.map(|_| BUILTIN_VERSION),
            secret: answer
                .and_then(|answer| answer.lease.as_ref())
                .map(|lease| json!({"lease_id": lease.id})),
            warnings: answer.map_or(&[], |answer| &answer.warnings),
            wrap_info: answer.and_then(|answer| wrap_of(hasher, answer)),
        };
        let line = self.line("response", result.as_ref().err(), Some(&response));
        if let Some(Cow::Owned(copy)) = &mut data {
            wipe(copy);
        }
        line
    }

    fn line(&self, kind: &str, error: Option<&ApiError>, response: Option<&Response>) -> Vec<u8> {
        let now = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let mut line = Vec::with_capacity(self.0.len() + 1024);
        for part in ["{\"time\":\"", &now, "\",\"type\":\"", kind, "\",", &self.0] {
            line.extend_from_slice(part.as_bytes());
        }
        if let Some(error) = error {
            line.extend_from_slice(b",\"error\":");
            push(&mut line, &error.to_string());
        }
        if let Some(response) = response {
            line.extend_from_slice(b",\"response\":");
            push(&mut line, response);
        }
        line.extend_from_slice(b"}\n");
        line
    }
}

fn push(line: &mut Vec<u8>, value: &impl Serialize) {
    // Texts, numbers and maps with text keys always serialise, and memory takes everything.
    let _ = serde_json::to_writer(line, value);
}

#[derive(Serialize)]
struct Auth<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    accessor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_token: Option<&'a str>,
    display_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    entity_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
    policies: Names<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_results: Option<Results>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_uses: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_issue_time: Option<String>,
    token_policies: Names<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ttl: Option<u64>,
    token_type: &'a str,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Metadata<'a> {
    Spiffe { spiffe_id: &'a str },
    Given(&'a BTreeMap<String, String>),
}

/// Of policies.
struct Names<'a>(&'a [PolicyName]);

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(PolicyName::as_str))
    }
}

#[derive(Serialize)]
struct Results {
    allowed: bool,
    granting_policies: Vec<Value>,
}

#[derive(Serialize)]
struct Asked<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_token: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_token_accessor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Hashed<'a>>,
    id: &'a str,
    #[serde(flatten)]
    mount: Option<OnMount<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount_running_version: Option<&'static str>,
    namespace: Namespace,
    operation: &'a str,
    path: &'a str,
    remote_address: String,
    via: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrap_ttl: Option<u64>,
}

#[derive(Serialize)]
struct Namespace {
    id: &'static str,
}

#[derive(Serialize)]
struct OnMount<'a> {
    mount_accessor: &'a str,
    mount_class: &'static str,
    mount_point: &'a str,
    mount_type: &'static str,
}

impl<'a> OnMount<'a> {
    fn of(mount: &'a Mount) -> Self {
        Self {
            mount_accessor: &mount.accessor,
            mount_class: if mount.is_auth() { "auth" } else { "secret" },
            mount_point: &mount.path,
            mount_type: mount.kind.as_str(),
        }
    }
}

/// What came of a request.
#[derive(Serialize)]
struct Response<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Hashed<'a>>,
    #[serde(flatten)]
    mount: Option<OnMount<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount_running_plugin_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<Value>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    wrap_info: Option<Value>,
}

fn wrap_of(hasher: &Hasher, answer: &Answer) -> Option<Value> {
    let wrap = answer.wrap.as_ref()?;
    let secret = |text: &str| secret(hasher, text);
    Some(json!({
        "token": secret(&wrap.token), "accessor": secret(&wrap.accessor), "ttl": wrap.ttl,
        "creation_time": wrap.creation_time, "creation_path": wrap.creation_path,
        "wrapped_accessor": secret(&wrap.wrapped_accessor),
    }))
}

fn auth_of(hasher: &Hasher, answer: &Answer) -> Option<Value> {
    let auth = answer.auth.as_ref()?;
    let secret = |text: &str| secret(hasher, text);
    Some(json!({
        "client_token": secret(&auth.client_token), "accessor": secret(&auth.accessor), "policies": auth.policies,
        "token_policies": auth.token_policies, "token_type": auth.token_type, "token_ttl": auth.lease_duration,
    }))
}

/// Fields that the mount's settings leave as they are.
fn plain(mount: Option<&Mount>, of: impl Fn(&MountConfig) -> &[String]) -> &[String] {
    mount.map_or(&[], |mount| of(&mount.config))
}

fn secret(hasher: &Hasher, text: &str) -> String {
    match text.is_empty() {
        true => String::new(),
        false => hasher.text(text),
    }
}

impl Exchange<'_> {
    /// What both its lines say.
    pub fn said(&self) -> Said {
        let mut text = Vec::with_capacity(1024);
        if let Some(auth) = self.auth {
            text.extend_from_slice(b"\"auth\":");
            push(&mut text, &self.auth(auth));
            text.push(b',');
        }
        text.extend_from_slice(b"\"request\":");
        self.push_request(&mut text);
        Said(String::from_utf8(text).unwrap_or_default())
    }

    fn auth<'a>(&'a self, auth: &'a AuthRecord<'_>) -> Auth<'a> {
        let results = |decision: &Decision| Results {
            allowed: decision.allowed,
            granting_policies: decision
                .granting()
                .iter()
                .map(|p| json!({"name": p.as_str(), "namespace_id": "root", "type": "acl"}))
                .collect(),
        };
        Auth {
            accessor: Some(auth.token.map_or("", |token| &token.accessor)),
            client_token: auth.token.map(|token| &*token.token),
            display_name: auth.display_name,
            entity_id: auth.entity_id,
            metadata: match auth.spiffe {
                Some(spiffe_id) => Some(Metadata::Spiffe { spiffe_id }),
                None => auth.metadata.map(Metadata::Given),
            },
            policies: Names(auth.policies),
            policy_results: self.decision.map(results),
            remaining_uses: (auth.remaining_uses > 0).then_some(auth.remaining_uses),
            token_issue_time: auth.issued.map(rfc3339_unix),
            token_policies: Names(auth.policies),
            token_ttl: auth.issued.map(|_| auth.ttl),
            token_type: auth.token_type,
        }
    }

    fn push_request(&self, text: &mut Vec<u8>) {
        let request = self.request;
        let known = self.auth.and_then(|auth| auth.token);
        let sent = request.token.as_ref().map(|token| match known {
            Some(known) => known.token.clone(),
            None => secret(self.hasher, token.expose()),
        });
        let plain = plain(self.mount, |config| &config.audit_non_hmac_request_keys);
        let asked = Asked {
            client_token: sent.as_deref(),
            client_token_accessor: sent
                .as_ref()
                .map(|_| known.map_or("", |known| &known.accessor)),
            data: (!request.data.is_empty())
                .then(|| self.hasher.hashed_map(request.data.map(), plain)),
            id: &request.id,
            mount: self.mount.map(OnMount::of),
            mount_running_version: self.mount.map(|_| BUILTIN_VERSION),
            namespace: Namespace { id: "root" },
            operation: self.operation,
            path: request.path.as_str(),
            remote_address: request.caller.remote.to_string(),
            via: request.caller.via.as_str(),
            wrap_ttl: request.wrap_ttl.map(|ttl| ttl.as_secs()),
        };
        push(text, &asked);
    }
}
