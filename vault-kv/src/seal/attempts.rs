//! Rekeying and generating a root token: what is under way, and the shares gathered for it.
//!
//! Both ask a threshold of people for their shares, one request each. At most one of each kind is under way;
//! sealing forgets them. Nothing here knows of HTTP or storage.

use zeroize::Zeroizing;

use super::progress::Progress;
use crate::barrier::SecretKey;

/// What is under way in an unsealed store.
#[derive(Default)]
pub(crate) struct Attempts {
    pub(crate) rekey: Option<Rekey>,
    pub(crate) root: Option<GenerateRoot>,
}

/// A rekey under way.
pub(crate) struct Rekey {
    /// Names this attempt: a share is for it, or for nothing.
    pub(crate) nonce: String,
    /// How many new shares there will be.
    pub(crate) shares: u8,
    /// How many of them will unseal.
    pub(crate) threshold: u8,
    /// Whether the new shares must be shown before they count.
    pub(crate) verify: bool,
    /// Shares of the present unseal key.
    pub(crate) given: Progress,
    /// The new unseal key, while its shares are to be shown.
    pub(crate) unverified: Option<Unverified>,
}

/// New shares that were handed out and do not count yet.
pub(crate) struct Unverified {
    /// Names the verification.
    pub(crate) nonce: String,
    pub(crate) unseal: SecretKey,
    /// New shares shown so far.
    pub(crate) given: Progress,
}

impl Rekey {
    pub(crate) fn new(shares: u8, threshold: u8, verify: bool) -> Self {
        Self {
            nonce: nonce(),
            shares,
            threshold,
            verify,
            given: Progress::default(),
            unverified: None,
        }
    }
}

impl Unverified {
    pub(crate) fn new(unseal: SecretKey) -> Self {
        Self {
            nonce: nonce(),
            unseal,
            given: Progress::default(),
        }
    }

    /// Forgets what was shown; the next showing has another name.
    pub(crate) fn restart(&mut self) {
        self.nonce = nonce();
        self.given.reset();
    }
}

/// A root token being made.
pub(crate) struct GenerateRoot {
    pub(crate) nonce: String,
    /// What the token is XORed with on its way out; as long as a token.
    pub(crate) otp: Zeroizing<String>,
    pub(crate) given: Progress,
}

impl GenerateRoot {
    pub(crate) fn new(otp: Zeroizing<String>) -> Self {
        Self {
            nonce: nonce(),
            otp,
            given: Progress::default(),
        }
    }
}

fn nonce() -> String {
    uuid::Uuid::new_v4().to_string()
}
