//! Request bodies as Go reads them: field names match whatever their case, snake_case is taken, unknown
//! fields are refused, durations are strings or nanoseconds.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Map, Value};

use super::{Refused, bad_request};

/// The fields of one JSON object. Every `take` removes its field; [`Fields::finish`] refuses what is left.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a request's body.
    pub fn parse(body: &[u8]) -> Result<Fields, Refused> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(failed("EOF"));
        }
        match serde_json::from_slice(body) {
            Ok(value) => Fields::of(value),
            Err(error) if error.is_eof() => Err(failed("unexpected EOF")),
            Err(error) => Err(failed(&error.to_string())),
        }
    }

    /// The fields of a value that must be an object.
    pub fn of(value: Value) -> Result<Fields, Refused> {
        match value {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(mismatch("", &other, "struct")),
        }
    }

    /// A field's value; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        let plain = |key: &str| key.replace('_', "").eq_ignore_ascii_case(name);
        let key = self.0.keys().find(|key| plain(key))?.clone();
        self.0.remove(&key).filter(|value| !value.is_null())
    }

    /// Whether a field is there; `null` counts as absent.
    pub fn given(&self, name: &str) -> bool {
        let plain = |key: &str| key.replace('_', "").eq_ignore_ascii_case(name);
        let mut found = self.0.iter().filter(|(key, _)| plain(key));
        found.next().is_some_and(|(_, value)| !value.is_null())
    }

    /// A string; empty when absent.
    pub fn text(&mut self, name: &str) -> Result<String, Refused> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(mismatch(name, &other, "string")),
        }
    }

    /// A whole number; 0 when absent.
    pub fn integer(&mut self, name: &str) -> Result<i64, Refused> {
        match self.take(name) {
            None => Ok(0),
            Some(value) => value.as_i64().ok_or_else(|| mismatch(name, &value, "int")),
        }
    }

    /// A number; 0 when absent.
    pub fn float(&mut self, name: &str) -> Result<f64, Refused> {
        match self.take(name) {
            None => Ok(0.0),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| mismatch(name, &value, "float32")),
        }
    }

    /// A boolean; false when absent.
    pub fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        self.flag_or(name, false)
    }

    /// A boolean; `default` when absent.
    pub fn flag_or(&mut self, name: &str, default: bool) -> Result<bool, Refused> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(mismatch(name, &other, "bool")),
        }
    }

    /// A duration: a Go string or whole nanoseconds. `None` when absent, empty or zero.
    pub fn duration(&mut self, name: &str) -> Result<Option<Duration>, Refused> {
        let duration = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) if text.is_empty() => return Ok(None),
            Some(Value::String(text)) => go_duration(&text).map_err(|error| failed(&error))?,
            Some(value) => match value.as_u64() {
                Some(nanos) => Duration::from_nanos(nanos),
                None => return Err(mismatch(name, &value, "time.Duration")),
            },
        };
        Ok((!duration.is_zero()).then_some(duration))
    }

    /// A list of strings; empty when absent.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, Refused> {
        let items = self.items(name)?;
        items
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(text),
                other => Err(mismatch(name, &other, "string")),
            })
            .collect()
    }

    /// A list; empty when absent.
    pub fn items(&mut self, name: &str) -> Result<Vec<Value>, Refused> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(mismatch(name, &other, "[]string")),
        }
    }

    /// An object of strings; empty when absent.
    pub fn pairs(&mut self, name: &str) -> Result<BTreeMap<String, String>, Refused> {
        let Some(value) = self.take(name) else {
            return Ok(BTreeMap::new());
        };
        let Value::Object(pairs) = value else {
            return Err(mismatch(name, &value, "map[string]string"));
        };
        pairs
            .into_iter()
            .map(|(key, value)| match value {
                Value::String(text) => Ok((key, text)),
                other => Err(mismatch(name, &other, "string")),
            })
            .collect()
    }

    /// Refuses a field that asks for what this version does not do; an empty one asks for nothing.
    pub fn unsupported(&mut self, names: &[&str]) -> Result<(), Refused> {
        for name in names {
            let asks = match self.take(name) {
                None | Some(Value::Bool(false)) => false,
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Array(items)) => !items.is_empty(),
                Some(Value::Object(fields)) => !fields.is_empty(),
                Some(_) => true,
            };
            if asks {
                return Err(bad_request(format!(
                    "{name} is not supported by this version of mesh"
                )));
            }
        }
        Ok(())
    }

    /// Takes fields that mean nothing here.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// The names of the fields that were not taken.
    pub fn left(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Refuses every field that was not taken.
    pub fn finish(self) -> Result<(), Refused> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(failed(&format!("json: unknown field {key:?}"))),
        }
    }
}

