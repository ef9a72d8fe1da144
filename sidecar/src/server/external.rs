//! Speaks for nodes that run no agent: each has a key and a certificate of its own, kept and issued here, and a log in the
//! catalog like every other node's.

use std::{collections::HashMap, sync::Arc, time::Duration, time::SystemTime};

use libmesh::{
    catalog::Catalog,
    identity::{BoxFuture, NodeKey, SigningKeyPair},
    mesh::{ExternalNode, Mesh},
    model::{InstanceId, NodeName},
};
use tokio::{sync::Mutex, time::sleep};
use tokio_util::sync::CancellationToken;
use vault_kv::Kv;

use super::{ServerError, Shared, records, unsealed};
use crate::consul::stored::{
    StoreError,
    external::{External, PREFIX, Publisher},
};

/// Where their keys are kept: `external-key/<node>`. A node that is registered again has the key it had.
const KEYS: &str = "external-key/";
/// Between two looks at the certificates.
const LOOK: Duration = Duration::from_secs(60);

/// The nodes that are spoken for.
#[derive(Default)]
pub struct Externals(Mutex<HashMap<NodeName, Spoken>>);

struct Spoken {
    node: ExternalNode,
    /// At half of its certificate's life.
    renew: SystemTime,
}

impl Publisher for Shared {
    fn may_be_external(&self, name: &NodeName) -> Result<(), StoreError> {
        match self.records.node(name)? {
            None => Ok(()),
            Some(_) => Err(StoreError::Failed(format!(
                "node {name} is a member of the mesh: register at its own agent"
            ))),
        }
    }

    fn catalog(&self) -> Option<Catalog> {
        self.mesh().map(|mesh| mesh.catalog().clone())
    }

    fn publish<'a>(&'a self, name: &'a NodeName) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let mut spoken = self.externals.0.lock().await;
            Ok(self.speak(&mut spoken, name).await?)
        })
    }
}

impl Shared {
    /// Tells the mesh what is kept of a node.
    async fn speak(
        &self,
        spoken: &mut HashMap<NodeName, Spoken>,
        name: &NodeName,
    ) -> Result<(), ServerError> {
        let (Some(mesh), kv) = (self.mesh(), self.records.kv()) else {
            // It is read when this server becomes a node.
            return Ok(());
        };
        let wanted = match kv.get(&format!("{PREFIX}{name}"))? {
            None => None,
            Some(pair) => {
                let external: External = serde_json::from_slice(&pair.value)
                    .map_err(|error| ServerError::Record(pair.key, error.to_string()))?;
                Some(external)
            }
        };
        let Some(wanted) = wanted else {
            if let Some(mut gone) = spoken.remove(name) {
                silence(&gone.node);
                mesh.introduce(gone.node.news()).await;
            }
            return Ok(());
        };
        if !spoken.contains_key(name) {
            let key = key(kv, name).await?;
            let node = ExternalNode::new(key.clone());
            let renew = self.certify(&node, name, &key)?;
            spoken.insert(name.clone(), Spoken { node, renew });
        }
        if let Some(known) = spoken.get_mut(name) {
            say(&known.node, name, &wanted, &mesh).map_err(|error| {
                ServerError::Record(format!("{PREFIX}{name}"), error.to_string())
            })?;
            mesh.introduce(known.node.news()).await;
        }
        Ok(())
    }

    /// Gets a certificate for a node; when to get the next.
    fn certify(
        &self,
        node: &ExternalNode,
        name: &NodeName,
        key: &NodeKey,
    ) -> Result<SystemTime, ServerError> {
        let authority = self.authority().ok_or(vault_kv::Error::Sealed)?;
        let csr = key.csr_der().map_err(ServerError::key)?;
        let issued = authority.external(name, &csr)?;
        node.log()
            .set_certificate(&issued.chain)
            .map_err(ServerError::key)?;
        let now = SystemTime::now();
        let left = issued.not_after.duration_since(now).unwrap_or_default();
        Ok(now + left / 2)
    }

    /// Renews what is at half of its life.
    async fn renew(&self, mesh: &Mesh) -> Result<(), ServerError> {
        let mut spoken = self.externals.0.lock().await;
        let now = SystemTime::now();
        for (name, known) in spoken.iter_mut().filter(|(_, known)| known.renew <= now) {
            let key = key(self.records.kv(), name).await?;
            known.renew = self.certify(&known.node, name, &key)?;
            mesh.introduce(known.node.news()).await;
        }
        Ok(())
    }
}

/// Speaks for all that are kept, at each unseal, and renews their certificates, until `stop`.
pub async fn follow(shared: Arc<Shared>, mesh: Mesh, stop: CancellationToken) {
    let work = || while_unsealed(&shared, &mesh);
    unsealed::follow(&shared.vault, "speaking for external nodes", &stop, work).await;
}

async fn while_unsealed(shared: &Shared, mesh: &Mesh) -> Result<(), ServerError> {
    for pair in shared.records.kv().list(PREFIX)? {
        let name = pair.key.strip_prefix(PREFIX).unwrap_or_default();
        let Ok(name) = NodeName::parse(name) else {
            tracing::error!(key = pair.key, "no external node has this name");
            continue;
        };
        let mut spoken = shared.externals.0.lock().await;
        match shared.speak(&mut spoken, &name).await {
            // One that is not readable keeps no other from being shown.
            Err(error @ ServerError::Record(..)) => {
                tracing::error!(node = %name, %error, "an external node is not shown");
            }
            spoken => spoken?,
        }
    }
    loop {
        sleep(LOOK).await;
        shared.renew(mesh).await?;
    }
}

/// Whether there is an external node of this name.
pub fn is_kept(kv: &Kv, name: &NodeName) -> Result<bool, ServerError> {
    Ok(kv.get(&format!("{PREFIX}{name}"))?.is_some())
}

/// The key of a node: made at the first call, the same for ever after.
async fn key(kv: &Kv, name: &NodeName) -> Result<NodeKey, ServerError> {
    let at = format!("{KEYS}{name}");
    if kv.get(&at)?.is_none() {
        let key = NodeKey::generate().map_err(ServerError::key)?;
        let meta = records::system("key of an external node made", name.as_str());
        kv.put(meta, &at, key.to_pkcs8(), 0, Some(0)).await?;
    }
    let pair = kv.get(&at)?;
    let pair = pair.ok_or_else(|| ServerError::Record(at, "it vanished".to_owned()))?;
    NodeKey::from_pkcs8(pair.value).map_err(ServerError::key)
}

/// Writes what is wanted, and takes back what is no longer.
fn say(
    node: &ExternalNode,
    name: &NodeName,
    wanted: &External,
    mesh: &Mesh,
) -> Result<(), libmesh::catalog::LocalError> {
    let log = node.log();
    log.put_node(wanted.record(node.id(), name, mesh.datacenter()))?;
    for check in log.checks() {
        if !wanted.checks.contains_key(&*check.id) {
            log.remove_check(&check.id);
        }
    }
    for service in log.services() {
        if !wanted.services.contains_key(service.id.as_str()) {
            log.remove_service(&service.id);
        }
    }
    for service in wanted.services.values() {
        log.put_service(service.clone())?;
    }
    for check in wanted.checks.values() {
        log.put_check(check.clone())?;
    }
    Ok(())
}

/// Takes everything back.
fn silence(node: &ExternalNode) {
    let log = node.log();
    let ids: Vec<InstanceId> = log.services().iter().map(|it| it.id.clone()).collect();
    for id in ids {
        log.remove_service(&id);
    }
    for check in log.checks() {
        log.remove_check(&check.id);
    }
    log.remove_node();
}
