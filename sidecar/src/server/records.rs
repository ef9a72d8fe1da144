//! What the server itself keeps in the ledger: the cluster's name, the gossip keyring, nodes and join
//! tokens. Plain keys of the namespace `mesh`, values in JSON (the keyring in its own form).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libmesh::{
    identity::TrustDomain,
    join::JoinToken,
    member::Keyring,
    model::{Datacenter, NodeId, NodeName},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use vault_kv::{Kv, Meta, Vault};
use zeroize::Zeroizing;

use super::ServerError;

/// The namespace of the mesh's own keys; intentions are kept in it as well.
pub const NAMESPACE: &str = "mesh";

const CLUSTER: &str = "cluster";
const KEYRING: &str = "keyring";

/// The names that never change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cluster {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The datacenter of this store.
    pub datacenter: Datacenter,
}

/// A node that has been given a certificate: its name belongs to its key from then on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Node {
    /// The hash of its key.
    pub id: NodeId,
    /// What it may publish.
    pub publish: Vec<String>,
    /// The join token it came with; empty for the server itself.
    pub token: String,
    /// Unix seconds.
    pub joined: u64,
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Token {
    /// SHA-256 of the secret, hexadecimal.
    pub secret: String,
    /// What its nodes may publish.
    pub publish: Vec<String>,
    /// How many more nodes may join with it.
    pub uses_left: u32,
    /// Unix seconds.
    pub expires: u64,
}

/// The records of one store.
#[derive(Clone)]
pub struct Records {
    kv: Kv,
}

impl Records {
    /// The records in `vault`.
    pub fn new(vault: &Vault) -> Self {
        Self {
            kv: vault.kv(NAMESPACE),
        }
    }

