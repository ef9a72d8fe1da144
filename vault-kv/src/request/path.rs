//! The one normal form of a request path.

use crate::http::ApiError;

/// Longest decoded path taken, in bytes.
const MAX_PATH: usize = 4096;

/// A request path without its `/v1/` prefix: percent-decoded once, free of empty, `.` and `..` segments and of
/// characters that do not print. A trailing slash (a folder, as in LIST) is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiPath(String);

impl ApiPath {
    /// Decode and check a raw URI path (what follows `/v1/`).
    pub(crate) fn parse(raw: &str) -> Result<Self, ApiError> {
        Self::checked(decode(raw)?)
    }

    /// A path that is decoded already.
    pub(crate) fn checked(text: String) -> Result<Self, ApiError> {
        if text.len() > MAX_PATH {
            return Err(ApiError::bad("the path is longer than 4096 bytes"));
        }
        let plain = |byte: &u8| matches!(byte, b' '..=b'~');
        if !text.as_bytes().iter().all(plain) && text.chars().any(unprintable) {
            return Err(ApiError::bad(
                "the path contains characters that do not print",
            ));
        }
        let inner = text.strip_suffix('/').unwrap_or(&text);
        for segment in inner.split('/') {
            match segment {
                "" if !inner.is_empty() => {
                    return Err(ApiError::bad("the path contains an empty segment"));
                }
                "." | ".." => {
                    return Err(ApiError::bad(
                        "the path contains a relative segment ('.' or '..')",
                    ));
                }
                _ => {}
            }
        }
        if text == "/" {
            return Err(ApiError::bad("the path contains an empty segment"));
        }
        Ok(Self(text))
    }

    /// A path of the embedding program: its own form, whatever that is.
    pub(crate) fn own(path: &str) -> Self {
        Self(path.to_owned())
    }

    /// The path as text, with its trailing slash if it has one.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when the path ends in a slash.
    pub(crate) fn is_folder(&self) -> bool {
        self.0.ends_with('/')
    }

    /// Make the path a folder (LIST does).
    pub(crate) fn make_folder(&mut self) {
        if !self.is_folder() && !self.0.is_empty() {
            self.0.push('/');
        }
    }
}

/// Characters that a path may not hold: controls, and spaces and marks that look like nothing.
pub(crate) fn unprintable(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffd}' | '\u{e0000}'..='\u{e0fff}')
}

/// Undo percent-encoding, once.
pub(super) fn decode(raw: &str) -> Result<String, ApiError> {
    let bytes = raw.as_bytes();
    if !bytes.contains(&b'%') {
        return Ok(raw.to_owned());
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = bytes
                .get(at + 1..at + 3)
                .and_then(|h| std::str::from_utf8(h).ok());
            let byte = hex
                .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|h| u8::from_str_radix(h, 16).ok());
            out.push(
                byte.ok_or_else(|| {
                    ApiError::bad("the path or query has a broken percent-encoding")
                })?,
            );
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).map_err(|_| ApiError::bad("the path or query is not UTF-8"))
}
