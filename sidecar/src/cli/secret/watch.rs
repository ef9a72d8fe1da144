//! `mesh secret watch`

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;

use super::{api_path, fields, show};
use crate::cli::{Exit, Failure, Global};

/// The longest wait for one answer: an agent passes on no request that takes longer than 5 s.
const WAIT: Duration = Duration::from_secs(4);

/// Prints a secret now and at each change, or with `once` at the next one only.
pub async fn watch(
    global: &Global,
    path: &str,
    field: Option<&str>,
    once: bool,
) -> Result<(), Failure> {
    let client = global.addresses.secrets()?;
    let what = format!("cannot watch secret {path:?}");
    let at = api_path(path, "data")?;
    let (mut index, mut shown) = (0, None);
    loop {
        let wait = WAIT.as_secs();
        let query = format!("{at}?index={index}&wait={wait}s");
        let answer = client.send(Method::GET, &query, "").await?;
        let now = answer.index.ok_or_else(|| {
            Failure::new(
                Exit::Remote,
                format!("{what}: this server does not tell when a secret changes"),
            )
        })?;
        let first = index == 0;
        if now != index {
            index = now;
            // A version that was deleted, or a secret that is not there (yet), is nothing to show.
            let seen = match answer.status {
                StatusCode::NOT_FOUND => None,
                _ => Some(answer.ok(&what)?.json::<Value>(&what)?),
            };
            let version = seen
                .as_ref()
                .map(|seen| seen["data"]["metadata"]["version"].clone());
            if let Some(seen) = &seen
                && version != shown
                && !(once && first)
            {
                show(global, path, fields(seen, &what)?, field)?;
                if once {
                    return Ok(());
                }
            }
            shown = version;
        }
    }
}
