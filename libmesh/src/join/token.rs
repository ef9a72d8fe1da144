//! Join tokens: `mjt1.<base64url>` of id, secret, and the hash of the root certificate.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const PREFIX: &str = "mjt1.";
const LEN: usize = 8 + 32 + 32;

/// Why a text is no join token. Never quotes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It does not start like one.
    #[error(
        "this is no join token: those start with \"mjt1.\"; make one with: mesh join-token create"
    )]
    Prefix,
    /// It is cut off or altered.
    #[error("the join token is incomplete or altered: copy all of it, in one line")]
    Body,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes for a join token")]
    Random,
}

/// What an operator hands to a new node. The server keeps only a hash of the secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct JoinToken {
    id: [u8; 8],
    secret: [u8; 32],
    ca_hash: [u8; 32],
}

impl JoinToken {
    /// A new random token for the mesh whose root certificate has the SHA-256 `ca_hash`.
    pub fn generate(ca_hash: [u8; 32]) -> Result<Self, TokenError> {
        let mut token = Self {
            id: [0; 8],
            secret: [0; 32],
            ca_hash,
        };
        let random = SystemRandom::new();
        random.fill(&mut token.id).map_err(|_| TokenError::Random)?;
        random
            .fill(&mut token.secret)
            .map_err(|_| TokenError::Random)?;
        Ok(token)
    }

    /// Its id: not secret, for lists and for revoking.
    pub fn id(&self) -> [u8; 8] {
        self.id
    }

    /// Its secret.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// SHA-256 of the root certificate (DER) of the mesh.
    pub fn ca_hash(&self) -> [u8; 32] {
        self.ca_hash
    }

    /// The text that is handed over. It holds the secret.
    pub fn reveal(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; LEN]);
        bytes[..8].copy_from_slice(&self.id);
        bytes[8..40].copy_from_slice(&self.secret);
        bytes[40..].copy_from_slice(&self.ca_hash);
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + LEN * 4 / 3 + 4));
        text.push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&bytes[..], &mut text);
        text
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let decoded = Zeroizing::new(URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Body)?);
        if decoded.len() != LEN {
            return Err(TokenError::Body);
        }
        let mut token = Self {
            id: [0; 8],
            secret: [0; 32],
            ca_hash: [0; 32],
        };
        token.id.copy_from_slice(&decoded[..8]);
        token.secret.copy_from_slice(&decoded[8..40]);
        token.ca_hash.copy_from_slice(&decoded[40..]);
        Ok(token)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", crate::identity::hex(&self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_in_debug() {
        let token = JoinToken::generate([7; 32]).unwrap();
        let text = token.reveal();
        let parsed: JoinToken = format!(" {}\n", *text).parse().unwrap();
        assert_eq!(
            (parsed.id, parsed.secret, parsed.ca_hash),
            (token.id, token.secret, [7; 32])
        );
        assert!(!format!("{token:?}").contains(&crate::identity::hex(&token.secret)));
    }

    #[test]
    fn what_is_cut_or_altered_is_refused() {
        let text = JoinToken::generate([7; 32]).unwrap().reveal();
        let parse = |text: &str| text.parse::<JoinToken>().err();
        assert_eq!(parse(&text[..text.len() - 1]), Some(TokenError::Body));
        assert_eq!(parse(&format!("{}A", *text)), Some(TokenError::Body));
        assert_eq!(parse(&text[1..]), Some(TokenError::Prefix));
        assert_eq!(parse("mjt1.!"), Some(TokenError::Body));
        assert_eq!(parse(""), Some(TokenError::Prefix));
    }
}
