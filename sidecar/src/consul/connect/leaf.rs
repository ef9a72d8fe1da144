//! A service's certificate with its key, for a proxy or library that is not ours.
//!
//! One leaf a service is kept and renewed at half of its life; whoever waits with `index` gets the next one then, or when
//! the roots change.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderValue, StatusCode, header};
use libmesh::{
    identity::{Leaf as Certificate, ServiceKey, SigningKeyPair, SourceError},
    model::ServiceName,
};
use serde::Serialize;
use tokio::{sync::Mutex as AsyncMutex, time::sleep};
use zeroize::Zeroizing;

use super::{Authority, authority, roots, stamp};
use crate::{
    attach::pem,
    consul::{Inner, Refused, around::Right, bad_request, blocking::Blocking, server_error},
    http::{Call, Reply, json},
};

/// Leaves that are kept at most; further ones are made, and forgotten.
const KEPT: usize = 1024;
/// How long who waits for the next leaf waits at least when it could not be made.
const RETRY: Duration = Duration::from_secs(5);

/// A certificate and its key.
pub struct Leaf {
    chain: Vec<Vec<u8>>,
    key: Zeroizing<String>,
    certificate: Certificate,
    /// Those that were trusted when it was made.
    roots: u64,
    index: u64,
}

/// Where a service's is kept; locked while it is made.
pub type Place = Arc<AsyncMutex<Option<Arc<Leaf>>>>;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Shown<'a> {
    serial_number: String,
    #[serde(rename = "CertPEM")]
    cert_pem: String,
    #[serde(rename = "PrivateKeyPEM")]
    private_key_pem: &'a str,
    service: &'a str,
    #[serde(rename = "ServiceURI")]
    service_uri: String,
    valid_after: String,
    valid_before: String,
    create_index: u64,
    modify_index: u64,
}

pub async fn leaf(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let authority = authority(&inner)?;
    let blocking = Blocking::of(&call)?;
    let service = ServiceName::parse(call.params.get("service"))
        .map_err(|error| bad_request(format!("Invalid service: {error}")))?;
    let path = format!("consul/service/{service}");
    inner.may(&call, Right::Update, &path).await?;
    let (mut leaf, mut kept) = authority.leaf(&service).await?;
    if let Some(wait) = blocking.wait_beyond(leaf.index) {
        blocking.until(&call, wait, authority.next(&leaf)).await;
        // Minutes may have passed.
        inner.may(&call, Right::Update, &path).await?;
        (leaf, kept) = authority.leaf(&service).await?;
    }
    let mut reply = json(StatusCode::OK, &leaf.shown(&service));
    let headers = reply.headers_mut();
    headers.insert("x-consul-index", HeaderValue::from(leaf.index));
    let from = if kept { "HIT" } else { "MISS" };
    headers.insert("x-cache", HeaderValue::from_static(from));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(reply)
}

impl Authority {
    /// Ends when a leaf is due to be renewed, or was made for other roots.
    async fn next(&self, leaf: &Leaf) -> u64 {
        if !self.holds(leaf) {
            // It could not be renewed just now.
            sleep(RETRY).await;
            return 0;
        }
        let due = leaf.renew_at().duration_since(SystemTime::now());
        tokio::select! {
            () = sleep(due.unwrap_or_default()) => 0,
            index = roots::changed(self, leaf.roots) => index,
        }
    }

    fn holds(&self, leaf: &Leaf) -> bool {
        leaf.roots == self.roots().1 && SystemTime::now() < leaf.renew_at()
    }

    /// The leaf of a service, and whether it was there already. One service's is made by one at a time.
    async fn leaf(&self, service: &ServiceName) -> Result<(Arc<Leaf>, bool), Refused> {
        let place = {
            let mut leaves = self.leaves.lock();
            if leaves.len() >= KEPT && !leaves.contains_key(service) {
                leaves.clear();
            }
            Arc::clone(leaves.entry(service.clone()).or_default())
        };
        let mut place = place.lock().await;
        if let Some(leaf) = place.as_ref().filter(|leaf| self.holds(leaf)) {
            return Ok((Arc::clone(leaf), true));
        }
        let index = stamp(place.as_ref().map_or(0, |last| last.index));
        match self.make(service, self.roots().1, index).await {
            Ok(made) => {
                let made = Arc::new(made);
                *place = Some(Arc::clone(&made));
                Ok((made, false))
            }
            // Nobody signs now: the old one still holds.
            Err(error) => match place.as_ref() {
                Some(last) if SystemTime::now() < last.certificate.not_after => {
                    tracing::warn!(%service, reason = %error, "a leaf is not renewed");
                    Ok((Arc::clone(last), true))
                }
                _ => Err(error),
            },
        }
    }

    async fn make(&self, service: &ServiceName, roots: u64, index: u64) -> Result<Leaf, Refused> {
        let failed = |error: &dyn std::fmt::Display| server_error(error.to_string());
        let key = ServiceKey::generate().map_err(|error| failed(&error))?;
        let csr = key.csr_der().map_err(|error| failed(&error))?;
        let signed = self.certificates.sign_service(service.clone(), csr, None);
        let issued = signed.await.map_err(|error| match error {
            SourceError::Unavailable(_) => {
                Refused::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            SourceError::Refused(_) => {
                Refused::new(StatusCode::FORBIDDEN, format!("Permission denied: {error}"))
            }
        })?;
        let first = issued.chain.first().map_or(&[][..], Vec::as_slice);
        let certificate = Certificate::parse(first).map_err(|error| failed(&error))?;
        Ok(Leaf {
            key: Zeroizing::new(pem::private_key(key.pkcs8())),
            chain: issued.chain,
            certificate,
            roots,
            index,
        })
    }
}

impl Leaf {
    fn renew_at(&self) -> SystemTime {
        let Certificate {
            not_before,
            not_after,
            ..
        } = self.certificate;
        not_after - not_after.duration_since(not_before).unwrap_or_default() / 2
    }

    fn shown<'a>(&'a self, service: &'a ServiceName) -> Shown<'a> {
        let at = |time: SystemTime| {
            let unix = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            roots::at(unix.as_secs() as i64)
        };
        let serial = self.certificate.serial.as_bytes();
        let serial = serial.chunks(2).map(String::from_utf8_lossy);
        Shown {
            serial_number: serial.collect::<Vec<_>>().join(":"),
            cert_pem: pem::certificates(&self.chain),
            private_key_pem: &self.key,
            service: service.as_str(),
            service_uri: self.certificate.spiffe.to_string(),
            valid_after: at(self.certificate.not_before),
            valid_before: at(self.certificate.not_after),
            create_index: self.index,
            modify_index: self.index,
        }
    }
}