fn failed(reason: &str) -> Refused {
    bad_request(format!("Request decode failed: {reason}"))
}

fn mismatch(name: &str, value: &Value, wanted: &str) -> Refused {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    failed(&format!(
        "json: cannot unmarshal {got} into Go struct field .{name} of type {wanted}"
    ))
}

/// What Go's clients and servers take for a truth value.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Parses a duration as Go writes it: `300ms`, `1.5h`, `2h45m`, `0`.
pub fn go_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let digits = digits.ok_or_else(|| format!("time: missing unit in duration {text:?}"))?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        let (unit, length) = [
            ("ns", 1e-9),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("ms", 1e-3),
            ("s", 1.0),
            ("m", 60.0),
            ("h", 3600.0),
        ]
        .into_iter()
        .find(|(unit, _)| {
            let end = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.');
            end.map_or(&rest[digits..], |end| &rest[digits..digits + end]) == *unit
        })
        .ok_or_else(invalid)?;
        total += number * length;
        rest = &rest[digits + unit.len()..];
    }
    // Go's own limit is 2^63 ns.
    (total < 9.2e9)
        .then(|| Duration::from_nanos((total * 1e9).round() as u64))
        .ok_or_else(invalid)
}

/// A duration as Go writes it: `10s`, `1m30s`, `1h0m0s`, `1.5s`, `250ms`, `0s`.
pub fn go_format(duration: Duration) -> String {
    let total = duration.as_secs();
    if total == 0 {
        let micros = duration.as_micros();
        return match micros {
            0 => "0s".to_owned(),
            1..1000 => format!("{micros}µs"),
            _ => format!("{}ms", micros as f64 / 1e3),
        };
    }
    let (hours, minutes) = (total / 3600, total / 60 % 60);
    let seconds = (total % 60) as f64 + f64::from(duration.subsec_micros()) / 1e6;
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for text in [
            "0s", "10s", "1m30s", "1h0m0s", "2h45m1s", "1.5s", "250ms", "1.5ms", "20µs", "1m0s",
        ] {
            assert_eq!(go_format(go_duration(text).unwrap()), text);
        }
    }

    #[test]
    fn go_durations() {
        let ms = |text| go_duration(text).map(|d| d.as_millis());
        assert_eq!(ms("300ms"), Ok(300));
        assert_eq!(ms("1.5h"), Ok(5_400_000));
        assert_eq!(ms("2h45m1s"), Ok(9_901_000));
        assert_eq!(ms("0"), Ok(0));
        assert_eq!(
            ms("soon"),
            Err("time: invalid duration \"soon\"".to_owned())
        );
        for bad in ["", "5", "1x", "1.2.3s", "-1s", "99999999999h"] {
            assert!(ms(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_match_in_any_case_and_unknown_ones_are_refused() {
        let body = br#"{"enable_tag_override": true, "ID": "a", "TTL": 1000000000, "x": 1}"#;
        let mut fields = Fields::parse(body).unwrap();
        assert!(fields.flag("EnableTagOverride").unwrap());
        assert_eq!(fields.text("id").unwrap(), "a");
        assert_eq!(
            fields.duration("Ttl").unwrap(),
            Some(Duration::from_secs(1))
        );
        assert_eq!(fields.finish().unwrap_err().status, 400);
    }
}
