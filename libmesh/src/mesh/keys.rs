//! The gossip keyring while the mesh runs: a server changes it on every node, and a node that was away fetches it.
//!
//! A rotation is three steps, each on every node before the next begins: install a new key, use it, remove the old one.
//! Every node keeps its keyring in its directory. Who missed a step (it was down, or cut off) asks a server: at its
//! start, and when a datagram comes that is sealed with a key it does not have.
//!
//! ```text
//! request   operation u8 ‖ (nothing | key 32 | key id 4)     answer of all but fetch: key ids 4 each, the one in use first
//! ```
//!
//! Whoever has a node certificate may list and fetch (each node has the keys); changes are taken from servers only, and
//! a fetched keyring is believed because a server's certificate came with it. Costs a call for each node and step.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Mesh, authority::Servers};
use crate::{
    identity::PublishRights,
    join::NodeDirectory,
    member::{
        Keyring, Membership,
        keyring::{KeyId, KeyringError},
    },
    model::NodeName,
    rpc::{Client, Reply, Request, Router, Target},
};

const PATH: &str = "/member/keyring";
const MAX: usize = 64;
/// Time for a node to answer.
const CALL: Duration = Duration::from_secs(5);
/// Nodes that are asked at a time.
const AT_ONCE: usize = 64;
/// Pause between two fetches.
const PAUSE: Duration = Duration::from_secs(10);

const LIST: u8 = 0;
const FETCH: u8 = 1;
const INSTALL: u8 = 2;
const USE: u8 = 3;
const REMOVE: u8 = 4;

/// A step of a rotation.
#[derive(Clone)]
pub enum KeyringChange {
    /// From now on this key opens datagrams; see [`Keyring::new_key`].
    Install(Zeroizing<[u8; 32]>),
    /// From now on this key seals them.
    Use(KeyId),
    /// From now on this key opens none.
    Remove(KeyId),
}

/// The keys of one node.
#[derive(Debug)]
pub struct NodeKeys {
    /// The node.
    pub node: NodeName,
    /// Its keys, the one in use first, or why they are not known.
    pub keys: Result<Vec<KeyId>, String>,
}

/// Why a step of a rotation was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// Other nodes take steps from servers only.
    #[error("node {0} is no server: only servers change the keyring")]
    NotServer(NodeName),
    /// A node is not ready for it: after the step it would be cut off.
    #[error("not every node is ready for that, so nothing was changed: {}", .0.join(", "))]
    NotReady(Vec<String>),
    /// The own keyring does not allow it.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
}

impl KeyringChange {
    fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(1 + 32);
        match self {
            Self::Install(key) => {
                bytes.push(INSTALL);
                bytes.extend_from_slice(key.as_slice());
            }
            Self::Use(id) => {
                bytes.push(USE);
                bytes.extend_from_slice(&id.to_bytes());
            }
            Self::Remove(id) => {
                bytes.push(REMOVE);
                bytes.extend_from_slice(&id.to_bytes());
            }
        }
        bytes.into()
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (operation, value) = body.split_first()?;
        let id = || Some(KeyId::from_bytes(value.try_into().ok()?));
        match *operation {
            INSTALL => Some(Self::Install(Zeroizing::new(value.try_into().ok()?))),
            USE => id().map(Self::Use),
            REMOVE => id().map(Self::Remove),
            _ => None,
        }
    }

    /// Takes the step in one keyring.
    ///
    /// # Errors
    /// [`KeyringError`].
    pub fn apply(&self, keyring: &Keyring) -> Result<(), KeyringError> {
        match self {
            Self::Install(key) => keyring.install(key).map(drop),
            Self::Use(id) => keyring.use_key(*id),
            // Removed by an earlier try: fine.
            Self::Remove(id) => match keyring.remove(*id) {
                Err(KeyringError::Unknown(_)) => Ok(()),
                other => other,
            },
        }
    }

    /// Whether a node with these keys can take the step without being cut off.
    fn fits(&self, keys: &[KeyId]) -> bool {
        match self {
            Self::Install(_) => true,
            Self::Use(id) => keys.contains(id),
            Self::Remove(id) => keys.first() != Some(id),
        }
    }
}

