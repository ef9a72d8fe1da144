//! What a threshold of share holders does together while the store is open: rekey, and making a root token.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use zeroize::Zeroizing;

use super::{InitOptions, Open, Vault, VaultError, check, seal};
use crate::{
    barrier::SecretKey,
    db::By,
    http::ApiError,
    seal::{
        SealConfig, SealKind,
        attempts::{GenerateRoot, Rekey, Unverified},
        progress::Progress,
        shares,
    },
    store::FoldKey,
    token::NewToken,
};

type Share = Zeroizing<Vec<u8>>;

/// What became of a share given to a rekey.
pub(crate) enum Rekeyed {
    /// More are needed.
    Waiting,
    /// The threshold was reached: here are the new shares.
    Made {
        shares: Vec<Share>,
        /// Names the verification that they still need.
        verification: Option<String>,
    },
}

/// Length of a root token, and so of the password that hides it.
pub(crate) const OTP: usize = 28;

impl Vault {
    /// # Errors
    /// Storage, or `init` has not been done.
    pub(crate) fn seal_config(&self) -> Result<SealConfig, VaultError> {
        SealConfig::load(&*self.inner.store)?.ok_or(VaultError::NotInitialized)
    }

    /// Whether these shares open this store.
    pub(crate) fn opened_by(&self, shares: &[Share]) -> Result<bool, VaultError> {
        let mut given = Progress::default();
        for share in shares {
            given.add(share.clone());
        }
        let config = self.seal_config()?;
        match given.take(config.threshold) {
            Some(shares) => Ok(self.unseal_key(&shares)?.is_some()),
            None => Ok(false),
        }
    }

    /// The unseal key behind `shares`, if it is this store's.
    fn unseal_key(&self, shares: &[Share]) -> Result<Option<SecretKey>, VaultError> {
        let Some(unseal) = shares::combine(shares) else {
            return Ok(None);
        };
        let wrapped = self.inner.store.control(&FoldKey::control(seal::ROOT))?;
        let opens = wrapped.is_some_and(|wrapped| unseal.unwrap_root(&wrapped.value).is_ok());
        Ok(opens.then_some(unseal))
    }

    /// Counts a share; when the threshold is reached, whether they open this store. `None`: more are needed.
    fn count(&self, given: &mut Progress, share: Share) -> Result<Option<()>, ApiError> {
        let config = self.seal_config().map_err(crate::http::failure)?;
        if share.len() != config.share_length() {
            let error = VaultError::ShareLength(share.len());
            return Err(crate::http::failure(error));
        }
        if !given.add(share) {
            return Err(ApiError::bad(
                "given key has already been provided during this operation; the next person's share is needed",
            ));
        }
        let Some(complete) = given.take(config.threshold) else {
            return Ok(None);
        };
        match self.unseal_key(&complete).map_err(crate::http::failure)? {
            Some(_) => Ok(Some(())),
            None => Err(crate::http::failure(VaultError::WrongKey)),
        }
    }

    /// Starts a rekey.
    pub(crate) fn rekey_start(
        &self,
        open: &Open,
        options: InitOptions,
        verify: bool,
    ) -> Result<(), ApiError> {
        check(options).map_err(crate::http::failure)?;
        if self.seal_config().map_err(crate::http::failure)?.kind == SealKind::Static {
            return Err(ApiError::bad(
                "this store is unsealed by a key file, so there are no shares to make anew",
            ));
        }
        let rekey = &mut open.attempts.lock().rekey;
        if rekey.is_some() {
            return Err(ApiError::bad("rekey already in progress"));
        }
        *rekey = Some(Rekey::new(options.shares, options.threshold, verify));
        Ok(())
    }

