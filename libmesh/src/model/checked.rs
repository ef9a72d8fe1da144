//! The rules of the model for single texts, where they lie: what `validate` says of a whole, said of its parts.

use super::error::quoted;
use super::{InvalidField, limits};

pub(crate) fn count(field: &'static str, count: usize, most: usize) -> Result<(), InvalidField> {
    if count > most {
        return Err(InvalidField::new(
            field,
            format!("{count} of them, the most is {most}"),
        ));
    }
    Ok(())
}

/// How many tags and metadata pairs an instance has.
pub(crate) fn counts(tags: usize, meta: usize) -> Result<(), InvalidField> {
    count("tags", tags, limits::TAGS)?;
    count("meta", meta, limits::META_PAIRS)
}

pub(crate) fn instance_id(text: &str) -> Result<(), InvalidField> {
    plain("id", text, limits::INSTANCE_ID_BYTES)
}

pub(crate) fn check_id(text: &str) -> Result<(), InvalidField> {
    plain("check id", text, limits::CHECK_BYTES)
}

pub(crate) fn tag(text: &str) -> Result<(), InvalidField> {
    plain("tags", text, limits::TAG_BYTES)
}

pub(crate) fn version(text: &str) -> Result<(), InvalidField> {
    if text.is_empty() || text.len() > limits::TAG_BYTES {
        return Err(InvalidField::new(
            "version",
            format!("must have 1 to {} bytes", limits::TAG_BYTES),
        ));
    }
    Ok(())
}

/// Name, kind or notes of a check.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<(), InvalidField> {
    let most = match field {
        "notes" => limits::NOTES_BYTES,
        _ => limits::CHECK_BYTES,
    };
    if text.len() > most {
        return Err(InvalidField::new(
            field,
            format!("has {} bytes, the most is {most}", text.len()),
        ));
    }
    Ok(())
}

pub(crate) fn meta_key(key: &str) -> Result<(), InvalidField> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
    if key.is_empty() || key.len() > limits::META_KEY_BYTES || !key.bytes().all(fits) {
        return Err(InvalidField::new(
            "meta",
            format!(
                "key {} must have 1 to {} bytes of letters, digits, '-', '_', '.', '/'",
                quoted(key),
                limits::META_KEY_BYTES
            ),
        ));
    }
    Ok(())
}

pub(crate) fn meta_value(value: &str) -> Result<(), InvalidField> {
    if value.len() > limits::META_VALUE_BYTES {
        return Err(InvalidField::new(
            "meta",
            format!(
                "{} has more than {} bytes",
                quoted(value),
                limits::META_VALUE_BYTES
            ),
        ));
    }
    Ok(())
}

pub(crate) fn host(field: &'static str, name: &str) -> Result<(), InvalidField> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > limits::HOST_BYTES || !name.bytes().all(fits) {
        return Err(InvalidField::new(
            field,
            format!("{} is neither an IP address nor a host name", quoted(name)),
        ));
    }
    Ok(())
}

/// A short name that is unique among its like, such as that of a port.
pub(crate) fn label(field: &'static str, name: &str) -> Result<(), InvalidField> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    if name.is_empty() || name.len() > limits::LABEL_BYTES || !name.bytes().all(fits) {
        return Err(InvalidField::new(
            field,
            format!(
                "{} must have 1 to {} letters, digits, '-', '_'",
                quoted(name),
                limits::LABEL_BYTES
            ),
        ));
    }
    Ok(())
}

fn plain(field: &'static str, text: &str, most: usize) -> Result<(), InvalidField> {
    if text.is_empty() || text.len() > most || text.chars().any(char::is_control) {
        return Err(InvalidField::new(
            field,
            format!(
                "{} must have 1 to {most} bytes and no control characters",
                quoted(text)
            ),
        ));
    }
    Ok(())
}
