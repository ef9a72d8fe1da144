//! What `mesh-bench store` measures that no interface shows. Not part of what this crate promises.

use zeroize::Zeroizing;

use crate::{
    core::{Change, Error, Meta, Op},
    vault::Vault,
};

/// Commits one record as one entry; durable when it returns its index.
pub async fn put(vault: &Vault, path: &str, value: &[u8]) -> Result<u64, Error> {
    let core = vault.unsealed()?.core.clone();
    let op = Op::Put {
        path: path.to_owned(),
        value: Zeroizing::new(value.to_vec()),
    };
    let meta = Meta {
        actor: "bench".to_owned(),
        via: "internal".to_owned(),
        operation: "put".to_owned(),
        ..Meta::default()
    };
    core.commit(Change {
        meta,
        ops: vec![op],
        expect: Vec::new(),
    })
    .await
}

/// Reads one record; its length.
pub fn get(vault: &Vault, path: &str) -> Result<Option<usize>, Error> {
    let value = vault.unsealed()?.core.get(path)?;
    Ok(value.map(|value| value.len()))
}

/// Names that start with `prefix`.
pub fn scan(vault: &Vault, prefix: &str) -> Result<Vec<String>, Error> {
    vault.unsealed()?.core.scan(prefix)
}

/// Waits until `path` changed after `index`.
pub async fn wait(vault: &Vault, path: &str, index: u64) -> Result<u64, Error> {
    let core = vault.unsealed()?.core.clone();
    core.wait(path, index).await
}

/// Entries that are durable and not yet folded.
pub fn unfolded(vault: &Vault) -> u64 {
    let store = vault.store();
    let folded = store.folded();
    store.head().index - folded.min(store.head().index)
}
