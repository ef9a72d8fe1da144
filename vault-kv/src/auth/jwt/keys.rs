//! Keys that sign tokens: given in the configuration, or fetched from whoever issues the tokens.
//!
//! Fetched keys are kept for [`FRESH`]. A token that names an unknown key has them fetched again, but not more often
//! than every [`PAUSE`], so that made-up names cost the issuer nothing. When it cannot be reached, the keys at hand are used.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::ApiError;
use crate::outbound::Outbound;

const FRESH: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_secs(10);
/// Keys of one set that are looked at.
const MOST: usize = 256;
/// Longest token that is looked at, in bytes.
const LONGEST: usize = 64 << 10;

/// What a token says.
pub(crate) type Claims = Map<String, Value>;

/// Where fetched keys come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    /// A JSON Web Key Set (RFC 7517).
    KeySet(&'a str),
    /// An OpenID provider, which says where its key set is.
    Discovery(&'a str),
}

/// One key, with the name that tokens call it by.
pub(crate) struct Key {
    id: Option<String>,
    /// `None`: any that fits its kind.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

impl Key {
    /// Whether it may have signed a token with this header.
    pub fn fits(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let named = match (id, &self.id) {
            (Some(wanted), Some(own)) => wanted == own,
            _ => true,
        };
        named && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

/// Where the keys are.
pub(crate) enum Keys<'a> {
    /// In the configuration.
    Own(Vec<Key>),
    /// There, and these authorities (PEM) are to be trusted for that instead of the system's.
    Fetched(Source<'a>, &'a str),
}

/// Checks signatures for one mount.
pub(crate) struct Verifier {
    outbound: Option<Arc<dyn Outbound>>,
    fetched: Mutex<Fetched>,
}

#[derive(Default)]
struct Fetched {
    /// Whose they are: keys of an issuer that is not trusted any more are no keys.
    of: String,
    keys: Arc<Vec<Key>>,
    at: Option<Instant>,
    tried: Option<Instant>,
}

impl Verifier {
    pub fn new(outbound: Option<Arc<dyn Outbound>>) -> Self {
        Self {
            outbound,
            fetched: Mutex::default(),
        }
    }

    /// Whether keys can be had; a mistake shows when it is made, not when somebody logs in.
    ///
    /// # Errors
    /// 400: they cannot.
    pub async fn check(&self, keys: &Keys<'_>) -> Result<(), ApiError> {
        match keys {
            Keys::Own(_) => Ok(()),
            Keys::Fetched(source, roots) => {
                fetch(self.outbound.as_deref(), *source, roots).await?;
                Ok(())
            }
        }
    }

    /// What a token says that one of the keys signed, with an algorithm that `takes` takes. Times, issuers and audiences
    /// are not looked at.
    ///
    /// # Errors
    /// 400; nothing of the token is quoted.
    pub async fn claims(
        &self,
        keys: Keys<'_>,
        token: &str,
        takes: impl Fn(Algorithm) -> bool,
    ) -> Result<Claims, ApiError> {
        let unreadable = || refused("it is not a signed JSON Web Token");
        if token.len() > LONGEST {
            return Err(unreadable());
        }
        let header = decode_header(token).map_err(|_| unreadable())?;
        if !takes(header.alg) {
            return Err(refused(
                "it is signed with an algorithm that is not supported",
            ));
        }
        let fits = |key: &Key| key.fits(header.kid.as_deref(), header.alg);
        let keys = match keys {
            Keys::Own(keys) => Arc::new(keys),
            Keys::Fetched(source, roots) => self.fetched(source, roots, fits).await?,
        };
        let mut validation = Validation::new(header.alg);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let verified = keys
            .iter()
            .filter(|key| fits(key))
            .find_map(|key| decode::<Claims>(token, &key.key, &validation).ok());
        verified
            .map(|token| token.claims)
            .ok_or_else(|| refused("error verifying token signature: no known key signed it"))
    }

    /// The keys of `source`, fetched again when they are old or none of them `fits`.
    ///
    /// # Errors
    /// There are none, and none can be fetched.
    async fn fetched(
        &self,
        source: Source<'_>,
        roots: &str,
        fits: impl Fn(&Key) -> bool,
    ) -> Result<Arc<Vec<Key>>, ApiError> {
        let mut fetched = self.fetched.lock().await;
        let of = format!("{source:?} {roots}");
        if fetched.of != of {
            *fetched = Fetched {
                of,
                ..Fetched::default()
            };
        }
        let now = Instant::now();
        let within = |since: Option<Instant>, limit| since.is_some_and(|at| now - at < limit);
        let known = fetched.keys.iter().any(fits);
        if within(fetched.at, FRESH) && known || within(fetched.tried, PAUSE) {
            return Ok(Arc::clone(&fetched.keys));
        }
        fetched.tried = Some(now);
        match fetch(self.outbound.as_deref(), source, roots).await {
            Ok(keys) => {
                fetched.keys = Arc::new(keys);
                fetched.at = Some(Instant::now());
            }
            Err(error) if fetched.keys.is_empty() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "keys of a login method cannot be fetched; the last ones are used");
            }
        }
        Ok(Arc::clone(&fetched.keys))
    }
}

/// A token that is no good. Nothing of it is quoted.
pub(crate) fn refused(why: &str) -> ApiError {
    ApiError::bad(format!("error validating token: {why}"))
}

/// The keys of `source` as they are now.
///
/// # Errors
/// 400 with the reason.
async fn fetch(
    outbound: Option<&dyn Outbound>,
    source: Source<'_>,
    roots: &str,
) -> Result<Vec<Key>, ApiError> {
    match source {
        Source::KeySet(url) => {
            let set = get(outbound, url, roots).await?;
            key_set(&set)
                .ok_or_else(|| ApiError::bad(format!("what {url} has is not a JSON Web Key Set")))
        }
        Source::Discovery(issuer) => {
            let issuer = issuer.trim_end_matches('/');
            let url = format!("{issuer}/.well-known/openid-configuration");
            let found = get(outbound, &url, roots).await?;
            let text = |name: &str| found[name].as_str().unwrap_or_default();
            if text("issuer").trim_end_matches('/') != issuer {
                return Err(ApiError::bad(format!(
                    "what {url} describes is another issuer than oidc_discovery_url"
                )));
            }
            let url = checked(text("jwks_uri"))?;
            let set = get(outbound, url, roots).await?;
            key_set(&set)
                .ok_or_else(|| ApiError::bad(format!("what {url} has is not a JSON Web Key Set")))
        }
    }
}

async fn get(outbound: Option<&dyn Outbound>, url: &str, roots: &str) -> Result<Value, ApiError> {
    let outbound = outbound.ok_or_else(|| {
        ApiError::bad("this server fetches nothing: give the keys themselves in jwks or jwt_validation_pubkeys")
    })?;
    let request = http::Request::get(url)
        .header("accept", "application/json")
        .body(bytes::Bytes::new())
        .map_err(|_| ApiError::bad(format!("{url:?} is not a URL")))?;
    let roots = (!roots.is_empty()).then(|| roots.to_owned());
    let answer = outbound
        .send(request, roots)
        .await
        .map_err(|error| ApiError::bad(format!("{url} cannot be fetched: {error}")))?;
    match answer.status() {
        StatusCode::OK => serde_json::from_slice(answer.body())
            .map_err(|_| ApiError::bad(format!("what {url} has is not JSON"))),
        status => Err(ApiError::bad(format!("{url} answers {status}"))),
    }
}

/// A URL that keys may come from: only TLS says that they are whose they should be.
///
/// # Errors
/// 400: neither https, nor http on this machine.
pub(crate) fn checked(url: &str) -> Result<&str, ApiError> {
    let parsed: Option<http::Uri> = url.parse().ok();
    let host = parsed
        .as_ref()
        .and_then(|uri| Some((uri.scheme_str()?, uri.host()?)));
    match host {
        Some(("https", _)) => Ok(url),
        Some(("http", "localhost" | "127.0.0.1" | "[::1]")) => Ok(url),
        _ => Err(ApiError::bad(
            "keys are fetched from https:// addresses, or http:// on this machine",
        )),
    }
}

/// The keys of a JSON Web Key Set that can check signatures; `None`: it is none.
pub(crate) fn key_set(set: &Value) -> Option<Vec<Key>> {
    let keys = set["keys"].as_array()?;
    // One at a time: keys of unknown kinds are allowed in a set.
    let usable = keys.iter().take(MOST).filter_map(|key| {
        let jwk: Jwk = serde_json::from_value(key.clone()).ok()?;
        if matches!(key["use"].as_str(), Some("enc" | "x509-svid")) {
            return None;
        }
        let algorithm = match key["alg"].as_str() {
            None => None,
            Some(name) => Some(algorithm(name)?),
        };
        Some(Key {
            id: jwk.common.key_id.clone(),
            algorithm,
            key: DecodingKey::from_jwk(&jwk).ok()?,
        })
    });
    Some(usable.collect())
}

/// A key set as its text.
///
/// # Errors
/// 400: it is none, or has no key that can be used.
pub(crate) fn key_set_text(field: &str, text: &str) -> Result<Vec<Key>, ApiError> {
    let parsed: Option<JwkSet> = serde_json::from_str(text).ok();
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let keys = key_set(&value).filter(|keys| !keys.is_empty());
    let nothing = match parsed {
        Some(_) => "no key in it can check a signature",
        None => "not a JSON Web Key Set",
    };
    keys.ok_or_else(|| ApiError::bad(format!("field \"{field}\": {nothing}")))
}

/// Public keys in PEM.
///
/// # Errors
/// 400: one is none.
pub(crate) fn pem_keys(pems: &[String]) -> Result<Vec<Key>, ApiError> {
    let key = |pem: &String| {
        let pem = pem.as_bytes();
        DecodingKey::from_rsa_pem(pem)
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .ok()
    };
    let keys = pems.iter().map(|pem| {
        key(pem)
            .map(|key| Key {
                id: None,
                algorithm: None,
                key,
            })
            .ok_or_else(|| {
                ApiError::bad("error parsing public key: field \"jwt_validation_pubkeys\" has what is no public key in PEM")
            })
    });
    keys.collect()
}

/// An algorithm by its name (RFC 7518), if [`signs`].
pub(crate) fn algorithm(name: &str) -> Option<Algorithm> {
    name.parse().ok().filter(|algorithm| signs(*algorithm))
}

/// Whether a public key checks what is signed with it; those with shared keys do not count.
pub(crate) fn signs(algorithm: Algorithm) -> bool {
    !matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::outbound::Sent;

    /// Answers with a key of which the path is the name, or with nothing.
    #[derive(Debug)]
    struct Issuers;

    impl Outbound for Issuers {
        fn send(&self, request: http::Request<Bytes>, _roots: Option<String>) -> Sent<'_> {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            let set = json!({"keys": [{
                "kty": "OKP", "crv": "Ed25519", "kid": path, "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
            }]});
            Box::pin(async move {
                match path.as_str() {
                    "away" => Err("nobody answers".to_owned()),
                    _ => Ok(http::Response::new(set.to_string().into())),
                }
            })
        }
    }

    #[tokio::test]
    async fn keys_of_an_issuer_are_forgotten_with_it() {
        let verifier = Verifier::new(Some(Arc::new(Issuers)));
        let names = async |url: &str| {
            let any = |_: &Key| true;
            let keys = verifier.fetched(Source::KeySet(url), "", any).await.ok()?;
            let names = keys.iter().map(|key| key.id.clone().unwrap());
            Some(names.collect::<Vec<_>>())
        };
        assert_eq!(names("https://x/one").await.unwrap(), ["one"]);
        assert_eq!(names("https://x/two").await.unwrap(), ["two"]);
        assert_eq!(names("https://x/away").await, None, "not those of another");
    }
}
