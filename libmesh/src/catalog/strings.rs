//! One copy of each text that many records have: service names, tags, metadata keys, what checks are called.
//!
//! Owned by the writer. What no record uses any more goes at a sweep, which comes when the table has doubled.

use std::collections::HashSet;
use std::sync::Arc;

use crate::model::{CheckRecord, Instance};

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

    pub(super) fn share_instance(&mut self, instance: &mut Instance) {
        instance.service.share(|text| self.share(text));
        instance.tags.iter_mut().for_each(|tag| self.share(tag));
        instance.tags.shrink_to_fit();
        instance.meta.share_keys(|key| self.share(key));
        if let Some(version) = &mut instance.version {
            self.share(version);
        }
    }

    pub(super) fn share_check(&mut self, check: &mut CheckRecord) {
        self.share(&mut check.name);
        self.share(&mut check.kind);
        self.share(&mut check.notes);
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
