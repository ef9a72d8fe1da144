//! Tokens that are worth something to the holder of a certificate only (as in RFC 8705).

use serde::{Deserialize, Serialize};

use crate::http::hex;
use crate::request::Caller;

/// The certificate that a token is bound to, as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binding {
    /// SHA-256, in hex.
    sha256: String,
    /// Not only renewing takes it, but everything.
    always: bool,
}

impl Binding {
    /// Renews over a connection with this certificate only.
    pub fn renewal(der: &[u8]) -> Self {
        Self {
            sha256: fingerprint(der),
            always: false,
        }
    }

    /// Works over a connection with this certificate only.
    pub fn always(der: &[u8]) -> Self {
        Self {
            always: true,
            ..Self::renewal(der)
        }
    }

    /// Whether a token that is bound like this may be used by a caller; `None`: one of whom nothing is known.
    pub fn allows_use(&self, caller: Option<&Caller>) -> bool {
        !self.always || caller.is_some_and(|caller| self.allows_renewal(caller))
    }

    pub fn allows_renewal(&self, caller: &Caller) -> bool {
        let leaf = caller.certificates.first();
        leaf.is_some_and(|der| fingerprint(der) == self.sha256)
    }
}

/// SHA-256 of a certificate, in hex.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, der).as_ref())
}
