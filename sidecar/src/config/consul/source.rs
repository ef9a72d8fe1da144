//! One file of Consul's, JSON or HCL, as the fields of an object.

use std::{fs, path::Path};

use serde_json::{Map, Value};
use vault_kv::hcl;

/// Longest file, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Reads a file.
///
/// # Errors
/// Why it is not taken; no text of the file is in it.
pub fn read(file: &Path) -> Result<Map<String, Value>, String> {
    let cannot = |error| format!("cannot be read: {error}");
    if fs::metadata(file).map_err(cannot)?.len() > MAX_FILE {
        return Err("is longer than 4 MiB".to_owned());
    }
    parse(file, &fs::read_to_string(file).map_err(cannot)?)
}

/// Understands a file's text by the ending of its name.
pub fn parse(file: &Path, text: &str) -> Result<Map<String, Value>, String> {
    match file.extension().and_then(|ending| ending.to_str()) {
        // Consul takes an empty file for one that says nothing.
        Some("json" | "hcl") if text.trim().is_empty() => Ok(Map::new()),
        Some("json") => match serde_json::from_str(text) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) => Err("must be one JSON object".to_owned()),
            Err(error) => Err(format!(
                "line {}, column {}: not valid JSON",
                error.line(),
                error.column()
            )),
        },
        Some("hcl") => hcl::parse(text).map_err(|wrong| wrong.to_string()),
        _ => Err("ends in neither .json nor .hcl".to_owned()),
    }
}
