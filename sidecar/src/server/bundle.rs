//! Publishes what the ledger says to every node: a config bundle, signed, whenever its content changes.

use std::sync::Arc;

use dns::PreparedQuery;
use libmesh::{
    bundle::{Action, BundleError, ConfigBundle, Intention, Offered, SignedBundle},
    identity::{ServiceKey, SigningKeyPair},
    mesh::Mesh,
};
use tokio_util::sync::CancellationToken;
use vault_kv::{Kv, SeenHead, Vault};

use super::{
    ServerError, Shared, records, unsealed,
    virtual_ips::{self, VIRTUAL},
};
use crate::{
    consul::{
        self,
        stored::{INTENTIONS, Pair, config, intention_from_pair, query},
    },
    routing::{self, Entry},
};

/// The key that signs bundles, and its certificate: made anew each time the store is unsealed.
struct Signer {
    key: ServiceKey,
    chain: Vec<Vec<u8>>,
}

/// Follows the store until `stop`: at each unseal and at each change of an intention, a virtual IP, a
/// prepared query or a config entry.
pub async fn publish(shared: Arc<Shared>, mesh: Mesh, stop: CancellationToken) {
    let work = || while_unsealed(&shared, &mesh);
    unsealed::follow(&shared.vault, "publishing the configuration", &stop, work).await;
}

async fn while_unsealed(shared: &Shared, mesh: &Mesh) -> Result<(), ServerError> {
    let signer = signer(shared)?;
    let kv = shared.records.kv();
    loop {
        let changes @ [intentions, virtual_ips, queries, entries] = changed(kv)?;
        publish_once(shared, mesh, &signer).await?;
        shared
            .published
            .send_replace(changes.into_iter().fold(0, u64::max));
        tokio::select! {
            changed = kv.wait_under(INTENTIONS, intentions) => changed?,
            changed = kv.wait_under(VIRTUAL, virtual_ips) => changed?,
            changed = kv.wait_under(query::PREFIX, queries) => changed?,
            changed = kv.wait_under(config::PREFIX, entries) => changed?,
        };
    }
}

/// When what bundles say last changed, by ledger index: intentions, virtual IPs, prepared queries, config entries.
pub fn changed(kv: &Kv) -> Result<[u64; 4], vault_kv::Error> {
    Ok([
        kv.changed_under(INTENTIONS)?,
        kv.changed_under(VIRTUAL)?,
        kv.changed_under(query::PREFIX)?,
        kv.changed_under(config::PREFIX)?,
    ])
}

/// A fresh key, certified.
fn signer(shared: &Shared) -> Result<Signer, ServerError> {
    let key = ServiceKey::generate().map_err(ServerError::key)?;
    let csr = key.csr_der().map_err(ServerError::key)?;
    let authority = shared.authority().ok_or(vault_kv::Error::Sealed)?;
    let issued = authority.config_signer(&csr)?;
    Ok(Signer {
        key,
        chain: issued.chain,
    })
}

async fn publish_once(shared: &Shared, mesh: &Mesh, signer: &Signer) -> Result<(), ServerError> {
    if let Some(known) = mesh.bundle().current() {
        // What the nodes remember may contradict the store: then it is sealed.
        shared.vault.seen(SeenHead {
            index: known.index,
            hash: known.head,
            by: "the configuration that the mesh has".to_owned(),
        })?;
    }
    let bundle = build(shared, mesh)?;
    let same = mesh.bundle().current().is_some_and(|known| {
        known.intentions == bundle.intentions
            && known.default_action == bundle.default_action
            && known.roots == bundle.roots
            && known.entries == bundle.entries
    });
    if same {
        return Ok(());
    }
    let intentions = bundle.intentions.len();
    let index = bundle.index;
    let signed = SignedBundle::sign(&bundle, &signer.key, signer.chain.clone())?;
    match mesh.bundle().offer(signed).await {
        Ok(Offered::Applied | Offered::Known) => {
            tracing::info!(index, intentions, "configuration published");
            Ok(())
        }
        Err(error @ (BundleError::Older { .. } | BundleError::Forked(_))) => {
            // What the nodes remember contradicts the store: it was rolled back, or replaced.
            tracing::error!(%error, "THIS STORE IS OLDER THAN WHAT THE MESH HAS SEEN; the mesh keeps what it knows");
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn build(shared: &Shared, mesh: &Mesh) -> Result<ConfigBundle, ServerError> {
    let head = shared.vault.ledger().published()?;
    let authority = shared.authority().ok_or(vault_kv::Error::Sealed)?;
    let mut bundle = ConfigBundle {
        index: head.index,
        head: head.hash,
        issued_at: records::now(),
        trust_domain: mesh.trust().domain().clone(),
        datacenter: mesh.datacenter().clone(),
        roots: authority.bundle()?.roots,
        intentions: intentions(&shared.vault)?,
        default_action: if shared.default_allow {
            Action::Allow
        } else {
            Action::Deny
        },
        revoked: Vec::new(),
        entries: std::collections::BTreeMap::new(),
    };
    consul::prepared::into_bundle(&queries(&shared.vault)?, &mut bundle);
    routing::into_bundle(&entries(&shared.vault)?, &mut bundle);
    bundle.set_virtual_ips(&virtual_ips::given(shared.records.kv())?);
    Ok(bundle)
}

fn queries(vault: &Vault) -> Result<Vec<PreparedQuery>, ServerError> {
    let pairs = vault.kv(records::NAMESPACE).list(query::PREFIX)?;
    let pairs = pairs.into_iter().map(Pair::from);
    Ok(pairs.filter_map(|pair| query::from_pair(&pair)).collect())
}

fn entries(vault: &Vault) -> Result<Vec<Entry>, ServerError> {
    let pairs = vault.kv(records::NAMESPACE).list(config::PREFIX)?;
    let pairs = pairs.into_iter().map(Pair::from);
    Ok(pairs.filter_map(|pair| config::from_pair(&pair)).collect())
}

fn intentions(vault: &Vault) -> Result<Vec<Intention>, ServerError> {
    let pairs = vault.kv(records::NAMESPACE).list(INTENTIONS)?;
    Ok(pairs
        .into_iter()
        .filter_map(|pair| {
            let pair = Pair::from(pair);
            let intention = intention_from_pair(&pair);
            if intention.is_none() {
                tracing::error!(
                    key = pair.key,
                    "an intention is not readable and does not count"
                );
            }
            intention
        })
        .collect())
}
