//! Speaks for nodes that run no agent: each has a key and a certificate of its own, kept and issued here, and a log in the
//! catalog like every other node's.

use std::{
    collections::{HashMap, hash_map},
    mem,
    sync::Arc,
    time::{Duration, SystemTime},
};

use libmesh::{
    catalog::{Catalog, LocalError, LocalLog},
    identity::{BoxFuture, NodeKey, SigningKeyPair},
    mesh::{ExternalNode, Mesh},
    model::{CheckRecord, Datacenter, Instance, InstanceId, NodeName},
};
use tokio::{sync::Mutex, time::sleep};
use tokio_util::sync::CancellationToken;
use vault_kv::Kv;

use super::{ServerError, Shared, records, unsealed};
use crate::consul::stored::{
    StoreError,
    external::{
        Publisher,
        kept::{self, Described, PREFIX, Part, Unread},
    },
};

/// Where their keys are kept: `external-key/<node>`. A node that is registered again has the key it had.
const KEYS: &str = "external-key/";
/// Between two looks at the certificates.
const LOOK: Duration = Duration::from_secs(60);

/// The nodes that are spoken for, or were.
#[derive(Default)]
pub struct Externals(parking_lot::Mutex<HashMap<NodeName, Arc<Voice>>>);

/// Speaks for one node. Who has something to tell leaves it in `news` and waits for the turn; the first whose turn it is
/// tells all that is there, in one message.
#[derive(Default)]
struct Voice {
    news: parking_lot::Mutex<Vec<Part>>,
    spoken: Mutex<Option<Spoken>>,
}

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

    fn datacenter(&self) -> Option<Datacenter> {
        self.mesh().map(|mesh| mesh.datacenter().clone())
    }

    fn catalog(&self) -> Option<Catalog> {
        self.mesh().map(|mesh| mesh.catalog().clone())
    }

    fn publish<'a>(
        &'a self,
        name: &'a NodeName,
        parts: Vec<Part>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { Ok(self.tell(name, parts).await?) })
    }
}

impl Externals {
    fn voice(&self, name: &NodeName) -> Arc<Voice> {
        let mut voices = self.0.lock();
        match voices.get(name) {
            Some(voice) => Arc::clone(voice),
            None => Arc::clone(voices.entry(name.clone()).or_default()),
        }
    }

    /// Forgets a node that nobody speaks for, unless somebody is about to.
    fn forget(&self, name: &NodeName) {
        let silent = |voice: &Voice| voice.spoken.try_lock().is_ok_and(|it| it.is_none());
        if let hash_map::Entry::Occupied(known) = self.0.lock().entry(name.clone())
            && Arc::strong_count(known.get()) == 1
            && silent(known.get())
        {
            known.remove();
        }
    }

    fn all(&self) -> Vec<(NodeName, Arc<Voice>)> {
        let voices = self.0.lock();
        let voices = voices.iter();
        voices
            .map(|(name, voice)| (name.clone(), Arc::clone(voice)))
            .collect()
    }
}

impl Shared {
    /// Tells the mesh what is kept of parts of a node, as it is when it is told.
    async fn tell(&self, name: &NodeName, parts: Vec<Part>) -> Result<(), ServerError> {
        let Some(mesh) = self.mesh() else {
            // It is read when this server becomes a node.
            return Ok(());
        };
        let voice = self.externals.voice(name);
        voice.news.lock().extend(parts);
        let mut spoken = voice.spoken.lock().await;
        let mut news = mem::take(&mut *voice.news.lock());
        if news.is_empty() {
            // Told by somebody who waited as well.
            return Ok(());
        }
        news.sort_unstable();
        news.dedup();
        if let Err(error) = self.speak(&mut spoken, name, &news, &mesh).await {
            // Who else waits for it must not take it for told.
            voice.news.lock().append(&mut news);
            return Err(error);
        }
        let silent = spoken.is_none();
        drop(spoken);
        drop(voice);
        if silent {
            self.externals.forget(name);
        }
        Ok(())
    }

