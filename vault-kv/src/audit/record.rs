//! What a line holds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Hasher;
use crate::clock::rfc3339_unix;
use crate::http::ApiError;
use crate::http::reply::Answer;
use crate::mount::{Mount, MountConfig};
use crate::policy::Decision;
use crate::request::Request;

/// The caller, as the log shows it.
#[derive(Default)]
pub(crate) struct AuthRecord {
    pub display_name: String,
    pub accessor: String,
    pub policies: Vec<String>,
    pub token_type: &'static str,
    pub spiffe: Option<String>,
    /// Unix seconds at which the token was made.
    pub issued: Option<i64>,
    /// Seconds it was made for; 0: it does not expire.
    pub ttl: u64,
    /// Uses left before this one; 0: unlimited.
    pub remaining_uses: i64,
    pub metadata: Option<BTreeMap<String, String>>,
    /// Empty: the caller belongs to no entity.
    pub entity_id: String,
}

/// One request and what became of it.
pub(crate) struct Exchange<'a> {
    pub hasher: &'a Hasher,
    pub request: &'a Request,
    pub auth: Option<&'a AuthRecord>,
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
    pub fn request_line(&self, error: Option<&ApiError>) -> String {
        let error = error.map_or_else(String::new, |error| {
            format!(",\"error\":{}", Value::from(error.to_string()))
        });
        self.line("request", &error)
    }

    /// The line before the client gets its answer.
    pub fn response_line(
        &self,
        hasher: &Hasher,
        mount: Option<&Mount>,
        result: &Result<Answer, ApiError>,
    ) -> String {
        let mut rest = String::new();
        if let Err(error) = result {
            rest.push_str(&format!(",\"error\":{}", Value::from(error.to_string())));
        }
        let response = Value::Object(response(hasher, mount, result.as_ref().ok()));
        rest.push_str(&format!(",\"response\":{response}"));
        self.line("response", &rest)
    }

    fn line(&self, kind: &str, rest: &str) -> String {
        let now = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        format!(
            "{{\"time\":\"{now}\",\"type\":\"{kind}\",{}{rest}}}\n",
            self.0
        )
    }
}

/// What came of a request.
fn response(hasher: &Hasher, mount: Option<&Mount>, answer: Option<&Answer>) -> Map<String, Value> {
    let secret = |text: &str| secret(hasher, text);
    let mut response = Map::new();
    if let Some(mount) = mount {
        response.extend(mount.audited("plugin_version"));
    }
    let Some(answer) = answer else {
        return response;
    };
    if let Some(data) = &answer.data {
        let plain = plain(mount, |config| &config.audit_non_hmac_response_keys);
        response.insert("data".into(), hasher.value_but(data, plain));
    }
    if let Some(wrap) = &answer.wrap {
        let body = json!({
            "token": secret(&wrap.token), "accessor": secret(&wrap.accessor), "ttl": wrap.ttl,
            "creation_time": wrap.creation_time, "creation_path": wrap.creation_path,
            "wrapped_accessor": secret(&wrap.wrapped_accessor),
        });
        response.insert("wrap_info".into(), body);
    }
    if let Some(auth) = &answer.auth {
        let body = json!({
            "client_token": secret(&auth.client_token), "accessor": secret(&auth.accessor), "policies": auth.policies,
            "token_policies": auth.token_policies, "token_type": auth.token_type, "token_ttl": auth.lease_duration,
        });
        response.insert("auth".into(), body);
    }
    if let Some(lease) = &answer.lease {
        response.insert("secret".into(), json!({"lease_id": lease.id}));
    }
    if !answer.warnings.is_empty() {
        response.insert("warnings".into(), json!(answer.warnings));
    }
    response
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
        let request = self.request();
        Said(match self.auth {
            Some(auth) => format!("\"auth\":{},\"request\":{request}", self.auth(auth)),
            None => format!("\"request\":{request}"),
        })
    }

    fn auth(&self, auth: &AuthRecord) -> Value {
        let mut body = json!({
            "accessor": self.secret(&auth.accessor), "display_name": auth.display_name,
            "policies": auth.policies, "token_policies": auth.policies, "token_type": auth.token_type,
        });
        if let Some(token) = &self.request.token {
            body["client_token"] = self.secret(token.expose()).into();
        }
        if !auth.entity_id.is_empty() {
            body["entity_id"] = auth.entity_id.as_str().into();
        }
        if let Some(spiffe) = &auth.spiffe {
            body["metadata"] = json!({ "spiffe_id": spiffe });
        }
        if let Some(metadata) = &auth.metadata {
            body["metadata"] = json!(metadata);
        }
        if let Some(issued) = auth.issued {
            body["token_issue_time"] = rfc3339_unix(issued).into();
            body["token_ttl"] = auth.ttl.into();
        }
        if auth.remaining_uses > 0 {
            body["remaining_uses"] = auth.remaining_uses.into();
        }
        if let Some(decision) = self.decision {
            let granting: Vec<_> = decision
                .granting()
                .iter()
                .map(|p| json!({"name": p.as_str(), "namespace_id": "root", "type": "acl"}))
                .collect();
            body["policy_results"] =
                json!({"allowed": decision.allowed, "granting_policies": granting});
        }
        body
    }

    fn request(&self) -> Value {
        let request = self.request;
        let mut body = json!({
            "id": request.id, "operation": self.operation, "path": request.path.as_str(),
            "namespace": {"id": "root"}, "remote_address": request.caller.remote.to_string(), "via": request.caller.via.as_str(),
        });
        if let Some(token) = &request.token {
            body["client_token"] = self.secret(token.expose()).into();
            body["client_token_accessor"] =
                self.secret(self.auth.map_or("", |a| &a.accessor)).into();
        }
        if let Some(mount) = self.mount {
            for (name, value) in mount.audited("version") {
                body[name] = value;
            }
        }
        if let Some(ttl) = request.wrap_ttl {
            body["wrap_ttl"] = ttl.as_secs().into();
        }
        if !request.data.is_empty() {
            let plain = plain(self.mount, |config| &config.audit_non_hmac_request_keys);
            body["data"] = Value::Object(self.hasher.map_but(request.data.map(), plain));
        }
        body
    }

    fn secret(&self, text: &str) -> String {
        secret(self.hasher, text)
    }
}
