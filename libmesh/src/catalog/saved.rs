//! The own log across restarts.
//!
//! Peers number what they have by our epoch and head, so going on after a restart needs both *exactly as published*.
//! Only a log saved at a clean stop is known to be that; any other may miss the last changes, and goes on with its
//! records in a greater epoch, which costs peers one snapshot and wakes nobody where nothing changed.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::log::{Head, Item, NodeLog};
use super::record::{self, Key};
use super::strings::Strings;
use super::{Catalog, Options};
use crate::model::NodeId;

/// Format 1 held records of another kind, which nobody needs: starting empty is safe.
const FORMAT: u8 = 2;

#[derive(Serialize, Deserialize)]
struct Saved {
    node: NodeId,
    clean: bool,
    at: Head,
    entries: Vec<SavedEntry>,
}

#[derive(Serialize, Deserialize)]
struct SavedEntry {
    key: Vec<u8>,
    version: u64,
    body: Option<Vec<u8>>,
    at: u64,
}

/// Why saved bytes cannot be gone on with. Starting empty is safe: see [`Catalog::open`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Damaged, or from another version.
    #[error("the saved catalog log is not readable")]
    Unreadable,
    /// Of another node.
    #[error("the saved catalog log is of node {0}")]
    ForeignNode(NodeId),
}

impl Catalog {
    /// This node's records and numbers, for [`restore`](Self::restore). `clean` = nothing is written after this; save
    /// with `false` while running (also right after a start, to take back the last stop's `true`).
    pub fn save(&self, clean: bool) -> Vec<u8> {
        let state = self.inner.state.lock();
        let entry = |(item, at): (Item, u64)| SavedEntry {
            key: item.key.to_vec(),
            version: item.version,
            body: item.body.map(|body| body.to_vec()),
            at,
        };
        let saved = Saved {
            node: self.inner.own,
            clean,
            at: state.own_log.head(),
            entries: state.own_log.entries().map(entry).collect(),
        };
        let mut bytes = vec![FORMAT];
        bytes.extend(postcard::to_stdvec(&saved).expect("plain data always encodes"));
        bytes
    }

    /// A catalog that goes on with what [`save`](Self::save) gave. The records are there again; whoever runs the
    /// instances and checks says them again and then calls [`LocalLog::settle`](super::LocalLog::settle).
    ///
    /// # Errors
    /// [`SavedError`].
    pub fn restore(own: NodeId, options: Options, saved: &[u8]) -> Result<Self, SavedError> {
        let Some((&FORMAT, body)) = saved.split_first() else {
            return Err(SavedError::Unreadable);
        };
        let Ok((saved, [])) = postcard::take_from_bytes::<Saved>(body) else {
            return Err(SavedError::Unreadable);
        };
        if saved.node != own {
            return Err(SavedError::ForeignNode(saved.node));
        }
        let (mut keys, mut versions) = (HashSet::new(), HashSet::new());
        let mut once =
            |entry: &SavedEntry| keys.insert(entry.key.clone()) && versions.insert(entry.version);
        if !saved.entries.iter().all(&mut once) {
            return Err(SavedError::Unreadable);
        }
        let now = (options.clock)();
        let entries = saved.entries.into_iter().map(|entry| {
            let body = entry.body.map(Bytes::from);
            (
                Item {
                    key: entry.key.into(),
                    version: entry.version,
                    body,
                },
                entry.at,
            )
        });
        let mut log = NodeLog::restore(own, saved.at, entries);
        if !saved.clean {
            log.renew(now.max(saved.at.epoch.saturating_add(1)));
        }
        let records: Vec<_> = log
            .live()
            .map(|(key, body)| (key.clone(), body.clone()))
            .collect();
        let catalog = Self::with_log(log, own, options, now);
        let mut strings = Strings::default();
        catalog.write_own(|own| {
            for (key, body) in records {
                // Written by ourselves; what another version wrote and this one cannot read goes.
                let read = Key::decode(&key).and_then(|key| {
                    record::check(None, key, &body)?;
                    own.take_back(key, &body, &mut strings)
                });
                if read.is_err() {
                    own.log.remove(&key, own.now);
                }
            }
            own.inherited.instances = own.facts.instances().map(|i| i.id.clone()).collect();
            own.inherited.checks = own.facts.checks().map(|c| Arc::clone(&c.id)).collect();
        });
        Ok(catalog)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_log_that_says_a_key_or_a_number_twice_is_damaged() {
        let node = NodeId([1; 16]);
        let restored = |entries: [(u8, u64); 2]| {
            let entry = |(key, version)| SavedEntry {
                key: vec![key],
                version,
                body: Some(vec![7]),
                at: 1,
            };
            let saved = Saved {
                node,
                clean: true,
                at: Head { epoch: 1, head: 9 },
                entries: entries.map(entry).into(),
            };
            let mut bytes = vec![FORMAT];
            bytes.extend(postcard::to_stdvec(&saved).unwrap());
            Catalog::restore(node, Options::default(), &bytes).is_ok()
        };
        assert!(restored([(1, 1), (2, 2)]));
        assert!(!restored([(1, 1), (1, 2)]), "the content is counted twice");
        assert!(!restored([(1, 1), (2, 1)]));
    }
}
