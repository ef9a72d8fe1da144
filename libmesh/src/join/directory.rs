//! The node directory: everything that makes a process the same node after a restart.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::NodeCredentials;
use crate::{
    files,
    identity::{KeyError, NodeKey, TrustBundle, TrustDomain},
    member::Keyring,
    model::{Datacenter, NodeName},
};

/// Version of the certificate file's layout.
const FORMAT: u8 = 1;

/// Why the node directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A file cannot be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is damaged.
    #[error(
        "{path} is damaged ({reason}); remove the node directory and join again with a new token"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The node key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A directory with the node's key, certificate, gossip keyring, member candidates, own log and config bundle:
/// mode 0700, its files 0600.
#[derive(Debug, Clone)]
pub struct NodeDirectory {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Certificate {
    name: NodeName,
    datacenter: Datacenter,
    trust_domain: TrustDomain,
    chain: Vec<Vec<u8>>,
    bundle: TrustBundle,
}

impl NodeDirectory {
    /// The directory at `path`, made if it is not there.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        files::create_private_dir(path).map_err(|source| DirectoryError::File {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The node key, made at the first call.
    pub fn key(&self) -> Result<NodeKey, DirectoryError> {
        Ok(NodeKey::load_or_create(&self.path.join("key.p8"))?)
    }

    /// What was kept; `None` before the first join.
    pub fn load(&self) -> Result<Option<NodeCredentials>, DirectoryError> {
        let (Some(certificate), Some(keyring)) = (self.read("certificate")?, self.read("keyring")?)
        else {
            return Ok(None);
        };
        let damaged = |name: &str, reason: String| DirectoryError::Damaged {
            path: self.path.join(name),
            reason,
        };
        let Certificate {
            name,
            datacenter,
            trust_domain,
            chain,
            bundle,
        } = match certificate.split_first() {
            Some((&FORMAT, bytes)) => {
                postcard::from_bytes(bytes).map_err(|e| damaged("certificate", e.to_string()))?
            }
            _ => {
                return Err(damaged(
                    "certificate",
                    "it is of another version".to_owned(),
                ));
            }
        };
        let keyring =
            Keyring::from_bytes(&keyring).map_err(|e| damaged("keyring", e.to_string()))?;
        let (seeds, config) = (Vec::new(), None);
        let key = self.key()?;
        Ok(Some(NodeCredentials {
            key,
            name,
            datacenter,
            trust_domain,
            chain,
            bundle,
            keyring,
            seeds,
            config,
        }))
    }

    /// Keeps the certificate, roots and keyring of credentials whose key is this directory's.
    pub fn save(&self, credentials: &NodeCredentials) -> Result<(), DirectoryError> {
        let NodeCredentials {
            name,
            datacenter,
            trust_domain,
            chain,
            bundle,
            keyring,
            ..
        } = credentials.clone();
        let certificate = Certificate {
            name,
            datacenter,
            trust_domain,
            chain,
            bundle,
        };
        let bytes = postcard::to_extend(&certificate, vec![FORMAT]).expect("plain types encode");
        self.write("keyring", &keyring.to_bytes())?;
        self.write("certificate", &bytes)
    }

    /// The members to announce to after a restart.
    pub fn candidates(&self) -> Result<Vec<u8>, DirectoryError> {
        Ok(self
            .read("candidates")?
            .map(|bytes| bytes.to_vec())
            .unwrap_or_default())
    }

    pub(crate) fn save_candidates(&self, bytes: &[u8]) -> Result<(), DirectoryError> {
        self.write("candidates", bytes)
    }

    /// The membership generation of the node's last life; 0 before the first.
    pub(crate) fn generation(&self) -> Result<u64, DirectoryError> {
        let bytes = self.read("generation")?;
        let bytes: Option<[u8; 8]> = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
        Ok(bytes.map_or(0, u64::from_be_bytes))
    }

    pub(crate) fn save_generation(&self, generation: u64) -> Result<(), DirectoryError> {
        self.write("generation", &generation.to_be_bytes())
    }

    /// The own log as [`Catalog::save`](crate::catalog::Catalog::save) gave it; `None` before the first start.
    pub(crate) fn log(&self) -> Result<Option<Zeroizing<Vec<u8>>>, DirectoryError> {
        self.read("log")
    }

    pub(crate) fn save_log(&self, bytes: &[u8]) -> Result<(), DirectoryError> {
        self.write("log", bytes)
    }

    /// Where the config bundle is cached.
    pub(crate) fn bundle_path(&self) -> PathBuf {
        self.path.join("bundle")
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, DirectoryError> {
        let path = self.path.join(name);
        files::read_private(&path).map_err(|source| DirectoryError::File { path, source })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), DirectoryError> {
        let path = self.path.join(name);
        files::write_private(&path, bytes).map_err(|source| DirectoryError::File { path, source })
    }
}
