//! Batch tokens: all that there is to know about them is in the token itself, sealed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use zeroize::Zeroizing;

use super::{Token, TokenKind};
use crate::http::ApiError;
use crate::request::ClientToken;
use crate::sys::{Locked, without_traces};

/// What a batch token starts with.
pub(super) const PREFIX: &str = "hvb.";
/// Longest sealed token that is looked at.
const LONGEST: usize = 64 << 10;
/// What the key is for.
const PURPOSE: &[u8] = b"batch tokens";

/// Seals and opens batch tokens: AES-256-GCM with a random nonce in front of the ciphertext, in base64.
pub(super) struct BatchKey(Locked<LessSafeKey>);

impl BatchKey {
    /// From the key of the tokens, by HKDF (RFC 5869).
    pub fn derive(key: &[u8]) -> Self {
        without_traces(|| {
            let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, PURPOSE).extract(key);
            let key = secret
                .expand(&[PURPOSE], &AES_256_GCM)
                .map(UnboundKey::from)
                .expect("the length of one key is never too much");
            Self(Locked::new(LessSafeKey::new(key)))
        })
    }

    pub fn seal(&self, token: &Token) -> Result<ClientToken, ApiError> {
        let unwritable = || ApiError::Internal("a batch token cannot be sealed".to_string());
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut bytes = serde_json::to_vec(token).map_err(|_| unwritable())?;
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(PREFIX),
                &mut bytes,
            )
            .map_err(|_| unwritable())?;
        let mut text = Zeroizing::new(PREFIX.to_owned());
        URL_SAFE_NO_PAD.encode_string([&nonce[..], &bytes].concat(), &mut text);
        Ok(ClientToken::new(text.as_str()))
    }

    /// `None`: it was not sealed by this server. Whether it has expired is the caller's to see.
    pub fn open(&self, text: &str) -> Option<Token> {
        if text.len() > LONGEST {
            return None;
        }
        let mut bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self
            .0
            .open_in_place(nonce, Aad::from(PREFIX), sealed)
            .ok()?;
        serde_json::from_slice::<Token>(plain)
            .ok()
            .filter(|token| token.kind == TokenKind::Batch)
    }
}
