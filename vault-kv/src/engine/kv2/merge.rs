//! JSON merge patch (RFC 7396).

use serde_json::{Map, Value};

use crate::request::body::wipe;

/// Apply a patch: `null` removes a member, objects merge, anything else replaces. What goes is wiped.
pub(super) fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, change) in patch {
        match change {
            Value::Null => {
                if let Some(mut old) = target.remove(&name) {
                    wipe(&mut old);
                }
            }
            Value::Object(change) => {
                let inner = target.entry(name).or_insert(Value::Null);
                if !inner.is_object() {
                    wipe(inner);
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge(inner, change);
                }
            }
            other => {
                if let Some(mut old) = target.insert(name, other) {
                    wipe(&mut old);
                }
            }
        }
    }
}
