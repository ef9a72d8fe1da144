//! Path patterns: exact, `prefix*`, and `+` for one segment.

use std::cmp::Ordering;

/// A checked pattern, ready to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    text: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Exact,
    /// Ends in `*`, no `+`.
    Prefix,
    /// Has `+` segments; the flag says whether it ends in `*`.
    Segments(bool),
}

impl Pattern {
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

    fn stem(&self) -> &str {
        self.text.strip_suffix('*').unwrap_or(&self.text)
    }

    /// Which of two patterns that both match is the more specific one (`Greater` = self). Vault's order: exact first;
    /// then a later first wildcard, not ending in `*`, fewer `+`, longer, and at last the text itself.
    pub fn specificity(&self, other: &Self) -> Ordering {
        let key = |p: &Self| {
            let wildcard = p.text.find(['*', '+']).unwrap_or(usize::MAX);
            let pluses = p.text.split('/').filter(|s| *s == "+").count();
            (
                wildcard,
                !p.text.ends_with('*'),
                std::cmp::Reverse(pluses),
                p.text.len(),
            )
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
