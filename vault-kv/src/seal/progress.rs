//! Shares gathered so far towards an unseal.

use ring::digest::{SHA256, digest};
use zeroize::Zeroizing;

/// The shares of one attempt.
#[derive(Default)]
pub(crate) struct Progress {
    shares: Vec<Zeroizing<Vec<u8>>>,
    nonce: String,
}

impl Progress {
    /// Adds a share; `false`: it is there already. The first one starts an attempt with a new nonce.
    pub(crate) fn add(&mut self, share: Zeroizing<Vec<u8>>) -> bool {
        if self.shares.is_empty() {
            self.nonce = uuid::Uuid::new_v4().to_string();
        }
        // Compared by their hashes: how long that takes says nothing about a share.
        let hash = |share: &[u8]| digest(&SHA256, share);
        let wanted = hash(&share);
        let known = (self.shares.iter()).any(|known| hash(known).as_ref() == wanted.as_ref());
        if !known {
            self.shares.push(share);
        }
        !known
    }

    /// The shares of a complete attempt; the next one starts from nothing.
    pub(crate) fn take(&mut self, threshold: u8) -> Option<Vec<Zeroizing<Vec<u8>>>> {
        if self.count() < threshold {
            return None;
        }
        self.nonce.clear();
        Some(std::mem::take(&mut self.shares))
    }

    /// Forgets what was gathered.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Number of different shares gathered.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.shares.len()).unwrap_or(u8::MAX)
    }

    /// Names the attempt; empty when none is under way.
    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_share_twice_is_no_progress() {
        let mut progress = Progress::default();
        let share = |byte| Zeroizing::new(vec![byte; 33]);
        assert!(progress.add(share(1)));
        let nonce = progress.nonce().to_owned();
        assert!(!progress.add(share(1)));
        assert_eq!((progress.count(), progress.nonce()), (1, nonce.as_str()));
        assert!(progress.take(2).is_none());
        progress.add(share(2));
        assert_eq!(progress.take(2).unwrap().len(), 2);
        assert_eq!((progress.count(), progress.nonce()), (0, ""));
    }
}