    async fn speak(
        &self,
        spoken: &mut Option<Spoken>,
        name: &NodeName,
        news: &[Part],
        mesh: &Mesh,
    ) -> Result<(), ServerError> {
        let kv = self.records.kv();
        let Some(described) = kept::read::<Described>(kv, name, &Part::Node)? else {
            if let Some(mut gone) = spoken.take() {
                silence(&gone.node);
                mesh.introduce(&mut gone.node).await;
            }
            return Ok(());
        };
        let known = match spoken {
            Some(known) if !news.contains(&Part::Whole) => {
                for part in news {
                    match part {
                        Part::Whole => {}
                        Part::Node => describe(known, name, &described, mesh)?,
                        Part::Service(id) => say_service(&known.node.log(), kv, name, id)?,
                        Part::Check(id) => say_check(&known.node.log(), kv, name, id)?,
                    }
                }
                known
            }
            _ => {
                let known = match spoken {
                    Some(known) => known,
                    None => {
                        let key = key(kv, name).await?;
                        let node = ExternalNode::new(key.clone());
                        let renew = self.certify(&node, name, &key)?;
                        spoken.insert(Spoken { node, renew })
                    }
                };
                describe(known, name, &described, mesh)?;
                say_all(&known.node.log(), kv, name)?;
                known
            }
        };
        mesh.introduce(&mut known.node).await;
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
        let now = SystemTime::now();
        for (name, voice) in self.externals.all() {
            let mut spoken = voice.spoken.lock().await;
            if let Some(known) = spoken.as_mut().filter(|known| known.renew <= now) {
                let key = key(self.records.kv(), &name).await?;
                known.renew = self.certify(&known.node, &name, &key)?;
                mesh.introduce(&mut known.node).await;
            }
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
    for key in shared.records.kv().keys(PREFIX, "/")? {
        let name = key.strip_prefix(PREFIX).unwrap_or_default();
        if name.contains('/') {
            // What one of them has.
            continue;
        }
        let Ok(name) = NodeName::parse(name) else {
            tracing::error!(key, "no external node has this name");
            continue;
        };
        match shared.tell(&name, vec![Part::Whole]).await {
            // One that is not readable keeps no other from being shown.
            Err(error @ ServerError::Record(..)) => {
                tracing::error!(node = %name, %error, "an external node is not shown");
            }
            told => told?,
        }
    }
    loop {
        sleep(LOOK).await;
        shared.renew(mesh).await?;
    }
}

/// Whether there is an external node of this name.
pub fn is_kept(kv: &Kv, name: &NodeName) -> Result<bool, ServerError> {
    Ok(kv.get(&Part::Node.key(name))?.is_some())
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

fn describe(
    known: &Spoken,
    name: &NodeName,
    described: &Described,
    mesh: &Mesh,
) -> Result<(), ServerError> {
    let record = described.record(known.node.id(), name, mesh.datacenter());
    said(name, &Part::Node, known.node.log().put_node(record))
}

fn say_service(log: &LocalLog, kv: &Kv, name: &NodeName, id: &str) -> Result<(), ServerError> {
    let part = Part::Service(id.to_owned());
    match kept::read::<Instance>(kv, name, &part)? {
        Some(instance) => said(name, &part, log.put_service(instance)),
        None => {
            if let Ok(id) = InstanceId::parse(id) {
                log.remove_service(&id);
            }
            Ok(())
        }
    }
}

fn say_check(log: &LocalLog, kv: &Kv, name: &NodeName, id: &str) -> Result<(), ServerError> {
    let part = Part::Check(id.to_owned());
    match kept::read::<CheckRecord>(kv, name, &part)? {
        Some(check) => put_check(log, name, &part, check),
        None => {
            log.remove_check(id);
            Ok(())
        }
    }
}

fn put_check(
    log: &LocalLog,
    name: &NodeName,
    part: &Part,
    check: CheckRecord,
) -> Result<(), ServerError> {
    match log.put_check(check) {
        // Registered just when its instance was taken away: it says nothing of anything.
        Err(LocalError::UnknownInstance { id }) => {
            tracing::debug!(node = %name, %id, "a check of an instance that is gone");
            Ok(())
        }
        put => said(name, part, put),
    }
}

/// Says all that is kept, and takes back what is not.
fn say_all(log: &LocalLog, kv: &Kv, name: &NodeName) -> Result<(), ServerError> {
    let (mut services, mut checks) = (Vec::new(), Vec::new());
    for pair in kv.list(&kept::below(name))? {
        match Part::of(name, &pair.key) {
            Some(Part::Service(_)) => services.push(kept::decode::<Instance>(&pair)?),
            Some(Part::Check(_)) => checks.push(kept::decode::<CheckRecord>(&pair)?),
            _ => tracing::error!(key = pair.key, "no external node has this"),
        }
    }
    for check in log.checks() {
        if !checks.iter().any(|kept| kept.id == check.id) {
            log.remove_check(&check.id);
        }
    }
    for service in log.services() {
        if !services.iter().any(|kept| kept.id == service.id) {
            log.remove_service(&service.id);
        }
    }
    for service in services {
        let part = Part::Service(service.id.to_string());
        said(name, &part, log.put_service(service))?;
    }
    for check in checks {
        let part = Part::Check(check.id.to_string());
        put_check(log, name, &part, check)?;
    }
    Ok(())
}

/// What the log refuses should not have been kept.
fn said(name: &NodeName, part: &Part, put: Result<(), LocalError>) -> Result<(), ServerError> {
    put.map_err(|error| ServerError::Record(part.key(name), error.to_string()))
}

impl From<Unread> for ServerError {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Store(error) => error.into(),
            Unread::Unreadable { key, reason } => Self::Record(key, reason),
        }
    }
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
