//! The node directory: everything that makes a process the same node after a restart.

use std::{
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::{
    NodeCredentials,
    lock::{DirectoryLock, Taken},
};
use crate::{
    files,
    identity::{KeyError, NodeKey, TrustBundle, TrustDomain},
    member::Keyring,
    model::{Datacenter, NodeName},
};

/// Version of the certificate file's layout.
const FORMAT: u8 = 1;
/// How long a node of this process that was dropped may take to let go of its directory.
const ENDING: Duration = Duration::from_secs(2);

/// Why the node directory cannot be used. Blames this machine; trying again does not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// A file cannot be read or written.
    #[error("node directory: cannot use {}; {}", path.display(), remedy(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others may enter it: whoever reads the node key is this node.
    #[error(
        "node directory: {} has mode {mode:04o}, so that others may enter it; run: chmod 700 {}",
        path.display(), path.display()
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another process uses it.
    #[error(
        "node directory: {} is in use by {}; stop that one, or give this one a directory of its own",
        path.display(), pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The other process.
        pid: Option<u32>,
    },
    /// A file is damaged.
    #[error(
        "node directory: {} is damaged ({reason}); remove the node directory and join again with a new token (on a \
         server: mesh join-token create)",
        path.display()
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

/// What to do about what the system said.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full: free some space there, then start again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "use a directory on a disk that can be written",
        _ => "let the user of this process own the directory and write there, or use another one",
    }
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
    /// The directory at `path`, made if it is not there. One that others may enter is closed to them, unless it holds a
    /// node key already: then somebody may have read it.
    ///
    /// # Errors
    /// [`DirectoryError::Exposed`] when others may enter it, and a key is there.
    pub fn open(path: &Path) -> Result<Self, DirectoryError> {
        let file = |source| DirectoryError::File {
            path: path.to_owned(),
            source,
        };
        files::create_private_dir(path).map_err(file)?;
        let mode = std::fs::metadata(path).map_err(file)?.permissions().mode() & 0o7777;
        let directory = Self {
            path: path.to_owned(),
        };
        if mode & 0o077 != 0 {
            if directory.key_path().exists() {
                return Err(DirectoryError::Exposed {
                    path: directory.path,
                    mode,
                });
            }
            std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(file)?;
        }
        Ok(directory)
    }

    /// Takes the directory for this process, until the lock is dropped.
    ///
    /// # Errors
    /// [`DirectoryError::InUse`] at once where another process has it. A node of this very process that was dropped and
    /// is still ending is waited for, two seconds at most.
    pub(crate) async fn lock(&self) -> Result<DirectoryLock, DirectoryError> {
        let path = self.path.join("lock");
        let until = Instant::now() + ENDING;
        loop {
            match DirectoryLock::take(&path) {
                Ok(lock) => return Ok(lock),
                Err(Taken::By(pid))
                    if pid == Some(std::process::id()) && Instant::now() < until =>
                {
                    sleep(ENDING / 100).await;
                }
                Err(Taken::By(pid)) => {
                    return Err(DirectoryError::InUse {
                        path: self.path.clone(),
                        pid,
                    });
                }
                Err(Taken::Unusable(source)) => return Err(DirectoryError::File { path, source }),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the node key.
    pub fn key_path(&self) -> PathBuf {
        self.path.join("key.p8")
    }

    /// The node key, made at the first call.
    pub fn key(&self) -> Result<NodeKey, DirectoryError> {
        Ok(NodeKey::load_or_create(&self.key_path())?)
    }

    /// The file of the gossip keyring.
    pub(crate) fn keyring_path(&self) -> PathBuf {
        self.path.join("keyring")
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

    /// Keeps a changed keyring.
    pub(crate) fn save_keyring(&self, keyring: &Keyring) -> Result<(), DirectoryError> {
        self.write("keyring", &keyring.to_bytes())
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

    /// SHA-256 of the root that the join token pinned; `None` before the first join with a token.
    pub(crate) fn pin(&self) -> Result<Option<[u8; 32]>, DirectoryError> {
        let bytes = self.read("pin")?;
        Ok(bytes.and_then(|bytes| bytes.as_slice().try_into().ok()))
    }

    pub(crate) fn save_pin(&self, ca_hash: &[u8; 32]) -> Result<(), DirectoryError> {
        self.write("pin", ca_hash)
    }

    /// Where the config bundle is cached.
    pub fn bundle_path(&self) -> PathBuf {
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
