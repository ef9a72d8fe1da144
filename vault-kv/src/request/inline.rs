//! A login that comes in the headers of the request it is for (OpenBao's inline authentication).
//!
//! `X-Vault-Inline-Auth-Path` names the login, and each `X-Vault-Inline-Auth-Parameter-…` has one of its fields: URL-safe
//! base64 without padding of `{"key": …, "value": …}`. No token comes of it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::{ApiPath, Data, header};
use crate::http::ApiError;

const PATH: HeaderName = HeaderName::from_static("x-vault-inline-auth-path");
const OPERATION: HeaderName = HeaderName::from_static("x-vault-inline-auth-operation");
const NAMESPACE: HeaderName = HeaderName::from_static("x-vault-inline-auth-namespace");
const PARAMETER: &str = "x-vault-inline-auth-parameter-";
/// Most fields.
const MOST: usize = 64;

/// Where to log in, and with what.
pub(crate) struct Inline {
    pub path: ApiPath,
    pub data: Data,
}

#[derive(Deserialize)]
struct Parameter {
    key: String,
    value: Value,
}

impl Inline {
    /// # Errors
    /// 400: what there is of it is not well-formed. No value is quoted.
    pub fn parse(headers: &HeaderMap) -> Result<Option<Box<Self>>, ApiError> {
        let Some(path) = headers.get(PATH) else {
            return Ok(None);
        };
        let path = path.to_str().unwrap_or_default();
        let path = path.strip_prefix("/v1/").unwrap_or(path);
        let path = ApiPath::parse(path.trim_start_matches('/'))?;
        if !matches!(
            header(headers, OPERATION).unwrap_or("update"),
            "update" | "create"
        ) {
            return Err(ApiError::bad(
                "X-Vault-Inline-Auth-Operation: a login is an update",
            ));
        }
        let namespace = header(headers, NAMESPACE).unwrap_or_default();
        if !matches!(namespace.trim_matches('/'), "" | "root") {
            return Err(ApiError::NoNamespace);
        }
        let mut data = Data::default();
        for (name, value) in headers {
            if !name.as_str().starts_with(PARAMETER) {
                continue;
            }
            let Parameter { key, value } = parameter(value.as_bytes()).ok_or_else(|| {
                ApiError::bad(format!(
                    "{name}: not URL-safe base64 without padding of {{\"key\": …, \"value\": …}}"
                ))
            })?;
            if data.map().len() == MOST || data.map().contains_key(&key) {
                return Err(ApiError::bad(
                    "X-Vault-Inline-Auth-Parameter: too many, or two with the same key",
                ));
            }
            data.insert(key, value);
        }
        Ok(Some(Box::new(Self { path, data })))
    }
}

fn parameter(text: &[u8]) -> Option<Parameter> {
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    super::body::within_bounds(&json).ok()?;
    serde_json::from_slice(&json).ok()
}
