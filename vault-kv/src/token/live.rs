//! A token as requests meet it: read once, with what was worked out about it kept beside it.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Deserializer};

use super::Token;
use crate::audit::{Hasher, TokenHashes};
use crate::policy::Rights;

/// A token that is alive. It does not change; one that is renewed or used is read anew.
pub(crate) struct Live {
    token: Token,
    /// The name of its holder in the ledger.
    pub actor: Arc<str>,
    /// What its holder may do, as last worked out.
    pub rights: ArcSwapOption<Rights>,
    hashes: OnceLock<TokenHashes>,
}

impl Live {
    /// What the audit log shows of it. `text`: itself, as it was sent.
    pub fn hashes(&self, hasher: &Hasher, text: &str) -> &TokenHashes {
        self.hashes.get_or_init(|| TokenHashes {
            token: hasher.text(text),
            accessor: match &*self.token.accessor {
                "" => String::new(),
                accessor => hasher.text(accessor),
            },
        })
    }
}

impl From<Token> for Live {
    fn from(token: Token) -> Self {
        Self {
            actor: format!("{} (accessor {})", token.display_name, token.accessor).into(),
            rights: ArcSwapOption::empty(),
            hashes: OnceLock::new(),
            token,
        }
    }
}

impl Deref for Live {
    type Target = Token;

    fn deref(&self) -> &Token {
        &self.token
    }
}

impl<'de> Deserialize<'de> for Live {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Token::deserialize(deserializer).map(Self::from)
    }
}
