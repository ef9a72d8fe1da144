//! Request data: a JSON object (or a form) with limits, wiped when dropped.

use serde_json::{Map, Value};
use zeroize::Zeroize;

use super::path::decode;
use crate::http::ApiError;

/// Deepest nesting of arrays and objects.
const MAX_DEPTH: usize = 64;
/// Most values (array items and object members) in one body: a small body of `[[],[],…` must not become
/// hundreds of megabytes in memory (CVE-2025-6203).
const MAX_VALUES: usize = 100_000;

/// The fields of a request or an answer. May hold secrets: strings are wiped on drop and there is no `Debug`.
#[derive(Default, Clone, PartialEq)]
pub(crate) struct Data(Map<String, Value>);

impl Data {
    pub fn map(&self) -> &Map<String, Value> {
        &self.0
    }

    pub fn raw(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        self.0.insert(name.into(), value.into());
    }

    pub fn map_mut(&mut self) -> &mut Map<String, Value> {
        &mut self.0
    }

    /// All fields; whoever gets them wipes them.
    pub fn take_all(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.0)
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|v| !v.is_null())
    }
}

impl From<Map<String, Value>> for Data {
    fn from(map: Map<String, Value>) -> Self {
        Self(map)
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        for value in self.0.values_mut() {
            wipe(value);
        }
    }
}

/// Overwrite every string in a value.
pub(crate) fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(map) => map.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Parse a body: JSON whatever the content type says, except a form that says so and does not look like JSON.
pub(crate) fn parse(body: &[u8], content_type: Option<&str>) -> Result<Data, ApiError> {
    let first = body.iter().copied().find(|b| !b.is_ascii_whitespace());
    let Some(first) = first else {
        return Ok(Data::default());
    };
    let kind = content_type
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    if kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
        && !matches!(first, b'{' | b'[')
    {
        let text =
            std::str::from_utf8(body).map_err(|_| ApiError::bad("the form body is not UTF-8"))?;
        return form(text);
    }
    within_bounds(body)?;
    // A syntax error is described by its kind only: the parser's own message could repeat what was sent.
    match serde_json::from_slice::<Map<String, Value>>(body) {
        Ok(map) => Ok(Data(map)),
        Err(error) => Err(ApiError::bad(match error.classify() {
            serde_json::error::Category::Eof => {
                "failed to decode JSON input: unexpected EOF".to_string()
            }
            serde_json::error::Category::Data => {
                let kind = match first {
                    b'[' => "array",
                    b'"' => "string",
                    b't' | b'f' => "bool",
                    b'n' => return Ok(Data::default()),
                    _ => "number",
                };
                format!(
                    "failed to decode JSON input: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
                )
            }
            _ => format!(
                "failed to decode JSON input: invalid character at line {} column {}",
                error.line(),
                error.column()
            ),
        })),
    }
}

/// A linear pass before any parser: nesting and number of values.
pub(super) fn within_bounds(body: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut values, mut quoted, mut escaped) = (0usize, 0usize, false, false);
    for byte in body {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => {
                depth += 1;
                values += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(ApiError::bad(
                "the JSON body is nested deeper than 64 levels",
            ));
        }
        if values > MAX_VALUES {
            return Err(ApiError::bad("the JSON body has more than 100000 values"));
        }
    }
    Ok(())
}

/// Parse `a=b&c=d`; a name given twice becomes a list.
pub(crate) fn form(text: &str) -> Result<Data, ApiError> {
    let mut map = Map::new();
    for (count, pair) in text.split('&').filter(|p| !p.is_empty()).enumerate() {
        if count >= 1000 {
            return Err(ApiError::bad("more than 1000 parameters"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(&name.replace('+', " "))?;
        let value = Value::String(decode(&value.replace('+', " "))?);
        match map.get_mut(&name) {
            None => {
                map.insert(name, value);
            }
            Some(Value::Array(items)) => items.push(value),
            Some(old) => *old = Value::Array(vec![old.take(), value]),
        }
    }
    Ok(Data(map))
}

/// Vault's weak reading of a boolean in text.
pub(crate) fn weak_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