fn ids(keyring: &Keyring) -> Vec<u8> {
    keyring.ids().iter().flat_map(|id| id.to_bytes()).collect()
}

fn read_ids(bytes: &[u8]) -> Vec<KeyId> {
    bytes
        .chunks_exact(4)
        .map(|id| KeyId::from_bytes(id.try_into().expect("chunks of 4")))
        .collect()
}

pub(super) fn routes(keyring: &Keyring, directory: Option<NodeDirectory>) -> Router {
    let keyring = keyring.clone();
    Router::new().route(PATH, MAX, move |request| {
        let (keyring, directory) = (keyring.clone(), directory.clone());
        async move { answer(&keyring, directory, &request).await }
    })
}

async fn answer(keyring: &Keyring, directory: Option<NodeDirectory>, request: &Request) -> Reply {
    match &request.body[..] {
        [LIST] => return Reply::ok(ids(keyring)),
        [FETCH] => return Reply::ok(keyring.to_bytes().to_vec()),
        _ => {}
    }
    let Some(change) = KeyringChange::decode(&request.body) else {
        return Reply::error(StatusCode::BAD_REQUEST, "the keyring request is malformed");
    };
    if !request.peer.rights.is_server() {
        let message = format!(
            "node {} is no server: only servers change the keyring",
            request.peer.node
        );
        return Reply::error(StatusCode::FORBIDDEN, message);
    }
    if let Err(error) = change.apply(keyring) {
        return Reply::error(StatusCode::CONFLICT, error.to_string());
    }
    tracing::info!(by = %request.peer.node, keys = ?keyring.ids(), "the gossip keyring was changed");
    keep(keyring, directory).await;
    Reply::ok(ids(keyring))
}

/// A keyring that cannot be kept now is written with the next change or certificate, or fetched after a restart.
async fn keep(keyring: &Keyring, directory: Option<NodeDirectory>) {
    let Some(directory) = directory else {
        return;
    };
    let keyring = keyring.clone();
    let saved = tokio::task::spawn_blocking(move || directory.save_keyring(&keyring)).await;
    if let Ok(Err(error)) = saved {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the changed gossip keyring is not kept"
        );
    }
}

