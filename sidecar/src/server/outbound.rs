//! Requests that login methods of the store have made: key sets, reviews of tokens.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, uri::PathAndQuery};
use vault_kv::{Outbound, Sent};

use crate::http::client::Target;

/// For connecting, and for each piece of the answer.
const WITHIN: Duration = Duration::from_secs(10);
/// Longest answer, in bytes.
const LONGEST: usize = 1 << 20;

/// Over TCP or TLS, one connection per request.
#[derive(Debug)]
pub struct Direct;

impl Outbound for Direct {
    fn send(&self, request: Request<Bytes>, roots: Option<String>) -> Sent<'_> {
        Box::pin(send(request, roots))
    }
}

async fn send(
    mut request: Request<Bytes>,
    roots: Option<String>,
) -> Result<Response<Bytes>, String> {
    let uri = request.uri().clone();
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err("the address is not a URL".to_owned());
    };
    let default_port = if scheme == "https" { 443 } else { 80 };
    let address = format!("{scheme}://{authority}");
    let target = match &roots {
        Some(pem) => Target::trusting(&address, default_port, pem.as_bytes()),
        None => Target::parse(&address, default_port, None),
    };
    let target = target.map_err(|error| error.to_string())?;
    let path = uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = path.into();
    let mut body = Vec::new();
    let sink = |piece: &[u8]| {
        if body.len() + piece.len() > LONGEST {
            return Err(std::io::Error::other("the answer is too long"));
        }
        body.extend_from_slice(piece);
        Ok(())
    };
    let answer = target.receive(request, WITHIN, sink).await;
    let answer = answer.map_err(|error| error.to_string())?;
    Ok(match answer.status().is_success() {
        true => answer.map(|_| body.into()),
        false => answer,
    })
}
