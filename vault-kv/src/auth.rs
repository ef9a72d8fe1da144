//! Login methods: what turns a credential into a token.
//!
//! A method checks what it is given and says what the token is to be ([`Login`]); it neither makes tokens nor knows
//! of policies' contents. What it has to write for a login (a use of a secret id) becomes durable together with the
//! token, in one entry.

use std::collections::BTreeMap;

use tokio::sync::MutexGuard;

use crate::db::Batch;
use crate::http::ApiError;
use crate::token::Binding;

pub(crate) mod approle;
pub(crate) mod cert;
pub(crate) mod jwt;
pub(crate) mod kubernetes;
pub(crate) mod lockout;
pub(crate) mod params;
mod roles;
pub(crate) mod spiffe;
pub(crate) mod userpass;

use params::TokenParams;

/// A credential that was found good.
pub(crate) struct Login<'a> {
    pub params: TokenParams,
    pub metadata: BTreeMap<String, String>,
    /// What is added to the mount's name to make the token's display name; may be empty.
    pub name: String,
    /// What stands for the caller in this method for ever.
    pub alias: String,
    /// The groups that the caller belongs to, by the method's names; `None`: it says nothing of groups.
    pub groups: Option<Vec<String>>,
    /// The certificate that the token is bound to.
    pub certificate: Option<Binding>,
    /// What becomes durable with the token.
    pub batch: Option<Batch>,
    /// Held until then.
    pub order: Option<MutexGuard<'a, ()>>,
}

/// A name of a user or role: letters, digits, `_`, `-` and `.`, in lower case, as Vault has it.
///
/// # Errors
/// 404: no such path.
pub(crate) fn item_name(text: &str) -> Result<String, ApiError> {
    let inner = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let outer = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    let fits = text.len() <= 512
        && text.chars().all(inner)
        && outer(text.chars().next())
        && outer(text.chars().last());
    match fits {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(ApiError::UnsupportedPath),
    }
}
