//! `sys/rekey/*`, `sys/generate-root/*`: paths of share holders, who may have no token.
//!
//! Where Vault lets anybody start and cancel, here it takes a token with `sudo` or a threshold of shares in
//! the field `keys`: nobody can undo what others are doing (CVE-2026-5807). Giving a share needs the share.
//! OpenBao's names for the same, `sys/rotate/root/*` and `sys/generate-root-token/*`, always need a token.

use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    ApiError, failure,
    reply::{Answer, render},
    route::{count, hex, share},
};
use crate::{
    request::{Data, Operation, Request},
    vault::{
        InitOptions, Open, Vault,
        ceremony::{OTP, Rekeyed, reveal},
    },
};

#[cfg(test)]
mod tests;

/// Most shares in the field `keys`.
const MOST_KEYS: usize = 255;

/// One thing that can be asked here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    RekeyStatus,
    RekeyStart,
    RekeyCancel,
    RekeyShare,
    VerifyStatus,
    VerifyShare,
    VerifyCancel,
    RootStatus,
    RootStart,
    RootCancel,
    RootShare,
    Decode,
}

/// What is asked, and whether by a name that only token holders use.
struct Asked {
    step: Step,
    enveloped: bool,
}

impl Step {
    /// Whether it takes more than knowing where the server is.
    fn is_guarded(self) -> bool {
        use Step::{RekeyCancel, RekeyStart, RootCancel, RootStart, VerifyCancel};
        matches!(
            self,
            RekeyStart | RekeyCancel | VerifyCancel | RootStart | RootCancel
        )
    }
}

fn asked(path: &str, operation: Operation) -> Option<Result<Asked, ApiError>> {
    use Operation::{Delete, Read, Write};
    let (rest, enveloped) = match path {
        "sys/decode-token" => ("decode", false),
        _ => {
            let plain = path
                .strip_prefix("sys/")
                .filter(|rest| rest.starts_with("rekey/") || rest.starts_with("generate-root/"));
            match plain {
                Some(rest) => (rest, false),
                None => match path.strip_prefix("sys/rotate/root/") {
                    Some("init") => ("rekey/init", true),
                    Some("update") => ("rekey/update", true),
                    Some("verify") => ("rekey/verify", true),
                    Some(_) => return Some(Err(ApiError::UnsupportedPath)),
                    None => match path.strip_prefix("sys/generate-root-token/")? {
                        "attempt" => ("generate-root/attempt", true),
                        "update" => ("generate-root/update", true),
                        _ => return Some(Err(ApiError::UnsupportedPath)),
                    },
                },
            }
        }
    };
    let step = match (rest, operation) {
        ("rekey/init", Read) => Step::RekeyStatus,
        ("rekey/init", Write) => Step::RekeyStart,
        ("rekey/init", Delete) => Step::RekeyCancel,
        ("rekey/update", Write) => Step::RekeyShare,
        ("rekey/verify", Read) => Step::VerifyStatus,
        ("rekey/verify", Write) => Step::VerifyShare,
        ("rekey/verify", Delete) => Step::VerifyCancel,
        ("generate-root/attempt", Read) => Step::RootStatus,
        ("generate-root/attempt", Write) => Step::RootStart,
        ("generate-root/attempt", Delete) => Step::RootCancel,
        ("generate-root/update", Write) => Step::RootShare,
        ("decode", Write) => Step::Decode,
        (
            "rekey/init"
            | "rekey/update"
            | "rekey/verify"
            | "generate-root/attempt"
            | "generate-root/update"
            | "decode",
            _,
        ) => return Some(Err(ApiError::UnsupportedOperation)),
        _ => return Some(Err(ApiError::UnsupportedPath)),
    };
    Some(Ok(Asked { step, enveloped }))
}

impl Vault {
    /// Answers these paths; `Err`: it is none of them.
    pub(super) async fn ceremony(
        &self,
        open: &Arc<Open>,
        mut request: Request,
    ) -> Result<http::Response<bytes::Bytes>, Request> {
        let Some(asked) = asked(request.path.as_str(), request.operation) else {
            return Err(request);
        };
        let (id, head) = (request.id.clone(), request.head);
        let result = match asked {
            Ok(asked) => Box::pin(self.recorded(open, &mut request, &asked)).await,
            Err(error) => Err(error),
        };
        Ok(render(&result, &id, head))
    }

