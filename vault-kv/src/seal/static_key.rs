//! The unseal key in a file, for unattended starts.

use std::{fs::File, io::Read, os::unix::fs::PermissionsExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::barrier::SecretKey;

/// What is wrong with a key file.
#[derive(Debug, thiserror::Error)]
pub enum StaticKeyError {
    /// It cannot be read.
    #[error("cannot read the unseal key file {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "the unseal key file {path} has mode {mode:04o}; only its owner may read it: chmod 600 {path}"
    )]
    Mode {
        /// The file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// It is to be a credential of systemd, and there is none.
    #[error(
        "the unseal key is to be the systemd credential {0}, but this service has none: add LoadCredential={0}:/path/to/key to its unit"
    )]
    NoCredential(String),
    /// It holds no key.
    #[error(
        "the unseal key file {0} must hold 32 bytes: raw, as 64 hexadecimal digits or in base64"
    )]
    Content(String),
}

/// Before the name of a credential that systemd hands over.
const CREDENTIAL: &str = "credential:";

/// Reads the key: 32 raw bytes, 64 hexadecimal digits, or base64.
pub(crate) fn read(path: &Path) -> Result<SecretKey, StaticKeyError> {
    let credential = path.to_str().and_then(|path| path.strip_prefix(CREDENTIAL));
    let Some(credential) = credential else {
        return read_file(path, true);
    };
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY");
    read_credential(folder.as_deref().map(Path::new), credential)
}

/// systemd sets the mode of credentials by itself and keeps them for the service alone.
fn read_credential(folder: Option<&Path>, name: &str) -> Result<SecretKey, StaticKeyError> {
    let missing = || StaticKeyError::NoCredential(name.to_owned());
    let plain = !name.is_empty() && !name.contains('/') && name != "..";
    let folder = folder.filter(|_| plain).ok_or_else(missing)?;
    let path = folder.join(name);
    if !path.exists() {
        return Err(missing());
    }
    read_file(&path, false)
}

fn read_file(path: &Path, check_mode: bool) -> Result<SecretKey, StaticKeyError> {
    let name = path.display().to_string();
    let io = |source| StaticKeyError::Io {
        path: name.clone(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
    if check_mode && mode & 0o077 != 0 {
        return Err(StaticKeyError::Mode { path: name, mode });
    }
    let mut content = Zeroizing::new(Vec::with_capacity(256));
    file.take(256).read_to_end(&mut content).map_err(io)?;
    parse(&content).ok_or(StaticKeyError::Content(name))
}

fn parse(content: &[u8]) -> Option<SecretKey> {
    if content.len() == 32 {
        return super::unseal_key(content);
    }
    let text = content.trim_ascii();
    if text.len() == 64 {
        let mut bytes = Zeroizing::new([0u8; 32]);
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let digits = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        return super::unseal_key(&bytes[..]);
    }
    let decoded = Zeroizing::new(STANDARD.decode(text).ok()?);
    super::unseal_key(&decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_of_the_same_key() {
        let raw: Vec<u8> = (0..32).collect();
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let base64 = STANDARD.encode(&raw);
        for form in [raw.clone(), (hex + "\n").into_bytes(), base64.into_bytes()] {
            assert_eq!(parse(&form).unwrap().bytes()[..], raw);
        }
        for wrong in [&b""[..], b"short", &[0; 31], &[b'x'; 64]] {
            assert!(parse(wrong).is_none());
        }
    }

    #[test]
    fn a_credential_of_systemd_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("unseal"), [2; 32]).unwrap();
        let mode = std::fs::Permissions::from_mode(0o440);
        std::fs::set_permissions(dir.path().join("unseal"), mode).unwrap();
        let key = read_credential(Some(dir.path()), "unseal").unwrap();
        assert_eq!(key.bytes(), &[2; 32]);
        for (folder, name) in [
            (None, "unseal"),
            (Some(dir.path()), "other"),
            (Some(dir.path()), "../unseal"),
        ] {
            let error = read_credential(folder, name).err().unwrap();
            assert!(error.to_string().contains("LoadCredential="), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, [1; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            read(&path),
            Err(StaticKeyError::Mode { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().bytes(), &[1; 32]);
    }
}
