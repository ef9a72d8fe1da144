//! Whether a caller with a certificate may call a service here: for proxies and libraries that ended the TLS connection.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use libmesh::{
    bundle::{Decision, Intentions},
    identity::{SpiffeId, Trust},
    model::ServiceName,
};
use serde_json::json;

use crate::{
    consul::{Inner, Refused, bad_request, decode::Fields},
    http::{Call, Reply, json as json_reply},
};

pub async fn authorize(inner: Arc<Inner>, call: Call) -> Result<Reply, Refused> {
    let mut fields = Fields::parse(call.body())?;
    let (target, uri) = (fields.text("Target")?, fields.text("ClientCertURI")?);
    let serial = fields.text("ClientCertSerial")?;
    fields.ignore(&["Namespace", "Partition"]);
    fields.finish()?;
    if target.is_empty() {
        return Err(bad_request("Target service must be specified"));
    }
    let target = ServiceName::parse(&target)
        .map_err(|error| bad_request(format!("Invalid Target: {error}")))?;
    let caller = SpiffeId::parse(&uri).ok();
    let source = caller.as_ref().and_then(SpiffeId::as_service);
    let (Some(caller), Some(source)) = (&caller, source) else {
        return Err(bad_request("ClientCertURI not a valid Connect identifier"));
    };
    let decision = decide(&inner, source, &target);
    let trust = inner.authority.as_ref().map(|authority| &authority.trust);
    let unfit = trust.and_then(|trust| unfit(trust, caller, &serial));
    let (authorized, reason) = match (decision.is_allowed(), unfit) {
        (true, Some(reason)) => (false, reason),
        (allowed, _) => (allowed, reason(&decision)),
    };
    let value = json!({"Authorized": authorized, "Reason": reason});
    let mut reply = json_reply(StatusCode::OK, &value);
    let miss = HeaderValue::from_static("MISS");
    reply.headers_mut().insert("x-cache", miss);
    Ok(reply)
}

/// By the intentions that this agent holds; without any, by the configured default.
pub(in crate::consul) fn decide(
    inner: &Inner,
    source: &ServiceName,
    destination: &ServiceName,
) -> Decision {
    let bundle = inner.bundles.as_ref().and_then(|bundles| bundles.current());
    let rules = match bundle {
        Some(bundle) => Intentions::new(&bundle.intentions, bundle.default_action),
        None => Intentions::new(&[], inner.about.default_action()),
    };
    rules.evaluate(source, destination)
}

/// Why a certificate is good for nothing here, whatever the intentions say.
fn unfit(trust: &Trust, caller: &SpiffeId, serial: &str) -> Option<String> {
    if caller.trust_domain() != trust.domain() {
        let domain = caller.trust_domain();
        return Some(format!("Identity from an external trust domain: {domain}"));
    }
    let revoked = trust.revoked();
    let serial = serial.replace(':', "").to_ascii_lowercase();
    let gone =
        revoked.serials.contains(&serial) || revoked.identities.contains(&caller.to_string());
    gone.then(|| "The certificate is revoked".to_owned())
}

fn reason(decision: &Decision) -> String {
    match &decision.rule {
        Some(rule) => format!(
            "Matched L4 intention: default/{} => default/{} (Precedence: {}, Action: {})",
            rule.source,
            rule.destination,
            rule.precedence(),
            if decision.is_allowed() {
                "ALLOW"
            } else {
                "DENY"
            },
        ),
        None => "Default behavior: no intention matches".to_owned(),
    }
}
