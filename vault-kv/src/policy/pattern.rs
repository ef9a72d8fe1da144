//! Path patterns: exact, `prefix*`, and `+` for one segment.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// A checked pattern, ready to match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Kind {
    Exact,
    /// What is before the `*` at its end, as it stands.
    Prefix,
    /// Has `+` segments; the flag says whether it ends in `*`.
    Segments(bool),
}

impl Pattern {
    /// This path, whatever characters are in it.
    pub fn exact(text: String) -> Self {
        let kind = Kind::Exact;
        Self { text, kind }
    }

    /// What begins so, whatever characters are in that.
    pub fn prefix(stem: String) -> Self {
        let kind = Kind::Prefix;
        let text = stem + "*";
        Self { text, kind }
    }

    /// Check a pattern. `*` may only be its last character and `+` only a whole segment: elsewhere Vault takes them
    /// literally, so that a rule, perhaps a `deny`, silently matches nothing. Such rules are refused here.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let body = text.strip_suffix('*').unwrap_or(text);
        if body.contains('*') {
            return Err(format!(
                "path {text:?}: '*' is only allowed at the end (use '+' for one whole segment)"
            ));
        }
        if text.contains("+*") {
            return Err(format!("path {text:?}: '+*' is forbidden"));
        }
        let pluses = body
            .split('/')
            .filter(|s| s.contains('+'))
            .collect::<Vec<_>>();
        if pluses.iter().any(|s| *s != "+") {
            return Err(format!("path {text:?}: '+' must be a whole segment"));
        }
        let glob = text.ends_with('*');
        let kind = match (pluses.is_empty(), glob) {
            (true, false) => Kind::Exact,
            (true, true) => Kind::Prefix,
            (false, glob) => Kind::Segments(glob),
        };
        Ok(Self {
            text: text.to_string(),
            kind,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn is_exact(&self) -> bool {
        self.kind == Kind::Exact
    }

    /// True when the path is covered.
    pub fn matches(&self, path: &str) -> bool {
        match self.kind {
            Kind::Exact => self.text == path,
            Kind::Prefix => path.starts_with(self.stem()),
            Kind::Segments(glob) => segments_match(self.stem(), path, glob),
        }
    }

    /// What a path that is covered begins with, as far as that is the same for all.
    fn fixed(&self) -> &str {
        match self.kind {
            Kind::Exact => &self.text,
            Kind::Prefix => self.stem(),
            Kind::Segments(_) => self.text.split(['*', '+']).next().unwrap_or_default(),
        }
    }

    /// Whether it may cover something that begins with `prefix`.
    pub fn reaches_below(&self, prefix: &str) -> bool {
        let fixed = self.fixed();
        fixed.starts_with(prefix) || self.kind != Kind::Exact && prefix.starts_with(fixed)
    }

    /// Whether it covers everything that begins with `prefix`.
    pub fn covers(&self, prefix: &str) -> bool {
        self.kind == Kind::Prefix && prefix.starts_with(self.stem())
    }

    fn stem(&self) -> &str {
        match self.kind {
            Kind::Exact => &self.text,
            Kind::Prefix | Kind::Segments(_) => self.text.strip_suffix('*').unwrap_or(&self.text),
        }
    }

    /// Which of two patterns that both match is the more specific one (`Greater` = self). Vault's order: exact first;
    /// then a later first wildcard, not ending in `*`, fewer `+`, longer, and at last the text itself.
    pub fn specificity(&self, other: &Self) -> Ordering {
        let key = |p: &Self| {
            let (wildcard, pluses, glob) = match p.kind {
                Kind::Exact => (usize::MAX, 0, false),
                Kind::Prefix => (p.stem().len(), 0, true),
                Kind::Segments(glob) => {
                    let pluses = p.text.split('/').filter(|s| *s == "+").count();
                    (p.fixed().len(), pluses, glob)
                }
            };
            (wildcard, !glob, std::cmp::Reverse(pluses), p.text.len())
        };
        key(self)
            .cmp(&key(other))
            .then_with(|| self.text.cmp(&other.text))
    }
}

fn segments_match(stem: &str, path: &str, glob: bool) -> bool {
    let (mut want, mut have) = (stem.split('/').peekable(), path.split('/'));
    while let Some(expected) = want.next() {
        let Some(actual) = have.next() else {
            return false;
        };
        let last = want.peek().is_none();
        let fits = match expected {
            "+" => !actual.is_empty(),
            _ if last && glob => actual.starts_with(expected),
            _ => actual == expected,
        };
        if !fits {
            return false;
        }
    }
    glob || have.next().is_none()
}
