//! What a line holds.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Hasher;
use crate::http::ApiError;
use crate::http::reply::Answer;
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
}

/// One request and what became of it.
pub(crate) struct Exchange<'a> {
    pub hasher: &'a Hasher,
    pub request: &'a Request,
    pub auth: Option<&'a AuthRecord>,
    pub decision: Option<&'a Decision>,
    /// Mount point and type, when the path belongs to one.
    pub mount: Option<(&'a str, &'a str)>,
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
        if let Some((point, kind)) = self.mount {
            response.insert("mount_point".into(), point.into());
            response.insert("mount_type".into(), kind.into());
        }
        match result {
            Ok(answer) => {
                if let Some(data) = &answer.data {
                    response.insert("data".into(), self.hasher.value(data));
                }
                if let Some(auth) = &answer.auth {
                    let body = json!({
                        "client_token": self.secret(&auth.client_token), "accessor": self.secret(&auth.accessor), "policies": auth.policies,
                        "token_policies": auth.token_policies, "token_type": auth.token_type, "token_ttl": auth.lease_duration,
                    });
                    response.insert("auth".into(), body);
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
        if let Some(spiffe) = &auth.spiffe {
            body["metadata"] = json!({ "spiffe_id": spiffe });
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
            "id": request.id, "operation": request.operation.as_str(), "path": request.path.as_str(),
            "namespace": {"id": "root"}, "remote_address": request.caller.remote.to_string(), "via": request.caller.via.as_str(),
        });
        if let Some(token) = &request.token {
            body["client_token"] = self.secret(token.expose()).into();
            body["client_token_accessor"] =
                self.secret(self.auth.map_or("", |a| &a.accessor)).into();
        }
        if let Some((point, kind)) = self.mount {
            body["mount_point"] = point.into();
            body["mount_type"] = kind.into();
        }
        if !request.data.is_empty() {
            body["data"] = Value::Object(self.hasher.map(request.data.map()));
        }
        body
    }

    fn secret(&self, text: &str) -> String {
        if text.is_empty() {
            String::new()
        } else {
            self.hasher.text(text)
        }
    }
}
