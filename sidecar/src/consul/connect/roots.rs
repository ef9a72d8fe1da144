//! The roots that the mesh trusts.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use libmesh::identity::TrustBundle;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::{Authority, authority, colon_hex};
use crate::{
    attach::pem,
    consul::{Inner, Refused, bad_request, blocking::Blocking, decode::go_bool, server_error},
    http::{Call, Reply, json as json_reply, text},
};

pub async fn of_server(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let pem = match call.query.filled("pem") {
        None => false,
        Some(given) => go_bool(given)
            .ok_or_else(|| bad_request("The 'pem' query parameter must be a boolean value"))?,
    };
    if pem {
        let roots = authority(&inner)?.roots().0;
        let mut reply = text(StatusCode::OK, pem::certificates(&roots.roots));
        let chain = HeaderValue::from_static("application/pem-certificate-chain");
        reply.headers_mut().insert(header::CONTENT_TYPE, chain);
        return Ok(reply);
    }
    answer(&inner, &call).await
}

pub async fn of_agent(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let mut reply = answer(&inner, &call).await?;
    let headers = reply.headers_mut();
    headers.insert("x-cache", HeaderValue::from_static("HIT"));
    headers.insert(header::AGE, HeaderValue::from_static("0"));
    Ok(reply)
}

async fn answer(inner: &Inner, call: &Call) -> Result<Reply, Refused> {
    let authority = authority(inner)?;
    let blocking = Blocking::of(call)?;
    if let Some(wait) = blocking.wait_beyond(authority.roots().1) {
        blocking
            .until(call, wait, changed(authority, blocking.index))
            .await;
    }
    let (bundle, index) = authority.roots();
    let value = shown(authority, &bundle, index)?;
    let mut reply = json_reply(StatusCode::OK, &value);
    crate::consul::stored::decorate(&mut reply, index);
    Ok(reply)
}

/// Ends when the roots are others than those of `index`; returns the index of these.
pub async fn changed(authority: &Authority, index: u64) -> u64 {
    let mut changes = authority.trust.watch();
    loop {
        let now = authority.roots().1;
        if now > index || changes.changed().await.is_err() {
            return now;
        }
    }
}

fn shown(authority: &Authority, bundle: &TrustBundle, index: u64) -> Result<Value, Refused> {
    let domain = authority.trust.domain().as_str();
    let roots = bundle.roots.iter().enumerate();
    let roots = roots.map(|(at, der)| root(der, domain, at == 0, index));
    let roots: Vec<Value> = roots.collect::<Result<_, _>>()?;
    Ok(json!({
        "ActiveRootID": roots.first().map_or(&Value::Null, |root| &root["ID"]),
        "TrustDomain": domain,
        "Roots": roots,
    }))
}

fn root(der: &[u8], domain: &str, active: bool, index: u64) -> Result<Value, Refused> {
    let unreadable = |_| server_error("a root certificate of the mesh is not readable");
    let (_, certificate) = X509Certificate::from_der(der).map_err(unreadable)?;
    let key_id =
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(colon_hex(id.0)),
                _ => None,
            });
    // Consul shows the low 64 bits of a serial number.
    let serial = certificate.raw_serial();
    let low = serial.iter().rev().take(8).rev();
    let low = low.fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let cluster = domain.split('.').next().unwrap_or_default();
    let name = certificate.subject().iter_common_name().next();
    Ok(json!({
        "ID": colon_hex(digest(&SHA256, der).as_ref()),
        "Name": name.and_then(|name| name.as_str().ok()).unwrap_or("Mesh CA"),
        "SerialNumber": low,
        "SigningKeyID": key_id.unwrap_or_default(),
        "ExternalTrustDomain": cluster,
        "NotBefore": at(certificate.validity().not_before.timestamp()),
        "NotAfter": at(certificate.validity().not_after.timestamp()),
        "RootCert": pem::certificates(&[der]),
        "IntermediateCerts": null,
        "Active": active,
        "PrivateKeyType": "ec",
        "PrivateKeyBits": 256,
        "CreateIndex": index,
        "ModifyIndex": index,
    }))
}

/// A time as Go writes it.
pub fn at(unix: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_default()
}
