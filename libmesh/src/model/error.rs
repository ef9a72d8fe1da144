//! The one error of the model.

/// A value that cannot be taken: which field, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct InvalidField {
    /// Name of the field, as users write it (`service`, `node`, `tags`, …).
    pub field: &'static str,
    /// What is wrong, with the offending value where it is short enough to help.
    pub reason: String,
}

impl InvalidField {
    /// An error about `field`.
    pub fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            field,
            reason: reason.into(),
        }
    }
}

/// A value as it may be quoted in an error: shortened, without control characters.
pub(crate) fn quoted(value: &str) -> String {
    const KEPT: usize = 40;
    let mut short: String = value.chars().take(KEPT).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    format!("{short:?}")
}
