//! What tokens are called: in the store, where nobody learns a token from its name, and beside each other.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt as _;
use ring::hmac;
use serde::{Deserialize, Serialize};

use super::LINKED;
use crate::lease::Name;
use crate::request::ClientToken;
use crate::sys::{Locked, hash_without_traces, without_traces};

/// The stored name of a token: a keyed hash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct TokenId(Arc<str>);

impl From<&str> for TokenId {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl TokenId {
    pub fn path(&self) -> String {
        format!("token/id/{}", self.0)
    }

    /// What it is in a timetable; `None`: it is no hash.
    pub(super) fn name(&self) -> Option<Name> {
        let mut name = [0; 24];
        let length = URL_SAFE_NO_PAD.decode_slice(&*self.0, &mut name);
        (length == Ok(24)).then_some(Name(name))
    }

    pub(super) fn of(name: Name) -> Self {
        Self(URL_SAFE_NO_PAD.encode(name.0).into())
    }

    /// Where the cubbyhole of this token is.
    pub fn cubbyhole(&self) -> String {
        format!("cubbyhole/{}/", self.0)
    }
}

/// Makes names of secrets: whoever sees the name learns nothing of the secret.
pub(crate) struct NameKey(Locked<hmac::Key>);

impl NameKey {
    pub(super) fn new(key: &[u8]) -> Self {
        without_traces(|| Self(Locked::new(hmac::Key::new(hmac::HMAC_SHA256, key))))
    }

    /// A keyed hash: 192 bits of it, in base64url.
    pub fn name(&self, secret: &[u8]) -> String {
        let tag = hash_without_traces(|| hmac::sign(&self.0, secret));
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..24])
    }
}

pub(super) fn id_of(key: &NameKey, token: &ClientToken) -> TokenId {
    TokenId(key.name(token.expose().as_bytes()).into())
}

pub(super) fn accessor_path(accessor: &str) -> String {
    format!("token/accessor/{accessor}")
}

pub(super) fn linked_path(accessor: &str) -> String {
    format!("{LINKED}{accessor}")
}

pub(super) fn child_path(parent: &TokenId, child: &TokenId) -> String {
    format!("{}{}", children_path(parent), child.0)
}

pub(super) fn children_path(parent: &TokenId) -> String {
    format!("token/child/{}/", parent.0)
}

/// Random letters and digits from the system's generator.
pub(crate) fn base62(length: usize) -> String {
    let mut text = String::with_capacity(length);
    push_base62(&mut text, length);
    text
}

/// The same, into a text that has room for them: nothing is copied.
pub(crate) fn push_base62(text: &mut String, length: usize) {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    for _ in 0..length {
        text.push(char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]));
    }
}