    /// The keys they are kept in.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, u64)>, ServerError> {
        let Some(pair) = self.kv.get(key)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&pair.value)
            .map_err(|error| ServerError::Record(key.to_owned(), error.to_string()))?;
        Ok(Some((value, pair.modified)))
    }

    async fn write<T: Serialize>(
        &self,
        meta: Meta,
        key: &str,
        value: &T,
        cas: u64,
    ) -> Result<bool, ServerError> {
        let value = Zeroizing::new(serde_json::to_vec(value).expect("plain data always encodes"));
        Ok(self.kv.put(meta, key, value, 0, Some(cas)).await?)
    }

    /// The cluster's names: made at the first call, the same for ever after.
    pub async fn cluster(&self, datacenter: &Datacenter) -> Result<Cluster, ServerError> {
        if let Some((cluster, _)) = self.read::<Cluster>(CLUSTER)? {
            return Ok(cluster);
        }
        let name = format!("{}.mesh", uuid::Uuid::new_v4());
        let cluster = Cluster {
            trust_domain: TrustDomain::parse(&name).expect("a UUID is a host label"),
            datacenter: datacenter.clone(),
        };
        self.write(system("cluster named", &name), CLUSTER, &cluster, 0)
            .await?;
        let (cluster, _) = self
            .read(CLUSTER)?
            .ok_or_else(|| ServerError::Record(CLUSTER.to_owned(), "it vanished".to_owned()))?;
        Ok(cluster)
    }

    /// The gossip keyring: made at the first call.
    pub async fn keyring(&self) -> Result<Keyring, ServerError> {
        let unusable = |error: String| ServerError::Record(KEYRING.to_owned(), error);
        if self.kv.get(KEYRING)?.is_none() {
            let keyring = Keyring::generate().map_err(|error| unusable(error.to_string()))?;
            let meta = system("gossip keyring made", "");
            self.kv
                .put(meta, KEYRING, keyring.to_bytes(), 0, Some(0))
                .await?;
        }
        let pair = self.kv.get(KEYRING)?;
        let pair = pair.ok_or_else(|| unusable("it vanished".to_owned()))?;
        Keyring::from_bytes(&pair.value).map_err(|error| unusable(error.to_string()))
    }

    /// Keeps a changed keyring.
    pub async fn set_keyring(&self, meta: Meta, keyring: &Keyring) -> Result<(), ServerError> {
        self.kv
            .put(meta, KEYRING, keyring.to_bytes(), 0, None)
            .await?;
        Ok(())
    }

    /// The node of this name.
    pub fn node(&self, name: &NodeName) -> Result<Option<Node>, ServerError> {
        Ok(self.read(&node_key(name))?.map(|(node, _)| node))
    }

    /// Binds a name to a key. `false`: it belongs to another key.
    pub async fn bind_node(&self, name: &NodeName, node: &Node) -> Result<bool, ServerError> {
        let key = node_key(name);
        let before = self.read::<Node>(&key)?;
        if before
            .as_ref()
            .is_some_and(|(before, _)| before.id != node.id)
        {
            return Ok(false);
        }
        let meta = system("node joined", name.as_str());
        let cas = before.map_or(0, |(_, modified)| modified);
        self.write(meta, &key, node, cas).await
    }

    /// Keeps a new token.
    pub async fn add_token(
        &self,
        meta: Meta,
        token: &JoinToken,
        publish: Vec<String>,
        uses: u32,
        ttl: Duration,
    ) -> Result<(), ServerError> {
        let record = Token {
            secret: secret_hash(token.secret()),
            publish,
            uses_left: uses,
            expires: now().saturating_add(ttl.as_secs()),
        };
        let key = token_key(&hex(&token.id()));
        self.write(meta, &key, &record, 0).await?;
        Ok(())
    }

    /// A token with the index of its record.
    pub fn token(&self, id: &str) -> Result<Option<(Token, u64)>, ServerError> {
        self.read(&token_key(id))
    }

    /// Takes one use of a token. `false`: somebody else changed it meanwhile.
    pub async fn use_token(
        &self,
        id: &str,
        token: &Token,
        modified: u64,
        node: &NodeName,
    ) -> Result<bool, ServerError> {
        let left = Token {
            uses_left: token.uses_left.saturating_sub(1),
            ..token.clone()
        };
        let mut meta = system("join token used", id);
        meta.keys.push(format!("node/{node}"));
        self.write(meta, &token_key(id), &left, modified).await
    }

    /// Every token, by id.
    pub fn tokens(&self) -> Result<Vec<(String, Token)>, ServerError> {
        let mut found = Vec::new();
        for key in self.kv.keys("join-token/", "")? {
            if let Some((token, _)) = self.read(&key)? {
                found.push((key["join-token/".len()..].to_owned(), token));
            }
        }
        Ok(found)
    }

    /// Takes a token away. `false`: there is none of that id.
    pub async fn remove_token(&self, meta: Meta, id: &str) -> Result<bool, ServerError> {
        let known = self.token(id)?.is_some();
        self.kv.delete(meta, &token_key(id), None).await?;
        Ok(known)
    }
}

impl Token {
    /// Why it is good for nothing, if it is.
    pub fn spent(&self) -> Option<&'static str> {
        if self.uses_left == 0 {
            Some("it was used as often as it may be")
        } else if self.expires <= now() {
            Some("it has expired")
        } else {
            None
        }
    }

    /// Whether this is its secret. Hashes are compared, so time tells nothing of the secret.
    pub fn has_secret(&self, secret: &[u8; 32]) -> bool {
        self.secret == secret_hash(secret)
    }
}

fn node_key(name: &NodeName) -> String {
    format!("node/{name}")
}

fn token_key(id: &str) -> String {
    format!("join-token/{id}")
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret_hash(secret: &[u8; 32]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, secret).as_ref())
}

/// Unix seconds.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// A change that the server makes by itself.
pub fn system(operation: &str, key: &str) -> Meta {
    Meta {
        actor: "system: server".to_owned(),
        via: "internal".to_owned(),
        operation: operation.to_owned(),
        keys: (!key.is_empty())
            .then(|| key.to_owned())
            .into_iter()
            .collect(),
        ..Meta::default()
    }
}