    async fn recorded(
        &self,
        open: &Arc<Open>,
        request: &mut Request,
        asked: &Asked,
    ) -> Result<Answer, ApiError> {
        let guarded = asked.step.is_guarded();
        let by_shares = guarded && request.token.is_none() && !request.data.is_empty();
        let begun = if asked.enveloped || (guarded && !by_shares) {
            open.api.begin(request, guarded).await?
        } else {
            open.api.begin_open(request).await?
        };
        let mut result = Ok(());
        if by_shares && !asked.enveloped && !self.shown(&request.data)? {
            result = Err(ApiError::Unauthenticated);
        }
        let result = match result {
            Ok(()) => self.take_step(open, asked.step, &request.data).await,
            Err(error) => Err(error),
        };
        let result = result.map(|body| match body {
            None => Answer::none(),
            Some(body) if asked.enveloped || asked.step == Step::Decode => Answer::data(body),
            Some(body) => Answer::bare(200, body),
        });
        open.api.end(begun, result).await
    }

    /// Whether the field `keys` holds a threshold of this store's shares.
    fn shown(&self, data: &Data) -> Result<bool, ApiError> {
        let Some(Value::Array(keys)) = data.raw("keys") else {
            return Ok(false);
        };
        let keys = keys.iter().take(MOST_KEYS);
        let keys: Option<Vec<_>> = keys.map(|key| share(key.as_str()?)).collect();
        match keys {
            Some(keys) => self.opened_by(&keys).map_err(failure),
            None => Ok(false),
        }
    }

    async fn take_step(
        &self,
        open: &Arc<Open>,
        step: Step,
        data: &Data,
    ) -> Result<Option<Value>, ApiError> {
        match step {
            Step::RekeyStatus => self.rekey_status(open).map(Some),
            Step::RekeyStart => {
                refuse_pgp(data, &["pgp_keys"])?;
                if data.flag("backup")?.unwrap_or(false) {
                    return Err(ApiError::bad(
                        "backup is for PGP-wrapped shares, which this server does not make",
                    ));
                }
                let options = InitOptions {
                    shares: count(data, "secret_shares")?,
                    threshold: count(data, "secret_threshold")?,
                };
                let verify = data.flag("require_verification")?.unwrap_or(false);
                self.rekey_start(open, options, verify)?;
                self.rekey_status(open).map(Some)
            }
            Step::RekeyCancel => {
                open.attempts.lock().rekey = None;
                Ok(None)
            }
            Step::RekeyShare => {
                let (nonce, share) = nonce_and_share(data)?;
                self.rekey_answer(open, &nonce, share).await.map(Some)
            }
            Step::VerifyStatus => verify_status(open).map(Some),
            Step::VerifyShare => {
                let (nonce, share) = nonce_and_share(data)?;
                match self.rekey_verify(open, &nonce, share).await? {
                    true => Ok(Some(json!({"nonce": nonce, "complete": true}))),
                    false => verify_status(open).map(Some),
                }
            }
            Step::VerifyCancel => {
                let mut attempts = open.attempts.lock();
                let rekey = attempts.rekey.as_mut();
                if let Some(unverified) = rekey.and_then(|rekey| rekey.unverified.as_mut()) {
                    unverified.restart();
                }
                Ok(None)
            }
            Step::RootStatus => self.root_status(open, "", OTP).map(Some),
            Step::RootStart => {
                refuse_pgp(data, &["pgp_key"])?;
                let otp = data.text("otp")?.filter(|otp| !otp.is_empty());
                let otp = self.root_start(open, otp.map(Zeroizing::new))?;
                self.root_status(open, &otp, OTP).map(Some)
            }
            Step::RootCancel => {
                open.attempts.lock().root = None;
                Ok(None)
            }
            Step::RootShare => {
                let (nonce, share) = nonce_and_share(data)?;
                let Some(token) = self.root_share(open, &nonce, share).await? else {
                    return self.root_status(open, "", 0).map(Some);
                };
                let threshold = self.seal_config().map_err(failure)?.threshold;
                Ok(Some(json!({
                    "nonce": nonce, "started": true, "progress": threshold, "required": threshold,
                    "complete": true, "encoded_token": token, "encoded_root_token": token,
                    "pgp_fingerprint": "", "otp": "", "otp_length": 0,
                })))
            }
            Step::Decode => {
                let text = |name: &str| -> Result<Zeroizing<String>, ApiError> {
                    let text = data.text(name)?.filter(|text| !text.is_empty());
                    text.map(Zeroizing::new)
                        .ok_or_else(|| ApiError::bad(format!("missing {name}")))
                };
                let token = reveal(&text("encoded_token")?, &text("otp")?);
                let token = token.ok_or_else(|| {
                    ApiError::bad("the encoded token and the OTP do not belong together")
                })?;
                Ok(Some(json!({"token": *token})))
            }
        }
    }