/// Fetches the keyring from a server at the start, and when a step was missed.
pub(super) async fn follow(
    membership: Membership,
    client: Client,
    servers: Servers,
    directory: Option<NodeDirectory>,
    stop: CancellationToken,
) {
    let follow = async {
        loop {
            // Not all nodes at once after a power cut or a rotation.
            sleep(Duration::from_secs(2).mul_f64(rand::random_range(0.0..1.0))).await;
            for server in servers.targets().iter().take(3) {
                let fetched = client
                    .call(server, PATH, Bytes::from_static(&[FETCH]), CALL)
                    .await;
                let adopted = match fetched {
                    Ok(bytes) => membership
                        .keyring()
                        .adopt(&bytes)
                        .map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                match adopted {
                    Ok(changed) => {
                        if changed {
                            tracing::info!(keys = ?membership.keyring().ids(), "took over the server's gossip keyring");
                            keep(membership.keyring(), directory.clone()).await;
                        }
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(server = %server.addr, error, "no keyring from a server")
                    }
                }
            }
            sleep(PAUSE).await;
            membership.unknown_key().await;
        }
    };
    let _ = stop.run_until_cancelled(follow).await;
}

impl Mesh {
    /// The gossip keyring of this node.
    pub fn keyring(&self) -> &Keyring {
        self.inner.membership.keyring()
    }

    /// The keys of this node and of all that are present.
    pub async fn keyrings(&self) -> Vec<NodeKeys> {
        let own = NodeKeys {
            node: self.name().clone(),
            keys: Ok(self.keyring().ids()),
        };
        let mut all = vec![own];
        all.extend(self.ask_keys(Bytes::from_static(&[LIST])).await);
        all
    }

    /// Whether no node that is present would be cut off by a step.
    ///
    /// # Errors
    /// [`RotationError::NotReady`] names those that would, or that do not answer.
    pub async fn check_keyring(&self, change: &KeyringChange) -> Result<(), RotationError> {
        let unfit = |node: NodeKeys| match node.keys {
            Ok(keys) if change.fits(&keys) => None,
            Ok(keys) => Some(format!("{} (keys {keys:?})", node.node)),
            Err(reason) => Some(format!("{} ({reason})", node.node)),
        };
        let unfit: Vec<String> = match change {
            KeyringChange::Install(_) => Vec::new(),
            _ => self
                .keyrings()
                .await
                .into_iter()
                .filter_map(unfit)
                .collect(),
        };
        if unfit.is_empty() {
            Ok(())
        } else {
            Err(RotationError::NotReady(unfit))
        }
    }

    /// Takes a step of a rotation on this node, which must be a server, and on all that are present. Those that do not
    /// take it are in the answer; they fetch the keyring when they are back.
    ///
    /// # Errors
    /// [`RotationError`]; nothing was changed then. `force` skips [`check_keyring`](Self::check_keyring).
    pub async fn change_keyring(
        &self,
        change: &KeyringChange,
        force: bool,
    ) -> Result<Vec<NodeKeys>, RotationError> {
        if !self.is_server() {
            return Err(RotationError::NotServer(self.name().clone()));
        }
        if !force {
            self.check_keyring(change).await?;
        }
        change.apply(self.keyring())?;
        keep(self.keyring(), self.inner.directory.clone()).await;
        let own = NodeKeys {
            node: self.name().clone(),
            keys: Ok(self.keyring().ids()),
        };
        let mut all = vec![own];
        all.extend(self.ask_keys(change.encode()).await);
        Ok(all)
    }

    /// What the other nodes go by: the certificate of this one.
    fn is_server(&self) -> bool {
        let chain = self.inner.identity.chain();
        let rights = chain
            .first()
            .map(|leaf| PublishRights::from_certificate(leaf));
        rights.is_some_and(|rights| rights.is_ok_and(|rights| rights.is_server()))
    }

    async fn ask_keys(&self, body: Bytes) -> Vec<NodeKeys> {
        let own = self.id();
        let mut targets: Vec<(NodeName, Target)> = Vec::new();
        for node in self.catalog().nodes() {
            let member = node.record.is_member() && node.liveness.is_present();
            if node.record.id != own && member {
                let name = node.record.name.clone();
                let target = Target::node(node.record.socket_addr(), name.clone());
                targets.push((name, target));
            }
        }
        let mut all = Vec::with_capacity(targets.len());
        for some in targets.chunks(AT_ONCE) {
            let mut calls = JoinSet::new();
            for (node, target) in some.iter().cloned() {
                let (client, body) = (self.rpc_client().clone(), body.clone());
                calls.spawn(async move {
                    let answer = client.call(&target, PATH, body, CALL).await;
                    let keys = answer
                        .map(|ids| read_ids(&ids))
                        .map_err(|error| error.to_string());
                    NodeKeys { node, keys }
                });
            }
            all.extend(calls.join_all().await);
        }
        all.sort_by(|one, other| one.node.cmp(&other.node));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_travel() {
        let keyring = Keyring::generate().unwrap();
        let first = keyring.ids()[0];
        let key = Keyring::new_key().unwrap();
        for change in [
            KeyringChange::Install(key),
            KeyringChange::Use(first),
            KeyringChange::Remove(first),
        ] {
            let bytes = change.encode();
            assert_eq!(KeyringChange::decode(&bytes).unwrap().encode(), bytes);
            for cut in 0..bytes.len() {
                assert!(KeyringChange::decode(&bytes[..cut]).is_none());
            }
        }
        assert!(KeyringChange::decode(&[9, 1, 2, 3, 4]).is_none());
        assert_eq!(read_ids(&ids(&keyring)), [first]);
    }

    #[test]
    fn a_step_that_would_cut_a_node_off_does_not_fit() {
        let keyring = Keyring::generate().unwrap();
        let key = Keyring::new_key().unwrap();
        let (first, second) = (keyring.ids()[0], keyring.install(&key).unwrap());
        assert!(!KeyringChange::Use(second).fits(&[first]));
        assert!(KeyringChange::Use(second).fits(&[first, second]));
        assert!(!KeyringChange::Remove(first).fits(&[first, second]));
        assert!(KeyringChange::Remove(first).fits(&[second, first]));
        assert!(KeyringChange::Remove(first).fits(&[second]));
    }
}
