//! `sys/tools/*`: random bytes and hashes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use serde_json::json;
use zeroize::Zeroizing;

use crate::http::ApiError;
use crate::http::hex;
use crate::http::reply::Answer;
use crate::request::{Data, Operation};

/// Random bytes when nobody says how many.
const USUAL: i64 = 32;
/// Most random bytes at once.
const MOST: i64 = 128 * 1024;

/// `what` is the path behind `sys/tools/`.
pub(super) fn tools(operation: Operation, what: &str, data: &Data) -> Result<Answer, ApiError> {
    let (tool, argument) = what.split_once('/').unwrap_or((what, ""));
    if !matches!(tool, "random" | "hash") {
        return Err(ApiError::UnsupportedPath);
    }
    if operation != Operation::Write {
        return Err(ApiError::UnsupportedOperation);
    }
    match tool {
        "random" => random(argument, data),
        _ => hash(argument, data),
    }
}

/// `random[/:source][/:bytes]`; the one source is the system's.
fn random(argument: &str, data: &Data) -> Result<Answer, ApiError> {
    let (source, count) = match argument.split_once('/') {
        Some(both) => both,
        None if argument.parse::<i64>().is_ok() || argument.is_empty() => ("", argument),
        None => (argument, ""),
    };
    let source = match source {
        "" => data.text("source")?.unwrap_or_default(),
        named => named.to_string(),
    };
    if !matches!(source.as_str(), "" | "platform" | "seal" | "all") {
        return Err(ApiError::bad(
            "unsupported entropy source; it is \"platform\", \"seal\" or \"all\"",
        ));
    }
    let count = match count {
        "" => data.int("bytes")?.unwrap_or(USUAL),
        count => count
            .parse()
            .map_err(|_| ApiError::bad("error parsing url-set byte count"))?,
    };
    if !(1..=MOST).contains(&count) {
        return Err(ApiError::bad(format!("\"bytes\" must be 1 to {MOST}")));
    }
    let encode = format(data, "base64")?;
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(count).unwrap_or(0)]);
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    Ok(Answer::data(json!({ "random_bytes": encode(&bytes) })))
}

/// `hash[/:algorithm]`
fn hash(argument: &str, data: &Data) -> Result<Answer, ApiError> {
    let algorithm = match argument {
        "" => data.text("algorithm")?.unwrap_or_else(|| "sha2-256".into()),
        named => named.to_string(),
    };
    let algorithm = match algorithm.as_str() {
        "sha2-256" => &digest::SHA256,
        "sha2-384" => &digest::SHA384,
        "sha2-512" => &digest::SHA512,
        other => {
            return Err(ApiError::bad(format!(
                "unsupported algorithm {other}; there are sha2-256, sha2-384 and sha2-512"
            )));
        }
    };
    let encode = format(data, "hex")?;
    let input = Zeroizing::new(data.text("input")?.unwrap_or_default());
    let input = STANDARD.decode(input.as_bytes()).map(Zeroizing::new);
    let input = input.map_err(|_| ApiError::bad("unable to decode input as base64"))?;
    let sum = digest::digest(algorithm, &input);
    Ok(Answer::data(json!({ "sum": encode(sum.as_ref()) })))
}

fn format(data: &Data, usual: &str) -> Result<fn(&[u8]) -> String, ApiError> {
    let format = data.text("format")?;
    match format.as_deref().unwrap_or(usual) {
        "hex" => Ok(hex),
        "base64" => Ok(|bytes| STANDARD.encode(bytes)),
        _ => Err(ApiError::bad(
            "unsupported encoding format; must be \"hex\" or \"base64\"",
        )),
    }
}
