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

impl Exchange<'_> {
    /// The line before the engine runs. `error`: the request is refused already.
    pub fn request_line(&self, error: Option<&ApiError>) -> Value {
        let mut line = self.common("request");
        if let Some(error) = error {
            line.insert("error".into(), error.to_string().into());
        }
        Value::Object(line)
    }

    /// The line before the client gets its answer.
    pub fn response_line(&self, result: &Result<Answer, ApiError>) -> Value {
        let mut line = self.common("response");
        let mut response = Map::new();
        if let Some(mount) = self.mount {
            response.extend(mount.audited("plugin_version"));
        }
        match result {
            Ok(answer) => {
                if let Some(data) = &answer.data {
                    let plain = self.plain(|config| &config.audit_non_hmac_response_keys);
                    response.insert("data".into(), self.hasher.value_but(data, plain));
                }
                if let Some(wrap) = &answer.wrap {
                    let body = json!({
                        "token": self.secret(&wrap.token), "accessor": self.secret(&wrap.accessor), "ttl": wrap.ttl,
                        "creation_time": wrap.creation_time, "creation_path": wrap.creation_path,
                        "wrapped_accessor": self.secret(&wrap.wrapped_accessor),
                    });
                    response.insert("wrap_info".into(), body);
                }
                if let Some(auth) = &answer.auth {
                    let body = json!({
                        "client_token": self.secret(&auth.client_token), "accessor": self.secret(&auth.accessor), "policies": auth.policies,
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
            }
            Err(error) => {
                line.insert("error".into(), error.to_string().into());
            }
        }
        line.insert("response".into(), Value::Object(response));
        Value::Object(line)
    }

    fn common(&self, kind: &str) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert(
            "time".into(),
            OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default()
                .into(),
        );
        line.insert("type".into(), kind.into());
        if let Some(auth) = self.auth {
            line.insert("auth".into(), self.auth(auth));
        }
        line.insert("request".into(), self.request());
        line
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
            let plain = self.plain(|config| &config.audit_non_hmac_request_keys);
            body["data"] = Value::Object(self.hasher.map_but(request.data.map(), plain));
        }
        body
    }

    /// Fields that the mount's settings leave as they are.
    fn plain(&self, of: impl Fn(&MountConfig) -> &[String]) -> &[String] {
        self.mount.map_or(&[], |mount| of(&mount.config))
    }

    fn secret(&self, text: &str) -> String {
        if text.is_empty() {
            String::new()
        } else {
            self.hasher.text(text)
        }
    }
}
