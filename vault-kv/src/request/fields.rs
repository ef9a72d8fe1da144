//! Typed reading of request fields with Vault's weak coercions, in one place.
//!
//! Errors name the field and the expected type and never the value.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::body::{Data, weak_bool};
use super::duration;
use crate::http::ApiError;

impl Data {
    /// Text; numbers and booleans are taken as their JSON text.
    pub fn text(&self, name: &str) -> Result<Option<String>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(flag)) => Ok(Some(flag.to_string())),
            Some(other) => Err(mismatch(name, "string", other)),
        }
    }

    /// An integer, also from text.
    pub fn int(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let unreadable = || {
            ApiError::bad(format!(
                "Field validation failed: error converting input for field \"{name}\": '' cannot parse value as 'int': strconv.ParseInt: invalid syntax"
            ))
        };
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number
                .as_i64()
                .or_else(|| {
                    number
                        .as_f64()
                        .filter(|f| f.fract() == 0.0 && f.abs() < 9e15)
                        .map(|f| f as i64)
                })
                .map(Some)
                .ok_or_else(unreadable),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => text.trim().parse().map(Some).map_err(|_| unreadable()),
            Some(Value::Bool(flag)) => Ok(Some(i64::from(*flag))),
            Some(other) => Err(mismatch(name, "int", other)),
        }
    }

    /// A boolean, also from text or a number.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::Number(number)) => Ok(Some(number.as_f64() != Some(0.0))),
            Some(Value::String(text)) => weak_bool(text).map(Some).ok_or_else(|| {
                ApiError::bad(format!(
                    "error converting input for field \"{name}\": '' cannot parse value as 'bool'"
                ))
            }),
            Some(other) => Err(mismatch(name, "bool", other)),
        }
    }

    /// A duration: a number is seconds, text is [`duration::parse`]d.
    pub fn duration(&self, name: &str) -> Result<Option<Duration>, ApiError> {
        let parsed = match self.raw(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number
                .as_u64()
                .and_then(|n| duration::parse(&n.to_string())),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => duration::parse(text),
            Some(other) => return Err(mismatch(name, "duration", other)),
        };
        parsed.map(Some).ok_or_else(|| ApiError::bad(format!("field \"{name}\": not a duration; write seconds, or a text such as 90s, 1h30m or 7d")))
    }

    /// A list of texts: a JSON array or comma-separated text. Items are trimmed; empty ones are dropped.
    pub fn list(&self, name: &str) -> Result<Option<Vec<String>>, ApiError> {
        let items = match self.raw(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text
                .split(',')
                .map(|s| s.trim().to_string())
                .collect::<Vec<_>>(),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| match item {
                    Value::String(text) => Ok(text.trim().to_string()),
                    Value::Number(number) => Ok(number.to_string()),
                    other => Err(mismatch(name, "string", other)),
                })
                .collect::<Result<_, _>>()?,
            Some(Value::Number(number)) => vec![number.to_string()],
            Some(other) => return Err(mismatch(name, "list", other)),
        };
        Ok(Some(items.into_iter().filter(|s| !s.is_empty()).collect()))
    }

    /// A map of texts: a JSON object with text values.
    pub fn text_map(&self, name: &str) -> Result<Option<BTreeMap<String, String>>, ApiError> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key.clone(), text.clone())),
                    Value::Number(number) => Ok((key.clone(), number.to_string())),
                    Value::Bool(flag) => Ok((key.clone(), flag.to_string())),
                    other => Err(ApiError::bad(format!("{name} validation failed: '' expected type 'string', got unconvertible type '{}'", go_type(other)))),
                })
                .collect::<Result<_, _>>()
                .map(Some),
            Some(other) => Err(mismatch(name, "map[string]interface {}", other)),
        }
    }
}

/// The error for a field of the wrong JSON type, worded like Vault's.
pub(crate) fn mismatch(name: &str, wanted: &str, got: &Value) -> ApiError {
    ApiError::bad(format!(
        "error converting input for field \"{name}\": '' expected type '{wanted}', got unconvertible type '{}'",
        go_type(got)
    ))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "nil",
        Value::Bool(_) => "bool",
        Value::Number(_) => "json.Number",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
