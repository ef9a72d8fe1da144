//! Answers on stdout: tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use super::Failure;

/// `-o`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Prints `rows` as a table with `header`, or `value` as JSON.
pub fn rows<T: Serialize + ?Sized>(
    format: Format,
    header: &[&str],
    rows: Vec<Vec<String>>,
    value: &T,
) -> Result<(), Failure> {
    match format {
        Format::Json => json(value),
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(header);
            for row in rows {
                table.add_row(row.iter().map(|cell| printable(cell)));
            }
            line(&table.trim_fmt())
        }
    }
}

/// Prints an object's fields, one a row, or as JSON.
pub fn fields(format: Format, value: &Value) -> Result<(), Failure> {
    let Some(fields) = value.as_object() else {
        return json(value);
    };
    let plain = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let all = fields
        .iter()
        .map(|(name, value)| vec![name.clone(), plain(value)])
        .collect();
    rows(format, &["FIELD", "VALUE"], all, value)
}

/// Says in one line what was done, or as JSON what it was done to.
pub fn done(format: Format, text: &str, value: &Value) -> Result<(), Failure> {
    match format {
        Format::Json => json(value),
        Format::Table => line(text),
    }
}

/// Prints `value` as indented JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::failed(format!("cannot write the answer as JSON: {error}")))?;
    line(&text)
}

/// Prints one line (or several).
pub fn line(text: &str) -> Result<(), Failure> {
    bytes(format!("{text}\n").as_bytes())
}

/// Prints bytes as they are. A reader that closed the pipe (`| head`) has seen enough.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

/// Names come from other hosts; their control characters must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
