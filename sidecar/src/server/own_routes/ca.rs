//! What Consul's clients ask of the mesh's authority, besides roots and leaves, which agents have.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use vault_kv::Capability;

use super::{Outcome, Refused, asker};
use crate::{
    consul::{decode::go_format, stored::StoreError},
    http::{Call, json as json_reply},
    server::Shared,
};

pub async fn configuration(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Read, "consul/operator")?;
    let authority = shared.authority().ok_or(StoreError::Sealed)?;
    let value = json!({
        "Provider": "consul",
        "Config": {
            "LeafCertTTL": go_format(authority.service_ttl()),
            "IntermediateCertTTL": go_format(vault_kv::INTERMEDIATE_LIFE),
            "RootCertTTL": go_format(vault_kv::ROOT_LIFE),
        },
        "State": null,
        "ForceWithoutCrossSigning": false,
        "CreateIndex": 1,
        "ModifyIndex": 1,
    });
    Ok(json_reply(StatusCode::OK, &value))
}

/// The authority is a part of the store: there is no other provider.
pub async fn configure(shared: Arc<Shared>, call: Call) -> Outcome {
    asker(&shared, &call).authorize(Capability::Update, "consul/operator")?;
    Err(Refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the mesh's authority is not configured here: set server.service_cert_ttl and server.node_cert_ttl".to_owned(),
    ))
}