    fn rekey_status(&self, open: &Open) -> Result<Value, ApiError> {
        let required = self.seal_config().map_err(failure)?.threshold;
        let attempts = open.attempts.lock();
        let rekey = attempts.rekey.as_ref();
        let mut body = json!({
            "nonce": rekey.map_or("", |rekey| &rekey.nonce), "started": rekey.is_some(),
            "t": rekey.map_or(0, |rekey| rekey.threshold), "n": rekey.map_or(0, |rekey| rekey.shares),
            "progress": rekey.map_or(0, |rekey| rekey.given.count()), "required": required,
            "pgp_fingerprints": null, "backup": false,
            "verification_required": rekey.is_some_and(|rekey| rekey.verify),
        });
        if let Some(unverified) = rekey.and_then(|rekey| rekey.unverified.as_ref()) {
            body["verification_nonce"] = unverified.nonce.as_str().into();
        }
        Ok(body)
    }

    async fn rekey_answer(
        &self,
        open: &Arc<Open>,
        nonce: &str,
        share: Zeroizing<Vec<u8>>,
    ) -> Result<Value, ApiError> {
        match self.rekey_share(open, nonce, share).await? {
            Rekeyed::Waiting => self.rekey_status(open),
            Rekeyed::Made {
                shares,
                verification,
            } => {
                let base64 = base64::engine::general_purpose::STANDARD;
                let base64 = shares.iter().map(|share| base64.encode(&share[..]));
                Ok(json!({
                    "nonce": nonce, "complete": true, "pgp_fingerprints": null, "backup": false,
                    "keys": shares.iter().map(|share| hex(share)).collect::<Vec<_>>(),
                    "keys_base64": base64.collect::<Vec<_>>(),
                    "verification_required": verification.is_some(),
                    "verification_nonce": verification.unwrap_or_default(),
                }))
            }
        }
    }

    fn root_status(&self, open: &Open, otp: &str, otp_length: usize) -> Result<Value, ApiError> {
        let required = self.seal_config().map_err(failure)?.threshold;
        let attempts = open.attempts.lock();
        let root = attempts.root.as_ref();
        Ok(json!({
            "nonce": root.map_or("", |root| &root.nonce), "started": root.is_some(),
            "progress": root.map_or(0, |root| root.given.count()), "required": required,
            "complete": false, "encoded_token": "", "encoded_root_token": "", "pgp_fingerprint": "",
            "otp": otp, "otp_length": otp_length,
        }))
    }
}

fn verify_status(open: &Open) -> Result<Value, ApiError> {
    let attempts = open.attempts.lock();
    let rekey = attempts.rekey.as_ref();
    let unverified = rekey.and_then(|rekey| Some((rekey, rekey.unverified.as_ref()?)));
    let (rekey, unverified) =
        unverified.ok_or_else(|| ApiError::bad("no rekey verification in progress"))?;
    Ok(json!({
        "nonce": unverified.nonce, "started": true, "t": rekey.threshold, "n": rekey.shares,
        "progress": unverified.given.count(),
    }))
}

fn nonce_and_share(data: &Data) -> Result<(String, Zeroizing<Vec<u8>>), ApiError> {
    let nonce = data.text("nonce")?.unwrap_or_default();
    let key = Zeroizing::new(data.text("key")?.unwrap_or_default());
    if key.is_empty() {
        return Err(ApiError::bad(
            "'key' must be specified in request body as JSON",
        ));
    }
    let share =
        share(&key).ok_or_else(|| ApiError::bad("'key' must be a valid hex or base64 string"))?;
    Ok((nonce, share))
}

/// Nothing here encrypts for PGP keys; silently handing out plain shares would be worse than refusing.
pub(super) fn refuse_pgp(data: &Data, fields: &[&str]) -> Result<(), ApiError> {
    for field in fields {
        let given = match data.raw(field) {
            Some(Value::Array(keys)) => !keys.is_empty(),
            Some(Value::String(key)) => !key.is_empty(),
            None => false,
            Some(_) => true,
        };
        if given {
            return Err(ApiError::bad(format!(
                "{field}: shares and tokens are not wrapped with PGP keys by this server; leave it out and encrypt what you get for each person yourself"
            )));
        }
    }
    Ok(())
}