    /// One share for the rekey under way.
    pub(crate) async fn rekey_share(
        &self,
        open: &Arc<Open>,
        nonce: &str,
        share: Share,
    ) -> Result<Rekeyed, ApiError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let (config, verify) = {
            let mut attempts = open.attempts.lock();
            let rekey = attempts.rekey.as_mut();
            let rekey = rekey.ok_or_else(|| ApiError::bad("no barrier rekey in progress"))?;
            same_nonce("rekey", &rekey.nonce, nonce)?;
            if rekey.unverified.is_some() {
                return Err(ApiError::bad(
                    "the new shares are made and wait to be verified: sys/rekey/verify",
                ));
            }
            if self.count(&mut rekey.given, share)?.is_none() {
                return Ok(Rekeyed::Waiting);
            }
            let present = self.seal_config().map_err(crate::http::failure)?;
            let config = SealConfig {
                shares: rekey.shares,
                threshold: rekey.threshold,
                ..present
            };
            (config, rekey.verify)
        };
        let unseal = SecretKey::random();
        let shares = shares::split(&unseal, config.shares, config.threshold);
        if verify {
            let unverified = Unverified::new(unseal);
            let verification = Some(unverified.nonce.clone());
            if let Some(rekey) = &mut open.attempts.lock().rekey {
                rekey.unverified = Some(unverified);
            }
            return Ok(Rekeyed::Made {
                shares,
                verification,
            });
        }
        self.finish_rekey(open, &config, &unseal).await?;
        Ok(Rekeyed::Made {
            shares,
            verification: None,
        })
    }

    /// One of the new shares, shown. `true`: enough were; they count from here on.
    pub(crate) async fn rekey_verify(
        &self,
        open: &Arc<Open>,
        nonce: &str,
        share: Share,
    ) -> Result<bool, ApiError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let (config, unseal) = {
            let mut attempts = open.attempts.lock();
            let rekey = attempts.rekey.as_mut();
            let rekey = rekey.ok_or_else(|| ApiError::bad("no rekey in progress"))?;
            let (shares, threshold) = (rekey.shares, rekey.threshold);
            let unverified = rekey.unverified.as_mut();
            let unverified =
                unverified.ok_or_else(|| ApiError::bad("no rekey verification in progress"))?;
            same_nonce("rekey verification", &unverified.nonce, nonce)?;
            if !unverified.given.add(share) {
                return Err(ApiError::bad(
                    "given key has already been provided during this verification; the next person's share is needed",
                ));
            }
            let Some(complete) = unverified.given.take(threshold) else {
                return Ok(false);
            };
            let shown = shares::combine(&complete);
            if shown.is_none_or(|shown| !shown.is(&unverified.unseal)) {
                unverified.restart();
                return Err(ApiError::bad(
                    "rekey verification failed; incorrect key shares supplied: show the new shares again, from the first one",
                ));
            }
            let present = self.seal_config().map_err(crate::http::failure)?;
            let config = SealConfig {
                shares,
                threshold,
                ..present
            };
            let unverified = rekey.unverified.take();
            let unverified = unverified.expect("it was looked at above, under the same lock");
            (config, unverified.unseal)
        };
        self.finish_rekey(open, &config, &unseal).await?;
        Ok(true)
    }

    async fn finish_rekey(
        &self,
        open: &Arc<Open>,
        config: &SealConfig,
        unseal: &SecretKey,
    ) -> Result<(), ApiError> {
        let done = open.rotation.rekey(&by_shares(), config, unseal).await;
        open.attempts.lock().rekey = None;
        done
    }

    /// One share for the root token being made. The token, hidden by the attempt's password, when enough were given.
    pub(crate) async fn root_share(
        &self,
        open: &Arc<Open>,
        nonce: &str,
        share: Share,
    ) -> Result<Option<String>, ApiError> {
        let _one_at_a_time = self.inner.changing.lock().await;
        let otp = {
            let mut attempts = open.attempts.lock();
            let root = attempts.root.as_mut();
            let root = root.ok_or_else(|| ApiError::bad("no root generation in progress"))?;
            same_nonce("root generation", &root.nonce, nonce)?;
            if self.count(&mut root.given, share)?.is_none() {
                return Ok(None);
            }
            attempts.root.take().map(|root| root.otp)
        };
        let otp = otp.expect("it was looked at above, under the same lock");
        let token = open.api.new_token(&by_shares(), NewToken::root()).await?;
        Ok(Some(hide(token.expose(), &otp)))
    }

    /// Starts making a root token.
    pub(crate) fn root_start(
        &self,
        open: &Open,
        otp: Option<Zeroizing<String>>,
    ) -> Result<Zeroizing<String>, ApiError> {
        if otp.as_ref().is_some_and(|otp| otp.len() != OTP) {
            return Err(ApiError::bad(format!("the OTP must have {OTP} characters")));
        }
        let otp = otp.unwrap_or_else(|| {
            let mut otp = Zeroizing::new(String::with_capacity(OTP));
            crate::token::push_base62(&mut otp, OTP);
            otp
        });
        let root = &mut open.attempts.lock().root;
        if root.is_some() {
            return Err(ApiError::bad("root generation already in progress"));
        }
        *root = Some(GenerateRoot::new(otp.clone()));
        Ok(otp)
    }
}

fn by_shares() -> By {
    By {
        actor: "holders of the unseal key".into(),
        via: "http",
    }
}

/// A share for another attempt is for nothing. The right nonce is no secret: the status tells it.
fn same_nonce(what: &str, wanted: &str, given: &str) -> Result<(), ApiError> {
    if wanted == given {
        return Ok(());
    }
    Err(ApiError::bad(format!(
        "incorrect nonce supplied; nonce for this {what} operation is \"{wanted}\""
    )))
}

/// The token XOR the password, in base64 without padding.
fn hide(token: &str, otp: &str) -> String {
    let pairs = token.bytes().zip(otp.bytes());
    let hidden: Vec<u8> = pairs.map(|(token, otp)| token ^ otp).collect();
    STANDARD_NO_PAD.encode(hidden)
}

/// The root token behind what `sys/generate-root/update` answered (`encoded_token`), with the attempt's one-time
/// password; `None` if the two do not belong together.
pub fn reveal(hidden: &str, otp: &str) -> Option<Zeroizing<String>> {
    let hidden = STANDARD_NO_PAD
        .decode(hidden.trim().trim_end_matches('='))
        .ok()?;
    if hidden.len() != otp.len() {
        return None;
    }
    let mut token = Zeroizing::new(String::with_capacity(otp.len()));
    for (hidden, otp) in hidden.into_iter().zip(otp.bytes()) {
        let byte = hidden ^ otp;
        if !byte.is_ascii_graphic() {
            return None;
        }
        token.push(char::from(byte));
    }
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hidden_token_comes_back_with_its_password_only() {
        let token = "hvs.ABCDEFGHIJKLMNOPQRSTUVWX";
        let otp = "0123456789abcdefghijklmnopqr";
        let hidden = hide(token, otp);
        assert!(!hidden.contains('='), "as Vault writes it");
        assert_eq!(reveal(&hidden, otp).unwrap().as_str(), token);
        assert_eq!(
            reveal(&format!("{hidden}==\n"), otp).unwrap().as_str(),
            token
        );
        assert!(reveal(&hidden, &otp[1..]).is_none());
        assert!(reveal("?", otp).is_none());
    }
}
