//! One copy of each text that many views have: service names, tags, metadata, what checks are called.
//!
//! Owned by the writer. What no record uses any more goes at a sweep, which comes when the table has doubled.

use std::collections::HashSet;
use std::sync::Arc;

/// A table below this size is not swept.
const SWEEP_MIN: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Strings {
    known: HashSet<Arc<str>>,
    /// How many there were after the last sweep.
    swept: usize,
}

impl Strings {
    pub(super) fn share(&mut self, text: &mut Arc<str>) {
        if let Some(known) = self.known.get(text) {
            *text = Arc::clone(known);
            return;
        }
        if self.known.len() >= SWEEP_MIN.max(self.swept * 2) {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.swept = self.known.len();
        }
        self.known.insert(Arc::clone(text));
    }

    /// The one copy of `text`.
    pub(super) fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        let mut new = Arc::from(text);
        self.share(&mut new);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_unused_ones_go() {
        let mut strings = Strings::default();
        let mut kept: Vec<Arc<str>> = vec!["web".into(), "web".into()];
        kept.iter_mut().for_each(|text| strings.share(text));
        assert!(Arc::ptr_eq(&kept[0], &kept[1]));
        for n in 0..10 * SWEEP_MIN {
            strings.share(&mut n.to_string().into());
        }
        assert!(strings.known.len() <= SWEEP_MIN);
        let mut again = "web".into();
        strings.share(&mut again);
        assert!(Arc::ptr_eq(&kept[0], &again));
    }
}
